"""A store of images at one size that decodes each image at most once, in memory or in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from data.images import DECODING_RULES, load_square
from data.lists import first_faults
from option.images import ImageRule
from runtime.locks import waiting_lock
from runtime.progress import progress_bar
from utils import InputError, logger, remove_unfinished, write_atomic

CACHES = ("device", "ram", "disk", "off")

_CHUNK = 256  # images between two marks: what a killed run has to decode again
_MARK_BYTES, _CHECKSUM_BYTES = 8, 4


class ImageStore:
    """The images of one list at one size, as uint8, each decoded at most once (unless the cache is "off").

    `load` what is needed before worker processes start: with "ram" and "device" a worker keeps what it decodes to
    itself; with "disk" the images and their marks are shared with all processes and later runs, and `load` compares the
    checksum of what others wrote. In "off" and "disk" a store can be sent to worker processes.

    Attributes:
        paths: N image files.
        size: S, pixels.
        cache: one of `CACHES`, see `data.image_library.choose_cache`.
        decoded: how many images this process has decoded.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        cache: str,
        cache_folder: Path | None,
        device: torch.device,
        rule: ImageRule,
    ) -> None:
        """Prepare the store; nothing is decoded yet.

        With "disk" the pixels go into `cache_folder`, one file for each list and size; with "device" onto `device`.
        `rule` is that of `data.images.decode`.

        Raises:
            InputError: there is no room for the pixels.
            ValueError: another cache, or "disk" without a folder.
        """
        if cache not in CACHES or (cache == "disk" and cache_folder is None):
            raise ValueError(f"cache must be one of {CACHES} ('disk' with a cache_folder), found {cache!r}")
        self.paths = tuple(paths)
        self.size = size
        self.cache = cache
        self.decoded = 0
        self._rule = rule
        # An image is held if its mark is its stamp. On disk the mark says which state of the file was decoded.
        self._stamps = np.ones(len(self.paths), dtype=np.int64)
        self._marks = np.zeros(len(self.paths), dtype=np.int64)
        self._checksums: np.ndarray | None = None
        self._compared = np.zeros(len(self.paths), dtype=bool)
        self._pixels: Tensor | None = None
        self._file: Path | None = None
        self._map: np.memmap[Any, np.dtype[np.uint8]] | None = None
        if cache == "disk" and cache_folder is not None:
            self._stamps = np.array([_stamp(path) for path in self.paths], dtype=np.int64)
            self._file = _prepare_file(self.paths, size, cache_folder, rule)
            self._open(self._file)
        elif cache != "off":
            self._pixels = _allocate(len(self.paths), size, device if cache == "device" else torch.device("cpu"))

    @property
    def promised(self) -> int:
        """Bytes of memory that the store will still take as it fills."""
        return int((self._marks != self._stamps).sum()) * 3 * self.size**2 if self.cache == "ram" else 0

    def holds(self, index: int) -> bool:
        """Whether an image is kept already."""
        return bool(self._marks[index] == self._stamps[index])

    def load(self, indices: Sequence[int] | np.ndarray | Tensor, progress: str | None = None) -> None:
        """Decode and keep those images that are not yet kept, or damaged; with the cache "off" this does nothing.

        Args:
            indices: which images, each in [0, N), in any order.
            progress: title of a progress bar, see `progress_bar`; None for none.

        Raises:
            InputError: some images can't be read; the others are kept. Names the first five and counts the rest.
        """
        if self._pixels is None:
            return
        wanted = np.unique(np.asarray(indices, dtype=np.int64))
        self._unmark_damaged(wanted)
        missing = wanted[self._marks[wanted] != self._stamps[wanted]]
        if not len(missing):
            return
        faults = []
        with progress_bar(total=len(missing), desc=progress, unit="image", quiet=progress is None) as bar:
            for start in range(0, len(missing), _CHUNK):
                chunk = missing[start : start + _CHUNK]
                pixels, chunk_faults = self._decode(chunk, bar)
                good = np.array([fault is None for fault in chunk_faults])
                self._keep(self._pixels, chunk[good], pixels[good])
                faults += [fault for fault in chunk_faults if fault is not None]
        _refuse_unreadable(faults, len(wanted))

    def batch(self, indices: Tensor) -> Tensor:
        """Images by index [B], each in [0, N), also repeated; those that are not kept are decoded now.

        Returns:
            [B, 3, S, S] uint8, on the store's device with the cache "device", else on the CPU.

        Raises:
            InputError: as `load`.
        """
        if self._pixels is None:
            distinct, place = np.unique(indices.numpy(force=True), return_inverse=True)
            pixels, outcome = self._decode(distinct, None)
            _refuse_unreadable([fault for fault in outcome if fault is not None], len(distinct))
            self.decoded += len(distinct)
            return torch.from_numpy(pixels[place])  # [B, 3, S, S]
        self.load(indices.numpy(force=True))
        return self._pixels[indices.to(self._pixels.device)]  # [B, 3, S, S]

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: with "disk" the file's place instead of its content."""
        state = self.__dict__.copy()
        if self._file is not None:
            state.update(_pixels=None, _marks=None, _checksums=None, _map=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state; with "disk", open the file again."""
        self.__dict__.update(state)
        if self._file is not None:
            self._open(self._file)

    def _open(self, file: Path) -> None:
        """Map the cache's file: the marks of all images, their checksums, their pixels."""
        count = len(self.paths)
        self._map = np.memmap(file, dtype=np.uint8, mode="r+")
        marks, checksums, pixels = np.split(self._map, [_MARK_BYTES * count, (_MARK_BYTES + _CHECKSUM_BYTES) * count])
        self._marks, self._checksums = marks.view(np.int64), checksums.view(np.uint32)
        self._pixels = torch.from_numpy(pixels.reshape(count, 3, self.size, self.size))

    def _unmark_damaged(self, indices: np.ndarray) -> None:
        """Take the mark from images on disk that are not what was written; each is compared once."""
        if self._pixels is None or self._checksums is None:
            return
        unread = indices[~self._compared[indices]]
        kept = unread[self._marks[unread] == self._stamps[unread]]
        found = np.array([crc32(self._pixels[index].numpy().data) for index in kept], dtype=np.uint32)
        damaged = kept[found != self._checksums[kept]]
        if len(damaged):
            text = "%s: %d of %d images that were kept do not match their checksum: decoded again"
            logger.warning(text, self._file, len(damaged), len(kept))
            self._marks[damaged] = 0
        self._compared[unread] = True

    def _keep(self, kept: Tensor, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Store decoded images [n, 3, S, S] and mark them."""
        kept[torch.from_numpy(indices)] = torch.from_numpy(pixels).to(kept.device)
        if self._map is not None and self._checksums is not None:
            self._checksums[indices] = [crc32(image.data) for image in pixels]
            self._map.flush()  # should the power fail, no mark may be on disk without its pixels
        self._marks[indices] = self._stamps[indices]
        self.decoded += len(indices)

    def _decode(self, indices: np.ndarray, bar: tqdm[Any] | None) -> tuple[np.ndarray, list[str | None]]:
        """Decode images [n, 3, S, S], and for each say what is wrong with it, or None."""
        pixels = np.empty((len(indices), 3, self.size, self.size), dtype=np.uint8)

        def decode_row(row: int) -> str | None:
            try:
                pixels[row] = load_square(self.paths[indices[row]], self.size, self._rule)
            except InputError as error:
                return str(error)
            return None

        # A loader's workers are already as many as the user wants: no threads inside of them.
        threads = 1 if get_worker_info() is not None else os.cpu_count()
        faults = []
        with ThreadPoolExecutor(threads) as pool:
            for fault in pool.map(decode_row, range(len(indices))):
                faults.append(fault)
                if bar is not None:
                    bar.update()
        return pixels, faults


def _refuse_unreadable(faults: Sequence[str], count: int) -> None:
    """Raise an InputError if some images could not be read."""
    if faults:
        raise InputError(f"{len(faults)} of {count} images can't be read:{first_faults(faults)}")


def _allocate(count: int, size: int, device: torch.device) -> Tensor:
    """Room for the images, whose memory the system hands out only as it is filled."""
    try:
        return torch.empty((count, 3, size, size), dtype=torch.uint8, device=device)
    except RuntimeError as error:
        needed = count * 3 * size * size / 2**30
        raise InputError(
            f"{count} images of {size} x {size} need {needed:.1f} GiB on {device}, which are not free; "
            "set dataset.cache to disk or off"
        ) from error


def _prepare_file(paths: Sequence[Path], size: int, cache_folder: Path, rule: ImageRule) -> Path:
    """The cache file of a list at a size: an earlier run's, or a new one without marks."""
    key = json.dumps([DECODING_RULES, rule.deciding(), size, [os.path.abspath(path) for path in paths]])
    file = cache_folder / f"{_digest(key).hex()[:16]}.uint8"
    total = len(paths) * (_MARK_BYTES + _CHECKSUM_BYTES + 3 * size * size)
    with waiting_lock(file):  # two runs that each made one would not share what they decode
        remove_unfinished(cache_folder, file.name)
        if not file.exists() or file.stat().st_size != total:
            try:
                write_atomic(file, lambda handle: _reserve(handle, total))
            except OSError as error:
                raise InputError(
                    f"{file}: no room for an image cache of {total / 2**30:.1f} GiB ({error.strerror}); free some "
                    "space, or set dataset.cache to off"
                ) from error
    return file


def _reserve(handle: BinaryIO, total: int) -> None:
    """Fill a file with zeros; a full disk must show now, since it would end the process on a write to the map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle.fileno(), 0, total)
    else:
        handle.truncate(total)


def _stamp(path: Path) -> int:
    """A number for the state of a file, from its bytes and time of change; never 0, which marks no image."""
    try:
        status = path.stat()
    except OSError:
        return 1  # a file that can't be found is never marked
    state = f"{status.st_size} {status.st_mtime_ns}"
    return int.from_bytes(_digest(state)[:_MARK_BYTES], "little", signed=True) | 1


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
