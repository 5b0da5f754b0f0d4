"""Both reranks against reference outputs, loops over single items, and cases worked out by hand."""

from __future__ import annotations

import math
import time
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.ranks import Ranks, rank, recalls
from metrics.rerank import Method, multivariate_scores, rerank
from tests import ROOT
from tests.metrics.test_metrics import DEVICES, as_lists, naive_rank, problems
from tests.whole_rerank import directions, reranked_places, saliency, search_back

REFERENCE = ROOT / "tests" / "reference" / "rerank.npz"
W1, W2 = 0.3, 1.1  # of the reference
METHODS: tuple[Method, ...] = get_args(Method)
TEXT_IMAGE = torch.arange(150) // 5


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def whole(scores: Tensor, text_image: Tensor, method: Method, count: int) -> Ranks:
    """The rerank of a matrix that is one block."""
    return rerank(lambda: [scores], text_image, method, count, W1, W2)


@pytest.mark.parametrize("count", [20, 30])
@pytest.mark.parametrize("direction", ["i2t", "t2i"])
class TestReference:
    def test_new_scores(self, reference: dict[str, Tensor], direction: str, count: int) -> None:
        scores, forward, reverse = directions(reference["sim"])[direction]
        expected = reference[f"{direction}_optim_K{count}"]
        candidates = search_back(forward, reverse, count)
        salient = saliency(scores).gather(1, candidates.items)
        new = torch.zeros_like(scores).scatter(1, candidates.items, multivariate_scores(candidates, salient, W1, W2))
        assert (new - (expected if direction == "i2t" else expected.T)).abs().max() < 5e-7

    def test_simple_order(self, reference: dict[str, Tensor], direction: str, count: int) -> None:
        order = reranked_places(*directions(reference["sim"])[direction], "simple", count, 0, 0).argsort(dim=1)
        expected = reference[f"{direction}_rerank_K{count}"]
        assert torch.equal(order, (expected if direction == "i2t" else expected.T).long())

    @pytest.mark.parametrize(("method", "name"), [("multivariate", "optim"), ("simple", "rerank")])
    def test_ranks_and_recalls(
        self, reference: dict[str, Tensor], direction: str, count: int, method: Method, name: str
    ) -> None:
        before, after = rank(reference["sim"], TEXT_IMAGE), whole(reference["sim"], TEXT_IMAGE, method, count)
        first, found = (ranks.image_to_text if direction == "i2t" else ranks.text_to_image for ranks in (before, after))
        expected = reference[f"{direction}_{name}_K{count}_ranks"].long()
        # Behind the candidates the released multivariate rerank leaves zeros, whose order is that of the sort
        inside = first < count if name == "optim" else torch.ones_like(first, dtype=torch.bool)
        assert torch.equal(found[inside], expected[inside])
        assert torch.equal(found[~inside], first[~inside])
        assert int((~inside).sum()) == (0 if name == "rerank" or count == 30 else {"i2t": 2, "t2i": 7}[direction])
        table = recalls(after)
        released = reference[f"{direction}_{name}_K{count}_metrics"].tolist()
        assert [table[f"{direction}_R@{cutoff}"] for cutoff in (1, 5, 10)] == pytest.approx(released[:3])


def naive_places(scores: list[float]) -> list[int]:
    return [sum(other >= score for other in scores) - 1 for score in scores]


def naive_rerank(scores: list[list[float]], method: Method, count: int) -> list[list[int]]:
    """Places after reranking, query by query and item by item."""
    queries, items = len(scores), len(scores[0])
    columns = [[scores[q][p] for q in range(queries)] for p in range(items)]
    result = []
    for query in range(queries):
        first = naive_places(scores[query])
        chosen = [item for item in range(items) if first[item] < count]
        back = {item: (naive_places(columns[item])[query], first[item]) for item in chosen}
        m = {item: sum(other <= back[item] for other in back.values()) for item in chosen}
        new: dict[int, float] = {}
        for item in chosen:
            divisor = max(sum(columns[item]), max(map(abs, columns[item])))
            p1 = scores[query][item] / divisor if divisor else 0.0
            p2, p3 = math.exp(-0.05 * (first[item] + 1)), math.exp(-0.05 * m[item])
            # Rounded, because the order of additions is no difference
            new[item] = round(W1 * p1 + p2 + W2 * p3, 6) if method == "multivariate" else -m[item]
        result.append(
            [
                sum(new[other] >= new[item] for other in chosen) - 1 if item in new else first[item]
                for item in range(items)
            ]
        )
    return result


@settings(deadline=None)
@given(problems(), st.integers(1, 8), st.sampled_from(METHODS))
def test_ranks_equal_the_naive_loops(problem: tuple[Tensor, Tensor], count: int, method: Method) -> None:
    scores, text_image = problem
    by_image, by_text = (
        -torch.tensor(naive_rerank(table.tolist(), method, count)) for table in (scores.double(), scores.double().T)
    )
    ranks = whole(scores, text_image, method, count)
    expected = naive_rank(by_image, text_image)[0], naive_rank(by_text.T, text_image)[1]
    assert as_lists(ranks) == expected


