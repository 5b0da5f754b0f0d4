"""What tests need to write rasters without a library's warnings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning


def north_up(west: float, north: float, step: float) -> Affine:
    """The transform of a raster whose pixels are `step` wide and high; rasterio's own warns of how it multiplies."""
    return Affine(step, 0, west, 0, -step, north)


@contextmanager
def placeless() -> Iterator[None]:
    """Rasters are meant to have no coordinates here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
