"""The weights and inputs that the reference outputs in `tests/reference` were computed from, rebuilt from names alone.

Every tensor has a generator of its own, seeded by the SHA-256 of "<seed>:<name>"; its standard normal draws are scaled
by a rule that depends on the name and the shape.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batches.batch import Batch

FOLDER = Path(__file__).parent / "reference"
WORDS = [
    *("plane", "airport", "many", "green", "trees", "building", "river", "bridge", "road", "beach"),
    *("sea", "parking", "lot", "cars", "white", "square", "church", "desert", "pond", "<unk>"),
]
LENGTHS = (14, 12, 9, 9, 6, 3, 1)


def generator(name: str, seed: int = 0) -> np.random.Generator:
    """The generator that belongs to a name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def fill(name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """The value of one released parameter or buffer."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    normal = generator(name).standard_normal(shape)
    if name.endswith("running_mean"):
        value = 0.1 * normal
    elif name.endswith("running_var"):
        value = 1 + 0.2 * abs(normal)
    elif name.endswith("embedding.weight"):
        value = 0.5 * normal
        value[0] = 0
    elif name.endswith("embed.weight"):
        value = 0.5 * normal
    elif len(shape) >= 2:
        value = normal / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("weight", "a_2")):
        value = 1 + 0.1 * normal
    else:
        value = 0.1 * normal
    return value.astype(np.float32)


def released_state(model: str) -> dict[str, Tensor]:
    """A whole released state dict: names and shapes from `<model>_state_dict.tsv`."""
    with (FOLDER / f"{model}_state_dict.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["name"]: torch.from_numpy(fill(row["name"], tuple(json.loads(row["shape"])))) for row in rows}


def outputs(model: str) -> dict[str, Tensor]:
    """What the published code gave for these weights and inputs."""
    with np.load(FOLDER / f"{model}_seed0.npz", allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def batch() -> Batch:
    """Six images with their regions, and seven captions (ids 1..19, lengths 14 down to 1), also spoken."""
    images = generator("input:images").standard_normal((6, 3, 256, 256)).astype(np.float32)
    tokens = generator("input:texts").integers(1, 20, size=(7, 14))
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 0
    nodes = generator("input:local_rep").standard_normal((6, 20, 20)).astype(np.float32)
    similarities = torch.from_numpy(generator("input:local_adj").standard_normal((6, 20, 20)))
    return Batch(
        images=torch.from_numpy(images),
        tokens=torch.from_numpy(tokens),
        lengths=torch.tensor(LENGTHS),
        audio=torch.from_numpy(generator("input:audio").standard_normal((7, 3, 256, 256)).astype(np.float32)),
        nodes=torch.from_numpy(nodes),
        adjacency=similarities.softmax(dim=-1).float(),
    )
