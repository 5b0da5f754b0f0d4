"""How well a map points at what a sentence describes: Rsu, Ras, Rda and Rmi of semantic localization.

Letters: H W image in pixels, P polygons, V vertices, K attention centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from utils import import_extra

TOP_LEVEL = 255
"""The level of a map in whole numbers that stands for 1 in a map in 0..1."""
SOFTENING = 50  # pixels, side of the box filter
SOFTENINGS = 5
REACH = 1000  # pixels, side of the square in which an attention centre is the highest place
LEAST = 0.5
EXPANSION = 1.5
WEIGHTS = (0.4, 0.35, 0.25)


@dataclass(frozen=True)
class Indicators:
    """The four indicators of one map, each in 0..1.

    Attributes:
        rsu: share of significant area, the higher the better.
        ras: shift of attention, the lower the better.
        rda: discrete attention, the higher the better.
        rmi: their weighted mean, the higher the better.
    """

    rsu: float
    ras: float
    rda: float
    rmi: float


def opencv() -> ModuleType:
    """OpenCV, whose median filter takes the same time at any size.

    Raises:
        InputError: the extra `geo` is not installed.
    """
    modules = [import_extra(name, "localization needs OpenCV and SciPy", "geo") for name in ("scipy", "cv2")]
    return modules[1]


def indicators(
    levels: NDArray[np.uint8], centres: NDArray[np.float64], polygons: Sequence[NDArray[np.float64]]
) -> Indicators:
    """All four indicators of a map against the polygons of what was searched.

    Args:
        levels: [H, W], the map in 0..1 times 255.
        centres: [K, 2] of `attention_centres`.
        polygons: P of [V, 2], x and y in pixels.
    """
    places, radii = circles(polygons)
    shares = rsu(levels, inside(polygons, levels.shape))
    shift, discrete = ras(centres, places, radii), rda(centres, places, radii)
    return Indicators(shares, shift, discrete, rmi(shares, shift, discrete))


def inside(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels [H, W] lie in one or more of the polygons; those that their lines cross count as inside."""
    height, width = shape
    mask = np.zeros(shape, dtype=np.uint8)
    for polygon in polygons:
        corners = np.floor(polygon).clip(0, (width - 1, height - 1)).astype(np.int32)
        opencv().fillPoly(mask, [corners], 1)
    return mask.view(np.bool_)


def rsu(levels: NDArray[np.uint8], within: NDArray[np.bool_]) -> float:
    """1 - exp(-0.707 * S_in / (S_out + 1e-7) * A_out / A_in), S sums of the map, A areas, in and out of the polygons.

    Args:
        levels: [H, W], the map in 0..1 times 255.
        within: [H, W], at least one pixel True.
    """
    total = int(levels.sum(dtype=np.int64)) / TOP_LEVEL
    within_sum = int(levels.sum(dtype=np.int64, where=within)) / TOP_LEVEL
    area = int(within.sum())
    ratio = within_sum / (total - within_sum + 1e-7) * (within.size - area) / area
    return float(1 - np.exp(-0.707 * ratio))


def attention_centres(levels: NDArray[np.uint8], known: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Where a map has its peaks, [K, 2] as x and y in pixels, in reading order.

    The map is softened with five box filters of 50 pixels. A peak is what no pixel of the 1000 x 1000 around it
    exceeds; pixels that touch are one, at their centroid. Those where the map is below 0.5 do not count, nor those
    where `known` [H, W] says that it says nothing.
    """
    cv2 = opencv()
    # Labels of 16 bits: those of 32 would take four times the memory of the map.
    kinds = (8, cv2.CV_16U, cv2.CCL_DEFAULT)
    centroids = cv2.connectedComponentsWithStatsWithAlgorithm(_peaks(levels), *kinds)[3][1:]  # [K, 2]
    columns, rows = centroids.round().astype(np.int64).T
    counted = levels[rows, columns] >= LEAST * TOP_LEVEL
    return np.asarray(centroids[counted if known is None else counted & known[rows, columns]])


def _peaks(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where the softened map is as high as anywhere in the square around it, 0 or 1, [H, W]."""
    from scipy.ndimage import maximum_filter  # OpenCV's takes longer the larger the square

    softened = levels
    for _ in range(SOFTENINGS):
        softened = opencv().blur(softened, (SOFTENING, SOFTENING))
    return np.equal(softened, maximum_filter(softened, REACH, mode="nearest")).view(np.uint8)


def circles(polygons: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean vertex of each polygon [P, 2], and 1.5 times the mean distance of its vertices to it [P], in pixels."""
    places = np.stack([polygon.mean(axis=0) for polygon in polygons])
    distances = [np.linalg.norm(polygon - place, axis=1) for polygon, place in zip(polygons, places, strict=True)]
    return places, np.array([EXPANSION * distance.mean() for distance in distances])


def ras(centres: NDArray[np.float64], places: NDArray[np.float64], radii: NDArray[np.float64]) -> float:
    """(exp(3x) - 1) / (exp(3) - 1), x the mean over the polygons of offset / radius.

    The offset is the mean distance of those attention centres that lie within the radius, or the radius where none do.

    Args:
        centres: [K, 2] of `attention_centres`; K may be 0.
        places: [P, 2] of `circles`.
        radii: [P], above 0.
    """
    offsets = []
    for place, radius in zip(places, radii, strict=True):
        distances = np.linalg.norm(centres - place, axis=1)
        near = distances[distances <= radius]
        offsets.append(near.mean() / radius if len(near) else 1.0)
    return float(np.expm1(3 * np.mean(offsets)) / np.expm1(3))


def rda(centres: NDArray[np.float64], places: NDArray[np.float64], radii: NDArray[np.float64]) -> float:
    """Mean over the polygons of how well one attention centre, and not several, stands for each.

    With n centres within the radius r: n for 0 and 1; for more 0.5 * (1 - d / r) + exp(-0.5 * (n + 2)), d the mean
    distance of the centres to their own mean. Arguments as in `ras`.
    """
    scores = []
    for place, radius in zip(places, radii, strict=True):
        near = centres[np.linalg.norm(centres - place, axis=1) <= radius]
        if len(near) <= 1:
            scores.append(float(len(near)))
            continue
        spread = np.linalg.norm(near - near.mean(axis=0), axis=1).mean()
        scores.append(0.5 * (1 - spread / radius) + np.exp(-0.5 * (len(near) + 2)))
    return float(np.mean(scores))


def rmi(rsu: float, ras: float, rda: float) -> float:
    """0.4 Rsu + 0.35 (1 - Ras) + 0.25 Rda."""
    return WEIGHTS[0] * rsu + WEIGHTS[1] * (1 - ras) + WEIGHTS[2] * rda
