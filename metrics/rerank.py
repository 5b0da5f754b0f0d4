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

from metrics.ranks import Blocks, Ranks, rank_blocks
from metrics.shortlists import Shortlist, places, places_back, shortlists
from metrics.two_stage import candidates_of, ranks_after

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

    @classmethod
    def of(cls, items: Tensor, place: Tensor, reverse: Tensor, count: int) -> Candidates:
        """Order items by the search back; equal places there keep the first order.

        Args:
            items: [Q, K].
            place: [Q, K], see `Candidates`; `count` or more where an item is not sure.
            reverse: [Q, K] place of the query when searching with the item.
            count: candidates per query.
        """
        sure = place < count
        order = reverse * (int(place.max()) + 1) + place
        return cls(items, sure, place, places(-order.masked_fill(~sure, torch.iinfo(order.dtype).max)))


def multivariate_scores(candidates: Candidates, salient: Tensor, w1: float, w2: float) -> Tensor:
    """New scores of the candidates: w1 * p1 + p2 + w2 * p3, with p2 and p3 = exp(-0.05 * place), places from 1.

    Args:
        candidates: K of each query.
        salient: [Q, K] p1 of the candidates, see `metrics.shortlists.saliency`.
        w1: weight of p1.
        w2: weight of p3, the search back.

    Returns:
        [Q, K] float64; minus infinity where a candidate is not sure.
    """
    count = candidates.items.shape[1]
    # Looked up, so that equal places give equal numbers on every device.
    decay = torch.exp(-PLACE_DECAY * torch.arange(1, count + 1, dtype=torch.float64, device=salient.device))
    p2 = decay[candidates.place.clamp(max=count - 1)]
    new = w1 * salient.double() + p2 + w2 * decay[candidates.back]
    return new.masked_fill(~candidates.sure, float("-inf"))


def new_places(candidates: Candidates, salient: Tensor, method: Method, w1: float, w2: float) -> Tensor:
    """Places of the candidates after reranking, [Q, K] int64; equal items share the last of their places.

    By `multivariate_scores`, whose arguments these are, or with the method `simple` by the search back alone.
    """
    multivariate = method == "multivariate"
    new = places(multivariate_scores(candidates, salient, w1, w2)) if multivariate else candidates.back
    return new.where(candidates.sure, candidates.place)


@torch.no_grad()
def rerank(blocks: Blocks, text_image: Tensor, method: Method, count: int, w1: float, w2: float) -> Ranks:
    """Ranks of the matches after both directions were reranked; ties count against the model as in `metrics.ranks`.

    Args:
        blocks: called four times.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has at least one text.
        method: `multivariate` or `simple`.
        count: candidates per query, at least 1.
        w1: weight of the saliency; `simple` does not use it.
        w2: weight of the search back; `simple` does not use it.

    Raises:
        ValueError: a score is NaN or infinite, or shapes don't fit.
    """
    before = rank_blocks(blocks, text_image)
    lists = shortlists(blocks, count)
    back = places_back(blocks, *lists)
    images, texts = (_reranked(*pair, method, count, w1, w2) for pair in zip(lists, back, strict=True))
    after = ranks_after((-images, -texts), candidates_of(lists, text_image, count), before)
    return Ranks(after.image_to_text, after.text_to_image)


def _reranked(shortlist: Shortlist, reverse: Tensor, method: Method, count: int, w1: float, w2: float) -> Tensor:
    """Places of the items of a shortlist after reranking, [Q, K]."""
    candidates = Candidates.of(shortlist.items, shortlist.place, reverse, count)
    return new_places(candidates, shortlist.shares, method, w1, w2)
