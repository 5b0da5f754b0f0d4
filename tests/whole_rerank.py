"""The rerank on whole matrices: what `metrics.rerank` and `metrics.shortlists` do in blocks, written out.

Letters: N images, M texts; in one direction Q queries, P items to be found, K candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metrics import shortlists
from metrics.rerank import Candidates, Method, new_places
from metrics.shortlists import places


def saliency(scores: Tensor) -> Tensor:
    """p1 of every item for every query, [Q, P]."""
    return shortlists.saliency(scores, scores.sum(dim=0, dtype=torch.float64), scores.abs().amax(dim=0))


def search_back(forward: Tensor, reverse: Tensor, count: int) -> Candidates:
    """The candidates of every query, from the places of all items [Q, P] in the search and in the search back."""
    place, items = forward.topk(min(count, forward.shape[1]), dim=1, largest=False)
    return Candidates.of(items, place, reverse.gather(1, items), count)


def reranked_places(
    scores: Tensor, forward: Tensor, reverse: Tensor, method: Method, count: int, w1: float, w2: float
) -> Tensor:
    """Places of all items for all queries after reranking [Q, P]; behind the candidates the first order stays."""
    candidates = search_back(forward, reverse, count)
    new = new_places(candidates, saliency(scores).gather(1, candidates.items), method, w1, w2)
    return forward.scatter(1, candidates.items, new)


def directions(scores: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Scores, places and places in the search back, of either direction."""
    texts_found, images_found = places(scores), places(scores.T).T
    return {"i2t": (scores, texts_found, images_found), "t2i": (scores.T, images_found.T, texts_found.T)}
