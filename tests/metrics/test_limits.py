"""Chance against all orders and random ones, the ceiling against every order of small sets and the real captions.

What the scene class alone gives is checked against ties at random of a score that is the class.
"""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from random import Random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batches.batch import Captions
from data.annotations import read_annotations
from metrics import Ties
from metrics.limits import ceiling, chance, scene_knowledge
from metrics.ranks import CUTOFFS, mean_and_deviation, rank, recalls
from reports.tables import RECALLS
from runs.scoring import scene_numbers
from vocab import Vocabulary


def test_chance_equals_the_mean_over_all_orders() -> None:
    # Only the order within a row or a column matters for its query: each is averaged over all of its orders.
    text_image = torch.tensor([2, 0, 1, 0, 0, 1, 0])
    expected = dict.fromkeys(list(RECALLS)[:-1], 0.0)
    rows = torch.tensor(list(itertools.permutations(range(7))), dtype=torch.float32)
    columns = torch.tensor(list(itertools.permutations(range(3))), dtype=torch.float32)
    for image in range(3):
        match = rows[:, text_image == image].amax(dim=1, keepdim=True)
        places = (rows > match).sum(dim=1)
        for cutoff in (1, 5, 10):
            expected[f"i2t_R@{cutoff}"] += 100 * (places < cutoff).double().mean().item() / 3
    for cutoff in (1, 5, 10):
        places = (columns > columns[:, :1]).sum(dim=1)
        expected[f"t2i_R@{cutoff}"] = 100 * (places < cutoff).double().mean().item()
    expected["mR"] = sum(expected.values()) / 6
    table = chance(text_image)
    assert list(table) == list(RECALLS)
    assert table == pytest.approx(expected)
    assert table["i2t_R@10"] == 100.0


def test_chance_equals_the_mean_of_random_scores() -> None:
    text_image = torch.arange(120) // 5
    generator = torch.Generator().manual_seed(1)
    tables = [recalls(rank(torch.rand(24, 120, generator=generator), text_image)) for _ in range(400)]
    expected = chance(text_image)
    for key, (mean, deviation) in mean_and_deviation(tables).items():
        if key in expected:
            assert abs(mean - expected[key]) < 4 * deviation / 400**0.5


def test_chance_on_the_sizes_of_a_published_test_split() -> None:
    table = chance(torch.arange(5 * 452) // 5)
    assert table["i2t_R@1"] == pytest.approx(100 / 452)
    assert table["t2i_R@10"] == pytest.approx(1000 / 452)
    assert table["mR"] == pytest.approx(1.17636, abs=1e-5)


def test_chance_names_an_image_without_text() -> None:
    with pytest.raises(ValueError, match="1 of 3 images have no text, the first is image 1"):
        chance(torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="M > 0"):
        chance(torch.tensor([], dtype=torch.int64))


TEXTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=10)


