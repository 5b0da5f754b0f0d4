"""Captions that only fill up their image's: recorded by `data.prepare`, left out by whoever reads the list."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.annotations import read_annotations
from data.lists import write_lines
from data.prepare.__main__ import Request, check, prepare
from data.prepare.captions import Entry
from data.prepare.lists import equal_counts
from data.prepare.writer import write_lists
from metrics.ranks import rank, recalls
from reports.html.findings import chance_curve
from utils import InputError

NAMES = ("a.png", "b.png", "c.png")
CAPTIONS = ("one", "one", "two", "three", "three", "three", "four", "five", "four")
"""Three for each image; b.png's last two and c.png's last are copies, a.png's second is not."""


def naive_recalls(scores: list[list[float]], text_image: list[int]) -> dict[str, float]:
    """The six recalls and mR of scores without ties, query by query."""
    images, texts = range(len(scores)), range(len(text_image))
    found = {}
    for cutoff in (1, 5, 10):
        firsts = [sorted(texts, key=lambda text: -scores[image][text])[:cutoff] for image in images]
        hits = [any(text_image[text] == image for text in first) for image, first in zip(images, firsts, strict=True)]
        found[f"i2t_R@{cutoff}"] = 100 * sum(hits) / len(hits)
    for cutoff in (1, 5, 10):
        hits = [text_image[text] in sorted(images, key=lambda image: -scores[image][text])[:cutoff] for text in texts]
        found[f"t2i_R@{cutoff}"] = 100 * sum(hits) / len(hits)
    return found | {"mR": sum(found.values()) / 6}


def write(folder: Path, copies: str | bytes | None) -> Path:
    write_lines(folder / "test_filename.txt", NAMES)
    write_lines(folder / "test_caps.txt", CAPTIONS)
    if copies is not None:
        (folder / "test_copies.txt").write_bytes(copies if isinstance(copies, bytes) else copies.encode())
    return folder


@pytest.mark.parametrize("copies", ["5\n6\n9\n", "\ufeff9\r\n5\r\n6\r\n\r\n"])
def test_copies_are_left_out(tmp_path: Path, copies: str) -> None:
    (tmp_path / "audios").mkdir()
    spoken = [f"{line}.png" for line in range(9)]
    for name in spoken:
        (tmp_path / "audios" / name).touch()
    write_lines(tmp_path / "test_audios.txt", spoken)
    read = read_annotations(write(tmp_path, copies), "test", tmp_path / "audios")
    assert read.captions == ("one", "one", "two", "three", "four", "five")
    assert read.caption_image.tolist() == [0, 0, 0, 1, 2, 2]
    assert read.caption_counts.tolist() == [3, 1, 2]
    assert [read.captions_of(image) for image in range(3)] == [("one", "one", "two"), ("three",), ("four", "five")]
    assert read.audio_names == ("0.png", "1.png", "2.png", "3.png", "6.png", "7.png")
    part = read.subset([2, 1])
    assert part.captions == ("four", "five", "three")
    assert part.caption_image.tolist() == [0, 0, 1]
    assert part.audio_names == ("6.png", "7.png", "3.png")


