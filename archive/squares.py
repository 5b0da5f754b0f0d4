"""Reads the images of a folder by batches, with what an index records of each.

Letters: B images of a batch that can be read, S image side in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from archive.records import Record
from archive.upkeep import record_of
from data.images import load_square
from data.lists import name_fault
from data.rasters.places import bounds_of
from option.dataset import ImageReading
from option.images import ImageRule
from utils import InputError

Outcome = list[Record | str]
"""Of each image of a batch what the index is to know of it, or what is wrong with it."""


def read_squares(
    batches: Sequence[Sequence[str]], folder: Path, dataset: ImageReading
) -> Iterator[tuple[Tensor, Outcome]]:
    """The readable images [B, 3, S, S] of each batch of names, and what is wrong with the others.

    Read ahead by `dataset.workers` processes; without any, by threads, a batch at a time.
    """
    squares = _Squares(folder, dataset.image_size, dataset.rule)
    if dataset.workers == 0:
        return squares.by_threads(batches)
    return iter(DataLoader(squares, batch_size=None, sampler=batches, num_workers=dataset.workers))


class _Squares(Dataset[tuple[Tensor, Outcome]]):
    """Images [B, 3, S, S] by batches of names, without those that can't be read."""

    def __init__(self, folder: Path, size: int, rule: ImageRule) -> None:
        self.folder = folder
        self.size = size
        self.rule = rule

    def __getitem__(self, names: Sequence[str]) -> tuple[Tensor, Outcome]:
        return self._joined(map(self._one, names))

    def by_threads(self, batches: Sequence[Sequence[str]]) -> Iterator[tuple[Tensor, Outcome]]:
        """Batch after batch, each with all cores when it is asked for."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for names in batches:
                yield self._joined(threads.map(self._one, names))

    def _one(self, name: str) -> tuple[np.ndarray | None, Record | str]:
        """A square with its record, or None and what is wrong."""
        try:
            if fault := name_fault(name, "image"):
                raise InputError(fault)
            record = record_of(self.folder, name)  # first: an image that is replaced meanwhile shows as changed
            square = load_square(self.folder / name, self.size, self.rule)
            return square, record._replace(bounds=bounds_of(self.folder / name, self.rule))
        except InputError as error:
            return None, str(error)

    def _joined(self, found: Iterable[tuple[np.ndarray | None, Record | str]]) -> tuple[Tensor, Outcome]:
        """A batch of what was read."""
        squares, outcome = zip(*found, strict=True)
        readable = [square for square in squares if square is not None]
        empty = np.empty((0, 3, self.size, self.size), np.uint8)
        return torch.from_numpy(np.stack(readable) if readable else empty), list(outcome)
