"""The first items of every search and where they stand, from blocks of a score matrix that is never held as a whole.

Letters: N images, M texts, n images of one block; in one direction Q queries, P items to be found, K candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metrics.ranks import CACHED_SCORES, Blocks


@dataclass(frozen=True)
class Shortlist:
    """The K highest scores of each query of one direction.

    Attributes:
        items: [Q, K] int64 in 0..P-1.
        scores: [Q, K].
        place: [Q, K] int64, place of the item for the query as of `places`; K or more where it is not less than K.
        shares: [Q, K] `saliency` of the item for the query.
    """

    items: Tensor
    scores: Tensor
    place: Tensor
    shares: Tensor


def places(scores: Tensor) -> Tensor:
    """Place [Q, P] int64, from 0, of every item for every query: how many others have at least its score [Q, P]."""
    scores = scores.contiguous()
    return scores.shape[1] - 1 - torch.searchsorted(scores.sort(dim=1).values, scores)


def saliency(scores: Tensor, total: Tensor, largest: Tensor) -> Tensor:
    """How much of an item's similarity to all queries falls on one of them: p1 of the multivariate rerank.

    It is the score divided by the item's sum over the queries. The sum of scores of both signs can come near zero or
    below it, so the divisor is never less than the item's largest absolute score: p1 stays in [-1, 1], and sums beyond
    that, which sums without negative scores always are, count as they are. An item with no score but 0 has p1 = 0.

    Args:
        scores: of queries with items, any shape.
        total: the items' sums, float64, of that shape.
        largest: the items' largest absolute scores, of that shape.
    """
    # A sum depends in its last bits on how it is vectorised; in float32 those of equal items are equal again.
    divisor = torch.maximum(total, largest.double()).float()
    return (scores / divisor).where(divisor > 0, 0.0)


def shortlists(blocks: Blocks, count: int) -> tuple[Shortlist, Shortlist]:
    """Of the images, which search texts, and of the texts, which search images.

    Args:
        blocks: of finite scores; called once.
        count: items per query, K; all of them where there are fewer.
    """
    by_image: list[tuple[Tensor, Tensor]] = []
    row_sums: list[tuple[Tensor, Tensor]] = []
    by_text: tuple[Tensor, Tensor] | None = None
    column_total = column_largest = torch.zeros(())
    for start, block in _numbered(blocks):
        by_image.append(_first(block, count + 1, dim=1))
        row_sums.append(_sums(block, dim=1))
        scores, rows = _first(block, count + 1, dim=0)
        by_text = _merged(by_text, (scores, rows + start), count + 1)
        total, largest = _sums(block, dim=0)
        column_total = column_total.to(block.device) + total
        column_largest = torch.maximum(column_largest.to(block), largest)
    assert by_text is not None
    scores, items = (torch.cat(parts) for parts in zip(*by_image, strict=True))
    total, largest = (torch.cat(parts) for parts in zip(*row_sums, strict=True))
    return (
        _shortlist(scores, items, count, column_total, column_largest),
        _shortlist(by_text[0].T, by_text[1].T, count, total, largest),
    )


def places_back(blocks: Blocks, images: Shortlist, texts: Shortlist) -> tuple[Tensor, Tensor]:
    """Place of each query when searching with each item of its shortlist, from 0: [N, K] and [M, K] int64.

    Args:
        blocks: the same as for `shortlists`; called once.
        images: from `shortlists`.
        texts: from `shortlists`.
    """
    of_images, of_texts = _Pairs(images), _Pairs(texts)
    for start, block in _numbered(blocks):
        of_images.count_columns(block)
        # On the CPU in parts that stay in its cache.
        height = max(1, CACHED_SCORES // block.shape[1])
        for offset in range(0, len(block), height):
            of_texts.count_rows(_rising(block[offset : offset + height]), start + offset)
    return of_images.places(), of_texts.places()


class _Pairs:
    """Queries with the items of their shortlists, ordered by item, and how many queries score at least as high."""

    def __init__(self, shortlist: Shortlist) -> None:
        self.shape = shortlist.items.shape
        self.items, self.order = shortlist.items.flatten().sort()
        self.bounds = shortlist.scores.flatten()[self.order]
        self.counts = torch.zeros_like(self.items)

    def count_columns(self, block: Tensor) -> None:
        """Items are columns: add what a block of rows [n, P] holds."""
        width = max(1, CACHED_SCORES // len(block))
        for start in range(0, len(self.items), width):
            chosen = slice(start, start + width)
            found = block.index_select(1, self.items[chosen]) >= self.bounds[chosen]
            self.counts[chosen] += found.sum(dim=0, dtype=torch.int32)

    def count_rows(self, ordered: Tensor, first: int) -> None:
        """Items are rows: set what the rows [n, Q] of item `first` and those after it hold, in rising order."""
        rows = torch.arange(first, first + len(ordered) + 1, device=self.items.device)
        edges = torch.searchsorted(self.items, rows).tolist()
        for row, start, end in zip(ordered, edges, edges[1:], strict=False):
            self.counts[start:end] = len(row) - torch.searchsorted(row, self.bounds[start:end])

    def places(self) -> Tensor:
        """Places of the queries [Q, K]; the query itself is no other."""
        # Scores that are made anew may differ in the last bit on a GPU, and miss themselves.
        return torch.empty_like(self.counts).scatter_(0, self.order, (self.counts - 1).clamp(min=0)).view(self.shape)


def _rising(scores: Tensor) -> Tensor:
    """Each row in rising order; on the CPU by NumPy, which sorts with vector instructions what it has a type for."""
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.sort(scores.numpy(), axis=1))
    return scores.sort(dim=1).values


def _numbered(blocks: Blocks) -> Iterator[tuple[int, Tensor]]:
    """Each block with the number of its first row."""
    start = 0
    for block in blocks():
        yield start, block
        start += len(block)


def _first(scores: Tensor, count: int, dim: int) -> tuple[Tensor, Tensor]:
    """The highest scores along a dimension, falling, and where they stand."""
    return tuple(scores.topk(min(count, scores.shape[dim]), dim=dim))  # type: ignore[return-value]


def _sums(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sums along a dimension, float64, and the largest absolute scores."""
    lowest, highest = scores.aminmax(dim=dim)
    return scores.sum(dim=dim, dtype=torch.float64), torch.maximum(-lowest, highest)


def _merged(kept: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The highest of two lists of scores with their items, each [k, M]."""
    if kept is None:
        return new
    scores, items = (torch.cat(parts) for parts in zip(kept, new, strict=True))
    scores, place = _first(scores, count, dim=0)
    return scores, items.gather(0, place)


def _shortlist(scores: Tensor, items: Tensor, count: int, total: Tensor, largest: Tensor) -> Shortlist:
    """Of the count + 1 highest scores [Q, K + 1], falling, the first; the last shows with which of them it is equal."""
    place = places(scores)[:, :count]
    scores, items = scores[:, :count], items[:, :count]
    return Shortlist(items, scores, place, saliency(scores, total[items], largest[items]))
