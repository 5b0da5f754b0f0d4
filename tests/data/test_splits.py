"""Scene classes, splits and their record, on small lists and on the published ones."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.annotations import Annotations, read_annotations
from data.scenes import scene_classes
from data.splits import (
    Strategy,
    fold_annotations,
    read_split,
    recorded_or_new,
    split_images,
    write_split,
)
from utils import InputError

SEEDED: tuple[Strategy, ...] = ("random", "kfold", "stratified")


@pytest.fixture
def published() -> Path:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    return Path(os.environ["RSR_DATA"]) / "data"


def _write(folder: Path, names: str, captions: str, split: str = "train", verify: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_filename{verify}.txt").write_text(names, encoding="utf-8")
    (folder / f"{split}_caps{verify}.txt").write_text(captions, encoding="utf-8")
    return folder


def _annotations(folder: Path, names: list[str], per_image: int = 1) -> Annotations:
    captions = "".join(f"caption {i} of {name}\n" for name in names for i in range(per_image))
    return read_annotations(_write(folder, "".join(f"{name}\n" for name in names), captions), "train")


def test_scene_classes(tmp_path: Path) -> None:
    names = ["airport_1.jpg", "sub/bare_land_2.jpg", "00017.jpg", "3d_x.jpg", "plain.tif"]
    expected = ("airport", "bare", "noneclass", "noneclass", "plain")
    assert scene_classes(_annotations(tmp_path, names)) == expected
    (tmp_path / "classes.txt").write_text("farm\nport\n")
    assert scene_classes(_annotations(tmp_path, names)) == expected
    numbered = _annotations(tmp_path, ["1.jpg", "100.jpg", "101.jpg", "200.jpg"])
    assert scene_classes(numbered) == ("farm", "farm", "port", "port")
    (tmp_path / "classes.txt").unlink()
    assert scene_classes(numbered) == ("noneclass",) * 4
    (tmp_path / "classes.txt").write_text("farm\nport\n")
    with pytest.raises(InputError) as caught:
        scene_classes(_annotations(tmp_path, ["1.jpg", "0.jpg", "201.jpg"]))
    assert str(caught.value) == (
        f"{tmp_path}/train_filename.txt: 2 faults:\n  line 2: '0.jpg'\n  line 3: '201.jpg'\n"
        f"{tmp_path}/classes.txt has 2 classes of 100 images, so names must be 1 to 200."
    )


def test_lists_of_scene_classes(tmp_path: Path) -> None:
    annotations = _annotations(tmp_path, ["airport_1.jpg", "00017.jpg", "x/2.jpg", "3.jpg"])
    (tmp_path / "txtclasses_rsicd").mkdir()
    (tmp_path / "txtclasses_rsicd" / "Airport.txt").write_text("airport_1.jpg\n00017.jpg\n")
    (tmp_path / "txtclasses_rsicd" / "Bare Land.txt").write_text("2.tif\n")
    assert scene_classes(annotations) == ("Airport", "Airport", "Bare Land", "noneclass")
    (tmp_path / "scenes.txt").write_text("00017.jpg\tport\n\n3.jpg\tfarm\n")
    assert scene_classes(annotations) == ("noneclass", "port", "noneclass", "farm")
    (tmp_path / "scenes.txt").write_text("00017.jpg port\n")
    with pytest.raises(InputError, match=r"line 1: '00017\.jpg port' is no name, a tab and a class"):
        scene_classes(annotations)
    (tmp_path / "scenes.txt").write_text("3.jpg\tport\n3.jpg\tport\n3.jpg\tfarm\n")
    with pytest.raises(InputError, match=r"line 3: '3\.jpg' is of class farm, before it was of port"):
        scene_classes(annotations)
    (tmp_path / "scenes.txt").write_text("9.jpg\tport\n")
    with pytest.raises(InputError, match=r"names no image of .*train_filename\.txt, whose first is 'airport_1\.jpg'"):
        scene_classes(annotations)


@pytest.mark.parametrize(
    ("name", "classes", "largest"),
    [("rsitmd", 33, None), ("rsicd", 31, ("playfields", 595)), ("ucm", 21, None)],
)
def test_published_classes(published: Path, name: str, classes: int, largest: tuple[str, int] | None) -> None:
    annotations = read_annotations(published / f"{name}_precomp", "train")
    counts = Counter(scene_classes(annotations))
    assert len(counts) == classes
    if largest:
        assert counts.most_common(1) == [largest]
    if name == "ucm":
        assert set(counts) == set((published / "ucm_precomp/classes.txt").read_text().split())
        assert max(counts.values()) <= 100
        labels = dict(zip(annotations.image_names, scene_classes(annotations), strict=True))
        assert labels["606.jpg"] == "denseresidential"


@pytest.mark.parametrize("strategy", SEEDED)
@pytest.mark.parametrize("name", ["rsitmd", "rsicd", "ucm"])
def test_published_splits(published: Path, name: str, strategy: Strategy) -> None:
    annotations = read_annotations(published / f"{name}_precomp", "train")
    count = len(annotations.image_names)
    classes = np.array(scene_classes(annotations))
    vals = []
    for fold in range(5):
        train, val = split_images(annotations, strategy, fold, 5, seed=3)
        np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(count))
        assert train.dtype == val.dtype == np.int64
        vals.append(set(val.tolist()))
        again = split_images(annotations, strategy, fold, 5, seed=3)
        np.testing.assert_array_equal(again[1], val)
        if strategy == "random":
            assert len(train) == int(0.8 * count)
        if strategy == "stratified":
            for label in np.unique(classes):
                assert abs((classes[train] == label).sum() - 0.8 * (classes == label).sum()) <= 0.5
    other_seed = set(split_images(annotations, strategy, 0, 5, seed=4)[1].tolist())
    assert other_seed != vals[0]
    overlaps = [len(vals[0] & other) for other in vals[1:]]
    if strategy == "kfold":
        assert set().union(*vals) == set(range(count))
        assert overlaps == [0] * 4
        assert {len(val) for val in vals} <= {count // 5, count // 5 + 1}
    else:
        # Two independent fifths share about a fifth of a fifth.
        assert all(0.02 * count < overlap < 0.06 * count for overlap in overlaps)


def test_fold_is_added_to_the_seed(tmp_path: Path) -> None:
    annotations = _annotations(tmp_path, [f"{'ab'[i % 2]}_{i}" for i in range(40)])
    for strategy in ("random", "stratified"):
        first = split_images(annotations, strategy, 1, 3, seed=5)[1]
        second = split_images(annotations, strategy, 0, 3, seed=6)[1]
        np.testing.assert_array_equal(first, second)


def test_small_classes_go_to_train(tmp_path: Path) -> None:
    names = ["rare_0", *(f"pair_{i}" for i in range(2)), *(f"many_{i}" for i in range(13))]
    annotations = _annotations(tmp_path, names)
    train, val = split_images(annotations, "stratified", 0, 1, seed=0)
    assert {0, 1, 2} <= set(train.tolist())
    assert len(val) == 3


def test_blocks_are_runs_of_numbers(tmp_path: Path) -> None:
    names = [*(f"port_{number}.jpg" for number in (12, 1, 10, 2, 3, 11, 4, 9, 5, 8)), "farm_west.jpg", "farm_02.jpg"]
    annotations = _annotations(tmp_path, names)
    runs = [{"1", "2", "west"}, {"3", "4", "02"}, {"5", "8"}, {"9", "10"}, {"11", "12"}]
    for folds in (1, 3, 5):
        for fold in range(folds):
            train, val = split_images(annotations, "blocks", fold, folds, seed=fold)
            assert {Path(names[image]).stem.split("_")[1] for image in val} == runs[fold]
            assert sorted([*train, *val]) == list(range(12))
    assert [len(split_images(annotations, "blocks", fold, 7, seed=0)[1]) for fold in range(7)] == [3, 3, 2, 1, 1, 1, 1]


def test_blocks_of_ucm_leave_whole_numbers_out(published: Path) -> None:
    annotations = read_annotations(published / "ucm_precomp", "train")
    train, val = split_images(annotations, "blocks", 4, 5, seed=0)
    numbers = np.array([(int(Path(name).stem) - 1) % 100 for name in annotations.image_names])
    assert len(val) == 335
    assert numbers[train].max() == numbers[val].min() == 64


def test_captions_on_one_side_only(tmp_path: Path) -> None:
    names = "".join(f"{image}\n" * 2 for image in range(10))
    captions = ["a", "b", "b", "c", "c", "d", *("", "") * 2, *(f"own {line}" for line in range(10))]
    _write(tmp_path, names, "".join(f"{caption}\n" for caption in captions))
    annotations = read_annotations(tmp_path, "train")
    seen = set()
    for seed in range(20):
        train, val = split_images(annotations, "captions", 0, 1, seed)
        assert sorted([*train, *val]) == list(range(10))
        assert len(val) == 2  # the three images 0, 1, 2 are one group, too large for val
        assert not {0, 1, 2} & set(val.tolist())
        seen |= set(val.tolist())
    assert seen == set(range(3, 10))


def test_captions_that_join_too_many_images_are_told(tmp_path: Path) -> None:
    _write(tmp_path, "".join(f"{image}\n" for image in range(10)), "roofs\n" * 4 + "trees\n" * 3 + "roads\n" * 3)
    with pytest.raises(InputError, match=r"hold out a fifth of 10 images: equal captions join each with 2 others"):
        split_images(read_annotations(tmp_path, "train"), "captions", 0, 1, 0)


def test_captions_of_rsicd_are_held_out(published: Path) -> None:
    annotations = read_annotations(published / "rsicd_precomp", "train")
    train, val = (annotations.subset(side) for side in split_images(annotations, "captions", 0, 3, seed=0))
    assert not set(train.captions) & set(val.captions)
    assert 1960 <= len(val.image_names) <= 1966


def test_nothing_is_held_out(tmp_path: Path) -> None:
    annotations = _annotations(tmp_path, [f"a_{i}" for i in range(20)])
    train, val = split_images(annotations, "all", 1, 3, seed=4)
    assert train.tolist() == list(range(20))
    assert val.tolist() == split_images(annotations, "captions", 1, 3, seed=4)[1].tolist()
    folder = tmp_path / "run"
    written = recorded_or_new(tmp_path, folder, "all", 1, 3, 4, resume=False)
    again = recorded_or_new(tmp_path, folder, "all", 0, 3, 9, resume=True)
    assert [side.image_names for side in again] == [side.image_names for side in written]


@pytest.mark.parametrize(
    ("count", "strategy", "fold", "folds", "expected"),
    [
        (10, "random", 2, 2, "fold 2 is out of range: k_fold.nums is 2, so folds are 0 to 1"),
        (10, "random", -1, 2, "fold -1 is out of range"),
        (10, "kfold", 0, 1, "'kfold' needs k_fold.nums of 2 or more, found 1"),
        (3, "kfold", 3, 4, "3 images are too few for k_fold.strategy 'kfold' with 4 folds: 3 would be train and 0 val"),
        (1, "random", 0, 1, "1 images are too few for k_fold.strategy 'random' with 1 folds: 0 would be train"),
        (2, "stratified", 0, 1, "2 images are too few for k_fold.strategy 'stratified'"),
        (10, "fixed", 0, 1, "'fixed' does not split a list: expected random, kfold, stratified, blocks, "),
    ],
)
def test_bad_splits(tmp_path: Path, count: int, strategy: Strategy, fold: int, folds: int, expected: str) -> None:
    annotations = _annotations(tmp_path, [f"{i}" for i in range(count)])
    with pytest.raises(InputError) as caught:
        split_images(annotations, strategy, fold, folds, seed=0)
    assert expected in str(caught.value)


@pytest.mark.parametrize("strategy", SEEDED)
def test_fold_annotations(tmp_path: Path, strategy: Strategy) -> None:
    annotations = _annotations(tmp_path, [f"a_{i}" for i in range(20)], per_image=2)
    train, val = fold_annotations(tmp_path, strategy, 1, 4, 7)
    indices = split_images(annotations, strategy, 1, 4, 7)
    for side, name, chosen in zip((train, val), ("train", "val"), indices, strict=True):
        assert side.name == name
        assert side.image_names == annotations.subset(chosen).image_names
        assert side.captions == annotations.subset(chosen).captions


def test_fixed_split(tmp_path: Path) -> None:
    _write(tmp_path, "x\ny\n", "1\n2\n")
    _write(tmp_path, "x\n", "1\n2\n", verify="_verify")
    with pytest.raises(InputError) as caught:
        fold_annotations(tmp_path, "fixed", 0, 1, 0)
    assert "missing: val_filename_verify.txt, val_caps_verify.txt. Add them, or choose random" in str(caught.value)
    _write(tmp_path, "y\ny\n", "3\n4\n", split="val", verify="_verify")
    for fold in (0, 3):
        train, val = fold_annotations(tmp_path, "fixed", fold, 5, 0)
        assert (train.name, train.image_names, train.captions) == ("train (verify)", ("x",), ("1", "2"))
        assert (val.name, val.image_names, val.captions) == ("val (verify)", ("y",), ("3", "4"))
    _write(tmp_path, "x\n", "3\n4\n", split="val", verify="_verify")
    with pytest.raises(InputError, match=r"(?s)val_filename_verify.txt: 1 images are also in .*train_file.*\n  'x'\n"):
        fold_annotations(tmp_path, "fixed", 0, 1, 0)


def test_recorded_split(tmp_path: Path) -> None:
    annotations = _annotations(tmp_path / "set", ["a", "b", "c", "d"], per_image=2)
    run = tmp_path / "run"
    assert read_split(run, annotations, annotations) is None
    write_split(run, annotations.subset([3, 0]), annotations.subset([1]))
    assert (run / "split/train.txt").read_text() == "d\na\n"
    assert (run / "split/val.txt").read_text() == "b\n"
    assert sorted(path.name for path in (run / "split").iterdir()) == ["train.txt", "val.txt"]
    recorded = read_split(run, annotations, annotations)
    assert recorded is not None
    assert recorded[0].image_names == ("d", "a")
    assert recorded[0].captions == ("caption 0 of d", "caption 1 of d", "caption 0 of a", "caption 1 of a")
    assert recorded[1].image_names == ("b",)

    with pytest.raises(InputError, match=r"(?s)train\.txt: 1 fault:\n  line 1: 'd' is not in .*The data set or k_fold"):
        read_split(run, annotations.subset([0, 1, 2]), annotations)
    (run / "split/val.txt").write_text("b\nb\n")
    with pytest.raises(InputError, match="line 2: 'b' comes again, it was already on line 1"):
        read_split(run, annotations, annotations)
    (run / "split/val.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"(?s)val\.txt: 1 images are also in .*train\.txt:\n  'a'"):
        read_split(run, annotations, annotations)
    (run / "split/val.txt").unlink()
    assert read_split(run, annotations, annotations) is None


def test_nothing_is_written_into_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    _annotations(folder, [f"a_{i}" for i in range(10)])
    shutil.copy(folder / "train_caps.txt", folder / "val_caps_verify.txt")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for strategy in SEEDED:
        for resume in (False, True):
            recorded_or_new(folder, tmp_path / "run", strategy, 0, 2, 0, resume)
    with pytest.raises(InputError):
        fold_annotations(folder, "fixed", 0, 2, 0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


NAMES = st.lists(
    st.text(st.characters(categories=["L", "N", "P"], exclude_characters="\\/:"), min_size=1).filter(
        lambda name: name not in (".", "..")
    ),
    min_size=2,
    max_size=6,
    unique=True,
)


@settings(max_examples=25, deadline=None)
@given(names=NAMES)
def test_a_record_keeps_any_name(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        annotations = _annotations(Path(folder), names)
        write_split(Path(folder) / "run", annotations.subset([1]), annotations.subset([0]))
        recorded = read_split(Path(folder) / "run", annotations, annotations)
    assert recorded is not None
    assert [side.image_names for side in recorded] == [(names[1],), (names[0],)]


def _names(split: tuple[Annotations, Annotations]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split[0].image_names, split[1].image_names


@pytest.mark.parametrize("strategy", SEEDED)
def test_a_resumed_run_keeps_its_split(tmp_path: Path, strategy: Strategy) -> None:
    folder, run = tmp_path / "set", tmp_path / "run"
    _annotations(folder, [f"a_{i}" for i in range(20)], per_image=2)
    # Where nothing is recorded yet, resuming draws the split.
    first = recorded_or_new(folder, run, strategy, 1, 4, seed=7, resume=True)
    assert _names(first) == _names(fold_annotations(folder, strategy, 1, 4, 7))
    assert (run / "split/val.txt").read_text().split() == list(first[1].image_names)
    _annotations(folder, [f"a_{i}" for i in range(30)], per_image=2)
    resumed = recorded_or_new(folder, run, "random", 0, 2, seed=8, resume=True)
    assert _names(resumed) == _names(first)
    assert [side.name for side in resumed] == ["train", "val"]
    assert resumed[1].captions == first[1].captions
    anew = recorded_or_new(folder, run, strategy, 1, 4, seed=8, resume=False)
    assert len(anew[0].image_names) + len(anew[1].image_names) == 30
    assert (run / "split/val.txt").read_text().split() == list(anew[1].image_names)


def test_a_resumed_run_keeps_its_fixed_split(tmp_path: Path) -> None:
    folder, run = tmp_path / "set", tmp_path / "run"
    _write(folder, "x\nw\n", "1\n2\n", verify="_verify")
    _write(folder, "y\n", "3\n", split="val", verify="_verify")
    assert _names(recorded_or_new(folder, run, "fixed", 0, 1, 0, resume=False)) == (("x", "w"), ("y",))
    _write(folder, "v\nw\nx\n", "0\n2\n1\n", verify="_verify")
    train, val = recorded_or_new(folder, run, "fixed", 0, 1, 0, resume=True)
    assert (train.name, train.image_names, train.captions) == ("train (verify)", ("x", "w"), ("1", "2"))
    assert (val.name, val.image_names, val.captions) == ("val (verify)", ("y",), ("3",))
    _write(folder, "x\n", "1\n", verify="_verify")
    with pytest.raises(InputError) as caught:
        recorded_or_new(folder, run, "fixed", 0, 1, 0, resume=True)
    assert str(caught.value) == (
        f"{run}/split/train.txt: 1 fault:\n  line 2: 'w' is not in {folder}/train_filename_verify.txt\n"
        "The data set or k_fold.strategy has changed since this run began: restore it, or start in a new folder."
    )


def _audio(folder: Path, lists: dict[str, list[str]]) -> Path:
    """Write lists of spectrograms, and the spectrograms below `audios`."""
    audios = folder / "audios"
    audios.mkdir()
    for name, images in lists.items():
        (folder / name).write_text("".join(f"{image}\n" for image in images))
        for image in images:
            (audios / image).touch()
    return audios


@pytest.mark.parametrize("strategy", SEEDED)
@pytest.mark.parametrize("resume", [False, True])
def test_spectrograms_stay_with_their_captions(tmp_path: Path, strategy: Strategy, resume: bool) -> None:
    folder, run = tmp_path / "set", tmp_path / "run"
    _annotations(folder, [f"a_{i}" for i in range(20)], per_image=2)
    audios = _audio(folder, {"train_audios.txt": [f"caption_{i % 2}_of_a_{i // 2}" for i in range(40)]})
    silent = recorded_or_new(folder, run, strategy, 1, 4, seed=7, resume=False)
    sides = recorded_or_new(folder, run, strategy, 1, 4, seed=7, resume=resume, audio_folder=audios)
    assert _names(sides) == _names(silent)
    for with_audio, without in zip(sides, silent, strict=True):
        assert without.audio_names is None
        assert with_audio.audio_names == tuple(caption.replace(" ", "_") for caption in with_audio.captions)


def test_spectrograms_of_a_fixed_split(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    _write(folder, "x\nw\n", "1\n2\n", verify="_verify")
    _write(folder, "y\n", "3\n", split="val", verify="_verify")
    audios = _audio(folder, {"train_audios_verify.txt": ["1.png", "2.png"], "train_audios.txt": ["other.png"]})
    with pytest.raises(InputError, match=r"looked for .*/val_audios_verify\.txt"):
        fold_annotations(folder, "fixed", 0, 1, 0, audios)
    (folder / "val_audios_verify.txt").write_text("1.png\n")
    train, val = fold_annotations(folder, "fixed", 0, 1, 0, audios)
    assert (train.audio_names, val.audio_names) == (("1.png", "2.png"), ("1.png",))
    write_split(tmp_path / "run", train.subset([1]), val)
    recorded = recorded_or_new(folder, tmp_path / "run", "fixed", 0, 1, 0, resume=True, audio_folder=audios)
    assert [side.audio_names for side in recorded] == [("2.png",), ("1.png",)]
