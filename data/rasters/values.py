"""Numbers of an image's bands: from any type to 8 bits, which of them hold data, and which way they lie.

Letters: C bands (1 or 3), H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PERCENTILES = (1.0, 99.0)
"""Of the values of an archive, or of an image: what becomes black and white."""
BLOCK = 2**22  # numbers that are scaled at once: 32 MiB as float64
MEAN_COLOUR = (124, 116, 104)
"""ImageNet's, where there is no pixel to take a mean of."""

Limits = tuple[float, float]


@dataclass(frozen=True)
class Part:
    """An image or a part of one.

    Attributes:
        image: RGB.
        valid: [H, W] which pixels hold data; None: all of them.
    """

    image: Image.Image
    valid: NDArray[np.bool_] | None = None

    def cropped(self, left: int, top: int, width: int, height: int) -> Part:
        """A part of it, by its upper left pixel."""
        valid = None if self.valid is None else self.valid[top : top + height, left : left + width]
        return Part(self.image.crop((left, top, left + width, top + height)), valid)

    def filled(self) -> Image.Image:
        """The image, where it holds no data in the mean colour of where it does."""
        if self.valid is None or self.valid.all():
            return self.image
        pixels = np.array(self.image)
        held = pixels[self.valid]
        pixels[~self.valid] = np.round(held.mean(axis=0)) if len(held) else MEAN_COLOUR
        return Image.fromarray(pixels)


def to_8_bits(values: NDArray[Any], limits: Limits) -> NDArray[np.uint8]:
    """Numbers of any shape as 0 to 255, to the nearest: `limits` become 0 and 255, what lies beyond is cut off."""
    low, high = limits
    flat, found = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, len(flat), BLOCK):
        block = np.nan_to_num(flat[start : start + BLOCK].astype(np.float64), nan=low)
        found[start : start + BLOCK] = ((block - low) * (255 / (high - low)) + 0.5).clip(0, 255)
    return found.reshape(values.shape)


def limits_of(samples: Sequence[NDArray[Any]]) -> Limits:
    """The percentiles of some values [*], which become black and white; always rising."""
    pooled = np.concatenate([sample.reshape(-1) for sample in samples] or [np.zeros(1)])
    low, high = (float(value) for value in np.percentile(pooled, PERCENTILES)) if len(pooled) else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1)


def type_limits(dtype: np.dtype[Any], bits: int | None = None) -> Limits:
    """All that a type holds; of floats 0 to 1. Of whole numbers only the lower `bits` count, where they are given."""
    if dtype.kind == "f":
        return 0.0, 1.0
    if bits is not None and dtype.kind == "u":
        return 0.0, float(2**bits - 1)
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


@dataclass(frozen=True)
class Turn:
    """What turns stored rows and columns upright: first these are exchanged, then each is reversed or not."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def applied(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Stored [H, W, ...] as it is seen."""
        turned = pixels.swapaxes(0, 1) if self.swap else pixels
        return turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as they are seen, of those stored; or the other way round."""
        return (height, width) if self.swap else (width, height)

    def stored(
        self, row: int, column: int, height: int, width: int, seen: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Row, column, height and width in the file, of a part that is asked for; `seen`: width, height as seen."""
        row = seen[1] - row - height if self.flip_rows else row
        column = seen[0] - column - width if self.flip_columns else column
        return (column, row, width, height) if self.swap else (row, column, height, width)

    def place(self, x: Any, y: Any, seen: tuple[int, int]) -> tuple[Any, Any]:
        """Where in the file a point lies that is seen at x and y, in pixels from the upper left corner."""
        x = seen[0] - x if self.flip_columns else x
        y = seen[1] - y if self.flip_rows else y
        return (y, x) if self.swap else (x, y)


TURNS = {
    1: Turn(),
    2: Turn(flip_columns=True),
    3: Turn(flip_rows=True, flip_columns=True),
    4: Turn(flip_rows=True),
    5: Turn(swap=True),
    6: Turn(swap=True, flip_columns=True),
    7: Turn(swap=True, flip_rows=True, flip_columns=True),
    8: Turn(swap=True, flip_rows=True),
}
"""By the number of an orientation tag, of a TIFF or in EXIF."""
