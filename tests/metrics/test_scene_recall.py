"""Scene recall against reference outputs, loops over single items, and cases worked out by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.annotations import Annotations
from metrics.limits import scene_chance
from metrics.ranks import CUTOFFS
from metrics.scenes import NO_SCENE, SceneShares, scene_recalls, scene_shares
from runs.scoring import scene_numbers
from tests import ROOT
from tests.metrics.test_metrics import DEVICES, problems

REFERENCE = ROOT / "tests" / "reference" / "scene_recall.npz"


def annotations_of(names: list[str], folder: Path = Path("absent")) -> Annotations:
    """A list of images with one caption each."""
    count = len(names)
    numbers = np.arange(count)
    return Annotations(folder, "test", tuple(names), ("a",) * count, numbers, folder / "names.txt", numbers + 1)


def naive_share(scores: list[float], alike: list[bool], cutoff: int) -> float:
    """Share of the first items that are alike; of equal scores the others come first."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], alike[item]))
    first = order[:cutoff]
    return sum(alike[item] for item in first) / len(first)


def naive_shares(scores: Tensor, text_image: Tensor, scenes: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    text_scene = scenes[text_image].tolist()
    by_image = [
        [naive_share(row, [s == scene for s in text_scene], cutoff) for cutoff in CUTOFFS]
        for row, scene in zip(scores.tolist(), scenes.tolist(), strict=True)
    ]
    by_text = [
        [naive_share(column, [s == scene for s in scenes.tolist()], cutoff) for cutoff in CUTOFFS]
        for column, scene in zip(scores.T.tolist(), text_scene, strict=True)
    ]
    return by_image, by_text


def as_lists(shares: SceneShares) -> tuple[list[list[float]], list[list[float]]]:
    return shares.image_to_text.tolist(), shares.text_to_image.tolist()


@pytest.mark.parametrize("rows", [1, 7, 30])
@pytest.mark.parametrize("device", DEVICES)
def test_reference(device: str, rows: int) -> None:
    with np.load(REFERENCE, allow_pickle=False) as archive:
        reference = {name: archive[name] for name in archive.files}
    scenes = scene_numbers(annotations_of(reference["files"].tolist()))
    assert scenes is not None
    classes = sorted(set(reference["classes"].tolist()) - {"noneclass"})
    assert [classes[s] if s != NO_SCENE else "noneclass" for s in scenes] == reference["classes"].tolist()
    text_image = torch.arange(150) // 5
    scores = torch.from_numpy(reference["sim"]).to(device)
    shares = scene_shares(lambda: scores.split(rows), text_image.to(device), scenes)
    table = scene_recalls(shares, text_image.to(device), scenes.to(device))
    for direction, cutoff in itertools.product(("i2t", "t2i"), CUTOFFS):
        expected = 100 * float(reference[f"srr_{direction}_r{cutoff}"])
        assert table[f"{direction}_scene_recall@{cutoff}"] == pytest.approx(expected)
    # One of the 30 images has no class, and finds none of its kind in any of these places
    assert table["i2t_scene_recall@1_without_noneclass"] == pytest.approx(100 * 11 / 29)
    assert table["t2i_scene_recall@1_without_noneclass"] == pytest.approx(100 * 46 / 145)
    assert len(table) == 12


@given(problems(), st.data())
def test_shares_equal_the_naive_loops_in_any_blocks(problem: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    scores, text_image = problem
    scenes = torch.tensor(data.draw(st.lists(st.integers(-1, 2), min_size=len(scores), max_size=len(scores))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(scores)), max_size=4)))
    parts = [scores[start:end] for start, end in itertools.pairwise([0, *cuts, len(scores)])]
    shares = scene_shares(lambda: parts, text_image, scenes)
    for found, expected in zip(as_lists(shares), naive_shares(scores, text_image, scenes), strict=True):
        assert np.array(found) == pytest.approx(np.array(expected))


