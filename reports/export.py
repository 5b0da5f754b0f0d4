"""What one or more checkpoints make of a data set, as HDF5: embeddings (`test.py --export`) and ranks; docs/export.md.

Letters: N images, M captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
from torch import Tensor

import option
from data.annotations import Annotations
from data.embeddings import FORMAT
from layers.registry import registered
from metrics.ranks import Ranks
from option import Options
from utils import file_sha256, write_atomic
from vocab import Vocabulary

RANKS_FORMAT = "rsretrieval-ranks-1"
TIES = ("image_ties", "caption_ties", "own_texts")
"""Of a fold's group, beside its ranks: what `metrics.Ranks` knows of equal scores; older files lack it."""


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one checkpoint.

    Attributes:
        images: [N, D] float32, in the order of the list.
        captions: [M, D] float32, one row per caption.
        checkpoint: the file of the weights.
        fold: the fold that they were trained on; None where the file does not say.
        ranks: where each image and each caption found its match.
    """

    images: Tensor
    captions: Tensor
    ranks: Ranks
    checkpoint: Path
    fold: int | None


def write_embeddings(
    path: Path, annotations: Annotations, options: Options, vocabulary: Vocabulary, folds: Mapping[str, Embeddings]
) -> None:
    """Write the file, or nothing at all.

    Args:
        path: the file; one that is there is replaced.
        annotations: the N images and M captions.
        options: what the models were built and the data were read with.
        vocabulary: the words whose ids the captions became.
        folds: a group's name -> what it holds.

    Raises:
        OSError: the file can't be written.
    """
    cosine = registered()[options.model.name].model.scores_by_cosine()

    def fill(archive: h5py.File) -> None:
        archive.attrs["score"] = "cosine" if cosine else "model"
        archive.attrs["options"] = option.to_yaml(options)
        archive.attrs["vocabulary_sha256"] = vocabulary.digest
        for name, embeddings in folds.items():
            _write_fold(archive.create_group(name), embeddings)

    write_archive(path, FORMAT, annotations, options, fill)


def write_ranks(path: Path, annotations: Annotations, options: Options, folds: Mapping[str, Ranks]) -> None:
    """Write where each query of each fold (a group's name -> the ranks) found its match, for `python -m metrics`."""

    def fill(archive: h5py.File) -> None:
        for name, ranks in folds.items():
            _write_ranks(archive.create_group(name), ranks)

    write_archive(path, RANKS_FORMAT, annotations, options, fill)


def write_archive(
    path: Path, kind: str, annotations: Annotations, options: Options, fill: Callable[[h5py.File], None]
) -> None:
    """A file of one format: its model, the images and captions that its rows belong to, and what `fill` adds."""

    def write(file: BinaryIO) -> None:
        with h5py.File(file, "w") as archive:
            archive.attrs["format"] = kind
            archive.attrs["model"] = options.model.name
            archive.attrs["list"] = annotations.name
            archive.create_dataset("image_names", data=annotations.image_names, dtype=h5py.string_dtype())
            archive.create_dataset("captions", data=annotations.captions, dtype=h5py.string_dtype())
            archive["caption_image"] = annotations.caption_image
            fill(archive)

    write_atomic(path, write)


def _write_ranks(group: h5py.Group, ranks: Ranks) -> None:
    group["image_ranks"] = ranks.image_to_text.cpu().numpy()
    group["caption_ranks"] = ranks.text_to_image.cpu().numpy()
    for name, values in zip(TIES, (ranks.image_ties, ranks.text_ties, ranks.own_texts), strict=True):
        if values is not None:
            group[name] = values.cpu().numpy()


def _write_fold(group: h5py.Group, embeddings: Embeddings) -> None:
    _write_ranks(group, embeddings.ranks)
    group["image_embeddings"] = embeddings.images.numpy()
    group["caption_embeddings"] = embeddings.captions.numpy()
    group.attrs["checkpoint"] = str(embeddings.checkpoint)
    group.attrs["checkpoint_sha256"] = file_sha256(embeddings.checkpoint)
    if embeddings.fold is not None:
        group.attrs["fold"] = embeddings.fold
