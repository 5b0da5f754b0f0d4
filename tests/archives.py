"""Small checkpoints and archives of images, for the tests of the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import option
import search
import vocab
from archive.encoder import Encoder
from archive.index_folder import IndexFolder
from archive.indexing import Share, Target, Upkeep, index_archive
from layers import build_model
from option import Options
from runs.checkpoints import save_checkpoint
from runs.loaders import read_vocabulary
from tests.tiny import SIDE, make_precomp

WORDS = ["a red field", "a green roof", "a blue pond", "a yellow field"]


@dataclass(frozen=True)
class Trained:
    """A model with random weights as training would leave it: YAML, checkpoint, and its images in two folders."""

    options: Path
    checkpoint: Path
    images: Path

    def arguments(self, out: Path, *more: str) -> list[str]:
        """Of `search.py index`."""
        given = {"path_opt": self.options, "checkpoint": self.checkpoint, "images": self.images, "out": out}
        return ["index", *(word for key, value in given.items() for word in (f"--{key}", str(value))), *more]


def make_trained(
    folder: Path, tiny_options: Callable[..., Options], model: str, changes: Mapping[str, Any] | None = None
) -> Trained:
    """Write a checkpoint of a small model, and 12 images below `north` and `south`."""
    folder.mkdir(parents=True, exist_ok=True)
    images = make_precomp(folder / "data", train=12, test=0) / "images"
    for number, path in enumerate(sorted(images.iterdir())):
        part = images / ("north" if number % 2 else "south")
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)
    vocab.build(WORDS, min_count=1).save(folder / "vocab.json")
    dataset = {
        "dataset.vocab_path": str(folder / "vocab.json"),
        "dataset.data_path": str(folder / "data"),
        "dataset.local_path": None,
        "dataset.image_size": SIDE,
        "dataset.workers": 0,
        "dataset.batch_size_val": 5,
    }
    options = tiny_options(model, dataset | dict(changes or {}))
    (folder / "tiny.yaml").write_text(option.to_yaml(options))
    words = read_vocabulary(options)
    torch.manual_seed(0)
    weights = build_model(options, words).state_dict()
    save_checkpoint(folder / "best.pth.tar", {"model": weights, "vocabulary": words.digest}, options)
    return Trained(folder / "tiny.yaml", folder / "best.pth.tar", images)


def make_index(trained: Trained, folder: Path) -> Path:
    """An index of its images in shards of 5."""
    search.main(trained.arguments(folder / "index", "--shard", "5"))
    return folder / "index"


@dataclass
class Archive:
    """An index, and a copy of its images."""

    encoder: Encoder
    checkpoint: Path
    images: Path
    index: Path

    def follow(self, share: Share = Share(), store: str | None = None, **upkeep: bool) -> None:  # noqa: B008 (frozen)
        """Run the command."""
        target = Target(self.index, 5, "float32", store)
        index_archive(self.encoder, self.checkpoint, self.images, target, share, Upkeep(**upkeep))

    def names(self) -> list[str]:
        return IndexFolder.open(self.index).names()

    def embeddings(self) -> dict[str, Tensor]:
        return dict(zip(self.names(), self.rows(), strict=True))

    def rows(self) -> Tensor:
        embeddings = IndexFolder.open(self.index).embeddings
        assert embeddings is not None
        return torch.cat(list(embeddings.blocks()))
