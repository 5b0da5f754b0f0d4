"""Keywords of images: `train_keywords.txt` and `test_keywords.txt`, one line per image (`green trees,- port`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.annotations import Annotations, list_files, read_annotations
from data.lists import first_faults, read_lines, refuse_faults, shown, write_lines
from utils import InputError

Keyword = tuple[str, str]
"""Fine-grained word, or `NO_WORD`; target word."""

NO_WORD = "-"
"""Stands for a missing fine-grained word."""


def keyword_list(folder: Path, side: str) -> Path:
    """The file of the keywords of the "train" or the "test" list."""
    return folder / f"{side}_keywords.txt"


def read_keywords(path: Path, count: int) -> list[tuple[Keyword, ...]]:
    """Read the keywords of a list of `count` images, at least one for each, in lower case.

    A line holds an image's keywords, separated by `,`: each a fine-grained word (or `-`) and a target word.

    Raises:
        InputError: the file is missing or not UTF-8, has another number of lines than images, or a keyword has not two
            words; the message names file and line.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file of keywords. Set dataset.keywords_path to the folder that has it, or make it from "
            "the captions: python -m data.keywords DATA_FOLDER --out FOLDER (docs/objectives.md)."
        )
    lines = read_lines(path, "dataset.keywords_path")
    if len(lines) != count:
        raise InputError(
            f"{path}, line {len(lines)}: the file ends after {len(lines)} lines, but the list has {count} images. "
            "Expected one line per image, in the order of the images, however many captions each has."
        )
    rows = [[tuple(part.lower().split()) for part in line.split(",")] for line in lines]
    faults = [
        f"line {number}: {fault}" for number, row in enumerate(rows, 1) for part in row if (fault := _fault(part))
    ]
    refuse_faults(
        path,
        faults,
        "Each keyword is two words, the second of which names the thing, - for a missing first one; keywords are "
        "separated by commas: green trees,- port",
    )
    return [tuple((first, second) for first, second in row) for row in rows]


def keywords_of(annotations: Annotations, folder: Path) -> list[tuple[Keyword, ...]]:
    """The keywords of each image of a list, or of a part of one, from the files in a folder.

    Args:
        annotations: the test list, or images of the train list in any order: a fold's train or val images, or a half
            of a shipped split.
        folder: of the files.

    Raises:
        InputError: see `read_keywords`; or an image is not in the list that the file belongs to.
    """
    side = "test" if annotations.names_file == list_files(annotations.folder, "test")[0] else "train"
    whole = read_annotations(annotations.folder, "test" if side == "test" else "train")
    path = keyword_list(folder, side)
    of_name = dict(zip(whole.image_names, read_keywords(path, len(whole.image_names)), strict=True))
    strangers = [
        f"line {line}: {shown(name)}"
        for name, line in zip(annotations.image_names, annotations.image_lines, strict=True)
        if name not in of_name
    ]
    if strangers:
        raise InputError(
            f"{annotations.names_file}: {len(strangers)} images have no keywords: {path} is that of the images in "
            f"{whole.names_file}, which lacks{first_faults(strangers)}\nAdd them there, with their keywords."
        )
    return [of_name[name] for name in annotations.image_names]


def write_keywords(path: Path, keywords: Sequence[Sequence[Keyword]]) -> None:
    """Write a file that `read_keywords` reads."""
    write_lines(path, (",".join(map(" ".join, row)) for row in keywords))


def _fault(part: tuple[str, ...]) -> str | None:
    """What is wrong with the words of a keyword, or None."""
    if len(part) != 2:
        return f"expected two words, found {shown(' '.join(part))}"
    return f"no target word in {shown(' '.join(part))}" if part[1] == NO_WORD else None
