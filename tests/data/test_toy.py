"""The toy data set: the same bytes every time, captions that are true, and nobody else's files touched."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.annotations import read_annotations
from data.audio.spectrogram import HOP, WINDOW, mel_power, to_image
from data.images import decode
from data.toy.__main__ import main
from data.toy.canvas import Canvas
from data.toy.classes import CLASSES, SCENES, draw_scene
from data.toy.dataset import make_toy
from data.toy.places import DETAILS, NUMBERS, Things, place_words
from data.toy.speech import caption_image, word_power, word_sound
from utils import InputError
from vocab import tokenize

SMALL = ["--images-per-class", "2", "--size", "32"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("toy") / "toy_precomp"
    make_toy(folder, images_per_class=3, size=32, test_share=0.6)
    return folder


def test_lists_fit_the_precomp_format(toy: Path) -> None:
    train, test = lines(toy / "train_filename.txt"), lines(toy / "test_filename.txt")
    assert len(CLASSES) >= 12
    assert lines(toy / "classes.txt") == list(CLASSES)
    assert len(train) == len(CLASSES)
    assert len(test) == 2 * len(CLASSES)
    assert len(lines(toy / "train_caps.txt")) == 5 * len(train)
    assert len(lines(toy / "test_caps.txt")) == 5 * len(test)
    assert set(train).isdisjoint(test)
    assert Counter(name.split("_")[0] for name in train) == dict.fromkeys(CLASSES, 1)
    assert {path.name for path in (toy / "images").iterdir()} == {*train, *test}
    assert all("_" not in name for name in CLASSES)


def test_every_caption_has_its_spectrogram(toy: Path) -> None:
    images: dict[str, bytes] = {}
    for split in ("train", "test"):
        annotations = read_annotations(toy, split, toy / "audios")
        assert annotations.audio_names is not None
        for caption, name in zip(annotations.captions, annotations.audio_names, strict=True):
            pixels = np.asarray(decode(toy / "audios" / name))
            np.testing.assert_array_equal(pixels[..., 0], caption_image(caption))
            assert images.setdefault(caption, pixels.tobytes()) == pixels.tobytes()
    assert len(list((toy / "audios").iterdir())) == len(images)


def test_a_caption_sounds_like_its_words_one_after_the_other() -> None:
    words = ["a", "red", "airplane", "stands", "beside", "it"]
    whole = np.concatenate([word_sound(word) for word in words] + [np.zeros(WINDOW - HOP)])
    np.testing.assert_array_equal(caption_image("A red airplane, stands beside it."), to_image(mel_power(whole)))
    assert [len(word_sound(word)) // HOP for word in words] == [6, 6, 14, 10, 10, 6]


def test_words_can_be_told_apart_by_their_sounds() -> None:
    captions = [caption for scene_class in CLASSES for caption in draw_scene(scene_class, 1, 32, 0)[1]]
    words = sorted({word for caption in captions for word in re.findall("[a-z]+", caption.lower())})
    patterns = {word: to_image(word_power(word)).astype(float) for word in words}
    assert len(words) > 100
    for one, two in itertools.combinations(words, 2):
        if patterns[one].shape == patterns[two].shape:
            assert np.abs(patterns[one] - patterns[two]).mean() > 8, (one, two)
    airplane, airport = (mel_power(word_sound(word)) for word in ("airplane", "airport"))
    np.testing.assert_array_equal(airplane[:, :4], airport[:, :4])  # until the second syllable begins
    assert not np.allclose(airplane[:, 6:9], airport[:, 6:9])


def test_captions_stand_beside_their_image(toy: Path) -> None:
    for split in ("train", "test"):
        captions = lines(toy / f"{split}_caps.txt")
        for index, name in enumerate(lines(toy / f"{split}_filename.txt")):
            scene_class, number = name.removesuffix(".jpg").split("_")
            image, expected = draw_scene(scene_class, int(number), 32, 0)
            assert captions[5 * index : 5 * index + 5] == expected
            with Image.open(toy / "images" / name) as stored:
                difference = np.abs(np.asarray(stored, dtype=float) - np.asarray(image, dtype=float))
            assert stored.size == (32, 32)
            assert difference.mean() < 12  # JPEG loses detail, not the scene


def test_same_flags_give_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "again", images_per_class=3, size=32, test_share=0.6)
    assert contents(tmp_path / "again") == contents(toy)


def test_a_larger_set_contains_a_smaller_one(toy: Path, tmp_path: Path) -> None:
    make_toy(tmp_path / "smaller", images_per_class=2, size=32)
    small, large = contents(tmp_path / "smaller" / "images"), contents(toy / "images")
    assert small == {name: large[name] for name in small}
    assert len(small) == 2 * len(CLASSES)


def test_another_seed_or_number_draws_another_scene() -> None:
    drawn = [draw_scene("airport", number, 32, seed) for number, seed in ((1, 0), (2, 0), (1, 1))]
    assert len({image.tobytes() for image, _ in drawn}) == 3
    assert len({tuple(captions) for _, captions in drawn}) == 3


@pytest.mark.parametrize("scene_class", CLASSES)
def test_captions_are_five_and_do_not_depend_on_the_size(scene_class: str) -> None:
    for number in range(1, 7):
        image, captions = draw_scene(scene_class, number, 32, 3)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        assert len(set(captions)) == len(captions) == 5
        assert captions == draw_scene(scene_class, number, 48, 3)[1]
        for caption in captions:
            assert caption[0].isupper()
            assert caption.endswith(".")
            assert not {"", "a,", "none", "nan"} & set(caption.lower().split(" "))


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Name and colour of every object drawn from here on."""
    objects: list[tuple[str, str]] = []
    place = Canvas.place

    def watched(canvas: Canvas, name: str, centre: Any, radius: float, heading: float, colour: Any) -> None:
        objects.append((name, colour))
        place(canvas, name, centre, radius, heading, colour)

    monkeypatch.setattr(Canvas, "place", watched)
    return objects


