"""A contact sheet: the query on top, the images that it found below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from archive.searcher import Hit
from data.images import decode
from option.images import ImageRule
from utils import InputError, first_line, logger, write_atomic

SIDE = 200  # pixels of a thumbnail
GAP = 12
LINE = 18
COLUMNS = 5
CAPTION_SIZE, TEXT_SIZE = 20, 13
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def write_sheet(
    path: Path,
    caption: str,
    hits: Sequence[Hit],
    folder: Path,
    rule: ImageRule,
    query: Image.Image | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Draw the images that were found, with rank, score and name.

    Args:
        path: PNG or JPEG file to write.
        caption: the query in words.
        hits: what it found.
        folder: of the images.
        rule: how they are read; those with too many pixels are left blank, see `data.images.decode`.
        query: the query where it is an image.
        remarks: what is to be said of it.

    Raises:
        InputError: nothing that was found can be shown, or the file can't be written.
    """
    check_sheet(path)
    images = [_image(folder / hit.name, rule) for hit in hits]
    if not any(images):
        found = f"none of the {len(images)} images found can be read" if images else "no image was found"
        raise InputError(f"--sheet {path}: not drawn: {found} in {folder}; --images says where they are now.")
    if lost := images.count(None):
        logger.warning("--sheet: %d of %d images can't be read and are left blank.", lost, len(images))
    cells: list[tuple[Image.Image | None, str, str]] = [(query, "query", "")] if query is not None else []
    for rank, (image, hit) in enumerate(zip(images, hits, strict=True), start=1):
        cells.append((image, f"{rank}   {hit.score:.4f}", hit.label))
    sheet = _draw(caption, remarks, cells)
    try:
        write_atomic(path, partial(sheet.save, format=_FORMATS[path.suffix.lower()]))
    except OSError as fault:
        raise InputError(f"--sheet {path}: can't be written ({first_line(fault)}).") from fault


def check_sheet(path: Path) -> None:
    """Find out before the work whether a sheet can't be written there.

    Raises:
        InputError: not the name of a PNG or JPEG file.
    """
    if path.suffix.lower() not in _FORMATS or path.is_dir():
        raise InputError(f"--sheet {path}: expected the name of a file that ends in {', '.join(_FORMATS)}.")


def _image(path: Path, rule: ImageRule) -> Image.Image | None:
    """A thumbnail; None for an image that is gone or damaged."""
    try:
        image = decode(path, rule)
    except InputError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image


def _draw(caption: str, remarks: Sequence[str], cells: Sequence[tuple[Image.Image | None, str, str]]) -> Image.Image:
    columns = min(COLUMNS, max(3, len(cells)))
    width = GAP + columns * (SIDE + GAP)
    lines = textwrap.wrap(caption, width // 11)[:4]
    said = [line for remark in remarks for line in textwrap.wrap(remark, width // 8)][:6]
    top = 2 * GAP + len(lines) * (CAPTION_SIZE + 6) + len(said) * LINE
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (width, top + rows * (SIDE + 2 * LINE + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + number * (CAPTION_SIZE + 6)), line, fill="black", font_size=CAPTION_SIZE)
    for number, line in enumerate(said):
        below = GAP + len(lines) * (CAPTION_SIZE + 6) + number * LINE
        draw.text((GAP, below), line, fill="dimgrey", font_size=TEXT_SIZE)
    for number, (image, heading, name) in enumerate(cells):
        left = GAP + number % columns * (SIDE + GAP)
        upper = top + number // columns * (SIDE + 2 * LINE + GAP)
        _place(draw, sheet, image, (left, upper))
        draw.text((left, upper + SIDE + 2), heading, fill="black", font_size=TEXT_SIZE)
        draw.text((left, upper + SIDE + LINE), _fitting(name), fill="dimgrey", font_size=TEXT_SIZE)
    return sheet


def _place(draw: ImageDraw.ImageDraw, sheet: Image.Image, image: Image.Image | None, corner: tuple[int, int]) -> None:
    """Put an image in the middle of its cell."""
    left, upper = corner
    draw.rectangle((left, upper, left + SIDE - 1, upper + SIDE - 1), fill="whitesmoke")
    if image is None:
        draw.text((left + GAP, upper + SIDE // 2), "can't be read", fill="firebrick", font_size=TEXT_SIZE)
        return
    shown = image.copy()
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sheet.paste(shown, (left + (SIDE - shown.width) // 2, upper + (SIDE - shown.height) // 2))


def _fitting(name: str) -> str:
    """The end of a name, as much as fits under a thumbnail."""
    font = ImageFont.load_default(TEXT_SIZE)
    if font.getlength(name) <= SIDE:
        return name
    while font.getlength(f"...{name}") > SIDE:
        name = name[1:]
    return f"...{name}"
