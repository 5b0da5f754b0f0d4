"""The images of an experiment, decoded once and shared by its folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.image_store import PictureStore, choose_cache
from option.schema import Pictures
from utils import logger


class PictureLibrary:
    """The pictures of an experiment, read once and shared by its folds."""

    def __init__(
        self,
        pictures: Pictures,
        folder: Path,
        cache_folder: Path,
        names: Sequence[str],
        device: torch.device,
        processes: int = 1,
        beside: list[PictureStore] | None = None,
    ) -> None:
        """Name the pictures; nothing is decoded yet.

        Args:
            pictures: how to read them.
            folder: where they lie.
            cache_folder: where a cache on disk goes.
            names: file names in the image folder; order and repeats do not matter.
            device: where the batches will go.
            processes: how many of this machine hold a library of the same pictures.
            beside: all stores that take memory of this process; the library's own are added.
        """
        self.pictures = pictures
        self.folder = folder
        self.cache_folder = cache_folder
        self.names = sorted(set(names))
        self.row = {name: row for row, name in enumerate(self.names)}
        self.device = device
        self.processes = processes
        self.stores: dict[int, PictureStore] = {}
        self.beside = [] if beside is None else beside

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all these pictures belong to the library."""
        return self.row.keys() >= set(names)

    def open(self, names: Sequence[str], size: int, title: str) -> tuple[PictureStore, Tensor]:
        """A store that holds pictures at a size, and the row of each name in it [N].

        Args:
            names: the pictures that are needed now; those not yet held are decoded, unless `dataset.cache` is `off`.
            size: side in pixels.
            title: of the progress bar.
        """
        if size not in self.stores:
            self.stores[size] = self._store(size)
            self.beside.append(self.stores[size])
        store, rows = self.stores[size], torch.tensor([self.row[name] for name in names])
        store.load(rows, title)
        return store, rows

    def _store(self, size: int) -> PictureStore:
        promised = {"ram": sum(store.promised for store in self.beside)}
        cache = choose_cache(self.pictures.cache, len(self.names), size, self.device, self.processes, promised)
        logger.info("Pictures of %d pixels: cache %s, %.0f MiB", size, cache, len(self.names) * 3 * size**2 / 2**20)
        paths = [self.folder / name for name in self.names]
        return PictureStore(paths, size, cache, self.cache_folder, self.device, self.pictures.max_pixels)