def phrases(things: Things, count: int, colour: str) -> list[str]:
    """All wordings for so many things of a colour, worked out anew from the table."""
    fill = {"count": NUMBERS[count], "colour": colour, "s": "s" * (count > 1), "a": ""}
    if count == 1:
        fill["a"] = "an" if colour[0] in "aeiou" else "a"
    return [" ".join(wording.format(**fill).split()) for wording in things.wordings]


def names_one_of(caption: str, wanted: list[str]) -> bool:
    return any(re.search(rf"\b{re.escape(phrase)}\b", caption.lower()) for phrase in wanted)


SUBJECTS = {
    "airport": "plane",
    "storagetanks": "tank",
    "harbour": "boat",
    "baseballfield": "diamond",
    "residential": "house",
    "parkinglot": "car",
    "crossroads": "car",
    "beach": "umbrella",
    "tenniscourt": "court",
}


@pytest.mark.parametrize(("scene_class", "shape"), SUBJECTS.items())
def test_every_caption_names_number_and_colour_of_what_was_drawn(
    placed: list[tuple[str, str]], scene_class: str, shape: str
) -> None:
    counts = set()
    for number in range(1, 13):
        placed.clear()
        _, captions = draw_scene(scene_class, number, 32, 0)
        (colour,) = {colour for name, colour in placed if name == shape}
        count = sum(name == shape for name, _ in placed)
        wanted = phrases(SCENES[scene_class].things, count, colour)
        assert all(names_one_of(caption, wanted) for caption in captions), (wanted, captions)
        counts.add(count)
    assert len(counts) > 2


@pytest.mark.parametrize("detail", ["trucks", "ships", "pools", "pond"])
def test_captions_that_mention_a_detail_count_it_right(placed: list[tuple[str, str]], detail: str) -> None:
    things, mentioned = DETAILS[detail], 0
    for scene_class in (name for name, scene in SCENES.items() if detail in scene.details):
        for number in range(1, 9):
            placed.clear()
            _, captions = draw_scene(scene_class, number, 32, 0)
            drawn = [colour for name, colour in placed if name == things.shape[0]]
            mentions = [caption for caption in captions if detail.removesuffix("s") in caption.lower()]
            assert drawn or not mentions
            wanted = phrases(things, len(drawn), drawn[0]) if drawn else []
            assert all(names_one_of(caption, wanted) for caption in mentions), (wanted, mentions)
            mentioned += len(mentions)
    assert mentioned >= 5


def test_the_sea_lies_on_the_side_that_the_captions_name() -> None:
    checked = 0
    for number in range(1, 17):
        image, captions = draw_scene("beach", number, 64, 0)
        red, green, blue = np.moveaxis(np.asarray(image, dtype=float), 2, 0)
        wet = (blue + green) / 2 - red
        edges = (wet[:8].mean(), wet[:, :8].mean(), wet[-8:].mean(), wet[:, -8:].mean())
        here = (("top", "upper"), ("left",), ("bottom", "lower"), ("right",))[int(np.argmax(edges))]
        for caption in captions:
            about_sea = re.search(r"sea (?:is |lies )?(?:at|on|along) the ([a-z]+)", caption)
            if about_sea:
                assert about_sea[1] in here, (caption, here)
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize(("quarter_turns", "x", "y"), [(0, 0.2, 0.9), (1, 0.9, 0.8), (2, 0.8, 0.1), (3, 0.1, 0.2)])
def test_position_words_follow_the_turned_image(quarter_turns: int, x: float, y: float) -> None:
    canvas = Canvas(100, np.random.default_rng(0))
    canvas.place("tank", (0.2, 0.9), 0.08, 0.0, "red")
    image = canvas.finish(quarter_turns)
    red = np.asarray(image, dtype=float)[..., 0]
    rows, columns = np.nonzero(red > 100)
    assert columns.mean() / 100 == pytest.approx(x, abs=0.02)
    assert rows.mean() / 100 == pytest.approx(y, abs=0.02)
    words = f"in the {'upper' if y < 0.5 else 'lower'} {'left' if x < 0.5 else 'right'} corner"
    assert place_words(0.2, 0.9, quarter_turns) == words


