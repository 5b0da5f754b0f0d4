"""Whether images can be read, found out from their headers and their ends, without decoding them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images import decode, opened
from runtime.progress import progress_bar
from utils import InputError

THREADS = 8
"""At least: on a network's disk, most of the time is waiting."""

_TAIL = 4096
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_STRIPS = ((273, 279), (324, 325))  # a TIFF's tags of where its strips or tiles begin, and how long they are


@dataclass(frozen=True)
class Header:
    """What an image's header says: pixels and Pillow's name of their kind."""

    width: int
    height: int
    mode: str


def read_header(path: Path, max_pixels: int) -> Header:
    """Read an image's header and see that its file does not end too early.

    A file whose end looks wrong is decoded, so that the answer is the one that training would get. Damage in the middle
    of a file shows only when it is decoded. Arguments and errors are those of `data.images.decode`.
    """
    with opened(path, max_pixels) as image:
        header = Header(image.width, image.height, image.mode)
        whole = _seems_whole(image, path)
    if not whole:
        decode(path, max_pixels)
    return header


def read_headers(paths: Sequence[Path], max_pixels: int) -> tuple[list[Header], list[str]]:
    """`read_header` of many images: the headers that could be read, and what is wrong with the others."""

    def look(path: Path) -> Header | str:
        try:
            return read_header(path, max_pixels)
        except InputError as fault:
            return str(fault)

    with ThreadPoolExecutor(max(THREADS, os.cpu_count() or 1)) as pool:
        found = list(progress_bar(pool.map(look, paths), total=len(paths), desc="headers", unit="image"))
    headers = [entry for entry in found if isinstance(entry, Header)]
    return headers, [entry for entry in found if isinstance(entry, str)]


def _seems_whole(image: Image.Image, path: Path) -> bool:
    size = path.stat().st_size
    if image.format == "TIFF":
        return _strips_end(image) <= size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        end = _ENDS.get(str(image.format))
        return end is not None and end in file.read(_TAIL)


def _strips_end(image: Image.Image) -> float:
    """Where the last strip or tile of a TIFF ends in its file; infinite where its header does not say."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    try:
        pairs = [(tags[first], tags[second]) for first, second in _STRIPS if first in tags and second in tags]
        return max(place + length for pair in pairs for place, length in zip(*pair, strict=True))
    except (TypeError, ValueError):
        return float("inf")
