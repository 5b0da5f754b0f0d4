"""Ranks after a second stage, against the ranks of a whole score matrix in which the candidates stand first."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.ranks import Ranks, rank, recalls
from metrics.shortlists import shortlists
from metrics.two_stage import candidates_of, ranks_after
from tests.metrics.test_metrics import as_lists, problems
from tests.metrics.test_rerank import naive_places

ABOVE = 100.0  # all first scores


def two_stages(first: Tensor, second: Tensor, text_image: Tensor, count: int) -> Ranks:
    lists = shortlists(lambda: [first], count)
    scores = second.gather(1, lists[0].items), second.T.gather(1, lists[1].items)
    return ranks_after(scores, candidates_of(lists, text_image, count), rank(first, text_image))


def joined(first: list[list[float]], second: list[list[float]], count: int) -> Tensor:
    """One matrix for both stages, query by query: candidates have their second score, above all first ones."""
    rows = []
    for old, new in zip(first, second, strict=True):
        places = naive_places(old)
        rows.append([n + ABOVE if place < count else o for o, n, place in zip(old, new, places, strict=True)])
    return torch.tensor(rows)


@settings(deadline=None)
@given(problems(), st.integers(1, 8), st.data())
def test_ranks_are_those_of_one_matrix(problem: tuple[Tensor, Tensor], count: int, data: st.DataObject) -> None:
    first, text_image = problem[0].float(), problem[1]
    values = data.draw(st.lists(st.integers(-2, 2), min_size=first.numel(), max_size=first.numel()))
    second = torch.tensor(values, dtype=torch.float32).view_as(first)
    found = two_stages(first, second, text_image, count)
    by_image = rank(joined(first.tolist(), second.tolist(), count), text_image)
    by_text = rank(joined(first.T.tolist(), second.T.tolist(), count).T, text_image)
    assert as_lists(found) == (by_image.image_to_text.tolist(), by_text.text_to_image.tolist())
    assert torch.equal(found.image_ties, by_image.image_ties)  # type: ignore[arg-type]
    assert torch.equal(found.text_ties, by_text.text_ties)  # type: ignore[arg-type]
    expected = Ranks(*as_tensors(by_image, by_text), by_image.image_ties, by_text.text_ties, by_image.own_texts)
    assert recalls(found) == recalls(expected)


def as_tensors(by_image: Ranks, by_text: Ranks) -> tuple[Tensor, Tensor]:
    return by_image.image_to_text, by_text.text_to_image


def test_worked_out_by_hand() -> None:
    # Image 0 finds its text second, image 1 last, image 2 among three equals; two candidates each.
    first = torch.tensor([[0.8, 0.9, 0.1], [0.6, 0.2, 0.5], [0.3, 0.3, 0.3]])
    second = torch.tensor([[0.9, 0.1, 1.0], [0.1, 1.0, 0.1], [0.1, 0.2, 0.9]])
    text_image = torch.arange(3)
    lists = shortlists(lambda: [first], 2)
    by_image, by_text = candidates_of(lists, text_image, 2)
    assert by_image.found().tolist() == [True, False, False]
    assert by_text.found().tolist() == [True, False, True]
    found = two_stages(first, second, text_image, 2)
    # Image 1's text is no candidate and stays last; image 2 has no sure candidate, so that all three stay equal.
    assert as_lists(found) == ([0, 2, 2], [0, 2, 0])
    assert found.image_ties is not None
    assert found.image_ties.tolist() == [0, 0, 2]


def test_the_same_score_in_both_stages_changes_nothing() -> None:
    scores = torch.randn(20, 60, generator=torch.Generator().manual_seed(0))
    text_image = torch.arange(60) // 3
    assert as_lists(two_stages(scores, scores, text_image, 7)) == as_lists(rank(scores, text_image))
