"""The ready model: a trained dual encoder that comes with the project, packed into 12 MB.

It lies in this room because packing and reading it is what `runs` does with any run: options, weights and digest in a
folder. `archive` and `localization` both stand above it.
"""

from __future__ import annotations

from pathlib import Path

READY = Path(__file__).resolve().with_name("model")
"""The folder of the model that comes with the project."""
PACKED = ".safetensors"
WEIGHTS = f"model{PACKED}"
OPTIONS = "options.yaml"
CARD = "README.md"
DIGESTS = "SHA256SUMS"
"""The files of a packed model; `sha256sum -c SHA256SUMS` in the folder checks the first two."""
PARTS = ("heads", "image", "text")
"""Of a model, each of which is coded in its own way."""
MOST_BYTES = 12_000_000
"""Of a packed folder, so that a clone stays small."""
