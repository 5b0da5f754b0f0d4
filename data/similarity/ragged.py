"""Sets of numbers, many in one array, and what pairs of them share.

A product of sparse 0/1 matrices counts that. Torch multiplies these; SciPy is needed for sounds alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row r is `values[starts[r] : starts[r + 1]]`.

    Attributes:
        values: [T] int32, ascending and different within a row.
        starts: [rows + 1] int64.
    """

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Iterable[int]]) -> Ragged:
        """Pack sets of numbers."""
        ordered = [sorted(row) for row in rows]
        starts = np.cumsum([0, *map(len, ordered)])
        return cls(np.array([value for row in ordered for value in row], dtype=np.int32), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def is_sound(self, rows: int) -> bool:
        """Whether this packs that many rows of whole numbers."""
        whole = all(array.dtype.kind == "i" and array.ndim == 1 for array in (self.values, self.starts))
        ordered = whole and len(self.starts) == rows + 1 and bool((np.diff(self.starts) >= 0).all())
        return ordered and bool(self.starts[0] == 0 and self.starts[-1] == len(self.values))

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places in `values` of some rows, one row after the other, and for each which of the chosen rows it is in."""
        sizes = self.starts[rows + 1] - self.starts[rows]
        owner = np.repeat(np.arange(len(rows)), sizes)
        first = np.cumsum(sizes) - sizes
        return np.arange(len(owner)) - np.repeat(first - self.starts[rows], sizes), owner


def shared(
    image_side: Ragged, images: np.ndarray, caption_side: Ragged, captions: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """How many members the sets of some images [n] and some captions [m] share, or how much weight of them.

    `weights` are those of `image_side.values`, 1 each for None.

    Returns:
        [n, m] float64.
    """
    caption_places, caption_of = caption_side.take(captions)
    columns, column_of = np.unique(caption_side.values[caption_places], return_inverse=True)
    members = torch.zeros(len(columns), len(captions), dtype=torch.float64)
    members[torch.from_numpy(column_of), torch.from_numpy(caption_of)] = 1
    places, image_of = image_side.take(images)
    column = np.searchsorted(columns, image_side.values[places])
    known = column < len(columns)
    known[known] = columns[column[known]] == image_side.values[places][known]
    values = np.ones(int(known.sum())) if weights is None else weights[places[known]]
    sparse = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([image_of[known], column[known]])),
        torch.from_numpy(values),
        (len(images), len(columns)),
        check_invariants=False,
    )
    return torch.sparse.mm(sparse, members).numpy()
