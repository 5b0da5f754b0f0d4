"""Exact search: every image is scored, block by block.

Letters: N images, B of a block, Q queries, D embedding, K best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from layers.base import l2norm

Scorer = Callable[[Tensor, Tensor], Tensor]
"""Scores [B, Q] of images [B, D] and queries [Q, D]."""
Ranked = tuple[Tensor, Tensor]
"""Scores and rows, the best first; of equal scores the lower row."""


def cosine(images: Tensor, queries: Tensor) -> Tensor:
    """Cosine of every image with every query, [B, D] and [Q, D] -> [B, Q]."""
    return F.linear(l2norm(images), l2norm(queries))


@torch.no_grad()
def search(
    blocks: Iterable[Tensor], queries: Tensor, score: Scorer, k: int, keep: NDArray[np.bool_] | None = None
) -> list[Ranked]:
    """The best images of each query.

    Args:
        blocks: embeddings [B, D] of all N images, in order.
        queries: [Q, D].
        score: of the model.
        k: how many, K; fewer come where there are fewer images.
        keep: [N] which images count; None: all.

    Returns:
        For each query its scores [K] and rows [K], on the CPU.
    """
    best = [(torch.empty(0), torch.empty(0, dtype=torch.int64))] * len(queries)
    start = 0
    for block in blocks:
        rows = torch.arange(start, start + len(block))
        if keep is not None:
            chosen = torch.from_numpy(keep[start : start + len(block)])
            block, rows = block[chosen], rows[chosen]
        start += len(chosen) if keep is not None else len(block)
        if len(block):
            scores = score(block.to(queries.device), queries).T.cpu()  # [Q, B]
            best = [merge(ranked, (mine, rows), k) for ranked, mine in zip(best, scores, strict=True)]
    return best


def merge(first: Ranked, second: Ranked, k: int) -> Ranked:
    """The K best of two lists; all rows of `second` are above those of `first`."""
    scores, rows = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    if len(scores) > k:
        # All that equal the last one are kept, so that the lower row wins whatever the block.
        fit = scores >= scores.topk(k).values[-1]
        scores, rows = scores[fit], rows[fit]
    return order(scores, rows, k)


def order(scores: Tensor, rows: Tensor, k: int) -> Ranked:
    """The K best of some images, the lower row first where scores are equal; `rows` in any order."""
    by_row = rows.argsort()
    by_score = scores[by_row].argsort(descending=True, stable=True)
    chosen = by_row[by_score][:k]
    return scores[chosen], rows[chosen]
