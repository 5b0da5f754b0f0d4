"""Two stages: the first items of a search are put in the order of another score; all behind them stay where they are.

Letters: N images, M texts; in one direction Q queries, K candidates.

Equal scores are treated as everywhere: an item is a candidate only if it is among the first K in whatever order items
of equal score stand, and candidates of equal new score share their places, of which `metrics.ranks` takes the
expectation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metrics.ranks import Ranks
from metrics.shortlists import Shortlist


class Places(NamedTuple):
    """Where the queries of one direction found their match; as the three fields of `metrics.ranks.Ranks`.

    Attributes:
        worst: [Q] rank of the best match behind all others of its score.
        tied: [Q] how many others have its score.
        own: [Q] how many matches share it.
    """

    worst: Tensor
    tied: Tensor
    own: Tensor


class Shortlisted(NamedTuple):
    """The first items of each query of one direction.

    Attributes:
        sure: [Q, K] bool; False for an item that equal scores keep from being a candidate.
        own: [Q, K] bool, whether the item is a match of the query.
    """

    sure: Tensor
    own: Tensor

    def found(self) -> Tensor:
        """Whether a match of the query is among its candidates, [Q] bool."""
        return (self.sure & self.own).any(dim=1)


def candidates_of(
    lists: tuple[Shortlist, Shortlist], text_image: Tensor, count: int
) -> tuple[Shortlisted, Shortlisted]:
    """The candidates of the images, which search texts, and of the texts.

    Args:
        lists: of both directions, see `metrics.shortlists.shortlists`.
        text_image: the image that each text belongs to, [M] int64.
        count: candidates per query, K.
    """
    by_image, by_text = lists
    text_image = text_image.to(by_image.items.device)
    rows = torch.arange(len(by_image.items), device=text_image.device)
    return (
        Shortlisted(by_image.place < count, text_image[by_image.items] == rows[:, None]),
        Shortlisted(by_text.place < count, by_text.items == text_image[:, None]),
    )


def places_after(scores: Tensor, candidates: Shortlisted, before: Places) -> Places:
    """Where each query finds its match once its candidates are ordered by new scores.

    The candidates share the first places among them, so a query without a match among them keeps its places.

    Args:
        scores: [Q, K] of the candidates, higher is better.
        candidates: of each query.
        before: its places in the first search.
    """
    matches, others = candidates.own & candidates.sure, ~candidates.own & candidates.sure
    lowest = torch.iinfo(scores.dtype).min if not scores.is_floating_point() else float("-inf")
    best = scores.masked_fill(~matches, lowest).amax(dim=1, keepdim=True)
    counted = (others & (scores >= best), others & (scores == best), matches & (scores == best))
    found = candidates.found()
    return Places(*(new.sum(dim=1).where(found, old) for new, old in zip(counted, before, strict=True)))


def places_of(ranks: Ranks) -> tuple[Places, Places]:
    """Ranks as the places of the images' queries and of the texts'."""
    images, texts = ranks.image_to_text, ranks.text_to_image
    image_ties, text_ties, own_texts = ranks.image_ties, ranks.text_ties, ranks.own_texts
    return (
        Places(
            images,
            torch.zeros_like(images) if image_ties is None else image_ties,
            torch.ones_like(images) if own_texts is None else own_texts,
        ),
        Places(texts, torch.zeros_like(texts) if text_ties is None else text_ties, torch.ones_like(texts)),
    )


def ranks_after(scores: tuple[Tensor, Tensor], candidates: tuple[Shortlisted, Shortlisted], before: Ranks) -> Ranks:
    """Ranks of the matches once the candidates of both directions are ordered by new scores.

    Args:
        scores: [N, K] of the images' candidates, [M, K] of the texts'.
        candidates: see `candidates_of`.
        before: ranks in the first search.
    """
    images, texts = (places_after(*direction) for direction in zip(scores, candidates, places_of(before), strict=True))
    return Ranks(images.worst, texts.worst, images.tied, texts.tied, images.own)
