"""Semantic localization: windows of a large image, scored against sentences, become a map of where each is true.

Letters: N windows, Q queries, S image side, H W image in pixels, R C rows and columns of cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batches.augmentation import normalise
from batches.batch import Batch, Captions
from data.images import to_square
from data.rasters.values import Part
from engine import embed
from layers.base import RetrievalModel
from layers.folding import folded
from localization.indicators import TOP_LEVEL, opencv
from localization.large_image import LargeImage
from runtime.progress import progress_bar

READ_AHEAD = 32  # windows side by side that are read as one part of the image
LEAST_HELD = 0.5  # of a window, share of the pixels that hold data
SIDE, ROW, COLUMN = range(3)  # of a window


def window_grid(height: int, width: int, sides: Sequence[int]) -> NDArray[np.int64]:
    """Windows of several sizes, each in two grids: from the corner, and from half a window in both directions.

    The last window of a row or column is pushed back inside the image; a window that comes twice counts once.

    Args:
        height: H, at least the largest side.
        width: W, at least the largest side.
        sides: of the square windows, pixels.

    Returns:
        [N, 3]: side, row and column of the upper left pixel; in that order sorted.
    """
    grids = []
    for side in sides:
        for phase in (0, side // 2):
            rows = np.arange(phase, height, side).clip(max=height - side)
            columns = np.arange(phase, width, side).clip(max=width - side)
            places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
            grids.append(np.insert(places, 0, side, axis=1))
    return np.unique(np.concatenate(grids), axis=0).astype(np.int64)


def prepared_windows(
    image: LargeImage, windows: NDArray[np.int64], image_size: int, threads: int
) -> Iterator[NDArray[np.uint8]]:
    """Each window as evaluation prepares an image of its own, [3, S, S], in order.

    Args:
        image: read in parts of at most `READ_AHEAD` windows.
        windows: [N, 3] of `window_grid`.
        image_size: S.
        threads: that scale windows.
    """
    with ThreadPoolExecutor(threads) as pool:
        for (side, row), group in groupby(windows.tolist(), key=lambda window: (window[SIDE], window[ROW])):
            columns = [window[COLUMN] for window in group]
            for start in range(0, len(columns), READ_AHEAD):
                chosen = columns[start : start + READ_AHEAD]
                band = image.read(row, chosen[0], side, chosen[-1] + side - chosen[0])
                lefts = [column - chosen[0] for column in chosen]
                yield from pool.map(partial(_prepare, band, side, image_size), lefts)


def _prepare(band: Part, side: int, image_size: int, left: int) -> NDArray[np.uint8]:
    """The window [3, S, S] that begins at a column of a band of its height."""
    return to_square(band.cropped(left, 0, side, side).filled(), image_size)


def held_windows(windows: NDArray[np.int64], valid: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """The windows [N, 3] of which at least half hold data; `valid` [H, W] says which pixels do, None: all."""
    if valid is None:
        return windows
    held = [
        np.count_nonzero(valid[row : row + side, column : column + side]) >= LEAST_HELD * side**2
        for side, row, column in windows.tolist()
    ]
    return windows[held]


def encode_queries(model: RetrievalModel, queries: Captions, device: torch.device, amp: str = "off") -> Tensor:
    """Embeddings [Q, D] of queries, on the device."""
    batches = (queries.batch(torch.tensor([row])).to(device) for row in range(len(queries.lengths)))
    return embed(model, model.encode_text, batches, "query", device, amp)


def _encode(batch: Batch, model: RetrievalModel) -> Tensor:
    return model.encode_image(batch)


@torch.no_grad()
def score_windows(
    model: RetrievalModel,
    image: LargeImage,
    windows: NDArray[np.int64],
    queries: Tensor,
    *,
    image_size: int,
    batch_size: int,
    amp: str = "off",
    threads: int = 1,
) -> NDArray[np.float32]:
    """The score of every window with every query, each window encoded once; memory is that of a batch.

    Args:
        model: on the device of the queries; a model that needs regions can't be used.
        image: where the windows lie.
        windows: [N, 3] of `window_grid`.
        queries: [Q, D] of `encode_queries`.
        image_size: S, side of the images that the model takes.
        batch_size: windows encoded at a time.
        amp: precision, see `engine.embed`.
        threads: that scale windows.

    Returns:
        [N, Q].

    Raises:
        InputError: the image is damaged, or an embedding is not finite.
    """
    device = queries.device
    squares = prepared_windows(image, windows, image_size, threads)
    scores = np.empty((len(windows), len(queries)), dtype=np.float32)
    with progress_bar(total=len(windows), desc="windows", unit="window") as bar:
        for start in range(0, len(windows), batch_size):
            stored = np.stack([next(squares) for _ in range(min(batch_size, len(windows) - start))])
            batch = Batch(images=normalise(torch.from_numpy(stored).to(device)))
            if start == 0:
                quick = folded(model.eval(), partial(_encode, batch.first()))
            images = embed(quick, quick.encode_image, [batch], "window", device, amp)
            scores[start : start + len(stored)] = model.score(images, queries).cpu().numpy()
            bar.update(len(stored))
    return scores


@dataclass(frozen=True)
class MeanMap:
    """The mean score of the windows over each pixel, which is the same all over a cell between window edges.

    Attributes:
        row_edges: [R + 1], from 0 to H.
        column_edges: [C + 1], from 0 to W.
        values: [R, C]; not a number where no window lies, or no pixel holds data.
        valid: [H, W] which pixels hold data; None: all of them.
    """

    row_edges: NDArray[np.int64]
    column_edges: NDArray[np.int64]
    values: NDArray[np.float64]
    valid: NDArray[np.bool_] | None = None

    @property
    def lowest(self) -> float:
        """The lowest value that there is."""
        return float(np.nanmin(self.values))

    @property
    def highest(self) -> float:
        """The highest value that there is."""
        return float(np.nanmax(self.values))

    def known(self) -> NDArray[np.bool_] | None:
        """The pixels [H, W] that the map says something of; None: all."""
        scored = ~np.isnan(self.values)
        if self.valid is None:
            return None if scored.all() else self.pixels(scored)
        return self.pixels(scored) & self.valid

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values [K] at points [K, 2], x and y in pixels."""
        columns = np.searchsorted(self.column_edges[1:-1], points[:, 0].round(), side="right")
        rows = np.searchsorted(self.row_edges[1:-1], points[:, 1].round(), side="right")
        return self.values[rows, columns]

    def pixels(self, cells: NDArray) -> NDArray:
        """A value for each cell [R, C] as one for each pixel [H, W]."""
        return cells.repeat(np.diff(self.row_edges), axis=0).repeat(np.diff(self.column_edges), axis=1)

    def levels(self, median: int) -> NDArray[np.uint8]:
        """The map as it is shown and measured: from the lowest value to the highest, then smoothed.

        Args:
            median: side of the median filter, odd, 1 to 255 pixels.

        Returns:
            [H, W], 0 to 255 for 0 to 1, rounded down before the filter; all 0 where the values do not differ, and 0
            where nothing is known, which the filter takes for the mean.
        """
        low, high = self.lowest, self.highest
        share = (self.values - low) / (high - low) if high > low else np.zeros_like(self.values)
        levels = self.pixels((np.nan_to_num(share) * TOP_LEVEL).astype(np.uint8))
        known = self.known()
        if known is not None:
            levels[~known] = levels[known].mean()
        if median > 1:
            levels = np.asarray(opencv().medianBlur(levels, median))
        return levels if known is None else np.where(known, levels, 0).astype(np.uint8)


