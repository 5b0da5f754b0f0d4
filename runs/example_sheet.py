"""Draws what a few captions and their images found: a block each, the right image framed wherever it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIDE = 112  # pixels of a thumbnail
GAP = 8
FRAME = 4
LINE = 18
TITLE_SIZE, TEXT_SIZE = 16, 13
RIGHT, GREY = "#0a8f3c", "#555555"


@dataclass(frozen=True)
class Search:
    """What a caption found, and its image.

    Attributes:
        caption: the query.
        image: thumbnail of its image; None: it can't be read.
        place: first and last place of its image, from 1; they differ where scores are equal.
        images: that were searched.
        found: the first of them, best first, and whether each is the right one.
        text_place: of the best own caption of the image, likewise.
        texts: captions that were searched.
        named: the first different ones of them, best first, and whether each belongs to the image.
    """

    caption: str
    image: Image.Image | None
    place: tuple[int, int]
    images: int
    found: Sequence[tuple[Image.Image | None, bool]]
    text_place: tuple[int, int]
    texts: int
    named: Sequence[tuple[str, bool]]


def draw_sheet(searches: Sequence[Search]) -> Image.Image:
    """All searches below each other, RGB."""
    columns = max(len(search.found) for search in searches) + 1
    width = 3 * GAP + columns * (SIDE + GAP)
    heights = [_height(search) for search in searches]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for search, height in zip(searches, heights, strict=True):
        _draw(sheet, draw, search, top)
        top += height
        draw.line((0, top - 1, width, top - 1), fill="#cccccc")
    return sheet


def _height(search: Search) -> int:
    return 3 * GAP + 2 * LINE + SIDE + LINE + (1 + len(search.named)) * LINE


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, search: Search, top: int) -> None:
    """One search, from a height on."""
    width = sheet.width - 2 * GAP
    _write(draw, (GAP, top + GAP), search.caption, width, "black", TITLE_SIZE)
    said = f"text to image: {in_words(search.place, search.images, 'image')}"
    _write(draw, (GAP, top + GAP + LINE + 2), said, width, GREY)
    upper = top + 2 * GAP + 2 * LINE
    left = GAP
    _place(sheet, draw, search.image, (left, upper), True)
    _write(draw, (left, upper + SIDE + 2), "its image", SIDE, RIGHT)
    left += 2 * GAP
    for number, (image, right) in enumerate(search.found, start=1):
        left += SIDE + GAP
        _place(sheet, draw, image, (left, upper), right)
        _write(draw, (left, upper + SIDE + 2), f"{number} right" if right else str(number), SIDE, _ink(right))
    below = upper + SIDE + LINE + GAP
    said = f"image to text: {in_words(search.text_place, search.texts, 'caption')}"
    _write(draw, (GAP, below), said, width, GREY)
    for number, (text, own) in enumerate(search.named, start=1):
        shown = f"{number} right: {text}" if own else f"{number}: {text}"
        _write(draw, (GAP, below + number * LINE), shown, width, _ink(own))


def in_words(place: tuple[int, int], of: int, kind: str) -> str:
    """A place among some items: "place 3 of 50 images", "place 2 to 9 of 50 images, equal scores"."""
    first, last = place
    items = f"{of} {kind}{'' if of == 1 else 's'}"
    return f"place {first} of {items}" if first == last else f"place {first} to {last} of {items}, equal scores"


def _ink(right: bool) -> str:
    return RIGHT if right else GREY


def _place(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image | None, corner: tuple[int, int], framed: bool
) -> None:
    """An image, or a grey square that says that it can't be read; the frame lies around it."""
    left, upper = corner
    if framed:
        box = (left - FRAME, upper - FRAME, left + SIDE + FRAME - 1, upper + SIDE + FRAME - 1)
        draw.rectangle(box, fill=RIGHT)
    if image is not None:
        sheet.paste(image, corner)
        return
    draw.rectangle((left, upper, left + SIDE - 1, upper + SIDE - 1), fill="#eeeeee")
    _write(draw, (left + GAP, upper + SIDE // 2 - GAP), "can't be read", SIDE - 2 * GAP, GREY)


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, ink: str, size: int = TEXT_SIZE
) -> None:
    """A text on one line, cut off where it does not fit."""
    draw.text(corner, fitting(text, width, size), fill=ink, font=_font(size))


def fitting(text: str, width: int, size: int) -> str:
    """As much of a text as fits into a width in pixels, on one line."""
    line = " ".join(text.split())
    if _font(size).getlength(line) <= width:
        return line
    low, high = 0, len(line)  # letters that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = _font(size).getlength(f"{line[:middle]}...") <= width
        low, high = (middle, high) if fits else (low, middle)
    return f"{line[:low]}..."


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
