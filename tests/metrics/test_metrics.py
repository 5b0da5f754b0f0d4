"""Ranks and recalls against reference outputs, loops over pairs, and cases worked out by hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metrics.limits import chance
from metrics.ranks import Ranks, mean_and_deviation, mean_scores, rank, rank_blocks, recalls

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
RECALL_KEYS = ["i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "mR"]


def naive_rank(scores: Tensor, text_image: Tensor) -> tuple[list[int], list[int]]:
    """Ranks by loops over single pairs: how many others score at least as high as the match."""
    images, texts = scores.shape
    image_to_text = []
    for image in range(images):
        own = [text for text in range(texts) if text_image[text] == image]
        best = max(scores[image, text].item() for text in own)
        image_to_text.append(sum(scores[image, t].item() >= best for t in range(texts) if t not in own))
    text_to_image = []
    for text in range(texts):
        match = int(text_image[text])
        others = [image for image in range(images) if image != match]
        text_to_image.append(sum(scores[i, text].item() >= scores[match, text].item() for i in others))
    return image_to_text, text_to_image


def as_lists(ranks: Ranks) -> tuple[list[int], list[int]]:
    return ranks.image_to_text.tolist(), ranks.text_to_image.tolist()


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A score matrix with many equal scores, and a shuffled mapping with one to four texts per image."""
    images = draw(st.integers(1, 6))
    per_image = draw(st.lists(st.integers(1, 4), min_size=images, max_size=images))
    mapping = draw(st.permutations([image for image, count in enumerate(per_image) for _ in range(count)]))
    pairs = images * len(mapping)
    values = draw(st.lists(st.integers(-2, 2), min_size=pairs, max_size=pairs))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return torch.tensor(values, dtype=dtype).reshape(images, len(mapping)), torch.tensor(mapping)


