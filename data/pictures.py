"""Pictures: what a file becomes as red, green and blue, and a store that decodes each picture at most once.

Rules of decoding, whatever the file is called: its content must be JPEG, PNG or TIFF.

- Grey (1 to 8 bits) and palette pictures become RGB of the same look; CMYK and YCbCr are converted by Pillow.
- 16-bit grey is scaled from its full range: 0 to 65535 becomes 0 to 255, to the nearest value.
- 16 bits per colour keep their upper 8 bits.
- Alpha, a transparent colour and a fourth band are dropped, nothing is composited.
- 32-bit grey (whole numbers or floats), signed 16-bit grey, Lab and more than four bands have no range or colours that
  could be known, and are refused.
- An orientation in JPEG or PNG metadata is ignored; the orientation tag of a TIFF, which says in what order its rows
  are stored, is followed. Of several pictures in a file the first counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from data.annotations import first_faults
from utils import InputError, write_atomic, write_text_atomic

CACHES = ("device", "ram", "disk", "off")

_FORMATS = ("JPEG", "PNG", "TIFF")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_DECODING_RULES = 1  # raise this when a change above makes the pixels on disk outdated
_CHUNK = 256  # pictures between two marks on disk: what a killed run has to decode again
_DEVICE_SHARE = 0.3
_RAM_SHARE = 0.5


def decode(path: Path, max_pixels: int) -> Image.Image:
    """Decode a picture to 8-bit RGB by the rules at the top of this module.

    Args:
        path: a JPEG, PNG or TIFF file.
        max_pixels: the most pixels that its header may announce; checked before anything is decoded. Pillow refuses
            about 179 million in any case.

    Raises:
        InputError: the file is missing, empty, damaged, too large, or of a kind that is not read.
    """
    try:
        # Opened by name, Pillow 13 maps an uncompressed TIFF into memory and mixes up the rows of a turned one.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels, at most {max_pixels} are allowed "
                    "(dataset.max_pixels): scale the picture down, or cut it into tiles"
                )
            return _to_rgb(path, image)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such picture") from error
    except Exception as error:  # on damaged bytes Pillow's readers raise errors of nearly any class
        raise InputError(f"{path}: {_reason(path, error)}") from error


def load_square(path: Path, size: int, max_pixels: int) -> np.ndarray:
    """Decode a picture and resize it to a square, bilinear with antialiasing, as the published transform does.

    Args:
        path: a JPEG, PNG or TIFF file.
        size: S, pixels.
        max_pixels: see `decode`.

    Returns:
        [3, S, S] uint8.

    Raises:
        InputError: see `decode`.
    """
    square = decode(path, max_pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [3, S, S]


def choose_cache(requested: str, count: int, size: int, device: torch.device) -> str:
    """Where the pictures of a list are to be kept.

    Args:
        requested: "device", "ram", "disk" or "off" are taken as asked ("device" is "ram" where the device is the
            CPU); "auto" is "device" if the pictures take less than 30 % of a GPU's free memory, else "ram" if they
            take less than half of the memory available, else "disk".
        count: how many pictures.
        size: S, pixels; a picture takes 3 S^2 bytes.
        device: where the model runs.
    """
    if requested == "device" and device.type == "cpu":
        return "ram"
    if requested != "auto":
        return requested
    needed = count * 3 * size * size
    if device.type == "cuda" and needed < _DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "ram" if needed < _RAM_SHARE * _available_memory() else "disk"


class PictureStore:
    """The pictures of one list at one size, as uint8, each decoded at most once (unless the cache is "off").

    `load` what is needed before worker processes start: with "ram" and "device" a worker keeps what it decodes to
    itself; with "disk" the pictures and their marks are shared with all processes and later runs. In "off" and "disk"
    a store can be sent to worker processes.

    Attributes:
        paths: N picture files.
        size: S, pixels.
        cache: "ram", "device", "disk" or "off".
        decoded: how many pictures this process has decoded.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: int,
        cache: str,
        cache_folder: Path | None,
        device: torch.device,
        max_pixels: int,
    ) -> None:
        """Prepare the store; nothing is decoded yet.

        Args:
            paths: N picture files.
            size: S, pixels.
            cache: "ram", "device", "disk" or "off", see `choose_cache`.
            cache_folder: for "disk": where the pixels go, a subfolder for each list and size.
            device: for "device": where the pixels are kept.
            max_pixels: see `decode`.

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
        self._max_pixels = max_pixels
        self._held = np.zeros(len(self.paths), dtype=np.uint8)
        self._pixels: Tensor | None = None
        self._file: Path | None = None
        self._map: np.memmap[Any, np.dtype[np.uint8]] | None = None
        if cache == "disk" and cache_folder is not None:
            self._file = _prepare_file(self.paths, size, cache_folder)
            self._open(self._file)
        elif cache != "off":
            self._pixels = _allocate(len(self.paths), size, device if cache == "device" else torch.device("cpu"))

    def holds(self, index: int) -> bool:
        """Whether a picture is kept already."""
        return bool(self._held[index])

    def load(self, indices: Sequence[int] | np.ndarray | Tensor, progress: str | None = None) -> None:
        """Decode and keep those pictures that are not yet kept; with the cache "off" this does nothing.

        Args:
            indices: which pictures, each in [0, N), in any order.
            progress: the title of a progress bar, or None for no bar.

        Raises:
            InputError: some pictures can't be read; the others are kept. Names the first five and counts the rest.
        """
        if self._pixels is None:
            return
        wanted = np.unique(np.asarray(indices, dtype=np.int64))
        missing = wanted[self._held[wanted] == 0]
        if not len(missing):
            return
        faults = []
        with tqdm(total=len(missing), desc=progress, unit="picture", disable=progress is None) as bar:
            for start in range(0, len(missing), _CHUNK):
                chunk = missing[start : start + _CHUNK]
                pixels, chunk_faults = self._decode(chunk, bar)
                good = np.array([fault is None for fault in chunk_faults])
                self._keep(self._pixels, chunk[good], pixels[good])
                faults += [fault for fault in chunk_faults if fault is not None]
        _refuse_unreadable(faults, len(wanted))

    def batch(self, indices: Tensor) -> Tensor:
        """Pictures by index; those that are not kept are decoded now.

        Args:
            indices: [B] int64, each in [0, N); may repeat.

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
            state.update(_pixels=None, _held=None, _map=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state; with "disk", open the file again."""
        self.__dict__.update(state)
        if self._file is not None:
            self._open(self._file)

    def _open(self, file: Path) -> None:
        """Map the cache's file: the pixels of all pictures, then one mark for each."""
        self._map = np.memmap(file, dtype=np.uint8, mode="r+")
        shape = (len(self.paths), 3, self.size, self.size)
        self._pixels = torch.from_numpy(self._map[: len(self.paths) * 3 * self.size**2].reshape(shape))
        self._held = self._map[len(self.paths) * 3 * self.size**2 :]

    def _keep(self, kept: Tensor, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Store decoded pictures [n, 3, S, S] and mark them; on disk a mark comes only after its pixels are safe."""
        kept[torch.from_numpy(indices)] = torch.from_numpy(pixels).to(kept.device)
        if self._map is not None:
            self._map.flush()
        self._held[indices] = 1
        if self._map is not None:
            self._map.flush()
        self.decoded += len(indices)

    def _decode(self, indices: np.ndarray, bar: tqdm[Any] | None) -> tuple[np.ndarray, list[str | None]]:
        """Decode pictures [n, 3, S, S], and for each say what is wrong with it, or None."""
        pixels = np.empty((len(indices), 3, self.size, self.size), dtype=np.uint8)

        def decode_row(row: int) -> str | None:
            try:
                pixels[row] = load_square(self.paths[indices[row]], self.size, self._max_pixels)
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


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """An opened picture as RGB, by the rules of this module."""
    # Pillow 10.0 gives 16-bit PNG, but no other PNG, the mode of 32-bit grey.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image.load()
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode not in _MODES:
        raise InputError(
            f"{path}: pixels of kind {image.mode!r} (Pillow's name) have no known range of brightness or colours; "
            "convert the picture to 8-bit RGB or 16-bit grey"
        )
    image.load()
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _reason(path: Path, error: Exception) -> str:
    """Why Pillow could not read a picture, in words for the reader."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"the header announces more pixels than Pillow allows ({error}): cut the picture into tiles"
    if isinstance(error, OSError) and error.errno is not None:
        return f"can't be read ({error.strerror})"
    if path.stat().st_size == 0:
        return "the picture is empty (0 bytes): copy it again"
    if isinstance(error, UnidentifiedImageError):
        return (
            "not a picture of a kind that is read: expected JPEG, PNG, or TIFF with at most four bands of 8 or 16 "
            "bits; convert it, or copy it again if it is damaged"
        )
    return f"the picture is damaged or cut short ({type(error).__name__}: {error}): copy it again"


def _refuse_unreadable(faults: Sequence[str], count: int) -> None:
    """Raise an InputError if some pictures could not be read."""
    if faults:
        raise InputError(f"{len(faults)} of {count} pictures can't be read:{first_faults(faults)}")


def _allocate(count: int, size: int, device: torch.device) -> Tensor:
    """Room for the pictures, whose memory the system hands out only as it is filled."""
    try:
        return torch.empty((count, 3, size, size), dtype=torch.uint8, device=device)
    except RuntimeError as error:
        needed = count * 3 * size * size / 2**30
        raise InputError(
            f"{count} pictures of {size} x {size} need {needed:.1f} GiB on {device}, which are not free; "
            "set dataset.cache to disk or off"
        ) from error


def _prepare_file(paths: Sequence[Path], size: int, cache_folder: Path) -> Path:
    """The cache file of a list: an earlier run's with its changed pictures unmarked, or a new one without marks.

    Beside it `fingerprint.json` holds name, bytes and time of change of each picture as they were at the last start.
    """
    names = [os.path.abspath(path) for path in paths]
    key = json.dumps([_DECODING_RULES, size, names])
    folder = cache_folder / hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    file, total = folder / "pictures.uint8", len(names) * (3 * size * size + 1)
    pictures = [[name, *_stamp(name)] for name in names]
    known = _read_fingerprint(folder / "fingerprint.json")
    if len(known) == len(names) and file.exists() and file.stat().st_size == total:
        held = np.memmap(file, dtype=np.uint8, mode="r+", offset=total - len(names))
        held[[now != before for now, before in zip(pictures, known, strict=True)]] = 0
        held.flush()
    else:
        try:
            write_atomic(file, lambda handle: _reserve(handle, total))
        except OSError as error:
            raise InputError(
                f"{folder}: no room for a picture cache of {total / 2**30:.1f} GiB ({error.strerror}); free some "
                "space, or set dataset.cache to off"
            ) from error
    if known != pictures:
        write_text_atomic(folder / "fingerprint.json", json.dumps({"size": size, "pictures": pictures}))
    return file


def _reserve(handle: BinaryIO, total: int) -> None:
    """Fill a file with zeros; a full disk must show now, since it would end the process on a write to the map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle.fileno(), 0, total)
    else:
        handle.truncate(total)


def _read_fingerprint(path: Path) -> list[Any]:
    """The pictures of an earlier fingerprint; empty if there is none, or none that can be read."""
    try:
        pictures = json.loads(path.read_bytes())["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return pictures if isinstance(pictures, list) else []


def _stamp(name: str) -> tuple[int, int]:
    """Bytes and time of change of a file in ns; zeros if it is missing, which decoding will say."""
    try:
        status = os.stat(name)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _available_memory() -> int:
    """Bytes of memory that can still be taken from the machine, or from its container (cgroup 2) if that has less."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (content := limit.read_text().strip()).isdigit():
        available = min(available, int(content))
    return available
