"""What a report shows, as plain numbers: from scores and ranks, without any drawing.

Letters: N images, M captions, Q queries, K items that are searched, C scene classes, D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layers.base import l2norm
from metrics.ranks import Tasks

DIRECTIONS = {
    "i2t": "image → text",
    "t2i": "text → image",
    "i2a": "image → audio",
    "a2i": "audio → image",
    "i2i": "image → other view",
}
BINS = (1, 2, 6, 11, 21, 51, 101, 501)
"""First place of each bar of a rank histogram, counted from 1."""
CURVE_POINTS = 60
LENGTHS = (0, 6, 9, 12, 16)
"""Least number of words in each group of captions."""
BEYOND = 10
"""A query whose match stands behind this place has missed it."""


@dataclass(frozen=True)
class Found:
    """One answer to a query.

    Attributes:
        items: numbers of the images or captions; more than one where equal sentences share the answer.
        score: of the first of them.
        right: whether one of them belongs to the query.
    """

    items: tuple[int, ...]
    score: float
    right: bool


@dataclass(frozen=True)
class Query:
    """One search: the image or caption `number`, its rank from 0, and what was found first."""

    number: int
    rank: int
    found: tuple[Found, ...]


@dataclass(frozen=True)
class Miss:
    """A query whose match lies beyond `BEYOND`: its number, its rank from 0, and the wrong item that it found first."""

    number: int
    rank: int
    first: int


def by_direction(tasks: Tasks) -> dict[str, Tensor]:
    """Ranks under the keys of `DIRECTIONS`, for the tasks that there are."""
    directions = {"i2t": tasks.text.image_to_text, "t2i": tasks.text.text_to_image}
    if tasks.audio is not None:
        directions |= {"i2a": tasks.audio.image_to_text, "a2i": tasks.audio.text_to_image}
    if tasks.view is not None:
        directions["i2i"] = torch.cat([tasks.view.image_to_text, tasks.view.text_to_image])
    return {name: places.cpu() for name, places in directions.items()}


def cutoffs(items: int) -> list[int]:
    """Numbers from 1 to `items` whose distances grow with them."""
    steps = torch.logspace(0, torch.log10(torch.tensor(float(items))).item(), CURVE_POINTS, dtype=torch.float64)
    return sorted({1, 5, 10, items} & set(range(1, items + 1)) | set(steps.round().long().clamp(1, items).tolist()))


def recall_curve(ranks: Tensor, at: Sequence[int]) -> list[float]:
    """Recall in percent at each of some numbers of items, from ranks [Q] that count from 0."""
    return [100.0 * int((ranks < cutoff).sum()) / len(ranks) for cutoff in at]


def chance_curve(items: int, own: Tensor, at: Sequence[int]) -> list[float]:
    """`recall_curve` that a random order of `items` has on average; `own` of them [Q] are right for each query."""
    drawn = torch.arange(items, dtype=torch.float64)
    counts, queries = own.unique(return_counts=True)
    misses = ((items - counts[:, None] - drawn) / (items - drawn)).clamp(min=0).cumprod(dim=1)
    mean = (queries.double() / len(own)) @ misses  # [items]
    return [100.0 * (1.0 - float(mean[cutoff - 1])) for cutoff in at]


def histogram(ranks: Tensor, items: int) -> dict[str, float]:
    """Share in percent of the ranks [Q] in each of `BINS`, under the bin's name (`6-10`), up to `items`."""
    firsts = [first for first in BINS if first <= items]
    lasts = [first - 1 for first in firsts[1:]] + [items]
    return {
        _bin_name(first, last, items): 100.0 * float(_within(ranks + 1, first, last))
        for first, last in zip(firsts, lasts, strict=True)
    }


def _bin_name(first: int, last: int, items: int) -> str:
    if first == last:
        return str(first)
    return f">{first - 1}" if last == items and first > BINS[-3] else f"{first}-{last}"


def _within(places: Tensor, first: int, last: int) -> Tensor:
    return ((places >= first) & (places <= last)).double().mean()


def class_recalls(ranks: Mapping[str, Tensor], text_image: Tensor, scenes: Tensor) -> dict[int, list[float]]:
    """Recalls at 1, 5 and 10 of image to text, then of text to image, of the queries of each scene class."""
    text_scenes = scenes[text_image]
    return {
        scene: recall_curve(ranks["i2t"][scenes == scene], (1, 5, 10))
        + recall_curve(ranks["t2i"][text_scenes == scene], (1, 5, 10))
        for scene in scenes.unique().tolist()
    }


def length_groups(words: Sequence[int]) -> dict[str, Tensor]:
    """Numbers of the captions in each group of `LENGTHS` that has any, under its name (`up to 5`, `6-8`, `16+`)."""
    lengths = torch.tensor(words)
    group = torch.bucketize(lengths, torch.tensor(LENGTHS), right=True) - 1
    between = [f"{low}-{high - 1}" for low, high in itertools.pairwise(LENGTHS[1:])]
    names = [f"up to {LENGTHS[1] - 1}", *between, f"{LENGTHS[-1]}+"]
    return {name: numbers for row, name in enumerate(names) if len(numbers := (group == row).nonzero()[:, 0])}