@settings(deadline=None)
@given(problems(), st.integers(1, 8), st.sampled_from(METHODS), st.integers(1, 4), st.integers(1, 9))
def test_blocks_of_any_height_give_the_same_ranks(
    problem: tuple[Tensor, Tensor], count: int, method: Method, height: int, cached: int
) -> None:
    scores, text_image = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metrics.shortlists.CACHED_SCORES", cached)
        parts = rerank(lambda: scores.split(height), text_image, method, count, W1, W2)
    assert as_lists(parts) == as_lists(whole(scores, text_image, method, count))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_larger_matrix_equals_the_naive_loops(method: Method, device: str) -> None:
    scores = torch.rand(25, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.4
    found = reranked_places(*directions(scores.to(device))["i2t"], method, 12, W1, W2)
    assert found.tolist() == naive_rerank(scores.tolist(), method, 12)


@settings(deadline=None)
@given(problems(), st.integers(1, 8), st.sampled_from(METHODS), st.data())
def test_numbering_does_not_matter(
    problem: tuple[Tensor, Tensor], count: int, method: Method, data: st.DataObject
) -> None:
    scores, text_image = problem
    order = torch.tensor(data.draw(st.permutations(range(len(text_image)))))
    ranks = whole(scores, text_image, method, count)
    mixed = whole(scores[:, order], text_image[order], method, count)
    assert torch.equal(mixed.image_to_text, ranks.image_to_text)
    assert torch.equal(mixed.text_to_image, ranks.text_to_image[order])


@given(problems(), st.integers(1, 8), st.sampled_from(METHODS))
def test_only_the_candidates_move(problem: tuple[Tensor, Tensor], count: int, method: Method) -> None:
    scores, forward, reverse = directions(problem[0])["i2t"]
    found = reranked_places(scores, forward, reverse, method, count, W1, W2)
    assert torch.equal(found[forward >= count], forward[forward >= count])
    # The candidates share the first places among them: as many as there are
    assert bool((found < (forward < count).sum(dim=1, keepdim=True))[forward < count].all())


@pytest.mark.parametrize("method", METHODS)
def test_a_collapsed_model_stays_at_the_end(method: Method) -> None:
    ranks = whole(torch.full((12, 60), 0.5), torch.arange(60) // 5, method, 30)
    assert ranks.image_to_text.tolist() == [55] * 12
    assert ranks.text_to_image.tolist() == [11] * 60


@pytest.mark.parametrize("method", METHODS)
def test_equal_captions_stay_equal(method: Method) -> None:
    """37 columns, so that no vector width divides them, each three times: an own caption never beats its doubles."""
    scores = torch.randn(37, 37, generator=torch.Generator().manual_seed(3)).repeat(1, 3)
    found = reranked_places(*directions(scores)["i2t"], method, 30, W1, W2)
    assert torch.equal(found[:, :37], found[:, 37:74])
    assert torch.equal(found[:, :37], found[:, 74:])
    assert int(whole(scores, torch.arange(111) // 3, method, 30).image_to_text.min()) >= 2


def test_the_search_back_mends_a_hub() -> None:
    # Text 0 is near to every image, but finds image 0 first; images 1 and 2 find their own texts second.
    scores = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.7, 0.2], [0.8, 0.1, 0.6]])
    text_image = torch.arange(3)
    assert rank(scores, text_image).image_to_text.tolist() == [0, 1, 1]
    for method in METHODS:
        ranks = whole(scores, text_image, method, 3)
        assert as_lists(ranks) == ([0, 0, 0], [0, 0, 0])


def test_saliency_worked_out_by_hand() -> None:
    # Sums 2.0, 0 (largest 0.5), -0.5 (largest 0.5), 0, and 0.4 below the largest 0.6
    scores = torch.tensor([[0.5, 0.5, -0.5, 0.0, 0.6], [1.5, -0.5, 0.0, 0.0, -0.2]])
    expected = [[0.25, 1.0, -1.0, 0.0, 1.0], [0.75, -1.0, 0.0, 0.0, -1 / 3]]
    torch.testing.assert_close(saliency(scores), torch.tensor(expected))


def test_saliency_of_clearly_positive_sums_is_the_plain_share(reference: dict[str, Tensor]) -> None:
    scores = reference["sim"]
    assert scores.min() < 0
    torch.testing.assert_close(saliency(scores), scores / scores.sum(dim=0), rtol=2e-7, atol=0)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(fault: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        whole(torch.tensor([[0.0, fault]]), torch.tensor([0, 0]), "simple", 30)


def test_a_published_test_split_takes_seconds() -> None:
    scores = torch.randn(1093, 5465, generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    whole(scores, torch.arange(5465) // 5, "multivariate", 30)
    assert time.process_time() - started < 15