@pytest.mark.parametrize("device", DEVICES)
def test_reference_ranks_and_metrics(device: str) -> None:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    with np.load(Path(os.environ["RSR_DATA"]) / "reference" / "func_utils.npz", allow_pickle=False) as reference:
        ranks = rank(torch.from_numpy(reference["sim"]).to(device), torch.arange(150) // 5)
        table = recalls(ranks)
        assert ranks.image_to_text.tolist() == reference["acc_i2t2_ranks"].tolist()
        assert ranks.text_to_image.tolist() == reference["acc_t2i2_ranks"].tolist()
        expected = [*reference["acc_i2t2_metrics"], *reference["acc_t2i2_metrics"]]
    assert list(table.values())[:10] == pytest.approx(expected)
    assert list(table) == [
        f"{d}_{name}" for d in ("i2t", "t2i") for name in ("R@1", "R@5", "R@10", "medr", "meanr")
    ] + ["mR"]
    assert table["mR"] == pytest.approx((20 + 60 + 80 + 14.666666667 + 51.333333333 + 73.333333333) / 6)


def test_ranks_worked_out_by_hand() -> None:
    # Texts 0 and 2 belong to image 1, text 1 to image 0.
    scores = torch.tensor([[0.9, 0.5, 0.6], [0.9, 0.7, 0.1]])
    assert as_lists(rank(scores, torch.tensor([1, 0, 1]))) == ([2, 0], [1, 1, 1])


@given(problems())
def test_ranks_equal_the_naive_loops(problem: tuple[Tensor, Tensor]) -> None:
    assert as_lists(rank(*problem)) == naive_rank(*problem)


@given(problems(), st.data())
def test_any_blocks_give_equal_ranks(problem: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    scores, text_image = problem
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=4)))
    passes: list[int] = []

    def blocks() -> Iterator[Tensor]:
        passes.append(len(passes))
        return (scores[start:end] for start, end in itertools.pairwise([0, *cuts, len(scores)]))

    assert as_lists(rank_blocks(blocks, text_image)) == as_lists(rank(scores, text_image))
    assert len(passes) == 2


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_on_a_larger_matrix(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    text_image = torch.cat([torch.arange(40), torch.randint(40, (90,), generator=generator)])
    text_image = text_image[torch.randperm(130, generator=generator)]
    scores = torch.randint(12, (40, 130), generator=generator).float()
    ranks = rank_blocks(lambda: scores.to(device).split(7), text_image)
    assert as_lists(ranks) == naive_rank(scores, text_image)
    assert (ranks.image_to_text.dtype, ranks.text_to_image.dtype) == (torch.int64, torch.int64)


@given(problems())
def test_a_collapsed_model_gets_the_worst_ranks(problem: tuple[Tensor, Tensor]) -> None:
    scores, text_image = problem
    ranks = rank(torch.full_like(scores, 0.5), text_image)
    assert ranks.image_to_text.tolist() == (len(text_image) - text_image.bincount()).tolist()
    assert ranks.text_to_image.tolist() == [len(scores) - 1] * len(text_image)


def test_a_collapsed_model_has_the_recall_of_chance_and_none_in_the_worst_order() -> None:
    text_image = torch.arange(60) // 5
    ranks = rank(torch.zeros(12, 60), text_image)
    worst, table = recalls(ranks, ties="last"), recalls(ranks)
    assert [worst[key] for key in RECALL_KEYS] == [0.0] * 7
    assert (worst["i2t_medr"], worst["t2i_meanr"]) == (56.0, 12.0)
    assert {key: table[key] for key in RECALL_KEYS} == pytest.approx(chance(text_image))
    assert (table["i2t_medr"], table["t2i_meanr"]) == (10.0, 6.5)  # 55 others before one of 5; 11 before one


def test_scores_that_change_between_passes_give_no_negative_rank() -> None:
    shifts = iter([0.0, -0.25])
    ranks = rank_blocks(lambda: [torch.eye(3) + next(shifts)], torch.arange(3))
    assert as_lists(ranks) == ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers_are_counted_and_located(fault: float) -> None:
    scores = torch.zeros(6, 12)
    scores[4, 7] = scores[5, 2] = fault
    message = r"2 of 36 scores of images 3 to 5 are NaN or infinite, the first at image 4, text 7"
    with pytest.raises(ValueError, match=message):
        rank_blocks(lambda: scores.split(3), torch.arange(12) // 2)
    with pytest.raises(ValueError, match=r"2 of 72 .* first at image 4, text 7"):
        rank(scores, torch.arange(12) // 2)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([0, 0, 2, 2], "1 of 3 images have no text, the first is image 1"),
        ([0, 0, 0, 1], "1 of 3 images have no text, the first is image 2"),
        ([0, 1, 2, 3], r"must be in 0\.\.2; text 3 is given to image 3"),
        ([0, -1, 1, 2], r"must be in 0\.\.2; text 1 is given to image -1"),
        ([0, 1, 2], r"shape \[images, 3\], one column for each text in text_image; got \[3, 4\] at image 0"),
        ([], r"M > 0; got shape \[0\]"),
    ],
)
def test_a_mapping_that_does_not_fit(mapping: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank(torch.zeros(3, 4), torch.tensor(mapping, dtype=torch.int64))


def test_blocks_that_do_not_fit() -> None:
    text_image = torch.arange(4) // 2
    with pytest.raises(ValueError, match=r"int64 .* got shape \[4\] of torch.float32"):
        rank(torch.zeros(2, 4), text_image.float())
    with pytest.raises(ValueError, match=r"got \[4\] at image 0"):
        rank(torch.zeros(4), text_image)
    with pytest.raises(ValueError, match="no rows"):
        rank(torch.zeros(0, 4), text_image)
    with pytest.raises(ValueError, match="no rows"):
        rank_blocks(list, text_image)


def test_blocks_must_be_given_twice() -> None:
    scores, text_image = torch.zeros(4, 8), torch.arange(8) // 2
    once = iter(scores.split(2))
    with pytest.raises(ValueError, match=r"gave 4 rows, the second 0; blocks\(\) must start anew"):
        rank_blocks(lambda: once, text_image)
    counts = iter([2, 3])
    with pytest.raises(ValueError, match="gave 4 rows, the second more"):
        rank_blocks(lambda: [scores[:2]] * next(counts), text_image)


def test_recalls_worked_out_by_hand() -> None:
    table = recalls(Ranks(torch.tensor([4, 0]), torch.tensor([9, 0, 10, 1, 5])))
    assert table == pytest.approx(
        {"i2t_R@1": 50, "i2t_R@5": 100, "i2t_R@10": 100, "i2t_medr": 3, "i2t_meanr": 3}
        | {"t2i_R@1": 20, "t2i_R@5": 40, "t2i_R@10": 80, "t2i_medr": 6, "t2i_meanr": 6, "mR": 65}
    )


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_recalls_equal_numpy(places: list[int]) -> None:
    table = recalls(Ranks(torch.tensor(places), torch.zeros(1, dtype=torch.int64)))
    assert table["i2t_medr"] == np.floor(np.median(places)) + 1
    assert table["i2t_meanr"] == pytest.approx(np.mean(places) + 1)
    for cutoff in (1, 5, 10):
        assert table[f"i2t_R@{cutoff}"] == pytest.approx(100 * np.mean(np.array(places) < cutoff))


def test_mean_and_deviation_over_folds() -> None:
    folds = [{"mR": 1.0, "i2t_R@1": 4.0}, {"mR": 2.0, "i2t_R@1": 4.0}, {"i2t_R@1": 4.0, "mR": 6.0}]
    result = mean_and_deviation(folds)
    assert list(result) == ["mR", "i2t_R@1"]
    assert result["mR"] == pytest.approx((3.0, 7**0.5))
    assert result["i2t_R@1"] == (4.0, 0.0)
    assert mean_and_deviation(folds[:1]) == {"mR": (1.0, 0.0), "i2t_R@1": (4.0, 0.0)}


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_deviation_equals_numpy(values: list[float]) -> None:
    mean, deviation = mean_and_deviation([{"mR": value} for value in values])["mR"]
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-9)


@pytest.mark.parametrize("rows", [[], [{"mR": 1.0}, {"t2i_R@1": 1.0}]])
def test_folds_with_different_tables(rows: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="one or more rows with the same keys"):
        mean_and_deviation(rows)


def test_an_ensemble_ranks_by_the_mean_of_the_scores() -> None:
    first, second = (
        torch.tensor([[0.9, 0.0], [0.8, 0.1], [0.0, 0.5]]),
        torch.tensor([[0.1, 0.0], [0.8, 0.9], [0.0, 0.1]]),
    )
    source = mean_scores([lambda: iter(first.split(2)), lambda: iter(second.split(2))])
    for _ in range(2):  # it can be read again, as a model's own scores can
        torch.testing.assert_close(torch.cat(list(source())), (first + second) / 2)
    with pytest.raises(ValueError, match="longer"):
        list(mean_scores([lambda: [first[:2]], lambda: iter(second.split(2))])())