def captions_found(ranks: Tensor, text_image: Tensor) -> dict[str, float]:
    """Share in percent of the images that 0, 1, 2, ... of their captions find on the first `BEYOND` places.

    From ranks [M] that count from 0 and `text_image` [M].
    """
    found = torch.bincount(text_image, weights=(ranks < BEYOND).double()).long()
    shares = 100.0 * torch.bincount(found, minlength=int(torch.bincount(text_image).max()) + 1) / len(found)
    return {str(count): share for count, share in enumerate(shares.tolist())}


def misses(scores: Tensor, own: Tensor, ranks: Tensor) -> list[Miss]:
    """The queries whose match lies beyond `BEYOND`, the worst first, from scores and own items [Q, K] and ranks [Q]."""
    first = scores.masked_fill(own, float("-inf")).argmax(dim=1)
    numbers = sorted((ranks >= BEYOND).nonzero()[:, 0].tolist(), key=lambda number: (-int(ranks[number]), number))
    return [Miss(number, int(ranks[number]), int(first[number])) for number in numbers]


def first_scenes(scores: Tensor, text_image: Tensor, scenes: Tensor) -> Tensor:
    """Scene class of the image that each caption finds first, [M]; of equal scores one of another class comes first.

    From scores [N, M], `text_image` [M] and the images' classes [N].
    """
    own = scenes[:, None] == scenes[text_image][None]  # [N, M]
    foreign, place = scores.masked_fill(own, float("-inf")).max(dim=0)
    best = scores.masked_fill(~own, float("-inf")).max(dim=0).values
    return torch.where(foreign >= best, scenes[place], scenes[text_image])


def confusion(first: Tensor, text_image: Tensor, scenes: Tensor) -> Tensor:
    """How often captions of each class find which class first, [C, C] in percent of the row.

    Args:
        first: [M], see `first_scenes`.
        text_image: [M].
        scenes: [N]; the classes are its different values in rising order.
    """
    classes = scenes.unique()
    rows, columns = torch.searchsorted(classes, scenes[text_image]), torch.searchsorted(classes, first)
    counts = torch.zeros(len(classes), len(classes), dtype=torch.float64)
    counts.index_put_((rows, columns), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    return 100.0 * counts / counts.sum(dim=1, keepdim=True)


def margins(scores: Tensor, own: Tensor) -> Tensor:
    """How far the best right item lies above the best wrong one, [Q], from scores and own items [Q, K]."""
    right, wrong = (scores.masked_fill(hidden, float("-inf")).amax(dim=1) for hidden in (~own, own))
    return right - wrong


def extremes(ranks: Tensor, margin: Tensor, groups: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """The best queries and the worst, the most extreme first; each list takes one of a group.

    Args:
        ranks: [Q].
        margin: [Q], see `margins`; decides between equal ranks.
        groups: Q numbers, such as the scene classes.
        count: queries per list, at most.
    """
    order = sorted(range(len(ranks)), key=lambda query: (int(ranks[query]), -float(margin[query]), query))
    best = _one_per_group(order, groups, count)
    return best, _one_per_group([query for query in reversed(order) if query not in best], groups, count)


def _one_per_group(order: Sequence[int], groups: Sequence[int], count: int) -> list[int]:
    first: dict[int, int] = {}
    for query in order:
        first.setdefault(groups[query], query)
    return list(first.values())[:count]


def answers(scores: Tensor, own: Tensor, names: Sequence[Hashable], count: int) -> tuple[Found, ...]:
    """What a query finds first; of equal scores the wrong ones come first, as in the ranks.

    Args:
        scores: [K].
        own: [K] bool, the right items.
        names: of the K items; items of one name are one answer.
        count: answers, at most.
    """
    order = sorted(range(len(scores)), key=lambda item: (-float(scores[item]), bool(own[item]), item))
    groups: dict[Hashable, list[int]] = {}
    for item in order:
        groups.setdefault(names[item], []).append(item)
    return tuple(
        Found(tuple(items), float(scores[items[0]]), bool(own[items].any())) for items in list(groups.values())[:count]
    )


def principal_plane(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """The plane in which embeddings of unit length spread most (PCA of both kinds together).

    Args:
        images: [N, D].
        texts: [U, D].

    Returns:
        Images [N, 2], texts [U, 2], and the share of the whole variance that each axis has, in percent.
    """
    together = l2norm(torch.cat([images, texts]).double())
    centred = together - together.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred)  # rising
    plane = axes[:, -2:].flip(1)
    # An axis has no direction of its own; its largest number is made positive, so that the image is always the same.
    plane = plane * plane.gather(0, plane.abs().argmax(dim=0, keepdim=True)).sign()
    shares = 100.0 * variances[-2:].flip(0) / variances.sum().clamp(min=1e-300)
    points = centred @ plane
    return points[: len(images)], points[len(images) :], shares.tolist()
