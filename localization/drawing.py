"""Draws a map of semantic localization over its image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from localization.indicators import TOP_LEVEL
from localization.overlay import heat_colours, overlay

SIDE = 1200  # pixels of the longer side
FONT_SIZE = 20
LINE = 26
MARGIN = 8
CROSS = 9
SMALL = 14  # of the legend
BAR_WIDTH, BAR_HEIGHT = 360, 14
NO_DATA = "#909090"


def draw_map(
    image: Image.Image,
    levels: NDArray[np.uint8],
    title: str,
    centres: NDArray[np.float64],
    polygons: Sequence[NDArray[np.float64]] = (),
    scores: tuple[float, float] = (0.0, 1.0),
    known: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """The heat map over an image, dark blue to yellow, with a white cross on each attention centre, and a legend.

    Args:
        image: RGB, the whole image at any scale.
        levels: [H, W] of the image at full size.
        title: written above it.
        centres: [K, 2], x and y in pixels of the full size.
        polygons: each [V, 2], in pixels of the full size; outlined in red.
        scores: that the darkest and the brightest colour stand for.
        known: [H, W] where the map says something; None: everywhere. Elsewhere it is grey.
    """
    height, width = levels.shape
    scale = np.array(image.size) / (width, height)
    small = Image.fromarray(levels).resize(image.size, Image.Resampling.BOX)
    heated = overlay(image, torch.from_numpy(np.asarray(small) / TOP_LEVEL))
    if known is not None:
        shown = Image.fromarray(known).convert("L").resize(image.size, Image.Resampling.NEAREST)
        heated = Image.composite(heated, Image.new("RGB", image.size, NO_DATA), shown)
    draw = ImageDraw.Draw(heated)
    for polygon in polygons:
        draw.polygon([tuple(point) for point in (polygon * scale).tolist()], outline="#ff2020", width=3)
    for x, y in (centres * scale).tolist():
        for colour, thickness in (("black", 5), ("white", 2)):
            draw.line((x - CROSS, y, x + CROSS, y), fill=colour, width=thickness)
            draw.line((x, y - CROSS, x, y + CROSS), fill=colour, width=thickness)
    signs = ["+ attention centre"]
    signs += ["red: annotated place"] if len(polygons) else []
    signs += ["grey: no data"] if known is not None else []
    return _titled(heated, title, _legend(image.width, scores, signs))


def _legend(width: int, scores: tuple[float, float], signs: Sequence[str]) -> Image.Image:
    """The colours with the scores that they stand for, and what the signs mean."""
    font = ImageFont.load_default(SMALL)
    bar = np.linspace(0, 1, max(2, min(width, BAR_WIDTH) - 2 * MARGIN), dtype=np.float32)
    colours = Image.fromarray(heat_colours(np.tile(bar, (BAR_HEIGHT, 1))).round().astype(np.uint8))
    low, high = (f"{score:.3f}" for score in scores)
    drawn = Image.new("RGB", (width, BAR_HEIGHT + SMALL * (len(signs) + 1) + 4 * MARGIN), "white")
    drawn.paste(colours, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(drawn)
    below = BAR_HEIGHT + MARGIN + 2
    draw.text((MARGIN, below), low, fill="black", font=font)
    draw.text((MARGIN + colours.width, below), high, fill="black", font=font, anchor="ra")
    draw.text((MARGIN + colours.width // 2, below), "score", fill="black", font=font, anchor="ma")
    draw.text((MARGIN, below + SMALL + MARGIN), "\n".join(signs), fill="black", font=font)
    return drawn


def _titled(image: Image.Image, title: str, legend: Image.Image) -> Image.Image:
    """An image between its title, which is broken into lines that fit, and its legend."""
    font = ImageFont.load_default(FONT_SIZE)
    widest = max(font.getlength(letter) for letter in "mW")
    lines = textwrap.wrap(title, max(8, int(1.7 * (image.width - 2 * MARGIN) / widest)))
    top = MARGIN + LINE * len(lines)
    canvas = Image.new("RGB", (image.width, image.height + top + legend.height), "white")
    canvas.paste(image, (0, top))
    canvas.paste(legend, (0, top + image.height))
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN // 2), "\n".join(lines), fill="black", font=font)
    return canvas
