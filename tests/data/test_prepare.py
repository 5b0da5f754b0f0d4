"""Data sets made from every source that is read, and what is found wrong with them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.annotations import Split, check_images, read_annotations
from data.prepare.__main__ import Request, check, main, prepare
from data.prepare.captions import Captions, Entry, gather_entries, one_line
from data.prepare.checks import examine, leave_out
from data.prepare.descriptions import read_descriptions
from data.prepare.fingerprints import MAX_BITS, MAX_GREY, Fingerprints, same_scene
from data.prepare.known_sets import KNOWN, compare, known_name
from data.prepare.lists import Lists, split_entries
from data.prepare.nested import read_json, read_json_lines
from data.prepare.sources import find_images
from data.prepare.tables import read_table
from option.images import ImageRule
from tests.data.test_rasters import write
from utils import InputError

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")
CAPTIONS = ("a red roof", "two boats", "a long road .")


@pytest.fixture
def published() -> Path:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    return Path(os.environ["RSR_DATA"]) / "data"


def image(seed: int, size: int = 48) -> Image.Image:
    """An image of large blocks that no other seed comes near to."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def images(folder: Path, names: Sequence[str]) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(seed).save(folder / name)
    return folder


def karpathy(entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "dataset": "own",
        "images": [
            {
                "filename": entry.name,
                "imgid": place,
                **({"split": entry.side} if entry.side else {}),
                "sentences": [{"raw": raw, "tokens": raw.split()} for raw in entry.captions],
            }
            for place, entry in enumerate(entries)
        ],
    }


def write_source(folder: Path, form: str, names: Sequence[str], captions: Sequence[str] = CAPTIONS) -> Path:
    """A source of one form with the same captions under each image, and its images where they belong."""
    if form == "csv":
        images(folder, names)
        rows = "".join(f'{name},"{caption}"\n' for name in names for caption in captions)
        (folder / "own.csv").write_text("filepath,caption\n" + rows)
        return folder / "own.csv"
    images(folder / "images", names)
    if form == "json":
        (folder / "own.json").write_text(json.dumps(karpathy([Entry(name, tuple(captions)) for name in names])))
        return folder / "own.json"
    if form == "descriptions":
        (folder / "filenames").mkdir()
        rows = "".join(f"{Path(name).stem} {caption}\n" for name in names for caption in captions)
        (folder / "filenames" / "descriptions_UCM.txt").write_text(rows)
        return folder / "filenames" / "descriptions_UCM.txt"
    rows = "".join(f"{name}#{place}\t{text}\n" for name in names for place, text in enumerate(captions))
    (folder / "captions.txt").write_text(rows)
    return folder


def entries_in(reader: Callable[[Path], Captions], path: Path) -> list[Entry]:
    return gather_entries(path, reader(path).rows)


