"""Paired bootstrap: hand-made cases, a naive twin, its error rates, its faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from metrics.bootstrap import image_hits, recalls_of
from metrics.ranks import Ranks, hit_chances, recalls
from reports.significance import QueryRanks, compare, main, read_ranks
from tests.runs.test_scoring import experiment, run, saved  # noqa: F401
from utils import InputError

NAMES = ["i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10"]


def ranks_of(seed: int, images: int = 30, folds: int = 2, worst: int = 30) -> QueryRanks:
    """Random ranks on one list: image i has 1 + i % 3 captions."""
    random = np.random.default_rng(seed)
    caption_image = np.repeat(np.arange(images), 1 + np.arange(images) % 3)
    sizes = (images, len(caption_image))
    return QueryRanks(
        Path(f"{seed}.h5"),
        [f"{i}.tif" for i in range(images)],
        [f"caption {i}" for i in range(len(caption_image))],
        caption_image,
        [Ranks(*drawn) for drawn in zip(*(drawn_ranks(random, worst, folds, size) for size in sizes), strict=True)],
    )


def drawn_ranks(random: np.random.Generator, worst: int, folds: int, size: int) -> list[torch.Tensor]:
    return list(torch.from_numpy(random.integers(0, worst, (folds, size))))


def naive_recalls(ranks: QueryRanks, drawn: list[int]) -> list[float]:
    """Recalls of a drawn list of images, query by query, fold by fold."""
    table = []
    for direction in ("image", "caption"):
        for cutoff in (1, 5, 10):
            found, queries = 0, 0
            for fold in ranks.folds:
                for image in drawn:
                    if direction == "image":
                        own = [int(fold.image_to_text[image])]
                    else:
                        rows = [c for c, owner in enumerate(ranks.caption_image) if owner == image]
                        own = [int(fold.text_to_image[row]) for row in rows]
                    found += sum(rank < cutoff for rank in own)
                    queries += len(own)
            table.append(100 * found / queries)
    return [*table, sum(table) / 6]


def test_recalls_are_those_of_metrics() -> None:
    ranks = ranks_of(0, folds=1)
    table = recalls(ranks.folds[0])
    figures = compare(ranks, ranks_of(1, folds=3), 10, 0)
    assert [figures[name].first for name in [*NAMES, "mR"]] == pytest.approx([table[name] for name in [*NAMES, "mR"]])


def test_resampled_recalls_match_a_naive_twin() -> None:
    ranks, random = ranks_of(2), np.random.default_rng(0)
    drawn = random.integers(0, 30, (4, 30))
    weights = np.stack([np.bincount(row, minlength=30) for row in drawn]).astype(float)
    captions = np.bincount(ranks.caption_image).astype(float)
    images, texts = zip(*map(hit_chances, ranks.folds), strict=True)
    hits = image_hits(torch.stack(images).numpy(), torch.stack(texts).numpy(), ranks.caption_image)
    figures = recalls_of(hits, captions, weights)
    expected = [naive_recalls(ranks, row.tolist()) for row in drawn]
    np.testing.assert_allclose(figures, expected, rtol=1e-12)


def test_a_model_does_not_differ_from_itself() -> None:
    figures = compare(ranks_of(3), ranks_of(3), 500, 0)
    assert all((d.low, d.high, d.p) == (0.0, 0.0, 1.0) for d in figures.values())


def tied(ranks: QueryRanks) -> QueryRanks:
    """The same with one other caption and image of equal score before each match that is not first."""
    folds = []
    for fold in ranks.folds:
        ties = [(places > 0).long() for places in (fold.image_to_text, fold.text_to_image)]
        folds.append(Ranks(fold.image_to_text, fold.text_to_image, ties[0], ties[1], torch.ones_like(ties[0])))
    return replace(ranks, folds=folds)


def test_equal_scores_count_as_in_the_tables() -> None:
    ranks = tied(ranks_of(0, folds=1))
    figures = compare(ranks, ranks_of(1), 10, 0)
    table = recalls(ranks.folds[0])
    assert figures["mR"].first == pytest.approx(table["mR"])
    assert table["mR"] > recalls(ranks.folds[0], ties="last")["mR"]


def test_a_file_that_does_not_tell_ties_makes_both_count_them_against() -> None:
    ranks = tied(ranks_of(0, folds=1))
    figures = compare(ranks, replace(ranks_of(1), knows_ties=False), 10, 0)
    assert figures["mR"].first == pytest.approx(recalls(ranks.folds[0], ties="last")["mR"])


def test_a_model_that_always_finds_is_surely_better() -> None:
    worse = ranks_of(4)
    better = replace(worse, folds=[Ranks(fold.image_to_text * 0, fold.text_to_image * 0) for fold in worse.folds])
    figure = compare(worse, better, 999, 0)["mR"]
    assert figure.second == 100.0
    assert figure.p == pytest.approx(2 / 1000)
    assert 0 < figure.low < 100 - figure.first < figure.high
    mirrored = compare(better, worse, 999, 0)["mR"]
    assert (mirrored.low, mirrored.high, mirrored.p) == pytest.approx((-figure.high, -figure.low, figure.p))


def test_equal_models_are_told_apart_as_often_as_stated() -> None:
    """Both draw their ranks from one distribution: p below 0.05 comes in about 5 % of the cases."""
    small = [
        compare(ranks_of(2 * i, 60, 1, 12), ranks_of(2 * i + 1, 60, 1, 12), 200, i)["t2i_R@5"].p < 0.05
        for i in range(200)
    ]
    assert 0.01 <= np.mean(small) <= 0.11


def test_the_draws_follow_the_seed() -> None:
    first, second = ranks_of(5), ranks_of(6)
    assert compare(first, second, 100, 1) == compare(first, second, 100, 1)
    assert compare(first, second, 100, 1) != compare(first, second, 100, 2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_names", ["other.tif", *ranks_of(0).image_names[1:]], "image 0 differs"),
        ("captions", [*ranks_of(0).captions[:-1], "another"], "caption 59 differs"),
        ("image_names", ranks_of(0).image_names[:-1], "30 and 29 of them"),
    ],
)
def test_other_lists_are_refused(field: str, value: list[str], message: str) -> None:
    other = replace(ranks_of(0), **{field: value})  # type: ignore[arg-type]  # one of two fields of this type
    with pytest.raises(InputError, match=message):
        compare(ranks_of(0), other, 10, 0)


def test_from_test_to_table(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(saved, "--export", str(tmp_path / "export.h5"))
    whole = json.loads((experiment(saved) / "test.json").read_text())
    capsys.readouterr()
    main(["compare", str(experiment(saved) / "test.json"), str(tmp_path / "export.h5"), "--resamples", "50"])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| mR"))
    shown = f"{whole['mean']['mR']:.2f}"
    assert [cell.strip() for cell in row.split("|")[2:5]] == [shown, shown, "+0.00"]
    assert "12 test images with their 24 captions" in printed
    main(["compare", str(experiment(saved)), str(tmp_path / "export.h5"), "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["mR"]["first"] == pytest.approx(whole["mean"]["mR"])


def test_files_without_ranks_are_refused(tmp_path: Path) -> None:
    for name, message in (("absent.h5", "no ranks to read"), ("test.json", "ranks.h5: no ranks to read")):
        with pytest.raises(InputError, match=message):
            read_ranks(tmp_path / name)
    (tmp_path / "text.h5").write_text("no archive")
    with pytest.raises(InputError, match="no ranks to read"):
        read_ranks(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as archive:
        archive.attrs["format"] = "something"
    with pytest.raises(InputError, match="neither an export"):
        read_ranks(tmp_path / "other.h5")