def mapping(texts: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Text -> image and text -> different text, every image with a text."""
    images = sorted({image for image, _ in texts})
    rows = sorted({row for _, row in texts})
    text_image = torch.tensor([images.index(image) for image, _ in texts])
    return text_image, torch.tensor([rows.index(row) for _, row in texts])


def chance_of(texts: list[tuple[int, int]], image: int, row: int, cutoff: int, ties: Ties) -> float:
    """Probability that an image finds one of its own among all copies of a text that come first."""
    others = sum(1 for other, r in texts if r == row and other != image)
    own = sum(1 for other, r in texts if r == row and other == image)
    if ties == "last":
        return float(others < cutoff)
    drawn = min(cutoff, others + own)
    return 1 - math.comb(others, drawn) / math.comb(others + own, drawn)


def naive_ceiling(texts: list[tuple[int, int]], cutoff: int, ties: Ties) -> tuple[float, float]:
    """Both directions by trying every order of the images for each different text."""
    images, rows = {image for image, _ in texts}, {row for _, row in texts}
    found_images = sum(
        max(chance_of(texts, image, row, cutoff, ties) for i, row in texts if i == image) for image in images
    )
    found_texts = 0
    for row in rows:
        owners = [image for image, r in texts if r == row]
        found_texts += max(
            sum(order.index(image) < cutoff for image in owners)
            for order in itertools.permutations(sorted(set(owners)))
        )
    return 100 * found_images / len(images), 100 * found_texts / len(texts)


@given(TEXTS, st.sampled_from(get_args(Ties)))
@settings(deadline=None)
def test_ceiling_equals_the_best_of_all_orders(texts: list[tuple[int, int]], ties: Ties) -> None:
    table = ceiling(*mapping(texts), ties)
    for cutoff in CUTOFFS:
        expected = naive_ceiling(texts, cutoff, ties)
        assert (table[f"i2t_R@{cutoff}"], table[f"t2i_R@{cutoff}"]) == pytest.approx(expected)


@given(TEXTS, st.integers(0, 5), st.sampled_from(get_args(Ties)))
@settings(deadline=None)
def test_no_scores_exceed_the_ceiling(texts: list[tuple[int, int]], seed: int, ties: Ties) -> None:
    text_image, text_row = mapping(texts)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(int(text_image.max()) + 1, int(text_row.max()) + 1, generator=generator)
    scores[text_image, text_row] += 1  # a good model
    found = recalls(rank(scores[:, text_row], text_image), ties=ties)
    highest = ceiling(text_image, text_row, ties)
    assert all(found[name] <= value + 1e-9 for name, value in highest.items())


@given(TEXTS)
def test_the_ceiling_is_above_chance_and_above_its_lower_bound(texts: list[tuple[int, int]]) -> None:
    text_image, text_row = mapping(texts)
    highest, lowest, drawn = ceiling(text_image, text_row), ceiling(text_image, text_row, "last"), chance(text_image)
    for name, value in highest.items():
        assert value >= lowest[name] - 1e-9
        assert value >= drawn[name] - 1e-9 or name == "mR"


def test_different_texts_have_no_ceiling() -> None:
    table = ceiling(torch.arange(15) // 5, torch.arange(15))
    assert set(table.values()) == {100.0}


def with_ties_at_random(text_image: torch.Tensor, scenes: torch.Tensor) -> dict[str, float]:
    """Recalls of a score that is 1 within a scene class and 0 elsewhere."""
    scores = (scenes[:, None] == scenes[text_image]).float()
    table = recalls(rank(scores, text_image))
    return {key: table[key] for key in RECALLS}


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 4)), min_size=1, max_size=12), st.randoms())
def test_scene_class_alone_is_a_score_of_classes(images: list[tuple[int, int]], random: Random) -> None:
    texts = [image for image, (_, count) in enumerate(images) for _ in range(count)]
    random.shuffle(texts)
    text_image, scenes = torch.tensor(texts), torch.tensor([scene for scene, _ in images])
    assert scene_knowledge(text_image, scenes) == pytest.approx(with_ties_at_random(text_image, scenes))


def test_scene_class_alone_is_chance_for_one_class_and_all_for_a_class_each() -> None:
    text_image = torch.arange(60) // 5
    assert scene_knowledge(text_image, torch.zeros(12, dtype=torch.long)) == pytest.approx(chance(text_image))
    assert scene_knowledge(text_image, torch.arange(12)) == pytest.approx(dict.fromkeys(RECALLS, 100.0))


@pytest.mark.skipif("RSR_DATA" not in os.environ, reason="needs the real data sets (RSR_DATA)")
@pytest.mark.parametrize(("data_set", "mean"), [("ucm", 46.62), ("rsicd", 14.53)])
def test_scene_class_alone_of_real_images(data_set: str, mean: float) -> None:
    annotations = read_annotations(Path(os.environ["RSR_DATA"]) / "data" / f"{data_set}_precomp", "test")
    scenes = scene_numbers(annotations)
    assert scenes is not None
    assert scene_knowledge(torch.from_numpy(annotations.caption_image), scenes)["mR"] == pytest.approx(mean, abs=0.01)


@pytest.mark.skipif("RSR_DATA" not in os.environ, reason="needs the real data sets (RSR_DATA)")
def test_ceiling_of_ucm() -> None:
    annotations = read_annotations(Path(os.environ["RSR_DATA"]) / "data" / "ucm_precomp", "test")
    vocabulary = Vocabulary.load(Path("vocab/ucm_splits_vocab.json"))
    _, text_row = Captions.encode(annotations.captions, vocabulary).distinct()
    text_image = torch.from_numpy(annotations.caption_image)
    table, worst = ceiling(text_image, text_row), ceiling(text_image, text_row, "last")
    assert (table["i2t_R@1"], worst["i2t_R@1"]) == pytest.approx((45.81, 20.48), abs=0.01)
    assert table["t2i_R@1"] == worst["t2i_R@1"] == pytest.approx(39.33, abs=0.01)
    assert (table["mR"], worst["mR"]) == pytest.approx((77.64, 71.27), abs=0.01)