def mean_map(
    windows: NDArray[np.int64], scores: NDArray[np.floating], valid: NDArray[np.bool_] | None = None
) -> MeanMap:
    """The mean score of the windows that cover each pixel, by 2-D difference arrays of their sum and their number.

    The arrays hold one entry per cell between window edges, not per pixel: some hundred rows and columns for any size
    of image.

    Args:
        windows: [N, 3] of `window_grid`; where all pixels hold data, they cover the image together.
        scores: [N], of one query.
        valid: [H, W] which pixels hold data; None: all of them.
    """
    starts, ends = windows[:, (ROW, COLUMN)], windows[:, (ROW, COLUMN)] + windows[:, SIDE, None]
    ends_of = ends.max(axis=0) if valid is None else valid.shape
    row_edges, column_edges = (
        np.unique(np.concatenate([starts[:, axis], ends[:, axis], [0, ends_of[axis]]])) for axis in (0, 1)
    )
    top, bottom = (np.searchsorted(row_edges, edge[:, 0]) for edge in (starts, ends))
    left, right = (np.searchsorted(column_edges, edge[:, 1]) for edge in (starts, ends))
    total, count = np.zeros((2, len(row_edges), len(column_edges)))
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(total, (row, column), sign * scores.astype(np.float64))
        np.add.at(count, (row, column), sign)
    sums, numbers = (array.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] for array in (total, count))  # [R, C]
    means = np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0)
    if valid is not None:
        of_rows = np.logical_or.reduceat(valid, row_edges[:-1], axis=0)
        means[~np.logical_or.reduceat(of_rows, column_edges[:-1], axis=1)] = np.nan
    return MeanMap(row_edges, column_edges, means, valid)
