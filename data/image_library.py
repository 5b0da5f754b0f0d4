"""The images of an experiment, decoded once and shared by its folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.image_store import ImageStore, choose_cache
from option.schema import ImageReading
from utils import logger


class ImageLibrary:
    """The images of an experiment, read once and shared by its folds."""

    def __init__(
        self,
        images: ImageReading,
        folder: Path,
        cache_folder: Path,
        names: Sequence[str],
        device: torch.device,
        processes: int = 1,
        beside: list[ImageStore] | None = None,
    ) -> None:
        """Name the images; nothing is decoded yet.

        Args:
            images: how to read them.
            folder: where they lie.
            cache_folder: where a cache on disk goes.
            names: file names in the image folder; order and repeats do not matter.
            device: where the batches will go.
            processes: how many of this machine hold a library of the same images.
            beside: all stores that take memory of this process; the library's own are added.
        """
        self.images = images
        self.folder = folder
        self.cache_folder = cache_folder
        self.names = sorted(set(names))
        self.row = {name: row for row, name in enumerate(self.names)}
        self.device = device
        self.processes = processes
        self.stores: dict[int, ImageStore] = {}
        self.beside = [] if beside is None else beside

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all these images belong to the library."""
        return self.row.keys() >= set(names)

    def open(self, names: Sequence[str], size: int, title: str, load: bool = True) -> tuple[ImageStore, Tensor]:
        """A store that holds images at a size, and the row of each name in it [N].

        Args:
            names: the images that are needed now; those not yet held are decoded, unless `dataset.cache` is `off`.
            size: side in pixels.
            title: of the progress bar.
            load: whether to decode them now; else whoever reads them loads them first.
        """
        if size not in self.stores:
            self.stores[size] = self._store(size)
            self.beside.append(self.stores[size])
        store, rows = self.stores[size], torch.tensor([self.row[name] for name in names])
        if load:
            store.load(rows, title)
        return store, rows

    def _store(self, size: int) -> ImageStore:
        promised = {"ram": sum(store.promised for store in self.beside)}
        cache = choose_cache(self.images.cache, len(self.names), size, self.device, self.processes, promised)
        logger.info("Images of %d pixels: cache %s, %.0f MiB", size, cache, len(self.names) * 3 * size**2 / 2**20)
        paths = [self.folder / name for name in self.names]
        return ImageStore(paths, size, cache, self.cache_folder, self.device, self.images.max_pixels)
