"""From detected objects to GaLR's region nodes and graph.

This design is our own. The published GaLR reads finished arrays; the formulas behind them (DREA) and the meaning of
their 20 columns were never published. Letters: n detections of one image, R regions per image (20).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REGIONS = 20
CLASSES = 15  # as many as DOTA has
WIDTH = CLASSES + 5
BOX = slice(CLASSES, CLASSES + 4)
SCORE = CLASSES + 4
MAX_IOU = 0.5
MAX_COSINE = 0.999
DESIGN = (
    "RSRetrieval's own design, not the published DREA: row = 15 class entries holding the score, centre x, centre y, "
    "width, height (share of the image), score; adjacency = cosine of the rows times the other's saliency "
    "(score x area, the greatest 1), self-loops 1, rows normalised"
)

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects that were found in one image.

    Attributes:
        boxes: [n, 4] centre x, centre y, width, height in units of the image, 0..1.
        classes: [n] int, 0..14.
        scores: [n] 0..1.
    """

    boxes: Floats
    classes: NDArray[np.int64]
    scores: Floats

    @property
    def rows(self) -> Floats:
        """[n, 20]: per object 15 class entries that carry the score, four box entries and the score."""
        rows = np.zeros((len(self.scores), WIDTH), dtype=np.float32)
        rows[np.arange(len(rows)), self.classes] = self.scores
        rows[:, BOX] = self.boxes
        rows[:, SCORE] = self.scores
        return rows


def region_arrays(
    detections: Detections, max_iou: float = MAX_IOU, max_cosine: float = MAX_COSINE
) -> tuple[Floats, Floats]:
    """The nodes and the graph of an image.

    Args:
        detections: its objects, any number of them.
        max_iou: of two boxes that overlap by more than this intersection over union, only the better one is kept.
        max_cosine: the same for the cosine of their rows, which drops look-alikes side by side.

    Returns:
        Nodes [20, 20], the best score first, and adjacency [20, 20]; rows without an object are zero.
    """
    rows = detections.rows
    kept = rows[distinct(detections, max_iou, max_cosine)]
    nodes = np.zeros((REGIONS, WIDTH), dtype=np.float32)
    adjacency = np.zeros((REGIONS, REGIONS), dtype=np.float32)
    nodes[: len(kept)] = kept
    adjacency[: len(kept), : len(kept)] = graph(kept)
    return nodes, adjacency


def distinct(detections: Detections, max_iou: float, max_cosine: float) -> list[int]:
    """Indices of at most 20 objects, none of them too similar to a better one, the best score first."""
    rows, boxes = detections.rows, detections.boxes
    kept: list[int] = []
    # A sort by all columns makes the result independent of the order that a detector happened to write.
    for index in np.lexsort((*rows.T[:SCORE], -detections.scores)).tolist():
        # Each is compared with those kept, not with all: a table of n x n would take any memory.
        new = [index]
        alone = np.all(box_overlaps(boxes[new], boxes[kept]) <= max_iou)
        if alone and np.all(cosine(rows[new], rows[kept]) <= max_cosine):
            kept.append(index)
        if len(kept) == REGIONS:
            break
    return kept


def graph(rows: Floats) -> Floats:
    """Row-normalised similarity plus self-loops, weighted by saliency: [n, 20] -> [n, n]."""
    saliency = rows[:, SCORE] * rows[:, CLASSES + 2] * rows[:, CLASSES + 3]
    weights = cosine(rows, rows) * (saliency / max(float(saliency.max(initial=0)), 1e-12))
    np.fill_diagonal(weights, 1)  # an object never loses itself, however small
    adjacency: Floats = weights / weights.sum(axis=1, keepdims=True)
    return adjacency


def cosine(rows: Floats, others: Floats) -> Floats:
    """Cosine of each row with each of the others, [n, 20], [m, 20] -> [n, m]; 0 where one is zero."""
    similarities: Floats = _unit(rows) @ _unit(others).T
    return similarities


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def box_overlaps(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of each box with each of the others, [n, 4], [m, 4] -> [n, m]; 0 without any area.

    A box is its centre and its size.
    """
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    other_low, other_high = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    sides = np.minimum(high[:, None], other_high) - np.maximum(low[:, None], other_low)  # [n, m, 2]
    shared = sides.clip(min=0).prod(axis=2)
    areas, other_areas = boxes[:, 2:].prod(axis=1), others[:, 2:].prod(axis=1)
    overlaps: Floats = shared / np.maximum(areas[:, None] + other_areas - shared, 1e-12)
    return overlaps
