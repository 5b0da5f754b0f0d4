"""Where on earth an image lies: what its file says, or a world file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.rasters.reader import Raster, open_raster
from data.rasters.tags import FORMATS, Tags, kind_of_file, orientation_of
from data.rasters.values import TURNS, Turn
from option.images import ImageRule
from utils import InputError

GEOGRAPHIC = "EPSG:4326"
HALF_TURN = 180  # degrees
_GEO_TAGS = {33550, 33922, 34264}  # of a TIFF: pixel scale, tie points, transform
_EDGE_POINTS = 21  # along each edge, whose line bends from one coordinate system to another
Bounds = tuple[float, float, float, float]
"""West, south, east and north in degrees, WGS 84; west is greater than east across the date line."""


@dataclass(frozen=True)
class Georeference:
    """Coordinates of an image's pixels.

    Attributes:
        crs: the coordinate system, of rasterio; None: not known.
        stored: transform of the pixels as they are stored; None where `gcps` say it.
        gcps: ground control points, of rasterio.
        turn: from stored pixels to seen ones.
        size: width and height as seen, pixels.
    """

    crs: Any | None
    stored: Any | None
    gcps: tuple[Any, ...]
    turn: Turn
    size: tuple[int, int]

    def xy(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates [N, 2] of points [N, 2] that are seen at x and y, in pixels from the upper left corner."""
        from rasterio.transform import GCPTransformer

        x, y = self.turn.place(points[:, 0], points[:, 1], self.size)
        if self.stored is not None:
            a, b, c, d, e, f = self.stored[:6]
            return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        with GCPTransformer(self.gcps) as transformer:
            return np.stack(transformer.xy(y, x, offset="ul"), axis=1)

    @cached_property
    def transform(self) -> Any:
        """Of the pixels as they are seen; of control points the best that is affine."""
        from rasterio.transform import from_gcps

        if self.stored is None:
            return from_gcps(self.gcps)
        origin, right, down = self.xy(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        (a, d), (b, e) = right - origin, down - origin
        return type(self.stored)(a, b, origin[0], d, e, origin[1])

    def bounds(self) -> Bounds | None:
        """Of the whole image; None where the coordinate system is not known, or has no place on earth there."""
        from rasterio.errors import RasterioError
        from rasterio.warp import transform

        if self.crs is None:
            return None
        steps, (width, height) = np.linspace(0, 1, _EDGE_POINTS), self.size
        edges = [(steps * width, 0 * steps), (steps * width, 0 * steps + height)]
        edges += [(0 * steps, steps * height), (0 * steps + width, steps * height)]
        x, y = self.xy(np.concatenate([np.stack(edge, axis=1) for edge in edges])).T
        try:
            longitudes, latitudes = (np.array(found) for found in transform(self.crs, GEOGRAPHIC, x, y))
        except RasterioError:
            return None
        west, east = longitudes.min(), longitudes.max()
        if east - west > HALF_TURN:  # across the date line
            west, east = longitudes[longitudes > 0].min(), longitudes[longitudes < 0].max()
        found = (west, latitudes.min(), east, latitudes.max())
        return tuple(round(float(number), 7) for number in found) if np.isfinite(found).all() else None  # type: ignore[return-value]


def georeference_of(path: Path, raster: Raster | None, turn: Turn, size: tuple[int, int]) -> Georeference | None:
    """What a file, or a world file and a `.prj` beside it, say; None: nothing.

    Args:
        path: the image.
        raster: the same, open; None where rasterio does not read it.
        turn: from stored pixels to seen ones.
        size: width and height as seen, pixels.

    Raises:
        InputError: a file beside it can't be read.
    """
    crs = transform = None
    if raster is not None:
        crs, transform = raster.dataset.crs, raster.dataset.transform
        gcps, gcps_crs = raster.dataset.gcps
        if gcps and transform.is_identity:
            return Georeference(gcps_crs, None, tuple(gcps), turn, size) if turn == Turn() else None
    if transform is None or transform.is_identity:
        transform = _world_file(path)
    if transform is None:
        return None
    return Georeference(crs or _projection_file(path), transform, (), turn, size)


def bounds_of(path: Path, rule: ImageRule) -> Bounds | None:
    """Where an image lies; None where that can't be found out, or rasterio is not installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return None
    try:
        kind = kind_of_file(path)
        plain = kind == "TIFF" and not _GEO_TAGS & Tags.of(path).tags.keys()
        if (plain or kind not in ("TIFF", "JP2")) and not any(_beside(path, world_endings(path))):
            return None
        if kind in ("TIFF", "JP2"):
            with open_raster(path, rule) as raster:
                found = georeference_of(path, raster, raster.turn, (raster.width, raster.height))
        else:
            with Image.open(path, formats=FORMATS) as image:
                turn = TURNS[orientation_of(image)]
                found = georeference_of(path, None, turn, turn.size(*image.size))
        return None if found is None else found.bounds()
    except Exception:  # whoever reads its pixels says what is wrong with it
        return None


def world_endings(path: Path) -> list[str]:
    """How world files of an image may end: of `.tif` `.tfw`, `.tifw` and `.wld`."""
    ending = path.suffix.lower()
    return [f"{ending[:2]}{ending[-1:]}w", f"{ending}w", ".wld"]


def _beside(path: Path, endings: Sequence[str]) -> list[Path]:
    """The files of the same name with other endings, small or capital, that are there."""
    names = [path.with_suffix(form) for ending in endings for form in (ending, ending.upper())]
    return [name for name in names if name.is_file()]


def _world_file(path: Path) -> Any | None:
    """The transform that a world file beside an image holds: six numbers, the last two of the first pixel's centre."""
    from rasterio.transform import Affine

    for file in _beside(path, world_endings(path))[:1]:
        try:
            a, d, b, e, c, f = (float(word) for word in file.read_text(encoding="ascii").split())
        except (OSError, ValueError) as fault:
            raise InputError(f"{file}: expected the six numbers of a world file; mend or remove it") from fault
        return Affine(a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    return None


def _projection_file(path: Path) -> Any | None:
    """The coordinate system that a `.prj` beside an image holds."""
    from rasterio.crs import CRS
    from rasterio.errors import RasterioError

    for file in _beside(path, [".prj"])[:1]:
        try:
            return CRS.from_wkt(file.read_text(encoding="utf-8"), morph_from_esri_dialect=True)
        except (OSError, ValueError, RasterioError) as fault:
            raise InputError(f"{file}: not a coordinate system in WKT; mend or remove it") from fault
    return None
