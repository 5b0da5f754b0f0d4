"""Images of which only a part is looked at at a time.

A TIFF is read by strips or tiles with rasterio, any other image is decoded as a whole. Colours follow the rules of
`data.images`; what rasterio would show otherwise than Pillow (turned rows, 0 for white, other depths) is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from data.images import decode, refuse_special
from utils import InputError, first_line, import_extra, write_atomic

CACHE_MEGABYTES = 64  # of decoded strips and tiles; GDAL's own choice is a share of the machine's memory
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: files of more than 4 GiB
_UPRIGHT = 1
_ORIENTATION = 274


class LargeImage(Protocol):
    """What is asked of an open image.

    Attributes:
        georeference: coordinate system and transform of its pixels; None where the file holds none.
    """

    width: int
    height: int
    georeference: tuple[Any, Any] | None

    def read(self, row: int, column: int, height: int, width: int) -> Image.Image:
        """A part of it, RGB; InputError where the file is damaged."""

    def overview(self, side: int) -> Image.Image:
        """The whole, scaled so that the longer side has at most `side` pixels."""


@contextmanager
def open_large(path: Path, max_pixels: int) -> Iterator[LargeImage]:
    """Open an image to read parts of it.

    Args:
        path: a JPEG, PNG or TIFF file.
        max_pixels: the most that it may have; the map made of it takes memory for each.

    Raises:
        InputError: it is missing, damaged, too large or of a kind that is not read, or rasterio is missing.
    """
    try:
        refuse_special(path)
        with path.open("rb") as file:
            is_tiff = file.read(4) in _TIFF
    except OSError as fault:
        reason = "no such image" if isinstance(fault, FileNotFoundError) else f"can't be read ({fault.strerror})"
        raise InputError(f"{path}: {reason}") from fault
    if not is_tiff:
        with warnings.catch_warnings():  # Pillow's own limit warns below ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            decoded = decode(path, max_pixels)
        yield _Decoded(decoded)
        return
    rasterio = import_extra("rasterio", f"{path}: a TIFF is read in parts with rasterio", "geo")
    _refuse_turned(path)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            try:
                dataset = rasterio.open(path, driver="GTiff")
            except rasterio.errors.RasterioError as fault:
                raise _damaged(path, fault) from fault
        with dataset:
            yield _Tiff(path, dataset, max_pixels)


def write_geotiff(path: Path, levels: NDArray[np.uint8], georeference: tuple[Any, Any], description: str) -> None:
    """Write a map with the coordinates of the image that it was made of.

    Args:
        path: the file.
        levels: [H, W]; stored with the scale 1/255, so that programs that know scales show 0..1.
        georeference: of the image.
        description: of the one band.
    """
    from rasterio.io import MemoryFile

    height, width = levels.shape
    form = {"driver": "GTiff", "dtype": "uint8", "count": 1, "compress": "deflate", "tiled": True}
    with MemoryFile() as memory:
        crs, transform = georeference
        with memory.open(height=height, width=width, crs=crs, transform=transform, **form) as dataset:
            dataset.write(levels, 1)
            dataset.scales = (1 / 255,)
            dataset.set_band_description(1, description)
        write_atomic(path, lambda file: file.write(memory.getbuffer()))


class _Decoded:
    """An image that is held as a whole."""

    georeference: tuple[Any, Any] | None = None

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.width, self.height = image.size

    def read(self, row: int, column: int, height: int, width: int) -> Image.Image:
        return self.image.crop((column, row, column + width, row + height))

    def overview(self, side: int) -> Image.Image:
        return self.image.resize(_fitted(self.width, self.height, side), Image.Resampling.BOX)


class _Tiff:
    """A TIFF that is read in parts."""

    def __init__(self, path: Path, dataset: Any, max_pixels: int) -> None:
        self.path, self.dataset = path, dataset
        self.width, self.height = dataset.width, dataset.height
        if self.width * self.height > max_pixels:
            raise InputError(
                f"{path}: {self.width} x {self.height} pixels, at most {max_pixels} are allowed: cut the image up, "
                f"or allow more (--set dataset.max_pixels={self.width * self.height}; a pixel takes about 6 bytes)"
            )
        self.bands = _colour_bands(path, dataset)
        self.palette = _palette(dataset)
        self.georeference = None if dataset.crs is None else (dataset.crs, dataset.transform)

    def read(self, row: int, column: int, height: int, width: int) -> Image.Image:
        return self._image(window=((row, row + height), (column, column + width)))

    def overview(self, side: int) -> Image.Image:
        from rasterio.enums import Resampling

        width, height = _fitted(self.width, self.height, side)
        # The mean of two numbers in a palette is another colour.
        method = Resampling.average if self.palette is None else Resampling.nearest
        shape = (len(self.bands), height, width)
        return self._image(out_shape=shape, resampling=method)

    def _image(self, **part: Any) -> Image.Image:
        """What rasterio reads, as RGB."""
        from rasterio.errors import RasterioError

        try:
            bands = self.dataset.read(self.bands, **part)  # [1 or 3, h, w]
        except RasterioError as fault:
            raise _damaged(self.path, fault) from fault
        if self.palette is not None:
            return Image.fromarray(self.palette[bands[0]])
        if bands.dtype == np.uint16:
            grey = len(bands) == 1
            bands = ((bands.astype(np.uint32) + 128) // 257 if grey else bands >> 8).astype(np.uint8)
        planes = [Image.fromarray(band) for band in bands]
        return Image.merge("RGB", planes * (3 // len(planes)))


def _colour_bands(path: Path, dataset: Any) -> list[int]:
    """The bands that are grey, or red, green and blue; numbers from 1.

    Raises:
        InputError: there are no such bands, or they are not of 8 or 16 bits.
    """
    depths, kinds = set(dataset.dtypes), [kind.name for kind in dataset.colorinterp]
    bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
    white_is_0 = "MINISWHITE" in dataset.tags(ns="IMAGE_STRUCTURE")
    if depths not in ({"uint8"}, {"uint16"}) or bits not in ("8", "16") or len(kinds) > 4 or white_is_0:
        raise InputError(
            f"{path}: {len(kinds)} bands of {', '.join(sorted(depths))} ({', '.join(kinds)}) have no known range of "
            "brightness or colours; convert the image to 8-bit RGB or 16-bit grey"
        )
    return [1, 2, 3] if len(kinds) > 2 else [1]


def _palette(dataset: Any) -> NDArray[np.uint8] | None:
    """The colours [256, 3] that an only band's numbers stand for, None where they are brightness."""
    if dataset.colorinterp[0].name != "palette":
        return None
    colours = np.zeros((256, 3), dtype=np.uint8)
    for number, colour in dataset.colormap(1).items():
        colours[number] = colour[:3]
    return colours


def _refuse_turned(path: Path) -> None:
    """Raise where a TIFF says that its rows are stored in another order, which GDAL does not follow."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is cut short comes as an error below
            head = file.read(8)
            head += file.read(8) if b"+" in head else b""
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
    except Exception as fault:  # on damaged bytes Pillow's readers raise errors of nearly any class
        raise _damaged(path, fault) from fault
    if directory.get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        raise InputError(f"{path}: its rows are stored turned (TIFF orientation tag): save it upright")


def _damaged(path: Path, fault: Exception) -> InputError:
    reason = fault.__cause__ if isinstance(fault.__cause__, Exception) else fault  # rasterio says only where to look
    return InputError(f"{path}: the image is damaged or cut short ({first_line(reason)}): copy it again")


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with a longer side of at most `side`."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
