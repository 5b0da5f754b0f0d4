"""Images of an index for a browser: JPEG files made from what the project's own reader decodes."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

from PIL import Image

from archive.index_folder import IndexFolder
from data.images import decode
from data.lists import shown
from runtime.untrusted import leads_outside
from utils import InputError

THUMBNAIL = 320  # pixels of the longer side
KEPT = 1024  # thumbnails in memory, some 20 KiB each
LARGEST = 4096  # pixels of the longer side of a whole image


class Thumbnails:
    """Images by their row; no byte of a file is handed on as it is."""

    def __init__(self, index: IndexFolder, images: Path, max_pixels: int) -> None:
        """Open nothing yet.

        Args:
            index: names the images.
            images: their folder.
            max_pixels: those with more are refused, see `data.images.decode`.
        """
        self._index = index
        self._images = images
        self._max_pixels = max_pixels
        self.thumbnail = lru_cache(maxsize=KEPT)(self._thumbnail)

    def image(self, row: int) -> bytes:
        """A JPEG file of the image, scaled down to `LARGEST` where it is larger.

        Raises:
            InputError: the image is gone, damaged, too large, or behind a link out of the folder.
        """
        return to_jpeg(self._decode(row), LARGEST, 92)

    def _thumbnail(self, row: int) -> bytes:
        """See `image`; scaled down to `THUMBNAIL`."""
        return to_jpeg(self._decode(row), THUMBNAIL, 85)

    def _decode(self, row: int) -> Image.Image:
        name = self._index.name(row)
        path = self._images / name
        if leads_outside(path, self._images):
            raise InputError(f"{shown(name)} leads outside of the folder by a symbolic link")
        return decode(path, self._max_pixels)


def to_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """A JPEG file of an RGB image, scaled down to at most `side` pixels a side, without any metadata."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return file.getvalue()
