"""Draws a map of semantic localization over its image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from localization.indicators import TOP_LEVEL
from localization.overlay import overlay

SIDE = 1200  # pixels of the longer side
FONT_SIZE = 20
LINE = 26
MARGIN = 8
CROSS = 9


def draw_map(
    image: Image.Image,
    levels: NDArray[np.uint8],
    title: str,
    centres: NDArray[np.float64],
    polygons: Sequence[NDArray[np.float64]] = (),
) -> Image.Image:
    """The heat map over an image, dark blue to yellow, with a white cross on each attention centre.

    Args:
        image: RGB, the whole image at any scale.
        levels: [H, W] of the image at full size.
        title: written above it.
        centres: [K, 2], x and y in pixels of the full size.
        polygons: each [V, 2], in pixels of the full size; outlined in red.
    """
    height, width = levels.shape
    scale = np.array(image.size) / (width, height)
    small = Image.fromarray(levels).resize(image.size, Image.Resampling.BOX)
    heated = overlay(image, torch.from_numpy(np.asarray(small) / TOP_LEVEL))
    draw = ImageDraw.Draw(heated)
    for polygon in polygons:
        draw.polygon([tuple(point) for point in (polygon * scale).tolist()], outline="#ff2020", width=3)
    for x, y in (centres * scale).tolist():
        for colour, thickness in (("black", 5), ("white", 2)):
            draw.line((x - CROSS, y, x + CROSS, y), fill=colour, width=thickness)
            draw.line((x, y - CROSS, x, y + CROSS), fill=colour, width=thickness)
    return _titled(heated, title)


def _titled(image: Image.Image, title: str) -> Image.Image:
    """An image below its title, which is broken into lines that fit."""
    font = ImageFont.load_default(FONT_SIZE)
    widest = max(font.getlength(letter) for letter in "mW")
    lines = textwrap.wrap(title, max(8, int(1.7 * (image.width - 2 * MARGIN) / widest)))
    top = MARGIN + LINE * len(lines)
    canvas = Image.new("RGB", (image.width, image.height + top), "white")
    canvas.paste(image, (0, top))
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN // 2), "\n".join(lines), fill="black", font=font)
    return canvas
