"""Whether images can be read, found out from their headers and their ends, without decoding them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.images import decode, is_raster, opened
from data.rasters.reader import open_raster
from data.rasters.tags import Tags
from option.images import ImageRule
from runtime.progress import progress_bar
from utils import InputError

THREADS = 8
"""At least: on a network's disk, most of the time is waiting."""

_TAIL = 4096
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class Header:
    """What an image's header says: pixels and the kind of their values, as Pillow or NumPy names it."""

    width: int
    height: int
    mode: str


def read_header(path: Path, rule: ImageRule) -> Header:
    """Read an image's header and see that its file does not end too early.

    A file whose end looks wrong is decoded, so that the answer is the one that training would get. Damage in the middle
    of a file shows only when it is decoded. Arguments and errors are those of `data.images.decode`.
    """
    if path.is_file() and is_raster(path, rule):
        with open_raster(path, rule) as raster:
            header = Header(raster.width, raster.height, raster.mode)
            whole = raster.end <= path.stat().st_size
    else:
        with opened(path, rule) as image:
            header = Header(image.width, image.height, image.mode)
            whole = _seems_whole(image, path)
    if not whole:
        decode(path, rule)
    return header


def read_headers(paths: Sequence[Path], rule: ImageRule) -> tuple[list[Header], list[str]]:
    """`read_header` of many images: the headers that could be read, and what is wrong with the others."""

    def look(path: Path) -> Header | str:
        try:
            return read_header(path, rule)
        except InputError as fault:
            return str(fault)

    with ThreadPoolExecutor(max(THREADS, os.cpu_count() or 1)) as pool:
        found = list(progress_bar(pool.map(look, paths), total=len(paths), desc="headers", unit="image"))
    headers = [entry for entry in found if isinstance(entry, Header)]
    return headers, [entry for entry in found if isinstance(entry, str)]


def _seems_whole(image: Image.Image, path: Path) -> bool:
    size = path.stat().st_size
    if image.format == "TIFF":
        return Tags.of(path).end <= size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        end = _ENDS.get(str(image.format))
        return end is not None and end in file.read(_TAIL)
