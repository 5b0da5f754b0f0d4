"""The images of an experiment, decoded once and shared by its folds, and where there is room to keep them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from data.image_store import ImageStore
from option.dataset import ImageReading
from utils import logger

_DEVICE_SHARE = 0.3
_RAM_SHARE = 0.5


@dataclass(eq=False)
class ImageLibrary:
    """One store for each size that a run asks for; all folds share them. Nothing is decoded before it is opened.

    Attributes:
        images: how to read them.
        folder: where they lie.
        cache_folder: where a cache on disk goes.
        names: file names in the image folder; kept in order, each once.
        device: where the batches will go.
        processes: how many of this machine hold a library of the same images.
        beside: all stores that take memory of this process; the library's own are added.
        row: place of each name.
        stores: by size in pixels.
    """

    images: ImageReading
    folder: Path
    cache_folder: Path
    names: Sequence[str]
    device: torch.device
    processes: int = 1
    beside: list[ImageStore] = field(default_factory=list)
    row: dict[str, int] = field(init=False)
    stores: dict[int, ImageStore] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.names = sorted(set(self.names))
        self.row = {name: row for row, name in enumerate(self.names)}

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all these images belong to the library."""
        return self.row.keys() >= set(names)

    def open(self, names: Sequence[str], size: int, title: str, load: bool = True) -> tuple[ImageStore, Tensor]:
        """A store that holds images at a size in pixels, and the row of each name in it [N].

        Images that are not yet held are decoded under a progress bar, unless `dataset.cache` is `off`; without `load`
        whoever reads them loads them first.
        """
        if size not in self.stores:
            self.stores[size] = self._store(size)
            self.beside.append(self.stores[size])
        store, rows = self.stores[size], torch.tensor([self.row[name] for name in names])
        if load:
            store.load(rows, title)
        return store, rows

    def unkept(self, names: Sequence[str], size: int) -> tuple[ImageStore, Tensor]:
        """The same without a cache: for images that features stand for."""
        paths = [self.folder / name for name in names]
        return ImageStore(paths, size, "off", None, self.device, self.images.rule), torch.arange(len(names))

    def _store(self, size: int) -> ImageStore:
        promised = {"ram": sum(store.promised for store in self.beside)}
        cache = choose_cache(self.images.cache, len(self.names), size, self.device, self.processes, promised)
        logger.info("Images of %d pixels: cache %s, %.0f MiB", size, cache, len(self.names) * 3 * size**2 / 2**20)
        paths = [self.folder / name for name in self.names]
        return ImageStore(paths, size, cache, self.cache_folder, self.device, self.images.rule)


def choose_cache(
    requested: str,
    count: int,
    size: int,
    device: torch.device,
    processes: int = 1,
    promised: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """Where the images of a list are to be kept.

    Args:
        requested: "device", "ram", "disk" or "off" are taken as asked ("device" is "ram" where the device is the
            CPU); "auto" is "device" if the images take less than 30 % of a GPU's free memory, else "ram" if they
            take less than half of the memory available and not promised, else "disk".
        count: how many images.
        size: S, pixels; an image takes 3 S^2 bytes.
        device: where the model runs.
        processes: how many of this machine will each keep them in memory.
        promised: to other stores of each process, by cache, and not yet taken: the system hands memory out only as it
            is filled [bytes].
    """
    if requested == "device" and device.type == "cpu":
        return "ram"
    if requested != "auto":
        return requested
    needed = count * 3 * size * size
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] - promised.get("device", 0)
        if needed < _DEVICE_SHARE * free:
            return "device"
    free = available_memory() - processes * promised.get("ram", 0)
    return "ram" if processes * needed < _RAM_SHARE * free else "disk"


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that can still be taken from the machine, or from its container (cgroup 2) if that has less."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, limit = Path("/proc/meminfo"), cgroup / "memory.max"
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (content := limit.read_text().strip()).isdigit():
        taken = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())["anon"]
        available = min(available, int(content) - int(taken))
    return available
