"""Draws an image's regions and their graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.regions.graph import BOX, CLASSES, SCORE

SIDE = 640  # pixels of the longer side
EDGES = 2  # drawn per region: those to the regions that it takes most from
PALETTE = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6"),
    *("#bcf60c", "#fabebe", "#008080", "#e6beff", "#aa6e28", "#fffac8", "#800000"),
)


def draw_regions(
    image: Image.Image, nodes: NDArray[np.float32], adjacency: NDArray[np.float32], classes: Sequence[str]
) -> Image.Image:
    """The image with a numbered box per region, its two strongest edges, and a legend of the classes to its right.

    Args:
        image: RGB; it is scaled to 640 pixels on the longer side.
        nodes: [20, 20] as `data.regions.graph` makes them.
        adjacency: [20, 20].
        classes: name of each class column.
    """
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    found = nodes[nodes[:, SCORE] > 0]
    kinds = found[:, :CLASSES].argmax(axis=1)
    canvas = Image.new("RGB", (width + 190, max(height, 40 + 14 * len(found))), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(canvas)
    boxes = found[:, BOX] * (width, height, width, height)
    _draw_edges(draw, boxes[:, :2], adjacency[: len(found), : len(found)])
    for number, (box, kind) in enumerate(zip(boxes, kinds, strict=True), start=1):
        corners = [*(box[:2] - box[2:] / 2), *(box[:2] + box[2:] / 2)]
        draw.rectangle(corners, outline=PALETTE[kind], width=2)
        _label(draw, (corners[0] + 3, corners[1] + 2), str(number))
    draw.text((width + 10, 10), f"{len(found)} regions", fill="black")
    for number, (row, kind) in enumerate(zip(found, kinds, strict=True), start=1):
        name = classes[kind] if kind < len(classes) else f"class {kind}"
        top = 16 + 14 * number
        draw.rectangle((width + 10, top + 1, width + 20, top + 10), fill=PALETTE[kind], outline="black")
        draw.text((width + 26, top), f"{number}  {name}  {row[SCORE]:.2f}", fill="black")
    return canvas


def _draw_edges(draw: ImageDraw.ImageDraw, centres: NDArray[np.float32], adjacency: NDArray[np.float32]) -> None:
    """A line from each region to those that it takes most from, the stronger the wider."""
    weights = adjacency.copy()
    np.fill_diagonal(weights, 0)
    for index, row in enumerate(weights):
        for other in np.argsort(-row, kind="stable")[:EDGES]:
            if row[other] > 0:
                line = [tuple(centres[index]), tuple(centres[other])]
                draw.line(line, fill="white", width=1 + round(6 * float(row[other])))


def _label(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """A small text that can be read on any ground."""
    draw.rectangle(draw.textbbox(place, text), fill="black")
    draw.text(place, text, fill="white")