def test_a_larger_matrix_equals_the_naive_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    text_image = torch.randint(40, (130,), generator=generator)
    scenes = torch.randint(-1, 5, (40,), generator=generator)
    scores = torch.randint(12, (40, 130), generator=generator).float()
    shares = scene_shares(lambda: scores.split(9), text_image, scenes)
    for found, expected in zip(as_lists(shares), naive_shares(scores, text_image, scenes), strict=True):
        assert np.array(found) == pytest.approx(np.array(expected))


def test_a_collapsed_model_finds_no_scene() -> None:
    # Ten of the twelve images, and fifty of sixty texts, are of another class than any query
    shares = scene_shares(lambda: [torch.zeros(12, 60)], torch.arange(60) // 5, torch.arange(12) // 2)
    assert float(shares.image_to_text.max()) == 0.0
    assert float(shares.text_to_image.max()) == 0.0


def test_recalls_worked_out_by_hand() -> None:
    # Images of class 0, 0 and none; text 0 of image 0, text 1 of image 1, text 2 of image 2
    scenes, text_image = torch.tensor([0, 0, NO_SCENE]), torch.arange(3)
    scores = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.4, 0.4], [0.3, 0.2, 0.1]])
    table = scene_recalls(scene_shares(lambda: [scores], text_image, scenes), text_image, scenes)
    assert table == pytest.approx(
        # Image 0 finds text 1, image 1 texts 2 and 1 tied: the other class first; image 2 finds text 0
        {"i2t_scene_recall@1": 100 / 3, "i2t_scene_recall@5": 100 * (2 / 3 + 2 / 3 + 1 / 3) / 3}
        | {"i2t_scene_recall@10": 100 * 5 / 9}
        # Text 0 finds image 2, text 1 image 0, text 2 image 1
        | {"t2i_scene_recall@1": 100 / 3, "t2i_scene_recall@5": 100 * 5 / 9, "t2i_scene_recall@10": 100 * 5 / 9}
        | {"i2t_scene_recall@1_without_noneclass": 50, "i2t_scene_recall@5_without_noneclass": 200 / 3}
        | {"i2t_scene_recall@10_without_noneclass": 200 / 3, "t2i_scene_recall@1_without_noneclass": 50}
        | {"t2i_scene_recall@5_without_noneclass": 200 / 3, "t2i_scene_recall@10_without_noneclass": 200 / 3}
    )


def test_chance_equals_the_mean_of_random_scores() -> None:
    generator = torch.Generator().manual_seed(1)
    text_image, scenes = torch.arange(60) // 3, torch.randint(-1, 4, (20,), generator=generator)
    expected = scene_recalls(scene_chance(text_image, scenes), text_image, scenes)
    tables = [
        scene_recalls(
            scene_shares(lambda: [torch.rand(20, 60, generator=generator)], text_image, scenes), text_image, scenes
        )
        for _ in range(300)
    ]
    assert len(expected) == 12
    for name, value in expected.items():
        values = np.array([table[name] for table in tables])
        assert abs(values.mean() - value) < 4 * values.std() / 300**0.5, name


def test_rows_that_do_not_fit_the_scenes() -> None:
    text_image, scenes = torch.arange(3), torch.arange(3)
    for rows in (2, 4):
        with pytest.raises(ValueError, match=f"3 classes, {rows} or more rows"):
            scene_shares(lambda rows=rows: [torch.zeros(rows, 3)], text_image, scenes)  # type: ignore[misc]
    with pytest.raises(ValueError, match="NaN or infinite"):
        scene_shares(lambda: [torch.full((3, 3), float("nan"))], text_image, scenes)


def test_classes_become_numbers(tmp_path: Path) -> None:
    numbers = scene_numbers(annotations_of(["beach_1.tif", "00123.tif", "airport_3.tif", "beach_9.tif"]))
    assert numbers is not None
    assert numbers.tolist() == [1, NO_SCENE, 0, 1]
    assert scene_numbers(annotations_of(["beach_1.tif", "beach_2.tif"])) is None
    assert scene_numbers(annotations_of(["1.tif", "2.tif"])) is None
    (tmp_path / "classes.txt").write_text("field\nairport\n")
    numbered = scene_numbers(annotations_of(["1.tif", "101.tif", "100.tif"], tmp_path))
    assert numbered is not None
    assert numbered.tolist() == [1, 0, 1]
