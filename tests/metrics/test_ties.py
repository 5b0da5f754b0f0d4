"""Expected recalls under random tie-breaking, against all orders written out and cases worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.ranks import CUTOFFS, Ranks, hit_chances, rank, recalls

KEYS = [f"{direction}_R@{cutoff}" for direction in ("i2t", "t2i") for cutoff in CUTOFFS] + ["mR"]


def expected(scores: Tensor, text_image: Tensor) -> dict[str, float]:
    return recalls(rank(scores, text_image))


def naive(row: list[float], matches: set[int], cutoff: int) -> float:
    """Share of all orders of one query's items, falling by score, that have a match among the first."""
    orders = [
        order
        for order in itertools.permutations(range(len(row)))
        if all(row[a] >= row[b] for a, b in itertools.pairwise(order))
    ]
    return sum(bool(matches & set(order[:cutoff])) for order in orders) / len(orders)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Scores of at most four images and six texts, most of them tied."""
    images = draw(st.integers(1, 4))
    extra = draw(st.lists(st.integers(0, images - 1), max_size=6 - images))
    mapping = draw(st.permutations([*range(images), *extra]))
    values = draw(st.lists(st.integers(0, 2), min_size=images * len(mapping), max_size=images * len(mapping)))
    return torch.tensor(values, dtype=torch.float32).reshape(images, len(mapping)), torch.tensor(mapping)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_equals_all_orders_written_out(problem: tuple[Tensor, Tensor]) -> None:
    scores, text_image = problem
    table = expected(scores, text_image)
    owner = text_image.tolist()
    for cutoff in CUTOFFS:
        by_image = [
            naive(row, {text for text, image in enumerate(owner) if image == number}, cutoff)
            for number, row in enumerate(scores.tolist())
        ]
        by_text = [naive(row, {owner[text]}, cutoff) for text, row in enumerate(scores.T.tolist())]
        assert table[f"i2t_R@{cutoff}"] == pytest.approx(100 * sum(by_image) / len(by_image))
        assert table[f"t2i_R@{cutoff}"] == pytest.approx(100 * sum(by_text) / len(by_text))


def test_without_ties_it_is_the_recall() -> None:
    scores = torch.randn(30, 90, generator=torch.Generator().manual_seed(0)).double()
    text_image = torch.arange(90) // 3
    assert expected(scores, text_image) == recalls(rank(scores, text_image), ties="last")


def test_a_collapsed_model_gets_chance() -> None:
    # 20 images with two texts each, all scores equal: K of 20 images, and 1 - C(38, K) / C(40, K).
    table = expected(torch.zeros(20, 40), torch.arange(40) // 2)
    assert [table[f"t2i_R@{cutoff}"] for cutoff in CUTOFFS] == pytest.approx([5, 25, 50])
    assert table["i2t_R@1"] == pytest.approx(100 * (1 - 38 / 40))
    assert table["i2t_R@5"] == pytest.approx(100 * (1 - (35 * 34) / (40 * 39)))


@given(problems())
@settings(max_examples=40, deadline=None)
def test_the_worst_and_the_best_order_are_its_bounds(problem: tuple[Tensor, Tensor]) -> None:
    scores, text_image = problem
    ranks = rank(scores, text_image)
    assert ranks.image_ties is not None
    assert ranks.text_ties is not None
    best = recalls(Ranks(ranks.image_to_text - ranks.image_ties, ranks.text_to_image - ranks.text_ties))
    table, worst = recalls(ranks), recalls(ranks, ties="last")
    for key in KEYS:
        assert worst[key] - 1e-9 <= table[key] <= best[key] + 1e-9


@given(problems())
@settings(max_examples=40, deadline=None)
def test_expected_ranks_equal_all_orders_written_out(problem: tuple[Tensor, Tensor]) -> None:
    scores, text_image = problem
    table, owner = recalls(rank(scores, text_image)), text_image.tolist()
    found = []
    for number, row in enumerate(scores.tolist()):
        own = {text for text, image in enumerate(owner) if image == number}
        orders = [
            order
            for order in itertools.permutations(range(len(row)))
            if all(row[a] >= row[b] for a, b in itertools.pairwise(order))
        ]
        found.append(sum(min(order.index(text) for text in own) for order in orders) / len(orders))
    assert table["i2t_meanr"] == pytest.approx(1 + sum(found) / len(found))


def test_hits_by_hand() -> None:
    # One image among three of equal score, two ranks behind the first: it is among the first 5, and first with 0.
    ranks = Ranks(torch.tensor([4]), torch.tensor([4]), torch.tensor([2]), torch.tensor([2]), torch.tensor([1]))
    for chances in hit_chances(ranks):
        assert chances.tolist() == [[0.0, 1.0, 1.0]]
    tied = Ranks(torch.tensor([2]), torch.tensor([2]), torch.tensor([2]), torch.tensor([2]), torch.tensor([1]))
    for chances in hit_chances(tied):
        assert chances[0].tolist() == pytest.approx([1 / 3, 1.0, 1.0])
    assert hit_chances(tied, "last")[0].tolist() == [[0.0, 1.0, 1.0]]
