"""Reranking: the first candidates of a search are ordered anew by searching back from each of them.

Yuan et al., "Remote Sensing Cross-Modal Text-Image Retrieval Based on Global and Local Information", TGRS 2022 (GaLR),
multivariate rerank, and the simpler variant that orders the candidates by the search back alone.

Letters: N images, M texts; in one direction Q queries, P items to be found, K candidates.

Equal scores are the rule, not the exception: equal captions have equal embeddings. Items of equal score share the last
of their places, and an item is a candidate only if it is among the first K in whatever order equal scores stand. So
neither the numbering of the items nor the answer to the query can decide a tie, and equal items stay equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metrics import Ranks, rank

Method = Literal["multivariate", "simple"]

PLACE_DECAY = 0.05


@dataclass(frozen=True)
class Candidates:
    """The items that are ordered anew, and where they stand in the search and in the search back; places from 0.

    Attributes:
        items: [Q, K] int64 in 0..P-1.
        sure: [Q, K] bool; False for an item that equal scores keep from being a candidate.
        place: [Q, K] int64, place of the item for the query; 0..K-1 where `sure`.
        back: [Q, K] int64 in 0..K-1, place among the candidates by how well each of them finds the query.
    """

    items: Tensor
    sure: Tensor
    place: Tensor
    back: Tensor


def places(scores: Tensor) -> Tensor:
    """Place of every item for every query, from 0: how many other items score at least as high.

    Args:
        scores: [Q, P], higher is more alike.

    Returns:
        [Q, P] int64 in 0..P-1.
    """
    scores = scores.contiguous()
    return scores.shape[1] - 1 - torch.searchsorted(scores.sort(dim=1).values, scores)


def saliency(scores: Tensor) -> Tensor:
    """How much of an item's similarity to all queries falls on each of them: p1 of the multivariate rerank.

    It is the score divided by the item's sum over the queries. The sum of scores of both signs can come near zero or
    below it, so the divisor is never less than the item's largest absolute score: p1 stays in [-1, 1], and sums beyond
    that, which sums without negative scores always are, count as they are. An item with no score but 0 has p1 = 0.

    Args:
        scores: [Q, P].

    Returns:
        [Q, P] float.
    """
    total = torch.maximum(scores.sum(dim=0, dtype=torch.float64), scores.abs().amax(dim=0).double())
    # A sum depends in its last bits on how it is vectorised; in float32 those of equal items are equal again.
    divisor = total.float()  # [P]
    return (scores / divisor).where(divisor > 0, 0.0)


def search_back(forward: Tensor, reverse: Tensor, count: int) -> Candidates:
    """The candidates of every query, and their order by the search back; equal places there keep the first order.

    Args:
        forward: [Q, P] place of each item for each query, as from `places`.
        reverse: [Q, P] place of each query when searching with each item.
        count: candidates per query, K; P where there are fewer items.
    """
    place, items = forward.topk(min(count, forward.shape[1]), dim=1, largest=False)
    sure = place < count
    order = reverse.gather(1, items) * forward.shape[1] + place
    return Candidates(items, sure, place, places(-order.masked_fill(~sure, torch.iinfo(order.dtype).max)))


def multivariate_scores(candidates: Candidates, salient: Tensor, w1: float, w2: float) -> Tensor:
    """New scores of the candidates: w1 * p1 + p2 + w2 * p3, with p2 and p3 = exp(-0.05 * place), places from 1.

    Args:
        candidates: K of each query.
        salient: [Q, P] p1, see `saliency`.
        w1: weight of p1.
        w2: weight of p3, the search back.

    Returns:
        [Q, K] float64; minus infinity where a candidate is not sure.
    """
    count = candidates.items.shape[1]
    # Looked up, so that equal places give equal numbers on every device.
    decay = torch.exp(-PLACE_DECAY * torch.arange(1, count + 1, dtype=torch.float64, device=salient.device))
    p1 = salient.gather(1, candidates.items).double()
    p2 = decay[candidates.place.clamp(max=count - 1)]
    new = w1 * p1 + p2 + w2 * decay[candidates.back]
    return new.masked_fill(~candidates.sure, float("-inf"))


def reranked_places(
    scores: Tensor, forward: Tensor, reverse: Tensor, method: Method, count: int, w1: float, w2: float
) -> Tensor:
    """Places of all items for all queries after reranking; behind the candidates the first order stays.

    Args:
        scores: [Q, P].
        forward: [Q, P], see `search_back`.
        reverse: [Q, P], see `search_back`.
        method: `multivariate`, or `simple`: by the search back alone.
        count: candidates per query.
        w1: see `multivariate_scores`.
        w2: see `multivariate_scores`.

    Returns:
        [Q, P] int64 in 0..P-1; equal items share the last of their places.
    """
    candidates = search_back(forward, reverse, count)
    new = candidates.back
    if method == "multivariate":
        new = places(multivariate_scores(candidates, saliency(scores), w1, w2))
    return forward.scatter(1, candidates.items, new.where(candidates.sure, candidates.place))


@torch.no_grad()
def rerank(scores: Tensor, text_image: Tensor, method: Method, count: int, w1: float, w2: float) -> Ranks:
    """Ranks of the matches after both directions were reranked; ties count against the model as in `metrics`.

    The whole matrix is needed, since each item is searched with: about 60 bytes per pair are held at once.

    Args:
        scores: score of every image with every text, [N, M], higher is more alike.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has at least one text.
        method: `multivariate` or `simple`.
        count: candidates per query, at least 1.
        w1: weight of the saliency; `simple` does not use it.
        w2: weight of the search back; `simple` does not use it.

    Raises:
        ValueError: a score is NaN or infinite, or shapes don't fit.
    """
    if not scores.isfinite().all():
        raise ValueError("scores hold NaN or infinite values; a model that has diverged can't be ranked")
    texts_found, images_found = places(scores), places(scores.T).T  # [N, M]
    forward = reranked_places(scores, texts_found, images_found, method, count, w1, w2)
    image_to_text = rank(-forward, text_image).image_to_text
    del forward
    backward = reranked_places(scores.T, images_found.T, texts_found.T, method, count, w1, w2)
    return Ranks(image_to_text, rank(-backward.T, text_image).text_to_image)