def test_captions_tell_images_apart_in_words_that_recur() -> None:
    captions = [draw_scene(scene_class, number, 32, 0)[1] for scene_class in CLASSES for number in range(1, 17)]
    images_of = Counter(caption for five in captions for caption in set(five))
    words = Counter(token for five in captions for caption in five for token in tokenize(caption))
    assert sum(number > 1 for number in images_of.values()) < 0.01 * len(images_of)
    assert min(words.values()) >= 2  # so at least 5 times in the default set of 40 per class: none becomes unknown


def test_the_command_says_when_nothing_is_to_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SMALL, "--out", str(tmp_path / "toy")]
    assert main(command) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy").rglob("*")}
    assert f"{2 * len(CLASSES)} images" in capsys.readouterr().out
    assert main(command) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "toy").rglob("*")} == before


def test_other_flags_need_force_which_spares_foreign_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "toy"
    make_toy(folder, 3, 32)
    (folder / "images" / "mine.jpg").write_bytes(b"mine")
    before = contents(folder)
    command = [*SMALL, "--out", str(folder)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ("images-per-class 3, now 2", "--force", "--out"))
    assert contents(folder) == before
    assert main([*command, "--force"]) == 0
    make_toy(tmp_path / "fresh", 2, 32)
    after = contents(folder)
    assert after.pop("images/mine.jpg") == b"mine"
    assert after == contents(tmp_path / "fresh")


def test_force_does_not_overwrite_a_file_that_someone_added(tmp_path: Path) -> None:
    make_toy(tmp_path, 2, 32)
    (tmp_path / "images" / "beach_3.jpg").write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"beach_3\.jpg"):
        make_toy(tmp_path, 3, 32, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "marker",
    [
        None,
        "not JSON",
        "[]",
        '{"made_by": "data.toy"}',
        '{"made_by": "data.toy", "whole": true, "images_per_class": 2, "size": 32, "seed": 0, "test_share": 0.2,'
        ' "classes": ["../../mine"]}',
    ],
)
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, marker: str | None) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train_caps.txt").write_text("somebody's captions\n")
    if marker is not None:
        (folder / "toy.json").write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="no toy data set"):
        make_toy(folder, 2, 32, force=True)
    assert contents(tmp_path) == before


def test_a_broken_off_set_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy(tmp_path / "whole", 2, 32)
    drawn: list[int] = []

    def stop_at_the_tenth(*scene: Any) -> tuple[Image.Image, list[str]]:
        if len(drawn) == 9:
            raise KeyboardInterrupt
        drawn.append(1)
        return draw_scene(*scene)

    with monkeypatch.context() as patch:
        patch.setattr("data.toy.dataset.draw_scene", stop_at_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            make_toy(tmp_path / "broken", 2, 32)
    assert len(contents(tmp_path / "broken")) == 10
    make_toy(tmp_path / "broken", 2, 32)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_lost_image_is_drawn_again(tmp_path: Path) -> None:
    make_toy(tmp_path, 2, 32)
    before = contents(tmp_path)
    for lost in ("images/forest_1.jpg", "audios/forest_1_1.png"):
        (tmp_path / lost).unlink()
        make_toy(tmp_path, 2, 32)
        assert contents(tmp_path) == before
    assert json.loads(before["toy.json"])["whole"] is True


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "31"], "--size must be pixels from 32 to 1024; 31 was given"),
        (["--size", "1025"], "1025 was given"),
        (["--size", "big"], "--size: invalid int value: 'big'"),
        (["--images-per-class", "1"], "--images-per-class must be a whole number of at least 2; 1 was given"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0; -1 was given"),
        (["--test-share", "0"], "--test-share must be a share between 0 and 1"),
        (["--test-share", "1"], "--test-share must be a share between 0 and 1"),
        (["--test-share", "nan"], "nan was given"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_flags_end_in_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["--out", str(tmp_path / "toy"), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "toy").exists()


def test_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy").write_text("mine")
    assert main([*SMALL, "--out", str(tmp_path / "toy")]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert (tmp_path / "toy").read_text() == "mine"


def test_at_least_one_image_of_a_class_stays_in_each_split(tmp_path: Path) -> None:
    for share in (0.01, 0.99):
        make_toy(tmp_path / str(share), 2, 32, test_share=share)
        for split in ("train", "test"):
            assert len(lines(tmp_path / str(share) / f"{split}_filename.txt")) == len(CLASSES)
