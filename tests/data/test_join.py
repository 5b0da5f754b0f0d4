"""Joined data sets: every image once, and none of train that any of the sets tests on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import option
from batches.sampling import SAMPLERS
from data.annotations import read_annotations
from data.images import DEFAULT_RULE
from data.join import Member, join, main, without_repeats
from data.prepare.captions import Entry
from data.scenes import scene_classes
from runs.loaders import read_vocabulary, repeats_of, train_loader
from runs.media import Media
from tests.data.test_rasters import write
from tests.tiny import write_experiment
from utils import InputError


def write_set(folder: Path, train: dict[str, int], test: dict[str, int]) -> Path:
    """A set whose images are named and drawn by a number: equal numbers show the same."""
    (folder / "images").mkdir(parents=True)
    for side, images in (("train", train), ("test", test)):
        for name, number in images.items():
            blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(folder / "images" / name)
        (folder / f"{side}_filename.txt").write_text("".join(f"{name}\n" for name in images))
        (folder / f"{side}_caps.txt").write_text("".join(f"caption {number}\n" for number in images.values()))
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """In the second set, b1 shows a train image of the first, b2 its test image, b4 repeats b3; c is tested there."""
    first = write_set(tmp_path / "one_precomp", {"park_1.png": 1, "park_2.png": 2, "road_3.png": 8}, {"t_1.png": 3})
    second = write_set(
        tmp_path / "two_precomp",
        {"b1.png": 1, "b2.png": 3, "b3.png": 5, "b4.png": 5, "b6.png": 6},
        {"c.png": 8},
    )
    return [first, second]


def test_each_image_is_trained_on_once_and_none_is_tested_on(sets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "joined_precomp"
    told = join(sets, out)
    train, test = (read_annotations(out, side) for side in ("train", "test"))
    assert train.image_names == ("one/park_1.png", "one/park_2.png", "two/b3.png", "two/b6.png")
    assert train.captions == ("caption 1", "caption 2", "caption 5", "caption 6")
    assert test.image_names == ("one/t_1.png",)
    assert all((out / "images" / name).is_file() for name in (*train.image_names, *test.image_names))
    record = json.loads((out / "prepare.json").read_text())
    assert record["left_out"] == {
        "one": {"in another set's test": 1},
        "two": {"in another set's test": 1, "in another set's train": 1, "in its own train": 1},
    }
    assert [cell.strip() for cell in told.splitlines()[3].split("|")[1:-1]] == ["two", "5", "0", "1", "1", "1", "2"]


def test_an_image_is_left_out_for_one_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        Member(0, side, Path(name), Entry(name, ("x",)))
        for side, name in (("test", "a"), *(("train", n) for n in "bcd"))
    ]
    monkeypatch.setattr("data.join.take_fingerprints", lambda *_: (None, {}))
    # b is like the test image, c only like b, which is not trained on; d is like c, which is.
    monkeypatch.setattr("data.join.same_scene", lambda _: [(0, 1, False), (1, 2, False), (2, 3, False)])
    kept, left_out = without_repeats(members, DEFAULT_RULE)
    assert [member.entry.name for member in kept] == ["a", "c"]
    assert left_out == [{"in its own test": 1, "in its own train": 1}]


def test_weights_show_the_images_of_a_set_more_often(sets: list[Path], tmp_path: Path) -> None:
    join(sets, tmp_path / "joined")
    train = read_annotations(tmp_path / "joined", "train")
    repeats = repeats_of({"two": 3}, train)
    assert repeats is not None
    assert repeats.tolist() == [1, 1, 3, 3]
    assert repeats_of({}, train) is None
    usable, draw = torch.tensor([True, True, True, False]), torch.Generator()
    for kind in SAMPLERS.values():
        sampler = kind(torch.from_numpy(train.caption_image), usable, repeats)
        sample = sampler.sample(torch.arange(len(sampler)), draw)
        assert sample.images.tolist() == sample.captions.tolist() == [0, 1, 2, 2, 2]
        assert sampler.longest(torch.tensor([4, 9, 7, 1])).tolist() == [4, 9, 7, 7, 7]
    options = option.load_options(write_experiment(tmp_path, tmp_path / "joined"), ["dataset.set_weights={two: 3}"])
    media = Media.of(options, [train], torch.device("cpu"))
    loader = train_loader(options, 0, read_vocabulary(options), train, media, torch.device("cpu"))
    assert len(loader.sampler) == 1 + 1 + 3 + 3
    with pytest.raises(InputError, match=r"dataset\.set_weights: three: no image of .*train_filename\.txt lies below"):
        repeats_of({"three": 2}, train)


def test_bands_are_chosen_as_in_a_yaml(tmp_path: Path) -> None:
    folders = [
        write_set(tmp_path / name, {"a.tif": 2 * n, "b.tif": 2 * n + 1}, {"c.tif": 9}) for n, name in enumerate("pq")
    ]
    for file in tmp_path.glob("*/images/*.tif"):
        grey = np.asarray(Image.open(file).convert("L"))
        write(file, np.stack([np.zeros_like(grey), grey]), photometric="MINISBLACK", alpha="NO")
    told = [*map(str, folders), "--out", str(tmp_path / "joined")]
    with pytest.raises(InputError, match=r"say which .*--set dataset\.bands"):
        main(told)
    main([*told, "--set", "dataset.bands=[2]"])
    assert read_annotations(tmp_path / "joined", "train").image_names == ("p/a.tif", "p/b.tif", "q/a.tif", "q/b.tif")
    with pytest.raises(InputError, match=r"--set: 1 fault\s+dataset\.band: unknown key.*did you mean dataset\.bands"):
        main([*told, "--set", "dataset.band=[2]"])


def test_sets_that_can_not_be_joined_are_refused(sets: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two or more folders of different names; found one"):
        main([str(sets[0]), "--out", str(tmp_path / "out")])
    shutil.rmtree(sets[1] / "images")
    with pytest.raises(InputError, match=r"c\.png: no such image"):
        join(sets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scene_classes_keywords_and_val_are_joined(sets: list[Path], tmp_path: Path) -> None:
    """Val images of a set stay where another set trains on the same; classes are one whatever their capitals."""
    one, two = sets
    (one / "txtclasses_one").mkdir()
    (one / "txtclasses_one" / "BareLand.txt").write_text("park_1.png\npark_2.png\nt_1.png\n")
    (two / "scenes.txt").write_text("b3.png\tbareland\nb1.png\tport\n")
    for folder, names in ((two, ["b1.png", "b2.png"]), (one, ["park_2.png"])):
        (folder / "val_filename_verify.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / "val_caps_verify.txt").write_text("".join("a caption\n" for _ in names))
    for folder, images in ((one, 3), (two, 5)):
        (folder / "train_keywords.txt").write_text("".join(f"- word{n}\n" for n in range(images)))
    (one / "test_keywords.txt").write_text("- test\n")
    out = tmp_path / "joined"
    told = join(sets, out)
    assert read_annotations(out, "train").image_names == ("one/park_2.png", "two/b1.png", "two/b3.png", "two/b6.png")
    assert read_annotations(out, "val_verify").image_names == ("one/park_2.png", "two/b1.png")
    assert read_annotations(out, "train_verify").image_names == ("two/b3.png", "two/b6.png")
    assert json.loads((out / "prepare.json").read_text())["left_out"] == {
        "one": {"in another set's test": 1, "in another set's val": 1},  # road_3 and park_1
        "two": {"in another set's test": 1, "in its own train": 1},  # b2 and b4
    }
    assert scene_classes(read_annotations(out, "train")) == ("bareland", "port", "bareland", "noneclass")
    assert scene_classes(read_annotations(out, "test")) == ("bareland",)
    assert (out / "train_keywords.txt").read_text().split() == ["-", "word1", "-", "word0", "-", "word2", "-", "word4"]
    assert (out / "test_keywords.txt").read_text() == "- test\n"
    assert "scenes.txt: 2 scene classes of 4 of 5 images" in told
    (two / "train_keywords.txt").unlink()
    assert "train_keywords.txt: left out, since two has none" in join(sets, tmp_path / "other")
    assert not (tmp_path / "other" / "train_keywords.txt").exists()
    (two / "val_filename_verify.txt").write_text("b1.png\nunknown.png\n")
    with pytest.raises(InputError, match=r"val_filename_verify\.txt: 1 images are not in .*unknown\.png"):
        join(sets, tmp_path / "third")


def test_a_set_may_lack_a_test_but_must_add_something(sets: list[Path], tmp_path: Path) -> None:
    third = write_set(tmp_path / "three_precomp", {"x.png": 1, "y.png": 3}, {"z.png": 9})
    for file in third.glob("test_*.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"three_precomp: nothing of it is left to train on"):
        join([*sets, third], tmp_path / "out")
    with pytest.raises(InputError, match=r"test_filename\.txt: can't be read"):
        join([third, *sets], tmp_path / "out")
    (third / "images" / "b6.png").write_bytes((sets[1] / "images" / "b6.png").read_bytes())
    (third / "train_filename.txt").write_text("x.png\nb6.png\n")
    join([sets[0], third], tmp_path / "out")
    assert read_annotations(tmp_path / "out", "train").image_names[2:] == ("one/road_3.png", "three/b6.png")
