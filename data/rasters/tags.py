"""What a file is by its first bytes and, if it is a TIFF, by its tags; read without a raster library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
"""What Pillow is asked to read, and nothing else that it knows."""
HEAD = 32  # bytes that `kind_of` looks at
_BIG = (b"II+\0", b"MM\0+")  # TIFFs of more than 4 GiB
_TIFF = (b"II*\0", b"MM\0*", *_BIG)
_JP2 = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH = 24  # place of a PNG's bits per value

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 274, 277
PLANAR, EXTRA, SAMPLE_FORMAT, METADATA, NODATA = 284, 338, 339, 42112, 42113
SUBFILE, MASK, MOST_IMAGES = 254, 4, 32
PLACES = ((273, 279), (324, 325))
"""Where strips or tiles begin, and how long they are."""
WHITE_IS_ZERO = 0
_PLAIN_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}
_PLAIN_COLOURS = {(0, 1), (1, 1), (2, 3), (2, 4), (3, 1), (5, 4), (6, 3)}
"""Photometric interpretation and bands of what Pillow reads rightly: grey, RGB, palette, CMYK, YCbCr."""
COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr"}
"""Photometric interpretations that are read."""


def kind_of(head: bytes) -> str:
    """Of a file's first bytes: `TIFF`, `JP2`, `PNG16`, or `` for what only Pillow knows."""
    if head[:4] in _TIFF:
        return "TIFF"
    if head.startswith(_JP2):
        return "JP2"
    return "PNG16" if head.startswith(_PNG) and head[_DEPTH : _DEPTH + 1] == b"\x10" else ""


def orientation_of(image: Image.Image) -> int:
    """1 to 8, of an open image's EXIF block; 1 where that is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of nearly any class
        return 1
    return found if found in range(1, 9) else 1


def exif_turn(path: Path) -> int:
    """The same of a file."""
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        return orientation_of(image)


def kind_of_file(path: Path) -> str:
    """`kind_of` a file; raises an OSError where it can't be read."""
    with path.open("rb") as file:
        return kind_of(file.read(HEAD))


@dataclass(frozen=True)
class Tags:
    """The tags of a TIFF's first image, and whether another one in the file says which of its pixels hold data."""

    tags: Mapping[int, Any]
    masked: bool = False

    @classmethod
    def of(cls, path: Path) -> Tags:
        """Read them; raises nearly anything for a damaged file."""
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is cut short shows when it is read
            head = file.read(8)
            head += file.read(8) if head[:4] in _BIG else b""
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
            found, masked = dict(directory), False
            for _ in range(MOST_IMAGES):
                if masked or not directory.next:
                    break
                file.seek(directory.next)
                directory.load(file)
                masked = bool(int(directory.get(SUBFILE, 0)) & MASK)
        if not {WIDTH, HEIGHT} <= found.keys():
            raise ValueError("no width and height")
        return cls(found, masked)

    def __getitem__(self, tag: int) -> Any:
        """The value of a tag; the standard's own where it is left out."""
        defaults = {BITS: (1,), COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, PLANAR: 1, SAMPLE_FORMAT: (1,)}
        value = self.tags.get(tag, defaults.get(tag))
        return tuple(value) if isinstance(value, list) else value

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self[WIDTH], self[HEIGHT]

    @property
    def orientation(self) -> int:
        """1 to 8."""
        found = self.tags.get(ORIENTATION, 1)
        return found if found in range(1, 9) else 1

    @property
    def colours(self) -> str | None:
        """What its numbers are; None for what is not read, such as Lab."""
        return COLOURS.get(self[PHOTOMETRIC])

    @property
    def colour_name(self) -> str:
        """What its numbers are, for a reader."""
        number = self[PHOTOMETRIC]
        return {8: "Lab", 9: "Lab", 10: "Lab"}.get(number, f"photometric interpretation {number}")

    @property
    def white_is_zero(self) -> bool:
        """Whether a greater number is darker."""
        return bool(self[PHOTOMETRIC] == WHITE_IS_ZERO)

    @property
    def end(self) -> float:
        """Where its last strip or tile ends in the file; infinite where it does not say."""
        try:
            pairs = [(self.tags[first], self.tags[second]) for first, second in PLACES if first in self.tags]
            return max(place + length for pair in pairs for place, length in zip(*pair, strict=True))
        except (KeyError, TypeError, ValueError):
            return float("inf")

    def is_plain(self) -> bool:
        """Whether Pillow reads it rightly: 8 bits or less, nothing declared but common colours, pixels together."""
        return (
            max(self[BITS]) <= 8
            and set(self[SAMPLE_FORMAT]) <= {1}
            and (self[PLANAR] == 1 or self[SAMPLES] == 1)
            and (self[PHOTOMETRIC], self[SAMPLES]) in _PLAIN_COLOURS
            and self[COMPRESSION] in _PLAIN_COMPRESSIONS
            and NODATA not in self.tags
            and not self.masked
            and "colorinterp" not in str(self.tags.get(METADATA, "")).lower()
        )
