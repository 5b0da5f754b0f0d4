"""The forms in which captioned images are handed around: each gives the same images, captions and split."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.annotations import check_images, read_annotations
from data.prepare.__main__ import Request, main, prepare
from data.prepare.captions import MOST_CAPTIONS, USUAL, Entry, Keys, gather_entries
from data.prepare.classes import read_classes
from data.prepare.lists import MOST_REPEATED, equal_counts
from data.prepare.nested import read_json, read_json_lines
from data.prepare.sources import find_images, open_source
from data.prepare.tables import listed_texts, read_table
from tests import ROOT
from utils import InputError

NAMES = ("port_1.png", "port_2.png", "park_1.png", "park_2.png")
CAPTIONS = {
    "port_1.png": ("many planes .", "there's a runway"),
    "port_2.png": ('a "red" roof', "two, boats"),
    "park_1.png": ("a lawn", "green ; trees"),
    "park_2.png": ("a path", "a pond"),
}


def image(seed: int, size: int = 48) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def put_images(folder: Path, names: Sequence[str] = NAMES) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image(seed).save(folder / name)
    return folder


def png(seed: int) -> bytes:
    content = io.BytesIO()
    image(seed).save(content, "PNG")
    return content.getvalue()


def put_tar(path: Path, parts: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in parts:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def read(path: Path, keys: Keys = USUAL, images: Path | None = None) -> dict[str, Any]:
    source = open_source([(str(path), None)], keys, images)
    return {entry.name: entry.captions for entry in source.entries}


def sides(path: Path) -> dict[str, str | None]:
    return {entry.name: entry.side for entry in open_source([(str(path), None)]).entries}


# --- one form after the other --------------------------------------------------------------------------------------


def numpy_text(captions: Sequence[str]) -> str:
    return str(np.array(captions, dtype=object))


@pytest.mark.parametrize("written", [lambda texts: str(list(texts)), numpy_text, json.dumps])
@pytest.mark.parametrize("ending", ["csv", "CSV", "tsv"])
def test_all_captions_of_an_image_in_one_cell(tmp_path: Path, written: Any, ending: str) -> None:
    mark = "\t" if ending == "tsv" else ","
    cells = {name: '"' + written(texts).replace('"', '""') + '"' for name, texts in CAPTIONS.items()}
    lines = [mark.join(("image", "captions")), *(f"train/{name}{mark}{cell}" for name, cell in cells.items())]
    (tmp_path / f"own.{ending}").write_text("\n".join(lines) + "\n")
    assert read(tmp_path / f"own.{ending}") == {f"train/{name}": texts for name, texts in CAPTIONS.items()}


def test_a_numpy_array_as_text_by_hand() -> None:
    cell = "['many planes .' \n \"there's a runway\"\n 'it\\'s \"new\"']"
    assert listed_texts(cell) == ["many planes .", "there's a runway", 'it\'s "new"']
    assert listed_texts("array(['a', 'b'], dtype=object)") == ["a", "b"]
    assert listed_texts("[a] plane") is None
    assert listed_texts("[]") == []
    for damaged in ("['a', 'b'", "['a' b]", "['a', 3]", "['a' 'b\\']", "['\\xZZ']"):
        with pytest.raises(ValueError, match="list"):
            listed_texts(damaged)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_lists_as_text_come_back(texts: list[str]) -> None:
    assert listed_texts(str(texts)) == texts
    assert listed_texts(json.dumps(texts)) == texts
    assert listed_texts("[" + "\n ".join(map(repr, texts)) + "]") == texts


@given(st.text("['\"\\], ab\n", max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_cell_raises_anything_but_a_value_error(cell: str) -> None:
    try:
        texts = listed_texts(cell)
    except ValueError:
        return
    assert texts is None or all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("head", [("image", "caption"), ("filepath", "title"), ("image_name", "comment")])
def test_tables_of_a_row_per_caption(tmp_path: Path, mark: str, head: tuple[str, str]) -> None:
    cells = [(name, '"' + text.replace('"', '""') + '"') for name, texts in CAPTIONS.items() for text in texts]
    lines = [f" {mark} ".join(head) if mark == "|" else mark.join(head), *(mark.join(row) for row in cells)]
    (tmp_path / "own.csv").write_text("\ufeff\n" + "\n".join([*lines[:3], mark, "", " ", *lines[3:]]) + "\n\n")
    assert read(tmp_path / "own.csv") == CAPTIONS
    assert f"images: {head[0]}, captions: {head[1]}" in open_source([(str(tmp_path / "own.csv"), None)]).words


def test_columns_for_each_caption(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("image,caption_2,caption_1,caption_10\na.jpg,two,one,ten\nb.jpg,,one,\n")
    assert read(tmp_path / "own.csv") == {"a.jpg": ("one", "two", "ten"), "b.jpg": ("one",)}


def test_columns_that_nobody_foresaw_are_named(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("Bild,Satz,caption\na.jpg,ein Dach,x\n")
    assert read(tmp_path / "own.csv", keys=Keys("Bild", "Satz")) == {"a.jpg": ("ein Dach",)}
    (tmp_path / "own.json").write_text(json.dumps({"x": [{"Bild": "a.jpg", "Satz": ["ein Dach", "rot"]}]}))
    assert read(tmp_path / "own.json", keys=Keys("Bild", "Satz")) == {"a.jpg": ("ein Dach", "rot")}
    with pytest.raises(InputError, match=r"found 'Bild', 'Satz', 'caption'\. Give their names by --image_key"):
        read(tmp_path / "own.csv")


def test_flickr30k(tmp_path: Path) -> None:
    lines = [f"{name}#{place}\t{text}" for name, texts in CAPTIONS.items() for place, text in enumerate(texts)]
    (tmp_path / "results.token").write_text("\n".join(lines))
    assert read(tmp_path / "results.token") == CAPTIONS


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["own.jsonl", "own.json"])
def test_json_lines(tmp_path: Path, bom: bytes, name: str) -> None:
    lines = [json.dumps({"filename": name, "captions": texts}) for name, texts in CAPTIONS.items()]
    (tmp_path / name).write_bytes(bom + "\n\n".join(lines).encode())
    assert read(tmp_path / name) == CAPTIONS
    (tmp_path / name).write_bytes(bom + "\n".join([*lines, "{"]).encode())
    with pytest.raises(InputError, match=r"1 fault:\n  line 5: not JSON"):
        read(tmp_path / name)


PAIRS = [(name, text) for name, texts in CAPTIONS.items() for text in texts]
SENTENCES = [
    {"filename": name, "imgid": 3, "sentences": [{"raw": text, "tokens": []} for text in texts]}
    for name, texts in CAPTIONS.items()
]
NUMBERED = [{"filename": name, "raw": texts[0], "raw_1": texts[1]} for name, texts in CAPTIONS.items()]
NESTED: dict[str, Any] = {
    "karpathy": {"dataset": "x", "images": SENTENCES},
    "pairs": {"pairs": [{"image_filename": name, "caption": text} for name, text in PAIRS]},
    "list": [{"image": name, "captions": list(texts)} for name, texts in CAPTIONS.items()],
    "names": {name: list(texts) for name, texts in CAPTIONS.items()},
    "coco": {
        "info": {},
        "licenses": [{"id": 1}],
        "images": [{"id": 70 + place, "file_name": name, "license": 1} for place, name in enumerate(NAMES)],
        "annotations": [
            {"id": 9, "image_id": 70 + NAMES.index(name), "caption": text} for name, text in PAIRS[::2] + PAIRS[1::2]
        ],
    },
    "classes": {"port": NUMBERED[:2], "park": NUMBERED[2:]},
}
ONE = [{"id": 1, "file_name": "a.jpg"}]


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_nested_lists(tmp_path: Path, form: str, bom: bytes) -> None:
    (tmp_path / "own.json").write_bytes(bom + json.dumps(NESTED[form]).encode())
    assert read(tmp_path / "own.json") == CAPTIONS


def test_lists_by_split(tmp_path: Path) -> None:
    lists = {"train": [{"image": "a.jpg", "caption": "x"}], "Validation": [{"image": "b.jpg", "caption": "y"}]}
    (tmp_path / "own.json").write_text(json.dumps(lists))
    assert sides(tmp_path / "own.json") == {"a.jpg": "train", "b.jpg": "val"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"images": ONE, "annotations": [{"image_id": 2, "caption": "x"}]},
            "annotations.0: no image has the id '2'",
        ),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, "images.1: expected an object with an id of its own"),
        (
            {"images": ONE, "annotations": []},
            "images.0: caption is neither a text nor a list",
        ),
        ({"images": [{"id": [1]}], "annotations": [{"image_id": {}}]}, "images.0: expected an object"),
        ([{"image": "a.jpg", "caption": "\ud800"}], "0: holds half a character, U\\+D800"),
        ([{"image": "a.jpg", "captions": [["x"]]}], "0: captions is neither"),
        ([{"image": "a.jpg", "caption": "x", "split": 3}], "0: split is '3', expected a word"),
        ([{"image": "a.jpg", "captions": ["x"] * (MOST_CAPTIONS + 1)}], "0: 'a.jpg' has more than 1,000 captions"),
        ({"name": "x", "license": "y"}, "no list of objects is in it"),
    ],
)
def test_faults_of_nested_lists(tmp_path: Path, tree: Any, message: str) -> None:
    (tmp_path / "own.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "own.json")


def test_an_image_folder_of_hugging_face(tmp_path: Path) -> None:
    for split, names in (("train", NAMES[:2]), ("test", NAMES[2:])):
        put_images(tmp_path / "in" / split, names)
        lines = [json.dumps({"file_name": name, "text": CAPTIONS[name][0]}) for name in names]
        (tmp_path / "in" / split / "metadata.jsonl").write_text("\n".join(lines))
    prepare(Request(str(tmp_path / "in"), tmp_path / "set"))
    train, test = (read_annotations(tmp_path / "set", side) for side in ("train", "test"))
    assert (train.image_names, train.captions) == (
        ("train/port_1.png", "train/port_2.png"),
        ("many planes .", 'a "red" roof'),
    )
    assert test.image_names == ("test/park_1.png", "test/park_2.png")
    check_images(test, tmp_path / "set" / "images")

    put_images(tmp_path / "flat")
    (tmp_path / "flat" / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n},x\n" for n in NAMES))
    assert read(tmp_path / "flat") == dict.fromkeys(NAMES, ("x",))


def test_a_text_beside_each_image(tmp_path: Path) -> None:
    put_images(tmp_path, [f"train/{NAMES[0]}", f"val/{NAMES[1]}", f"test/{NAMES[2]}", f"test/{NAMES[3]}"])
    for side, name in zip(("train", "val", "test"), NAMES, strict=False):
        (tmp_path / side / name).with_suffix(".txt").write_text("\ufeff" + "\n\n".join(CAPTIONS[name]) + "\n")
    expected = {f"{side}/{name}": CAPTIONS[name] for side, name in zip(("train", "val", "test"), NAMES, strict=False)}
    assert read(tmp_path) == expected
    assert set(sides(tmp_path).values()) == {"train", "val", "test"}
    assert "1 images without one are left out" in open_source([(str(tmp_path), None)]).words
    (tmp_path / "test" / "park_1.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"test/park_1\.png: its \.txt is empty"):
        read(tmp_path)


def test_shards_of_webdataset(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = [("./a.txt", b"one\ntwo\n"), ("b.json", b'{"caption": "three"}')]
    put_tar(tmp_path / "in" / "train-000.tar", [("./a.png", png(0)), *texts, ("b.png", png(1)), ("b.cls", b"3")])
    put_tar(tmp_path / "in" / "test-000.tar", [("c.png", png(2)), ("c.json", b'{"captions": ["four", "five"]}')])
    prepare(Request(str(tmp_path / "in"), tmp_path / "set"))
    train, test = (read_annotations(tmp_path / "set", side) for side in ("train", "test"))
    assert (train.image_names, train.captions) == (("a.png", "b.png"), ("one", "two", "three"))
    assert (test.image_names, test.captions) == (("c.png",), ("four", "five"))
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        assert (tmp_path / "set" / "images" / name).read_bytes() == png(seed)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("a.png", b"x")], r"a\.tar, a\.png: expected captions beside it, 'a\.txt' or \.json"),
        ([("a.txt", b"x")], r"a\.tar: no image"),
        ([("a.png", b"x"), ("a.jpg", b"y"), ("a.txt", b"x")], r"a\.tar: 'a\.png' and 'a\.jpg': expected one image"),
        ([("a.png", b"x"), ("a.txt", b"x"), ("a.png", b"x")], r"a\.tar: 'a\.png' and 'a\.png': expected one image"),
        (
            [("a.png", b"x"), ("a.txt", b"x" * (2**20 + 1))],
            "'a.txt' has 1,048,577 bytes, at most 1,048,576",
        ),
        ([("a.png", b"x"), ("a.json", b"[")], r"a\.tar, a\.png: its \.json is no object"),
        (
            [("a.png", b"x"), ("a.json", b'{"x": 1}')],
            r"a\.png: no captions in its \.json, which has .*x\. Give",
        ),
    ],
)
def test_faults_of_shards(tmp_path: Path, parts: Sequence[tuple[str, bytes]], message: str) -> None:
    put_tar(tmp_path / "a.tar", parts)
    with pytest.raises(InputError, match=message):
        prepare(Request(str(tmp_path / "a.tar"), tmp_path / "set"))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:300])
    with pytest.raises(InputError, match=r"a\.tar: not a whole \.tar file"):
        prepare(Request(str(tmp_path / "a.tar"), tmp_path / "set"))


# --- several files, folders, absolute names ------------------------------------------------------------------------


def test_several_files_come_with_their_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_images(tmp_path / "images")
    for side, names in (("train", NAMES[:2]), ("val", NAMES[2:3]), ("test", NAMES[3:])):
        lines = [f"{side}/{name};{CAPTIONS[name][0]}" for name in names]
        (tmp_path / f"{side}.csv").write_text("\n".join(["image;caption", *lines]))
    given = [word for side in ("train", "val", "test") for word in (f"--{side}", str(tmp_path / f"{side}.csv"))]
    main([*given, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "own_precomp")])
    output = capsys.readouterr().out
    assert "train.csv: images: image, captions: caption (split at semicolons)\nval.csv" in output
    next_line = output.strip().splitlines()[-1]
    made = tmp_path / "own_precomp"
    assert next_line == f"next: python -m vocab --data_path {made} --data_name own --out {made}/vocab.json"
    assert read_annotations(made, "train").image_names == ("train/port_1.png", "train/port_2.png", "val/park_1.png")
    assert read_annotations(made, "val_verify").image_names == ("val/park_1.png",)
    assert read_annotations(made, "test").image_names == ("test/park_2.png",)
    (tmp_path / "val.csv").write_text("image;caption\n;x")
    with pytest.raises(InputError, match=r"1 fault:\n  val\.csv, line 2: blank file name"):
        main([*given, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "other")])


def test_a_folder_of_a_file_per_split(tmp_path: Path) -> None:
    for side in ("train", "test"):
        (tmp_path / f"{side}.json").write_text(json.dumps([{"image": f"{side}.jpg", "caption": "x"}]))
    assert sides(tmp_path) == {"train.jpg": "train", "test.jpg": "test"}


def test_absolute_names_inside_of_the_image_folder(tmp_path: Path) -> None:
    folder = put_images(tmp_path / "images")
    (tmp_path / "own.csv").write_text("image,caption\n" + "".join(f"{folder / name},x\n" for name in NAMES))
    assert read(tmp_path / "own.csv", images=folder) == dict.fromkeys(NAMES, ("x",))
    assert read(tmp_path / "own.csv") == {f"images/{name}": ("x",) for name in NAMES}
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"leaves the image folder: it is not below .*other; give the folder"):
        read(tmp_path / "own.csv", images=tmp_path / "other")


def test_names_in_other_letters_are_found(tmp_path: Path) -> None:
    put_images(tmp_path, ["p0.png", "Q.png", "q.png"])
    (tmp_path / "p0.txt").write_text("x")
    found = find_images(tmp_path, ["P0.JPG", "Q.jpg", "q.png"])
    assert {name: path.name for name, path in found.items()} == {"P0.JPG": "p0.png", "Q.jpg": "Q.png", "q.png": "q.png"}


# --- nothing to compare --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [(), ("unreadable",)])
def test_no_image_of_the_source_is_there(tmp_path: Path, drop: tuple[str, ...]) -> None:
    (tmp_path / "ok.json").write_text(json.dumps(NESTED["list"]))
    (tmp_path / "images").mkdir()
    request = Request(str(tmp_path / "ok.json"), tmp_path / "set", tmp_path / "images", drop=drop)
    with pytest.raises(InputError, match=r"none of its 4 images, such as port_1\.png, is in .*: it holds no image"):
        prepare(request)
    put_images(tmp_path / "images", ["other.png"])
    with pytest.raises(InputError, match=r"is in .*images: its first image is other\.png\. Check --images"):
        prepare(request)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ((), r"4 of 4 images are missing .*(\n.*){1,4}a pointer of Git LFS, not the image itself"),
        (("unreadable",), r"both lists need at least one image; leave less out"),
    ],
)
def test_all_images_are_pointers_of_git_lfs(tmp_path: Path, drop: tuple[str, ...], message: str) -> None:
    (tmp_path / "ok.json").write_text(json.dumps(NESTED["list"]))
    (tmp_path / "images").mkdir()
    for name in NAMES:
        (tmp_path / "images" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(InputError, match=message):
        prepare(Request(str(tmp_path / "ok.json"), tmp_path / "set", drop=drop))


def test_a_set_whose_images_are_gone_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ok.json").write_text(json.dumps(NESTED["list"]))
    prepare(Request(str(tmp_path / "ok.json"), tmp_path / "set", image_files="none"))
    (tmp_path / "set" / "images").mkdir()
    main(["--check", str(tmp_path / "set")])
    assert "missing or can't be read (4):" in capsys.readouterr().out


# --- how many captions ---------------------------------------------------------------------------------------------


def test_a_rich_train_image_leaves_test_as_it_is() -> None:
    lists = {
        "train": [Entry("a.png", ("1", "2", "3", "4")), Entry("b.png", ("5", "6"))],
        "test": [Entry("c.png", ("7", "8")), Entry("d.png", ("9", "0"))],
    }
    filled, notes = equal_counts(lists)
    assert filled["train"] == [lists["train"][0], Entry("b.png", ("5", "6", "5", "6"), copies=2)]
    assert filled["test"] == lists["test"]
    assert notes == [
        "train: 1 images have fewer than 4 captions: theirs are repeated to 4; the copies, recorded in "
        "train_copies.txt, are neither trained on nor scored"
    ]


def test_one_image_can_not_fill_the_memory() -> None:
    few = MOST_REPEATED // MOST_CAPTIONS + 1
    rich, poor = Entry("a.png", ("x",) * MOST_CAPTIONS), Entry("b.png", ("y",))
    lists = {"train": [rich, *[poor] * few], "test": [poor]}
    with pytest.raises(InputError, match=r"train: a\.png has 1,000 captions, so those of all 10,002 images"):
        equal_counts(lists)


def test_a_parquet_of_large_images_takes_little_memory(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    heavy = np.random.default_rng(0).bytes(8 * 2**20)
    rows = [{"image": {"bytes": heavy, "path": f"x/{place}.png"}, "caption": "x"} for place in range(20)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    code = (
        "import sys, resource; from pathlib import Path; import pyarrow.parquet\n"
        "from data.prepare.sources import open_source\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "part, = open_source([(sys.argv[1], None)]).parts\n"
        "sizes = [len(content) for content in part.images(part.path)]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(sizes), sum(sizes))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "train.parquet")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    kibibytes, count, size = map(int, done.stdout.split())
    assert (count, size) == (20, 20 * len(heavy))
    assert kibibytes < 100 * 1024


# --- scene classes -------------------------------------------------------------------------------------------------


def lists_of_classes(folder: Path) -> Path:
    (folder / "txtclasses_x").mkdir(parents=True)
    (folder / "txtclasses_x" / "Port.txt").write_text("1.tif\n2.tif\n\n")
    (folder / "txtclasses_x" / "Park.txt").write_text("3.tif\n4.tif\n")
    return folder / "txtclasses_x"


@pytest.mark.parametrize("form", ["beside", "lists", "table", "folders"])
def test_scene_classes_of_a_set_in_the_making(tmp_path: Path, form: str) -> None:
    names = [f"{number}.png" for number in range(1, 6)]
    put_images(tmp_path / "in" / "images", names)
    (tmp_path / "in" / "captions.txt").write_text("".join(f"{name}\tx\n" for name in names))
    classes = None
    if form in ("beside", "lists"):
        classes = lists_of_classes(tmp_path / "in") if form == "beside" else lists_of_classes(tmp_path / "elsewhere")
    if form == "table":
        classes = tmp_path / "classes.csv"
        classes.write_text("filename;class\n1.jpg;Port\n2.jpg;Port\n3.jpg;Park\n4.jpg;Park\n")
    if form == "folders":
        classes = put_images(tmp_path / "by_class", ["Port/1.png", "Port/2.png", "Park/3.png", "Park/4.png"])
    report = prepare(Request(str(tmp_path / "in"), tmp_path / "set", classes=None if form == "beside" else classes))
    assert "scenes.txt: 2 scene classes of 4 of 5 images" in report
    lines = sorted((tmp_path / "set" / "scenes.txt").read_text().splitlines())
    assert lines == ["1.png\tPort", "2.png\tPort", "3.png\tPark", "4.png\tPark"]


def test_faults_of_scene_classes(tmp_path: Path) -> None:
    lists = lists_of_classes(tmp_path / "in")
    (lists / "Park.txt").write_text("1.tif\n")
    with pytest.raises(InputError, match=r"Port\.txt: '1\.tif' is of class Port, before it was of Park"):
        read_classes(lists)
    (tmp_path / "classes.csv").write_text("filename,class\n1.tif,Port\n1.tif,Port\n1.tif,Park\n")
    with pytest.raises(InputError, match=r"line 4: '1\.tif' is of class Park, before it was of Port"):
        read_classes(tmp_path / "classes.csv")
    (tmp_path / "in" / "captions.txt").write_text("a.png\tx\nb.png\ty\n")
    (lists / "Park.txt").write_text("9.tif\n")
    with pytest.raises(InputError, match=r"the scene classes are of other images"):
        prepare(Request(str(tmp_path / "in"), tmp_path / "set", image_files="none"))
    with pytest.raises(InputError, match=r"none: no such file or folder; check --classes"):
        read_classes(tmp_path / "none")


@pytest.mark.parametrize("reader", [read_json, read_json_lines, read_table])
def test_readers_say_what_they_took(tmp_path: Path, reader: Any) -> None:
    one = '{"image": "a.jpg", "title": "x"}'
    content = {read_json: f"[{one}]", read_json_lines: one, read_table: "image,title\na.jpg,x\n"}
    (tmp_path / "x").write_text(content[reader])
    assert reader(tmp_path / "x").words.startswith("images: image, captions: title")
    assert gather_entries(tmp_path / "x", reader(tmp_path / "x").rows) == [Entry("a.jpg", ("x",))]
