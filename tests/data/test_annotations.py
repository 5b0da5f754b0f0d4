"""Lists of images and captions, small ones and the published ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.annotations import Annotations, blank_captions, check_images, describe_blank, read_annotations
from data.lists import read_lines
from utils import InputError
from vocab import tokenize


@pytest.fixture
def published() -> Iterator[Path]:
    """The published lists, which no test may change."""
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    folder = Path(os.environ["RSR_DATA"]) / "data"
    before = _snapshot(folder)
    yield folder
    assert _snapshot(folder) == before


def _snapshot(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.glob("*/*")}


def _write(folder: Path, names: str | bytes, captions: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in (("filename", names), ("caps", captions)):
        (folder / f"train_{kind}.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def _annotations(folder: Path, names: list[str], per_image: int = 1) -> Annotations:
    captions = "".join(f"caption {i} of {name}\n" for name in names for i in range(per_image))
    return read_annotations(_write(folder, "".join(f"{name}\n" for name in names), captions), "train")


def _message(folder: Path, names: str | bytes, captions: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_annotations(_write(folder, names, captions), "train")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "images", "captions"),
    [
        ("rsicd", "train", 9828, 49140),
        ("rsicd", "test", 1093, 5465),
        ("rsitmd", "train", 4291, 21455),
        ("rsitmd", "test", 452, 2260),
        ("ucm", "train", 1680, 8400),
        ("ucm", "test", 210, 1050),
    ],
)
def test_published_sizes(published: Path, name: str, split: str, images: int, captions: int) -> None:
    annotations = read_annotations(published / f"{name}_precomp", split)  # type: ignore[arg-type]
    assert len(annotations.image_names) == len(set(annotations.image_names)) == images
    assert len(annotations.captions) == captions
    assert set(annotations.caption_counts) == {5}
    np.testing.assert_array_equal(annotations.caption_image, np.arange(captions) // 5)
    assert annotations.caption_image.dtype == np.int64
    lines = annotations.names_file.read_text().splitlines()
    assert [lines[line - 1] for line in annotations.image_lines] == list(annotations.image_names)
    assert list(annotations.captions) == (published / f"{name}_precomp/{split}_caps.txt").read_text().split("\n")[:-1]


@pytest.mark.parametrize("name", ["ucm", "rsicd"])
def test_published_images_are_there(published: Path, name: str) -> None:
    folder = published / f"{name}_precomp"
    for split in ("train", "test"):
        check_images(read_annotations(folder, split), folder / "images")


def test_both_conventions_read_alike(tmp_path: Path) -> None:
    captions = "one\ntwo\nthree\nfour\nfive\nsix\n"
    per_image = read_annotations(_write(tmp_path / "a", "x.jpg\ny.jpg\n", captions), "train")
    per_caption = read_annotations(
        _write(tmp_path / "b", "x.jpg\nx.jpg\nx.jpg\ny.jpg\ny.jpg\ny.jpg\n", captions), "train"
    )
    for read in (per_image, per_caption):
        assert read.image_names == ("x.jpg", "y.jpg")
        assert read.captions == ("one", "two", "three", "four", "five", "six")
        assert read.caption_image.tolist() == [0, 0, 0, 1, 1, 1]
    assert per_image.image_lines.tolist() == [1, 2]
    assert per_caption.image_lines.tolist() == [1, 4]


def test_one_caption_per_image(tmp_path: Path) -> None:
    annotations = read_annotations(_write(tmp_path, "x.jpg\ny.jpg", "one\ntwo"), "train")
    assert annotations.image_names == ("x.jpg", "y.jpg")
    assert annotations.caption_image.tolist() == [0, 1]
    single = read_annotations(_write(tmp_path, "x.jpg\n", "one\n"), "train")
    assert (single.image_names, single.captions) == (("x.jpg",), ("one",))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"one", ["one"]),
        (b"one\n\n", ["one", ""]),
        (b"one\r\n two \r\nt\rh\n", ["one", " two ", "t\rh"]),
        (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n", ["one", "\ufefftwo"]),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_read_lines(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    (tmp_path / "text").write_bytes(content)
    assert read_lines(tmp_path / "text") == lines


def test_text_rules(tmp_path: Path) -> None:
    content = "\ufeffgrün \r\n\r\nunit\x1fseparator\x85next\u2028line\n\n".encode()
    annotations = read_annotations(_write(tmp_path, "\ufeffä.jpg\r\n b.jpg \r\n", content), "train")
    assert annotations.image_names == ("ä.jpg", "b.jpg")
    assert annotations.captions == ("grün ", "", "unit\x1fseparator\x85next\u2028line", "")


def test_blank_lines_at_the_end_of_the_names_are_no_names(tmp_path: Path) -> None:
    annotations = read_annotations(_write(tmp_path, "a.jpg\nb.jpg\n\n  \n", b"one\ntwo\nthree\nfour\n"), "train")
    assert annotations.image_names == ("a.jpg", "b.jpg")
    assert annotations.captions_of(1) == ("three", "four")


def test_an_image_in_other_letters_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "p0.jpg").touch()
    annotations = read_annotations(_write(tmp_path, "P0.JPG\nq.jpg\n", b"one\ntwo\n"), "train")
    with pytest.raises(InputError) as caught:
        check_images(annotations, tmp_path / "images")
    assert "\n  line 1: 'P0.JPG' is not there, but 'p0.jpg' is: capital letters count\n" in str(caught.value)
    assert "\n  line 2: 'q.jpg' is not there\n" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "blank file name"),
        ("   ", "blank file name"),
        ("/etc/passwd", "'/etc/passwd' leaves the image folder"),
        ("../../x.jpg", "'../../x.jpg' leaves the image folder"),
        ("a/../b.jpg", "'a/../b.jpg' leaves the image folder"),
        ("C:x.jpg", "'C:x.jpg' leaves the image folder"),
        ("a\\b.jpg", r"'a\\b.jpg' holds a backslash or a NUL character; folders are separated by /"),
        ("a\tb.jpg", r"'a\tb.jpg' holds a control character"),
        ("x/" + "y" * 256, "'x/" + "y" * 78 + "'... is longer than 255 bytes"),
        (".", "'.' names no file"),
    ],
)
def test_bad_names(tmp_path: Path, name: str, fault: str) -> None:
    message = _message(tmp_path, f"x.jpg\n{name}\ny.jpg\n", "one\ntwo\nthree\n")
    assert message == (
        f"{tmp_path}/train_filename.txt: 1 fault:\n  line 2: {fault}\n"
        "Each line is one image's file name, relative to the image folder."
    )


def test_faults_are_counted_and_five_are_shown(tmp_path: Path) -> None:
    message = _message(tmp_path, "\n" * 8 + "a.jpg\n", "one\n" * 9)
    assert message.startswith(f"{tmp_path}/train_filename.txt: 8 faults:\n  line 1: blank file name\n  line 2")
    assert "line 5" in message
    assert "line 6" not in message
    assert "\n  ... and 3 more\n" in message


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    assert len(_message(tmp_path, "/" + "x" * 10_000 + "\n", "one\n")) < 400


@pytest.mark.parametrize(
    ("names", "captions", "expected"),
    [
        ("x\ny\n", "1\n2\n3\n", "train_caps.txt, line 3: the file ends after 3 captions, but"),
        ("x\nx\ny\n", "1\n2\n3\n4\n", "train_caps.txt, line 4: the file ends after 4 captions, but"),
        ("x\ny\n", "1\n", "train_caps.txt, line 1: the file ends after 1 captions, but"),
        ("", "1\n", "train_filename.txt: no lines; expected one per image or caption"),
        ("x\n", "", "train_caps.txt: no lines; expected one per image or caption"),
        ("x\ny\nx\n", "1\n2\n3\n", "line 3: 'x' comes again, it was already on line 1"),
        ("x\nx\ny\ny\nx\nx\n", "1\n2\n3\n4\n5\n6\n", "line 5: 'x' comes again, it was already on line 1"),
        ("x\ny\ny\n", "1\n2\n3\n4\n5\n6\n", "line 3: 'y' comes again, it was already on line 2"),
        ("x\nx\ny\ny\nz\n", "1\n2\n3\n4\n5\n", "line 5: 'z' stands 1 times in a row, expected 2"),
        ("x\ny\n", b"1\n\xffa\n", "train_caps.txt: 1 fault:\n  line 2: byte 0xff at byte 1 is not UTF-8"),
        (b"x\ny\xe9.jpg\n", "1\n2\n", "train_filename.txt: 1 fault:\n  line 2: byte 0xe9 at byte 2 is not UTF-8"),
    ],
)
def test_bad_lists(tmp_path: Path, names: str | bytes, captions: str | bytes, expected: str) -> None:
    assert expected in _message(tmp_path, names, captions)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"test_filename\.txt: can't be read \(No such file .*; check the data set's folder .*dataset\.data_path",
    ):
        read_annotations(tmp_path, "test")
    (tmp_path / "test_filename.txt").mkdir()
    with pytest.raises(InputError, match=r"test_filename\.txt: can't be read \(Is a directory\)"):
        read_annotations(tmp_path, "test")


LISTS = st.one_of(st.binary(max_size=60), st.text("xy\n\r/.\\ é", max_size=40).map(str.encode))


@settings(max_examples=200, deadline=None)
@given(names=LISTS, captions=LISTS)
def test_any_bytes_give_annotations_or_an_input_error(names: bytes, captions: bytes) -> None:
    with TemporaryDirectory() as folder:
        try:
            annotations = read_annotations(_write(Path(folder), names, captions), "train")
        except InputError:
            return
    assert len(set(annotations.image_names)) == len(annotations.image_names) > 0
    assert len(set(annotations.caption_counts)) == 1
    np.testing.assert_array_equal(
        annotations.caption_image, np.repeat(np.arange(len(annotations.image_names)), annotations.caption_counts)
    )
    for name in annotations.image_names:
        assert (Path("/images") / name).resolve().is_relative_to("/images")


NAMES = st.lists(
    st.text(st.characters(categories=["L", "N", "P"], exclude_characters="\\/:"), min_size=1).filter(
        lambda n: n != ".."
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(names=NAMES, repeats=st.integers(1, 4), per_caption=st.booleans(), data=st.data())
def test_write_and_read_round_trip(names: list[str], repeats: int, per_caption: bool, data: st.DataObject) -> None:
    texts = st.text(st.characters(exclude_characters="\0\n\r\ufeff", codec="utf-8"))
    captions = data.draw(st.lists(texts, min_size=len(names) * repeats, max_size=len(names) * repeats))
    lines = [name for name in names for _ in range(repeats)] if per_caption else names
    with TemporaryDirectory() as folder:
        _write(Path(folder), "".join(f"{line}\n" for line in lines), "".join(f"{caption}\n" for caption in captions))
        annotations = read_annotations(Path(folder), "train")
        assert annotations.image_names == tuple(names)
        assert annotations.captions == tuple(captions)
        assert annotations.caption_image.tolist() == [i for i in range(len(names)) for _ in range(repeats)]


def test_subset(tmp_path: Path) -> None:
    annotations = _annotations(tmp_path, ["a", "b", "c"], per_image=2)
    subset = annotations.subset([2, 0], "part")
    assert subset.name == "part"
    assert annotations.subset([1]).name == "train"
    assert subset.image_names == ("c", "a")
    assert subset.captions == ("caption 0 of c", "caption 1 of c", "caption 0 of a", "caption 1 of a")
    assert subset.caption_image.tolist() == [0, 0, 1, 1]
    assert subset.image_lines.tolist() == [3, 1]
    assert subset.subset([1]).captions == ("caption 0 of a", "caption 1 of a")
    assert annotations.subset([]).captions == ()


def test_check_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in (images / "a.jpg", images / "sub/b.jpg", outside / "c.jpg"):
        file.touch()
    (images / "inside.jpg").symlink_to(images / "a.jpg")
    check_images(_annotations(tmp_path, ["a.jpg", "sub/b.jpg", "inside.jpg"]), images)

    (images / "link.jpg").symlink_to(outside / "c.jpg")
    (images / "broken.jpg").symlink_to(images / "nothing.jpg")
    (images / "away").symlink_to(outside)
    names = ["a.jpg", "link.jpg", "away/c.jpg", "broken.jpg", "sub", "no/d.jpg", "A.jpg"]
    with pytest.raises(InputError) as caught:
        check_images(_annotations(tmp_path, names), images)
    assert str(caught.value) == (
        f"{tmp_path}/train_filename.txt: 6 of 7 images can't be taken from {images}:\n"
        "  line 2: 'link.jpg' leads outside of the folder by a symbolic link\n"
        "  line 3: 'away/c.jpg' leads outside of the folder by a symbolic link\n"
        "  line 4: 'broken.jpg' is not there\n"
        "  line 5: 'sub' is not there\n"
        "  line 6: 'no/d.jpg' is not there\n"
        "  ... and 1 more\n"
        "Put the files themselves there, or set dataset.image_path to the folder that holds them."
    )
    with pytest.raises(InputError, match=r"no such folder of images; set dataset\.image_path"):
        check_images(_annotations(tmp_path, ["a.jpg"]), tmp_path / "nowhere")


def test_check_images_follows_a_linked_image_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.jpg").touch()
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    check_images(_annotations(tmp_path, ["a.jpg"]), tmp_path / "images")


def test_check_images_names_the_first_of_an_images_lines(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a").touch()
    annotations = read_annotations(_write(tmp_path, "a\na\nb\nb\n", "1\n2\n3\n4\n"), "train")
    with pytest.raises(InputError, match="line 3: 'b' is not there"):
        check_images(annotations, tmp_path / "images")


def test_blank_captions(tmp_path: Path) -> None:
    names = "".join(f"{name}\n" for name in "abcdefg")
    annotations = read_annotations(_write(tmp_path, names, "one\n" * 6 + " \n"), "train")
    assert describe_blank(annotations, np.zeros(7, dtype=bool)) == ""
    blank = blank_captions(annotations, str.split)
    assert blank.dtype == bool
    assert blank.tolist() == [False] * 6 + [True]
    assert describe_blank(annotations, blank) == (
        "train: 1 of 7 captions have no token: left out of training, read as <unk> in evaluation; images: g"
    )
    assert describe_blank(annotations, ~blank).endswith(
        "6 of 7 captions have no token: left out of training, read as "
        "<unk> in evaluation; images: a, b, c, d, e and 1 more"
    )


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rsitmd", [*range(9631, 9636), *range(14011, 14016), *range(19576, 19581), *range(20916, 20921)]),
        ("rsicd", [5701, 22328, 44383]),
        ("ucm", []),
    ],
)
def test_published_blank_captions(published: Path, name: str, lines: list[int]) -> None:
    annotations = read_annotations(published / f"{name}_precomp", "train")
    blank = blank_captions(annotations, tokenize)
    assert (np.flatnonzero(blank) + 1).tolist() == lines
    images = {annotations.image_names[(line - 1) // 5] for line in lines}
    text = describe_blank(annotations, blank)
    assert all(image in text for image in images)
    assert "\n" not in text


def _audio(folder: Path, name: str, lines: list[str], images: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    for image in images:
        path = folder / "audios" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_spectrograms_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    _annotations(tmp_path, ["x", "y", "z"], per_image=2)
    names = ["a.png", "b.png", "deep/c.png", "a.png", "d.png", "e.png"]
    assert read_annotations(tmp_path, "train").audio_names is None
    _audio(tmp_path, "train_audios.txt", [f" {name}\r" for name in names], names)
    assert read_annotations(tmp_path, "train").audio_names is None
    read = read_annotations(tmp_path, "train", tmp_path / "audios")
    assert read.audio_names == tuple(names)
    subset = read.subset([2, 0])
    assert subset.audio_names == ("d.png", "e.png", "a.png", "b.png")
    assert subset.captions == ("caption 0 of z", "caption 1 of z", "caption 0 of x", "caption 1 of x")


def test_order_of_the_lists_of_spectrograms(tmp_path: Path) -> None:
    folder, audios = tmp_path / "set", tmp_path / "set/audios"
    _annotations(folder, ["x"])
    with pytest.raises(InputError) as caught:
        read_annotations(folder, "train", audios)
    places = [folder / "train_audios.txt", folder / "train_audio.txt"]
    places += [audios / "train_audios.txt", audios / "train_audio.txt"]
    assert f"looked for {', '.join(map(str, places))}. Make" in str(caught.value)
    for place in reversed(places):
        audios.mkdir(exist_ok=True)
        name = f"{place.parent.name}_{place.stem}.png"
        (audios / name).touch()
        place.write_text(f"{name}\n")
        assert read_annotations(folder, "train", audios).audio_names == (name,)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a.png"], "train_audios.txt, line 1: the file ends after 1 spectrograms, but "),
        (["a.png"] * 4, "train_caps.txt has 3 captions. Expected one spectrogram per caption."),
        (
            ["a.png", "", "a.png"],
            "1 fault:\n  line 2: blank file name\nEach line is one spectrogram's file name",
        ),
        (["a.png", "../a.png", "a.png"], "  line 2: '../a.png' leaves the spectrogram folder\n"),
        (
            ["a.png", "a.png", "b.png"],
            "1 of 3 spectrograms can't be taken from {}/audios:\n  line 3: 'b.png' is",
        ),
    ],
)
def test_bad_lists_of_spectrograms(tmp_path: Path, lines: list[str], said: str) -> None:
    _annotations(tmp_path, ["x", "y", "z"])
    _audio(tmp_path, "train_audios.txt", lines, ["a.png"])
    with pytest.raises(InputError) as caught:
        read_annotations(tmp_path, "train", tmp_path / "audios")
    assert said.format(tmp_path) in str(caught.value)
    assert "is not read" not in str(caught.value)


def test_a_list_beside_the_spectrograms_that_is_not_read_is_named(tmp_path: Path) -> None:
    _annotations(tmp_path, ["x"])
    _audio(tmp_path, "train_audios.txt", ["published.png"], ["mine.png"])
    (tmp_path / "audios/train_audios.txt").write_text("mine.png\n")
    with pytest.raises(InputError, match=r"audios/train_audios\.txt is not read as long as the data set's folder has"):
        read_annotations(tmp_path, "train", tmp_path / "audios")


def test_no_folder_of_spectrograms(tmp_path: Path) -> None:
    _annotations(tmp_path, ["x"])
    _audio(tmp_path, "train_audios.txt", ["a.png"], [])
    with pytest.raises(InputError, match=r"absent: no such folder of spectrograms; set dataset.audio_path"):
        read_annotations(tmp_path, "train", tmp_path / "absent")