def test_without_a_record_repeated_captions_are_the_data_set_s(tmp_path: Path) -> None:
    read = read_annotations(write(tmp_path, None), "test")
    assert read.captions == CAPTIONS
    assert read.caption_counts.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("copies", "fault"),
    [
        ("5\n10\n", "line 2: '10' is not the number of a line of test_caps.txt"),
        ("0\n", "line 1: '0' is not the number of a line of test_caps.txt"),
        ("-1\n", "line 1: '-1' is not the number of a line of test_caps.txt"),
        ("5 6\n", "line 1: '5 6' is not the number of a line of test_caps.txt"),
        ("9" * 9000 + "\n", "is not the number of a line of test_caps.txt"),
        ("4\n", "line 1: test_caps.txt, line 4 repeats no caption of its image before it"),
        ("\n8\n", "line 2: test_caps.txt, line 8 repeats no caption of its image before it"),
        (b"\xff\n", "line 1: byte 0xff at byte 1 is not UTF-8"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, copies: str | bytes, fault: str) -> None:
    with pytest.raises(InputError, match=r"test_copies\.txt: 1 fault") as caught:
        read_annotations(write(tmp_path, copies), "test")
    assert fault in str(caught.value)


def test_a_record_that_can_not_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (write(tmp_path, None) / "test_copies.txt").mkdir()
    with pytest.raises(InputError, match=r"test_copies\.txt: can't be read"):
        read_annotations(tmp_path, "test")


COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**32 - 1))
def test_filling_up_changes_no_score(counts: list[int], seed: int) -> None:
    entries = [Entry(f"{i}.png", tuple(f"{i} {k}" for k in range(count))) for i, count in enumerate(counts)]
    captions = [caption for entry in entries for caption in entry.captions]
    text_image = [i for i, count in enumerate(counts) for _ in range(count)]
    scores = torch.randn(len(counts), len(captions), generator=torch.Generator().manual_seed(seed))
    with TemporaryDirectory() as folder:
        lists, _ = equal_counts({"train": [Entry("t.png", ("x",))], "test": entries})
        write_lists(lists, Path(folder), {})
        read = read_annotations(Path(folder), "test")
        assert (Path(folder) / "test_copies.txt").is_file() == (len(set(counts)) > 1)
        assert len((Path(folder) / "test_caps.txt").read_text().splitlines()) == len(counts) * max(counts)
    columns = scores[:, [captions.index(caption) for caption in read.captions]]
    found, expected = (
        recalls(rank(columns, torch.from_numpy(read.caption_image))),
        naive_recalls(scores.tolist(), text_image),
    )
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_prepared_set_records_copies_of_every_list(tmp_path: Path) -> None:
    rows = [
        ("a.png", "train", 1),
        ("b.png", "train", 3),
        ("c.png", "val", 2),
        ("d.png", "test", 2),
        ("e.png", "test", 1),
    ]
    table = [f"{name},{name} {k},{split}" for name, split, count in rows for k in range(count)]
    write_lines(tmp_path / "own.csv", ["filename,caption,split", *table])
    report = prepare(Request(str(tmp_path / "own.csv"), tmp_path / "set", image_files="none"))
    assert "test: 1 images have fewer than 2 captions: theirs are repeated to 2; the copies, recorded in " in report
    assert report.endswith("train 3 images with 6 captions, test 2 images with 3 captions")
    written = {file.name: file.read_text().split() for file in (tmp_path / "set").glob("*copies*")}
    assert written == {
        "train_copies.txt": ["2", "3", "9"],
        "train_copies_verify.txt": ["2", "3"],
        "val_copies_verify.txt": ["3"],
        "test_copies.txt": ["4"],
    }
    for split, counts in (("train", [1, 3, 2]), ("train_verify", [1, 3]), ("val_verify", [2]), ("test", [2, 1])):
        assert read_annotations(tmp_path / "set", split).caption_counts.tolist() == counts  # type: ignore[arg-type]
    assert "prepare.json: the lists are as they were made" in check(tmp_path / "set")
    (tmp_path / "set" / "test_copies.txt").unlink()
    assert "CHANGED since the set was made: test_copies.txt" in check(tmp_path / "set")


def test_chance_of_unequal_counts() -> None:
    counts = torch.tensor([1, 3, 2])
    # Of six texts one is drawn: 1/6, 3/6 or 2/6; of two drawn both are wrong with 20/30, 6/30, 12/30.
    expected = [100 * (1 + 3 + 2) / 18, 100 * (3 - (20 + 6 + 12) / 30) / 3, 100.0]
    assert chance_curve(6, counts, [1, 2, 6]) == pytest.approx(expected)
