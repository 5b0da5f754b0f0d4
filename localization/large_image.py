"""Images of which only a part is looked at at a time.

A TIFF or JPEG 2000 is read by strips or tiles with rasterio, any other image is decoded as a whole. What becomes of
their numbers, `data.images` says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.images import is_raster, read, refuse_special
from data.rasters.places import Georeference, georeference_of
from data.rasters.reader import Raster, fitted, open_raster
from data.rasters.tags import exif_turn, kind_of_file
from data.rasters.values import TURNS, Limits, Part
from option.images import ImageRule
from utils import InputError, write_atomic


class LargeImage(Protocol):
    """What is asked of an open image.

    Attributes:
        width: pixels.
        height: pixels.
        georeference: coordinates of its pixels; None where nothing says them.
    """

    width: int
    height: int
    georeference: Georeference | None

    @property
    def limits(self) -> Limits | None:
        """What becomes black and white; None where its numbers are of 8 bits."""

    def read(self, row: int, column: int, height: int, width: int) -> Part:
        """A part of it; InputError where the file is damaged."""

    def overview(self, side: int) -> Part:
        """The whole, scaled so that the longer side has at most `side` pixels."""

    def valid(self) -> NDArray[np.bool_] | None:
        """Which pixels [H, W] hold data; None: all of them."""


@contextmanager
def open_large(path: Path, rule: ImageRule) -> Iterator[LargeImage]:
    """Open an image to read parts of it.

    Args:
        path: the image.
        rule: how it is read. The map made of it takes memory for each of its pixels.

    Raises:
        InputError: it is missing, damaged, too large or of a kind that is not read, or rasterio is missing.
    """
    try:
        refuse_special(path)
        kind = kind_of_file(path)
    except OSError as fault:
        reason = "no such image" if isinstance(fault, FileNotFoundError) else f"can't be read ({fault.strerror})"
        raise InputError(f"{path}: {reason}") from fault
    if kind in ("TIFF", "JP2"):
        with open_raster(path, rule) as raster:
            yield _InParts(raster)
        return
    with warnings.catch_warnings():  # Pillow's own limit warns below ours
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield _Decoded(path, rule)


def write_geotiff(
    path: Path,
    levels: NDArray[np.uint8],
    georeference: Georeference,
    description: str,
    valid: NDArray[np.bool_] | None = None,
) -> None:
    """Write a map with the coordinates of the image that it was made of.

    Args:
        path: the file.
        levels: [H, W]; stored with the scale 1/255, so that programs that know scales show 0..1.
        georeference: of the image.
        description: of the one band.
        valid: [H, W] where the map says something, kept as the file's mask; None: everywhere.
    """
    import rasterio
    from rasterio.io import MemoryFile

    height, width = levels.shape
    form = {"driver": "GTiff", "dtype": "uint8", "count": 1, "compress": "deflate", "tiled": True}
    points = georeference.gcps if georeference.stored is None else ()
    where = {"gcps": points} if points else {"transform": georeference.transform}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(height=height, width=width, crs=georeference.crs, **where, **form) as dataset:
            dataset.write(levels, 1)
            dataset.scales = (1 / 255,)
            dataset.set_band_description(1, description)
            if valid is not None:
                dataset.write_mask(valid)
        write_atomic(path, lambda file: file.write(memory.getbuffer()))


class _Decoded:
    """An image that is held as a whole."""

    def __init__(self, path: Path, rule: ImageRule) -> None:
        self.part = read(path, rule)
        self.width, self.height = self.part.image.size
        self.path, self.rule = path, rule
        self.georeference = georeference_of(path, None, TURNS[exif_turn(path)], (self.width, self.height))

    def read(self, row: int, column: int, height: int, width: int) -> Part:
        return self.part.cropped(column, row, width, height)

    def overview(self, side: int) -> Part:
        size = fitted(self.width, self.height, side)
        valid = None
        if self.part.valid is not None:
            valid = np.asarray(Image.fromarray(self.part.valid).resize(size, Image.Resampling.NEAREST))
        return Part(self.part.image.resize(size, Image.Resampling.BOX), valid)

    def valid(self) -> NDArray[np.bool_] | None:
        return self.part.valid

    @cached_property
    def limits(self) -> Limits | None:
        if not is_raster(self.path, self.rule):
            return None
        with open_raster(self.path, self.rule) as raster:
            return raster.limits


class _InParts:
    """An image that is read in parts."""

    def __init__(self, raster: Raster) -> None:
        self.read, self.overview, self.valid = raster.read, raster.overview, raster.valid
        self.width, self.height, self.raster = raster.width, raster.height, raster
        self.georeference = georeference_of(raster.path, raster, raster.turn, (raster.width, raster.height))

    @property
    def limits(self) -> Limits | None:  # only when asked: it may take a look at the whole file
        return self.raster.limits if self.raster.is_wide and self.raster.palette is None else None
