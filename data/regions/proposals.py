"""Region proposals for images without a detector: segments of even colour, scored by their contrast.

This method is our own, on the segmentation of Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image
Segmentation", IJCV 2004. It draws nothing at random. Letters: S side of the image in pixels, K segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images import load_square
from data.lists import first_faults
from data.regions.graph import Detections
from data.workers import in_parallel
from option.images import ImageRule
from utils import InputError

SIDE = 96  # pixels; a car of UCM (30 cm per pixel) still covers 2 x 4 of them
EVENNESS = 300.0  # greater: larger segments (the paper's k, in grey levels)
SMALLEST = 12  # pixels of a segment
LARGEST_SHARE = 0.5  # of the image, box of a segment; what is larger is the ground, not an object on it
COLOURS = ("dark", "grey", "green", "blue", "warm")
SHAPES = ("small", "long", "broad")
APPEARANCES = tuple(f"{shape} {colour}" for shape in SHAPES for colour in COLOURS)
SMALL_SHARE = 0.01  # of the image
THICK = 4.0  # pixels across a segment whose score is not lowered
LONG_RATIO = 2.5  # longer axis to shorter axis
DARKEST = 60  # greatest channel of a dark colour
GREYEST = 16  # range of the channels of a grey colour


def propose(path: Path, rule: ImageRule) -> Detections:
    """Objects of an image, each of one of the 15 `APPEARANCES`.

    Raises:
        InputError: it can't be read.
    """
    pixels = load_square(path, SIDE, rule).transpose(1, 2, 0).astype(np.float64)  # [S, S, 3]
    return describe(pixels, segment(pixels))


def propose_in_all(folder: Path, names: Sequence[str], workers: int, rule: ImageRule) -> dict[str, Detections]:
    """`propose` for images of a folder, by name; the same for any number of worker processes.

    Raises:
        InputError: some can't be read; names the first five and counts the rest.
    """
    work = partial(_propose_or_fault, rule=rule)
    results = in_parallel(work, [folder / name for name in names], workers, "regions", "image")
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        raise InputError(f"{len(faults)} of {len(names)} images can't be read:{first_faults(faults)}")
    return {name: result for name, result in zip(names, results, strict=True) if not isinstance(result, str)}


def _propose_or_fault(path: Path, rule: ImageRule) -> Detections | str:
    try:
        return propose(path, rule)
    except InputError as fault:
        return str(fault)


def segment(pixels: NDArray[np.float64], evenness: float = EVENNESS, smallest: int = SMALLEST) -> NDArray[np.int64]:
    """Join neighbouring pixels to segments, the most similar ones first.

    Two segments join while the step between them is not greater than the steps inside of both.

    Args:
        pixels: [S, S, 3], 0..255.
        evenness: how much a small segment is allowed more than a large one, grey levels.
        smallest: segments with fewer pixels join a neighbour.

    Returns:
        [S, S] number of each pixel's segment, 0..K - 1.
    """
    first, second, steps = neighbours(pixels)
    order = np.argsort(steps, kind="stable")
    edges = list(zip(first[order].tolist(), second[order].tolist(), steps[order].tolist(), strict=True))
    height, width = pixels.shape[:2]
    parent = list(range(height * width))
    size = [1] * len(parent)
    limit = [evenness] * len(parent)

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b, step in edges:
        a, b = root(a), root(b)
        if a != b and step <= limit[a] and step <= limit[b]:
            parent[b] = a
            size[a] += size[b]
            limit[a] = step + evenness / size[a]
    for a, b, _ in edges:
        a, b = root(a), root(b)
        if a != b and min(size[a], size[b]) < smallest:
            parent[b] = a
            size[a] += size[b]
    roots = np.array([root(place) for place in range(len(parent))])
    return np.unique(roots, return_inverse=True)[1].reshape(height, width)


def neighbours(pixels: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Each pair of pixels side by side or one above the other: both places, and the distance of their colours."""
    places = np.arange(pixels.shape[0] * pixels.shape[1]).reshape(pixels.shape[:2])
    colours = pixels.reshape(-1, 3)
    first = np.concatenate([places[:, :-1].ravel(), places[:-1].ravel()])
    second = np.concatenate([places[:, 1:].ravel(), places[1:].ravel()])
    return first, second, np.linalg.norm(colours[first] - colours[second], axis=1)


