"""Images of an index for a browser: JPEG files made from what the project's own reader decodes."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from archive.index_folder import IndexFolder
from data.images import decode
from data.lists import shown
from option.images import ImageRule
from runtime.untrusted import leads_outside
from utils import InputError

THUMBNAIL = 320  # pixels of the longer side
KEPT = 1024  # thumbnails in memory, some 20 KiB each
LARGEST = 4096  # pixels of the longer side of a whole image


class Thumbnails:
    """Images by their row; no byte of a file is handed on as it is. What is `kept` belongs to one thread."""

    def __init__(self, index: IndexFolder, images: Path, rule: ImageRule) -> None:
        """Open nothing yet.

        Args:
            index: names the images.
            images: their folder.
            rule: how they are read, see `data.images.decode`.
        """
        self._index = index
        self._images = images
        self._rule = rule
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def image(self, row: int) -> bytes:
        """A JPEG file of the image, scaled down to `LARGEST` where it is larger.

        Raises:
            InputError: the image is gone, damaged, too large, or behind a link out of the folder.
        """
        return to_jpeg(decode(self.path(row), self._rule), LARGEST, 92)

    def kept(self, row: int) -> bytes | None:
        """A thumbnail that was kept."""
        if row in self._kept:
            self._kept.move_to_end(row)
        return self._kept.get(row)

    def keep(self, row: int, thumbnail: bytes) -> None:
        """Keep a thumbnail; beyond `KEPT` the one that nobody asked for the longest is forgotten."""
        self._kept[row] = thumbnail
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def thumbnail(self, row: int) -> bytes:
        """See `image`; scaled down to `THUMBNAIL`."""
        return to_jpeg(decode(self.path(row), self._rule), THUMBNAIL, 85)

    def path(self, row: int) -> Path:
        """The file of an image.

        Raises:
            InputError: it lies behind a link out of the folder.
        """
        name = self._index.name(row)
        path = self._images / name
        if leads_outside(path, self._images):
            raise InputError(f"{shown(name)} leads outside of the folder by a symbolic link")
        return path


def to_jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    """A JPEG file of an RGB image, without any metadata; the image itself is scaled down to `side` pixels a side."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return file.getvalue()
