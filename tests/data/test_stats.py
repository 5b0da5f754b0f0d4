"""Numbers and charts of data sets."""

from __future__ import annotations

import os
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.stats import caption_similarity
from data.stats.__main__ import class_table, main, table
from data.stats.caption_similarity import KINDS, _sample, bleu, mean_similarity, scores_at_hand
from data.stats.figures import moments, statistics
from utils import InputError


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three images of two classes, one of them val, and one test image; no images on disk."""
    folder = tmp_path / "small_precomp"
    folder.mkdir()
    files = {
        "train_filename.txt": "roof_1.png\nroof_2.png\nlake_1.png\n",
        "train_caps.txt": "a red roof\na red roof\n.\na red , red roof !\na lake\na  lake\n",
        "test_filename.txt": "lake_2.png\n",
        "test_caps.txt": "the blue lake shines\na lake\n",
        "val_filename_verify.txt": "roof_2.png\n",
        "val_caps_verify.txt": ".\na red , red roof !\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


def test_every_number_of_a_small_set(small: Path) -> None:
    found = statistics(small, pairs=10)
    assert found.name == "small"
    assert found.images == {"train": 2, "val": 1, "test": 1}
    assert found.captions == 8
    assert found.different_captions == 6
    assert found.diversity == (1 + 2 + 2 + 2) / 4
    assert found.words == 3 + 3 + 0 + 4 + 2 + 2 + 4 + 2
    assert found.different_words == len({"a", "red", "roof", "lake", "the", "blue", "shines"})
    np.testing.assert_array_equal(found.lengths, [1, 0, 3, 2, 2])
    assert moments(found.lengths) == pytest.approx((20 / 8, np.std([3, 3, 0, 4, 2, 2, 4, 2])))
    assert found.classes == {"lake": {"train": 1, "test": 1}, "roof": {"train": 1, "val": 1}}
    rows = cells(class_table(found))
    assert rows["images of small"] == ["train", "val", "test"]
    assert rows["lake"] == ["1", "0", "1"]
    assert rows["roof"] == ["1", "1", "0"]


def test_table_has_a_column_for_each_set(small: Path) -> None:
    found = statistics(small, pairs=10)
    rows = cells(table([found, found]))
    assert rows["captions"] == ["8", "8"]
    assert rows["captions of an image"] == ["2", "2"]
    assert rows["different captions of an image"] == ["1.75", "1.75"]
    assert rows["words of a caption, mean ± sd"][0] == "2.5 ± 1.2"
    assert rows["words of the longest caption"][0] == "4"
    assert rows["scene classes"][0] == "2"


def test_no_classes_are_made_up(small: Path) -> None:
    (small / "train_filename.txt").write_text("x1.png\nx2.png\nx3.png\n")
    (small / "val_filename_verify.txt").unlink()
    found = statistics(small, pairs=10)
    assert found.classes == {}
    assert class_table(found) == ""
    assert np.isnan(found.similarity["BLEU"]["same class"])
    assert cells(table([found]))["BLEU, same class"] == ["-"]
    assert 0 < found.similarity["BLEU"]["other class"] < 1


# --- similarity ----------------------------------------------------------------------------------------------------


def test_bleu_of_known_pairs() -> None:
    assert bleu(["a", "lake"], ["a", "lake"]) == pytest.approx(1)
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours stand in the reference; the lengths are equal.
    reference, hypothesis = ["the", "cat", "is", "on", "the", "mat"], ["the", "cat", "is", "on", "a", "mat"]
    assert bleu(reference, reference) == pytest.approx(1)
    assert bleu(reference, hypothesis) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(["one", "two", "three", "four"], ["five", "six", "seven", "eight"]) < 0.1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=5), st.integers(0, 99))
def test_sampled_pairs_are_all_pairs_of_their_kind(shape: list[tuple[int, int]], seed: int) -> None:
    image = np.repeat(np.arange(len(shape)), [captions for _, captions in shape])
    scene = np.array([scene for scene, _ in shape])[image]
    zeros, each = np.zeros_like(image), np.arange(len(image))
    for outer, inner in ((image, each), (scene, image), (zeros, scene)):
        allowed = {
            (one, other)
            for one, other in product(range(len(image)), repeat=2)
            if outer[one] == outer[other] and inner[one] != inner[other]
        }
        first, second = _sample(outer, inner, 3000, np.random.default_rng(seed))
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == allowed


def test_pairs_of_an_image_are_drawn_evenly() -> None:
    image = np.repeat(np.arange(2), [3, 2])
    first, second = _sample(image, np.arange(5), 40_000, np.random.default_rng(0))
    counts = Counter(zip(first.tolist(), second.tolist(), strict=True))
    for (one, _), count in counts.items():
        share = 1 / 5 / (2 if one < 3 else 1)  # a caption, then one of its partners
        assert count / 40_000 == pytest.approx(share, abs=0.01)


def test_mean_similarity_keeps_the_kinds_apart() -> None:
    tokens = [["x"], ["x"], ["x"], ["y"], ["y"], ["z"]]
    image, scene = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 0, 0, 0, 1, 1])
    means = mean_similarity(tokens, image, scene, lambda one, other: float(one == other), 20_000, 0)
    # Same image: x x alike, x y not. The others: share of equal ones among the partners of each first caption.
    assert means["same image"] == pytest.approx(1 / 2, abs=0.02)
    assert means["same class"] == pytest.approx((1 / 2 + 1 / 2 + 1 + 0 + 0 + 0) / 6, abs=0.02)
    assert means["other class"] == pytest.approx((0 + 0 + 0 + 1 / 2 + 1 / 4 + 0) / 6, abs=0.02)
    assert tuple(means) == KINDS
    again = mean_similarity(tokens, image, scene, lambda one, other: float(one == other), 20_000, 0)
    assert again == means


def test_meteor_is_there_only_with_its_corpus(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    class Corpus:
        def __init__(self, there: bool) -> None:
            self.there = there

        def ensure_loaded(self) -> None:
            if not self.there:
                raise LookupError

    monkeypatch.setattr(caption_similarity, "wordnet", Corpus(False))
    assert list(scores_at_hand()) == ["BLEU"]
    monkeypatch.setattr(caption_similarity, "wordnet", Corpus(True))
    monkeypatch.setattr(caption_similarity, "single_meteor_score", lambda one, other: 0.5)
    assert list(scores_at_hand()) == ["BLEU", "METEOR"]
    assert statistics(small, pairs=5).similarity["METEOR"] == dict.fromkeys(KINDS, 0.5)
    main([str(small), "--out", str(small.parent / "stats.png"), "--pairs", "5"])
    with Image.open(small.parent / "stats.png") as chart:
        assert chart.width == 1430


# --- the command ---------------------------------------------------------------------------------------------------


def test_command_prints_and_draws(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "deep" / "small_precomp"
    other.parent.mkdir()
    other.symlink_to(small)
    out = tmp_path / "stats.png"
    main([str(small), str(other), str(small), "--out", str(out), "--pairs", "20"])
    printed = capsys.readouterr().out
    assert cells(printed)[""] == ["small", "small (2)"]
    assert "Similarity: mean of 20 sampled pairs of captions (seed 0)." in printed
    image = np.asarray(Image.open(out).convert("RGB"))
    assert image.shape[1] == 1430
    for colour in ((0x44, 0x77, 0xAA), (0xCC, 0xBB, 0x44), (0xEE, 0x66, 0x77)):  # train, val, test
        assert (image == colour).all(axis=2).sum() > 1000


def test_sets_without_classes_are_drawn(small: Path, tmp_path: Path) -> None:
    (small / "train_filename.txt").write_text("x1.png\nx2.png\nx3.png\n")
    (small / "val_filename_verify.txt").unlink()
    main([str(small), "--out", str(tmp_path / "stats.png"), "--pairs", "5"])
    with Image.open(tmp_path / "stats.png") as chart:
        assert chart.size == (1430, 374)


def test_wrong_input_is_told(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--pairs must be at least 1"):
        main([str(small), "--pairs", "0"])
    with pytest.raises(InputError, match=r"absent/train_filename\.txt: can't be read"):
        main([str(tmp_path / "absent")])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="drawing needs matplotlib"):
        main([str(small), "--out", str(tmp_path / "stats.png")])
    assert not (tmp_path / "stats.png").exists()


@pytest.mark.parametrize(
    ("name", "different", "diversity", "classes", "longest"),
    [("ucm", 1829, 4.75, 21, 22), ("rsitmd", 21826, 4.68, 33, 34), ("rsicd", 18190, 2.23, 31, 34)],
)
def test_published_sets(name: str, different: int, diversity: float, classes: int, longest: int) -> None:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    found = statistics(Path(os.environ["RSR_DATA"]) / "data" / f"{name}_precomp", pairs=300)
    assert found.different_captions == different
    assert found.diversity == pytest.approx(diversity, abs=0.005)
    assert len(found.classes) == classes
    assert len(found.lengths) - 1 == longest
    values = [found.similarity["BLEU"][kind] for kind in KINDS]
    assert values == sorted(values, reverse=True)