def describe(pixels: NDArray[np.float64], labels: NDArray[np.int64]) -> Detections:
    """Box, appearance and score of each segment but the ground's.

    The score is the contrast to the neighbours, lowered for thin segments: specks, and the edges between two others.
    """
    height, width = labels.shape
    flat = labels.ravel()
    area = np.bincount(flat).astype(np.float64)
    rows, columns = (axis.ravel() for axis in np.mgrid[:height, :width])
    colour = np.stack([np.bincount(flat, channel) for channel in pixels.reshape(-1, 3).T], axis=1) / area[:, None]
    low, high = (corner / (width, height) for corner in extremes(flat, rows, columns, len(area)))
    contrast, border = borders(colour, labels)
    thickness = 2 * area / np.maximum(border, 1)
    shape = np.where(area < SMALL_SHARE * flat.size, 0, np.where(elongation(flat, rows, columns) > LONG_RATIO, 1, 2))
    chosen = (high - low).prod(axis=1) <= LARGEST_SHARE
    return Detections(
        boxes=np.hstack([(low + high) / 2, high - low])[chosen].astype(np.float32),
        classes=(shape * len(COLOURS) + colour_group(colour))[chosen],
        scores=(contrast * np.minimum(thickness / THICK, 1))[chosen].astype(np.float32),
    )


def borders(colour: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each segment's border to others is like.

    Args:
        colour: [K, 3] mean colours, 0..255.
        labels: [S, S] segment of each pixel.

    Returns:
        [K] mean distance of the segment's colour from its neighbours' along the border, as a share of 255, at most 1;
        and [K] length of the border in pixels.
    """
    pairs = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    first, second = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    apart = first != second
    first, second = first[apart], second[apart]
    both, steps = np.concatenate([first, second]), np.linalg.norm(colour[first] - colour[second], axis=1)
    lengths = np.bincount(both, minlength=len(colour)).astype(np.float64)
    sums = np.bincount(both, np.concatenate([steps, steps]), len(colour))
    return np.minimum(sums / np.maximum(lengths, 1) / 255, 1), lengths


def extremes(
    flat: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Left and top, and right and bottom (one past the last pixel), of each segment: both [K, 2]."""
    low = np.full((count, 2), flat.size)
    high = np.zeros((count, 2), dtype=np.int64)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[:, axis], flat, places)
        np.maximum.at(high[:, axis], flat, places + 1)
    return low, high


def elongation(flat: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Longer axis to shorter axis of the ellipse with each segment's second moments, [K]; at least 1."""
    area = np.bincount(flat)

    def moment(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(flat, values) / area

    x = columns - moment(columns.astype(np.float64))[flat]
    y = rows - moment(rows.astype(np.float64))[flat]
    across = 1 / 12  # of a pixel, which is no point
    xx, yy, xy = moment(x * x) + across, moment(y * y) + across, moment(x * y)
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    ratio: NDArray[np.float64] = np.sqrt((middle + spread) / np.maximum(middle - spread, across / 2))
    return ratio


def colour_group(colour: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index into `COLOURS` of each mean colour, [K, 3] -> [K]."""
    brightest, spread = colour.max(axis=1), np.ptp(colour, axis=1)
    hue = np.array([COLOURS.index(name) for name in ("warm", "green", "blue")])[colour.argmax(axis=1)]
    return np.where(brightest < DARKEST, COLOURS.index("dark"), np.where(spread < GREYEST, COLOURS.index("grey"), hue))