def lists_of(folder: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    read = {side: read_annotations(folder, side) for side in SPLITS}
    return {side: (listed.image_names, listed.captions) for side, listed in read.items()}


def remains(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- the sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv", "descriptions", "captions"])
def test_every_source_becomes_a_set_that_loads(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.png" for number in range(1, 11)]
    source = write_source(tmp_path / "source", form, names)
    main([str(source), "--out", str(tmp_path / "own_precomp"), "--test_share", "0.3", "--seed", "5"])
    made = lists_of(tmp_path / "own_precomp")
    assert len(made["test"][0]) == 3
    assert sorted(made["train"][0] + made["test"][0], key=lambda name: int(name[:-4])) == names
    assert made["train"][1] == CAPTIONS * 7
    for side in SPLITS:
        check_images(read_annotations(tmp_path / "own_precomp", side), tmp_path / "own_precomp" / "images")
    for name in names:
        copied = Image.open(tmp_path / "own_precomp" / "images" / name)
        assert np.array_equal(np.asarray(copied), np.asarray(image(names.index(name))))
    assert "drawn (test_share 0.3, seed 5)" in capsys.readouterr().out
    assert remains(tmp_path) == {"source", "own_precomp"}


def test_the_split_follows_the_seed() -> None:
    entries = [Entry(f"{number}.png", CAPTIONS) for number in range(50)]
    first, again, other = (split_entries(entries, 0.2, seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert len(first["test"]) == 10
    assert [entry.name for entry in first["train"]] == sorted(
        (entry.name for entry in first["train"]), key=lambda name: int(name[:-4])
    )


def test_val_is_in_train_and_in_the_verify_lists(tmp_path: Path) -> None:
    sides = ("train", "val", "test", "restval", "val")
    entries = [Entry(f"{place}.png", CAPTIONS, side) for place, side in enumerate(sides)]  # type: ignore[arg-type]
    (tmp_path / "own.json").write_text(json.dumps(karpathy(entries)))
    report = prepare(Request(str(tmp_path / "own.json"), tmp_path / "set", image_files="none"))
    wanted: dict[Split, tuple[str, ...]] = {
        "train": ("0.png", "1.png", "3.png", "4.png"),
        "test": ("2.png",),
        "train_verify": ("0.png", "3.png"),
        "val_verify": ("1.png", "4.png"),
    }
    for split, names in wanted.items():
        assert read_annotations(tmp_path / "set", split).image_names == names
    assert "of train, 2 are val" in report
    report = prepare(Request(str(tmp_path / "own.json"), tmp_path / "without", image_files="none", drop=("val",)))
    assert read_annotations(tmp_path / "without", "train").image_names == ("0.png", "3.png")
    assert not (tmp_path / "without" / "val_filename_verify.txt").exists()
    assert "2 val images are left out" in report


def test_a_val_split_without_test_gives_no_val_image_away() -> None:
    entries = [Entry(f"{place}.png", CAPTIONS, "val" if place < 5 else "train") for place in range(10)]
    lists, _ = split_entries(entries, 0.4, 0)
    assert len(lists["test"]) == 2
    assert all(int(entry.name[0]) >= 5 for entry in lists["test"])


def test_nwpu_has_its_sentences_in_numbered_keys(tmp_path: Path) -> None:
    rows = [{"filename": "a_1.jpg", "imgid": 0, "split": "test", "raw": "x", "raw_2": "z", "raw_1": "y", "sentids": 3}]
    (tmp_path / "dataset_nwpu.json").write_text(json.dumps({"airport": rows}))
    assert entries_in(read_json, tmp_path / "dataset_nwpu.json") == [Entry("a_1.jpg", ("x", "y", "z"), "test")]


def test_description_files_take_split_and_ending_from_their_companions(tmp_path: Path) -> None:
    (tmp_path / "descriptions_SYDNEY.txt").write_text("1 a roof .\n2  two boats\n1 a house\n3 sea\n\n")
    for side, names in {"train": "1.jpg\n", "val": "3.jpg\n", "test": "2.jpg\n"}.items():
        (tmp_path / f"filenames_{side}.txt").write_text(names)
    assert entries_in(read_descriptions, tmp_path / "descriptions_SYDNEY.txt") == [
        Entry("1.jpg", ("a roof .", "a house"), "train"),
        Entry("2.jpg", (" two boats",), "test"),
        Entry("3.jpg", ("sea",), "val"),
    ]


# --- parsers: whatever the captions hold ---------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NAMES = st.from_regex(r"[a-z][a-z_0-9]{0,5}\.(jpg|tif)", fullmatch=True)
SETS = st.dictionaries(NAMES, st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=5)


def read_back(reader: Callable[[Path], Captions], content: bytes) -> list[Entry]:
    with TemporaryDirectory() as folder:
        (Path(folder) / "source").write_bytes(content)
        return entries_in(reader, Path(folder) / "source")


def expected(captions: dict[str, list[str]]) -> list[Entry]:
    return [Entry(name, tuple(map(one_line, texts))) for name, texts in captions.items()]


@settings(max_examples=50, deadline=None)
@given(SETS)
def test_json_gives_back_what_was_written(captions: dict[str, list[str]]) -> None:
    content = json.dumps(karpathy([Entry(name, tuple(texts)) for name, texts in captions.items()]))
    assert read_back(read_json, content.encode()) == expected(captions)


@settings(max_examples=50, deadline=None)
@given(SETS)
def test_csv_gives_back_what_was_written(captions: dict[str, list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    # A carriage return before a line feed is read as a line end.
    cleaned = {name: [c.replace("\r", " ") for c in texts] for name, texts in captions.items()}
    writer.writerows([("filepath", "caption"), *((name, c) for name, texts in cleaned.items() for c in texts)])
    assert read_back(read_table, text.getvalue().encode()) == expected(cleaned)


@settings(max_examples=50, deadline=None)
@given(SETS)
def test_captions_txt_gives_back_what_was_written(captions: dict[str, list[str]]) -> None:
    flat = {name: [one_line(text) for text in texts] for name, texts in captions.items()}
    content = "".join(f"{name}#{n}\t{text}\n" for name, texts in flat.items() for n, text in enumerate(texts))
    assert read_back(read_table, content.encode()) == expected(flat)


@pytest.mark.parametrize("reader", [read_json, read_json_lines, read_table, read_descriptions])
@settings(max_examples=150, deadline=None)
@given(content=st.one_of(st.binary(max_size=80), st.text("{}[]\":,;|images#\t\n1' ", max_size=80).map(str.encode)))
def test_no_content_raises_anything_but_an_input_error(reader: Callable[[Path], Captions], content: bytes) -> None:
    try:
        entries = read_back(reader, content)
    except InputError:
        return
    assert entries
    assert all(entry.captions for entry in entries)


@settings(max_examples=25, deadline=None)
@given(SETS.filter(lambda captions: len(captions) > 1))
def test_a_made_set_reads_back_whatever_its_captions_are(captions: dict[str, list[str]]) -> None:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "own.json"
        source.write_text(json.dumps(karpathy([Entry(name, tuple(texts)) for name, texts in captions.items()])))
        prepare(Request(str(source), Path(folder) / "set", image_files="none"))
        made = lists_of(Path(folder) / "set")
        for names, texts in made.values():
            assert texts == tuple(one_line(caption) for name in names for caption in captions[name])


# --- bad input: one clear message, nothing left --------------------------------------------------------------------

BAD = {
    "own.json": {
        '{"images": [{"filename": "a.jpg"}]}': r"images\.0: no file name or no captions; found the keys 'filename'",
        '{"images": [{"filename": "a.jpg", "sentences": []}]}': r"images\.0: sentences is neither a text",
        '{"images": []}': r"no list of objects is in it",
        '{"images": [\n}': r"not JSON: .*line 2",
        "[1, 2]": r"own\.json: 2 faults:\n  0: not an object",
        '{"images": [{"filename": "../a.jpg", "sentences": [{"raw": "x"}]}]}': r"images\.0: '\.\./a\.jpg' leaves",
        '{"images": [{"filename": "a.jpg", "split": "best", "sentences": [{"raw": "x"}]}]}': r"images\.0: split 'best'",
        '{"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}, {"filename": "a.jpg", "sentences": '
        '[{"raw": "x"}]}]}': r"images\.1: 'a\.jpg' comes again",
        '{"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}]}, {"filename": "b.jpg", '
        '"sentences": [{"raw": "x"}]}]}': r"1 of 2 images have no split, the first is 'b\.jpg'",
        '{"airport": [{"filename": "a.jpg"}]}': r"airport\.0: no file name or no captions",
    },
    "own.csv": {
        "picture,caption\na.jpg,x\n": r"line 1: expected columns .* found 'picture', 'caption'. Give",
        "filepath,caption\na.jpg,x\nb.jpg\n": r"own\.csv: 1 fault:\n  line 3: expected 2 values",
        "filepath,caption\na.jpg,x,y\n": r"line 2: expected 2 values",
        'filepath,caption\na.jpg,"x\n': r"line 2: unexpected end of data",
        "filepath,caption,split\na.jpg,x,train\na.jpg,y,test\n": r"line 3: 'a\.jpg' is in test, before it was in train",
        "filepath,caption\n/etc/a.jpg,x\n": r"line 2: '/etc/a\.jpg' leaves the image folder",
        "filepath,caption\n": r"no image with a caption",
        "": r"line 1: expected columns of file names and captions, .* found nothing",
        "filepath,caption\na.jpg,\udcff\n": r"own\.csv: 1 fault:\n  line 2: byte 0xff at byte 7 is not UTF-8",
    },
    "descriptions_UCM.txt": {
        "1 a roof\ntwo boats\n": r"descriptions_UCM\.txt: 1 fault:\n  line 2: expected a number, .* found 'two boats'",
    },
    "captions.txt": {
        "a.jpg\tx\nb.jpg y\n": r"captions\.txt: 1 fault:\n  line 2: no tab in 'b\.jpg y'",
        "\tx\n": r"line 1: blank file name",
    },
    "notes.doc": {"x": r"notes\.doc: not a source that is known. Expected a \.json"},
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(n, c, m) for n, all_ in BAD.items() for c, m in all_.items()]
)
def test_bad_sources_are_told_and_leave_nothing(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        prepare(Request(str(tmp_path / name), tmp_path / "out" / "set", image_files="none"))
    assert remains(tmp_path) == {name}


def test_the_image_in_no_companion_is_named(tmp_path: Path) -> None:
    (tmp_path / "descriptions_UCM.txt").write_text("1 a roof\n2 a boat\n")
    (tmp_path / "filenames_test.txt").write_text("1.tif\n")
    with pytest.raises(InputError, match=r"line 2: image 2 is in none of the filenames_\*\.txt"):
        read_descriptions(tmp_path / "descriptions_UCM.txt")


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: no such file or folder"):
        prepare(Request(str(tmp_path / "absent.json"), tmp_path / "set"))


def test_an_existing_set_is_never_touched(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="is there already, and nothing is ever overwritten"):
        prepare(Request(str(source), tmp_path / "set"))
    assert remains(tmp_path / "set") == {"mine.txt"}
    assert remains(tmp_path) == {"source", "set"}


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png"])
    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(Request(str(source), tmp_path / "set"))
    assert remains(tmp_path) == {"source"}


def test_a_disk_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, _: Path) -> None:
        raise OSError(28, "No space left on device", str(source))

    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png"])
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"set: can't be made \(No space left on device: .*\.png"):
        prepare(Request(str(source), tmp_path / "set"))
    assert remains(tmp_path) == {"source"}


def test_missing_and_damaged_images_are_named_or_left_out(tmp_path: Path) -> None:
    names = [f"{letter}.png" for letter in "abcdef"]
    source = write_source(tmp_path / "source", "captions", names)
    (source / "images" / "b.png").write_bytes(b"no image")
    (source / "images" / "d.png").unlink()
    with pytest.raises(InputError, match=r"2 of 6 images are missing or can't be read:") as caught:
        prepare(Request(str(source), tmp_path / "set"))
    assert "d.png: there is no such image" in str(caught.value)
    assert "b.png: not an image of a kind that is read" in str(caught.value)
    assert remains(tmp_path) == {"source"}
    report = prepare(Request(str(source), tmp_path / "set", test_share=0.5, drop=("unreadable",)))
    made = lists_of(tmp_path / "set")
    assert set(made["train"][0] + made["test"][0]) == {"a.png", "c.png", "e.png", "f.png"}
    assert remains(tmp_path / "set" / "images") == {"a.png", "c.png", "e.png", "f.png"}
    assert "missing or can't be read (2)" in report


def test_bands_are_chosen_as_in_a_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(tmp_path / "source", "captions", [f"{letter}.tif" for letter in "abcdef"])
    for file in (source / "images").iterdir():
        bands = np.random.default_rng(ord(file.stem)).integers(0, 256, (2, 48, 48), dtype=np.uint8)
        write(file, bands, photometric="MINISBLACK", alpha="NO")
    told = [str(source), "--out", str(tmp_path / "set")]
    with pytest.raises(InputError, match=r"say which .*--set dataset\.bands"):
        main(told)
    main([*told, "--set", "dataset.bands=[2]"])
    main(["--check", str(tmp_path / "set"), "--set", "dataset.bands=[1]"])
    assert re.findall(r"can't be read +\|(.*)\|(.*)\|", capsys.readouterr().out) == [("     0 ", "    0 ")] * 2


def test_no_folder_of_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(karpathy([Entry("a.png", CAPTIONS), Entry("b.png", CAPTIONS)])))
    with pytest.raises(InputError, match=r"where are its images\? .*images is not there"):
        prepare(Request(str(tmp_path / "own.json"), tmp_path / "set"))
    with pytest.raises(InputError, match=r"absent: no such folder of images"):
        prepare(Request(str(tmp_path / "own.json"), tmp_path / "set", images=tmp_path / "absent"))


def test_too_few_images_and_bad_shares_are_told(tmp_path: Path) -> None:
    one = [Entry("a.png", CAPTIONS)]
    with pytest.raises(InputError, match=r"test 0 images with 0 captions: both lists need at least one"):
        split_entries(one, 0.2, 0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="--test_share must be between 0 and 1"):
            split_entries(one * 2, share, 0)


@pytest.mark.parametrize("flags", [["x"], ["--out", "y"], ["x", "--out", "y", "--check", "z"], ["x", "--drop", "all"]])
def test_wrong_flags_are_told(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(flags)
    assert "error:" in capsys.readouterr().err


# --- images ------------------------------------------------------------------------------------------------------


def test_links_share_the_file(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png"])
    prepare(Request(str(source), tmp_path / "set", image_files="link"))
    assert (tmp_path / "set" / "images" / "a.png").samefile(source / "images" / "a.png")


def test_links_that_can_not_reach_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def far(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png"])
    monkeypatch.setattr(os, "link", far)
    with pytest.raises(InputError, match=r"can't be linked into .* use --image_files copy"):
        prepare(Request(str(source), tmp_path / "set", image_files="link"))
    assert remains(tmp_path) == {"source"}


def test_classes_beside_the_source_come_along(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "captions", ["1.png", "2.png"])
    (source / "classes.txt").write_text("airport\n")
    prepare(Request(str(source), tmp_path / "set"))
    assert (tmp_path / "set" / "classes.txt").read_text() == "airport\n"


def test_images_are_found_by_path_then_name_then_without_ending(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/a.jpg", "deep/b.jpg", "c.png", "x/d.jpg", "y/d.jpg", ".hidden/e.jpg", "f.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = find_images(tmp_path, ["a.jpg", "b.jpg", "c.tif", "d.jpg", "e.jpg", "f.tif", "f.jpg"])
    read = {name: path.read_text() for name, path in found.items()}
    assert read == {"a.jpg": "a.jpg", "b.jpg": "deep/b.jpg", "c.tif": "c.png", "f.jpg": "f.jpg"}


def test_an_image_with_another_ending_gives_the_list_its_name(tmp_path: Path) -> None:
    images(tmp_path / "images", ["1.png", "2.png"])
    (tmp_path / "descriptions_UCM.txt").write_text("1 a roof\n2 a boat\n")
    prepare(Request(str(tmp_path / "descriptions_UCM.txt"), tmp_path / "set"))
    made = lists_of(tmp_path / "set")
    assert {*made["train"][0], *made["test"][0]} == {"1.png", "2.png"} == remains(tmp_path / "set" / "images")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_same_scene_agrees_with_a_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    base = random.integers(0, 256, (3, 16, 17))
    noise = random.integers(0, random.integers(1, 14), (9, 16, 17))
    thumbnails = np.clip(base[random.integers(0, 3, 9)] + noise, 0, 255).astype(np.uint8)
    digests = tuple(str(digit) for digit in random.integers(0, 6, 9))
    pairs = []
    for one in range(9):
        for other in range(one + 1, 9):
            a, b = thumbnails[one].astype(int), thumbnails[other].astype(int)
            bits = int(((a[:, 1:] > a[:, :-1]) != (b[:, 1:] > b[:, :-1])).sum())
            equal = digests[one] == digests[other]
            if bits <= MAX_BITS and (equal or abs(a - b).mean() <= MAX_GREY):
                pairs.append((one, other, equal))
    assert same_scene(Fingerprints(digests, thumbnails)) == pairs


# --- findings ------------------------------------------------------------------------------------------------------


def troubled(folder: Path) -> Path:
    """A CSV with every kind of trouble: b is a's file, c is a encoded anew, t shows d, f is blank in part."""
    images(folder, ["a.png", "d.png", "e.png", "f.png", "s.png"])
    shutil.copy(folder / "a.png", folder / "b.png")
    image(0).save(folder / "c.jpg", quality=90)
    image(1).save(folder / "t.jpg", quality=90)
    rows = {
        "train": {
            "a.png": ("roof one", "roof two"),
            "b.png": ("house", "house"),
            "c.jpg": ("tile", "brick"),
            "d.png": ("a lake", "a pond"),
            "e.png": ("sea", "the shore"),
            "f.png": (" ", "a . tree"),
        },
        "test": {"s.png": ("sea", "waves"), "t.jpg": ("water", "a lake!")},
    }
    lines = [f"{n},{c},{side}" for side, group in rows.items() for n, texts in group.items() for c in texts]
    (folder / "own.csv").write_text("\n".join(["filepath,caption,split", *lines]) + "\n")
    return folder / "own.csv"


def test_every_trouble_is_reported(tmp_path: Path) -> None:
    report = prepare(Request(str(troubled(tmp_path / "source")), tmp_path / "set"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.split("\n") if line[:1] == "|"]
    assert rows[2:] == [
        ["images", "6", "2"],
        ["captions", "12", "4"],
        ["different captions", "11", "4"],
        ["images with one sentence for all their captions", "1", "0"],
        ["blank captions", "1", "0"],
        ["images that are missing or can't be read", "0", "0"],
        ["pairs of images that show the same", "3", "0"],
    ]
    assert "1 of 4 test captions (25.0 %) stand word for word in train; 1 of 2 test images are in train." in report
    assert "the same in train (3):\n  a.png = b.png\n  a.png ~ c.jpg\n  b.png ~ c.jpg\n" in report
    assert "in train and test (1):\n  d.png ~ t.jpg\n" in report
    assert check(tmp_path / "set").endswith(report.partition("\n\n")[2].rpartition("\n\n")[0])


def test_troubles_are_left_out_on_request(tmp_path: Path) -> None:
    request = Request(str(troubled(tmp_path / "source")), tmp_path / "1", drop=("duplicates",))
    assert "left out of train: 2 images, 4 captions" in prepare(request)
    assert lists_of(tmp_path / "1")["train"][0] == ("a.png", "d.png", "e.png", "f.png")

    report = prepare(replace(request, out=tmp_path / "2", drop=("leaks",)))
    train = lists_of(tmp_path / "2")["train"]
    assert train[0] == ("a.png", "b.png", "c.jpg", "e.png", "f.png")
    assert train[1].count("the shore") == 1  # which is there twice in the file, and is read once
    assert "left out of train: 1 images, 3 captions" in report
    assert "1 images have fewer than 2 captions" in report

    prepare(replace(request, out=tmp_path / "3", drop=("duplicates", "leaks", "blank")))
    made = lists_of(tmp_path / "3")
    assert made["train"] == (
        ("a.png", "e.png", "f.png"),
        ("roof one", "roof two", "the shore", "a . tree"),
    )
    assert made["test"] == (("s.png", "t.jpg"), ("sea", "waves", "water", "a lake!"))
    assert remains(tmp_path / "3" / "images") == {"a.png", "e.png", "f.png", "s.png", "t.jpg"}


def test_leaving_all_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a.png\tsame\nb.png\tsame\n")
    with pytest.raises(InputError, match=r"train 0 images with 0 captions.*leave less out"):
        prepare(Request(str(tmp_path), tmp_path / "set", image_files="none", drop=("leaks",)))


def test_an_image_in_both_lists_is_a_leak_by_its_name() -> None:
    lists: Lists = {"train": [Entry("a.png", CAPTIONS), Entry("b.png", ("x",))], "test": [Entry("a.png", ("y",))]}
    findings = examine(lists, None, ImageRule())
    assert findings.same == ((("train", "a.png"), ("test", "a.png"), True),)
    kept, _ = leave_out(lists, findings, ["leaks"])
    assert {side: [entry.name for entry in entries] for side, entries in kept.items()} == {
        "train": ["b.png"],
        "test": ["a.png"],
    }


def test_lists_that_were_changed_are_noticed(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "captions", ["a.png", "b.png", "c.png"])
    prepare(Request(str(source), tmp_path / "set"))
    assert "prepare.json: the lists are as they were made" in check(tmp_path / "set")
    file = tmp_path / "set" / "test_caps.txt"
    file.write_text(file.read_text().replace("boats", "ships"))
    assert "prepare.json: CHANGED since the set was made: test_caps.txt" in check(tmp_path / "set")
    (tmp_path / "set" / "prepare.json").write_text("[]")
    with pytest.raises(InputError, match=r"prepare\.json: not a record of data\.prepare"):
        check(tmp_path / "set")


def test_known_sets_are_compared_by_count() -> None:
    assert known_name("RSICD_precomp") == "rsicd"
    assert known_name("rsicd_small_precomp") is None
    entries = [Entry(f"{place}.tif", CAPTIONS) for place in range(613)]
    assert compare(KNOWN["sydney"], entries[:500], entries[500:]) == [
        "613 images; published: 613 in all",
        "613 images don't have 5 captions: NOT THE SAME",
    ]
    assert compare(KNOWN["ucm"], entries[:1], entries[1:])[:2] == [
        "613 images; published: 2,100 in all, 1,890 in the lists that results rest on: NOT THE SAME",
        "train: 1 images, the published list has 1,680: NOT THE SAME",
    ]


# --- parquet -------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def parquet_row(seed: int, name: str, captions: Sequence[str] = CAPTIONS) -> dict[str, Any]:
    content = io.BytesIO()
    image(seed).save(content, "PNG")
    return {"image": {"bytes": content.getvalue(), "path": name}, "filename": name, "captions": list(captions)}


def test_parquet_files_become_a_set(tmp_path: Path) -> None:
    folder = tmp_path / "rsicd" / "data"
    write_parquet(
        folder / "train-00000-of-00001.parquet", [parquet_row(n, f"rsicd_images/a_{n}.png") for n in range(3)]
    )
    write_parquet(folder / "valid-00000-of-00001.parquet", [parquet_row(3, "rsicd_images/a_3.png")])
    write_parquet(folder / "test-00000-of-00001.parquet", [parquet_row(4, "rsicd_images/a_4.png", ["one", "two"])])
    report = prepare(Request(str(tmp_path / "rsicd"), tmp_path / "set"))
    made = lists_of(tmp_path / "set")
    assert made["train"][0] == ("a_0.png", "a_1.png", "a_2.png", "a_3.png")
    assert made["test"] == (("a_4.png",), ("one", "two"))
    assert read_annotations(tmp_path / "set", "val_verify").image_names == ("a_3.png",)
    for place in range(5):
        kept = np.asarray(Image.open(tmp_path / "set" / "images" / f"a_{place}.png"))
        assert np.array_equal(kept, np.asarray(image(place)))
    assert "images have fewer than" not in report


def test_parquet_images_that_are_left_out_leave_no_file(tmp_path: Path) -> None:
    rows = [parquet_row(n, f"{n}.png") for n in (0, 0, 1, 2)]
    rows = [{**row, "filename": f"{place}.png"} for place, row in enumerate(rows)]
    write_parquet(tmp_path / "train.parquet", rows[:3])
    write_parquet(tmp_path / "all" / "train.parquet", rows[:3])
    write_parquet(tmp_path / "all" / "test.parquet", rows[3:])
    prepare(Request(str(tmp_path / "all"), tmp_path / "set", drop=("duplicates",)))
    assert remains(tmp_path / "set" / "images") == {"0.png", "2.png", "3.png"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": 3}, r"train\.parquet: 1 fault:\n  row 1: filename is '3', expected a file name"),
        ({"captions": []}, r"row 1: captions is neither a text nor a list of texts"),
        ({"image": {"bytes": None, "path": "a.png"}}, r"train\.parquet, row 1: no image in the column image"),
    ],
)
def test_bad_parquet_rows_are_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path / "in" / "train.parquet", [{**parquet_row(0, "a.png"), **change}])
    write_parquet(tmp_path / "in" / "test.parquet", [parquet_row(1, "b.png")])
    with pytest.raises(InputError, match=message):
        prepare(Request(str(tmp_path / "in"), tmp_path / "set"))
    assert remains(tmp_path) == {"in"}


def test_bad_parquet_files_are_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": b"", "text": "x"}])
    with pytest.raises(InputError, match=r"a\.parquet: no column of images, file names or captions; found image, text"):
        prepare(Request(str(tmp_path / "a.parquet"), tmp_path / "set"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(InputError, match=r"a\.parquet: not a whole parquet file"):
        prepare(Request(str(tmp_path / "a.parquet"), tmp_path / "set"))
    assert remains(tmp_path) == {"a.parquet"}


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    for library in ("pyarrow", "huggingface_hub"):
        monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(InputError, match=r"needs pyarrow: install the extra hub"):
        prepare(Request(str(tmp_path / "a.parquet"), tmp_path / "set"))
    with pytest.raises(InputError, match=r"someone/rsicd: no such file or folder; .* install the extra hub"):
        prepare(Request("someone/rsicd", tmp_path / "set"))


# --- the published lists -------------------------------------------------------------------------------------------


def entries_of(folder: Path) -> Iterator[Entry]:
    for side in SPLITS:
        listed = read_annotations(folder, side)
        for place, name in enumerate(listed.image_names):
            yield Entry(name, listed.captions[5 * place : 5 * place + 5], side)


@pytest.mark.parametrize("name", ["rsicd", "rsitmd", "ucm"])
def test_published_lists_come_back(published: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / f"dataset_{name}.json"
    source.write_text(json.dumps(karpathy(list(entries_of(published / f"{name}_precomp")))))
    report = prepare(Request(str(source), tmp_path / f"{name}_precomp", image_files="none"))
    assert lists_of(tmp_path / f"{name}_precomp") == lists_of(published / f"{name}_precomp")
    assert report.count("the published list, to the letter") == 2
    leaks = {"rsicd": 636, "rsitmd": 54, "ucm": 662}[name]
    assert f"Leaks: {leaks:,} of" in report


def test_the_known_problems_of_ucm_are_found(published: Path) -> None:
    report = check(published / "ucm_precomp")
    cells = {
        row[0]: row[1:]
        for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in report.split("\n"))
        if len(row) == 3
    }
    assert cells["different captions"] == ["1,637", "391"]
    assert cells["images that are missing or can't be read"] == ["0", "0"]
    assert "662 of 1,050 test captions (63.0 %) stand word for word in train; 0 of 210 test images" in report
    assert "the same in train (1):\n  102.jpg = 103.jpg\n" in report
