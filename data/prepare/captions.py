"""Readers of the forms in which captioned image sets are published; each gives the same list of entries."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from data.forms import form_faults
from data.lists import line_fault, name_fault, read_content, read_lines, refuse_faults, shown
from utils import InputError

Side = Literal["train", "val", "test"]
Row = tuple[str, str, Sequence[str], str | None]
"""Place in the file, for messages; file name; captions; split as written."""

SPLITS: dict[str, Side] = {
    "train": "train",
    "restval": "train",  # Karpathy's name for val images that are trained on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
DESCRIBED_ENDING = ".tif"  # of the images that the description files of UCM and Sydney number


@dataclass(frozen=True)
class Entry:
    """An image and its captions.

    Attributes:
        name: file name, relative to the folder of images.
        captions: at least one, each without line breaks; may be blank.
        side: which list the source puts it in; None where it doesn't say.
    """

    name: str
    captions: tuple[str, ...]
    side: Side | None = None


class _Sentence(BaseModel):
    raw: str


class _Image(BaseModel):
    filename: str
    split: str | None = None
    sentences: Annotated[list[_Sentence], Field(min_length=1)]


class _Karpathy(BaseModel):
    images: Annotated[list[_Image], Field(min_length=1)]


class _ClassImage(BaseModel):
    """NWPU-Captions: the sentences are the keys raw, raw_1, raw_2 and so on."""

    model_config = ConfigDict(extra="allow")
    filename: str
    split: str | None = None
    raw: str

    def sentences(self) -> list[str]:
        """All sentences, in the order of their numbers."""
        others = {key: value for key, value in (self.model_extra or {}).items() if re.fullmatch(r"raw_\d+", key)}
        ordered = sorted(others, key=lambda key: int(key.removeprefix("raw_")))
        return [self.raw, *(others[key] for key in ordered if isinstance(others[key], str))]


_BY_CLASS = TypeAdapter(dict[str, list[_ClassImage]])


def read_json(path: Path) -> list[Entry]:
    """Read `dataset_rsicd.json`, `dataset_RSITMD.json` and others in Karpathy's form, or `dataset_nwpu.json`.

    Raises:
        InputError: the file can't be read or has another form; the message names the dotted keys.
    """
    content = read_content(path)
    try:
        parsed = from_json(content)
        if isinstance(parsed, dict) and "images" not in parsed:
            rows = [
                (f"{scene}.{place}", image.filename, image.sentences(), image.split)
                for scene, images in _BY_CLASS.validate_python(parsed).items()
                for place, image in enumerate(images)
            ]
        else:
            rows = [
                (f"images.{place}", image.filename, [sentence.raw for sentence in image.sentences], image.split)
                for place, image in enumerate(_Karpathy.model_validate(parsed).images)
            ]
    except ValidationError as error:
        raise InputError(
            f"{path}: not a caption file that is known:{form_faults(error)}\nExpected an object with the key images, "
            "a list of {filename, split, sentences: [{raw}]}, or NWPU's form: class -> list of {filename, split, raw, "
            "raw_1, ...}."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; save the file again as it was published") from error
    return gather_entries(path, rows)


def read_csv(path: Path) -> list[Entry]:
    """Read a CSV with the columns `filepath` and `caption`, one row per caption, and `split` if it has one.

    The rows of an image belong together wherever they stand.

    Raises:
        InputError: the file can't be read, or a row is faulty; the message names the lines.
    """
    # The text is cut as in every other list, so that the lines of messages are those of an editor.
    reader = csv.DictReader(io.StringIO("\n".join(read_lines(path)) + "\n"), strict=True)
    rows: list[Row] = []
    faults = []
    try:
        head = reader.fieldnames or []
        if not {"filepath", "caption"} <= set(head):
            raise InputError(f"{path}, line 1: expected the columns filepath, caption (and split), found {list(head)}")
        for row in reader:
            name, caption = row["filepath"], row["caption"]
            if None in row or name is None or caption is None:
                faults.append(f"line {reader.line_num}: expected {len(head)} values, as line 1 has columns")
            else:
                rows.append((f"line {reader.line_num}", name, [caption], row.get("split")))
    except csv.Error as error:
        faults.append(f"line {reader.line_num + 1}: {error}")  # the row that failed isn't counted yet
    refuse_faults(path, faults, "A caption that holds a comma or a quotation mark stands in quotation marks.")
    return gather_entries(path, rows, repeats=True)


def read_descriptions(path: Path) -> list[Entry]:
    """Read `descriptions_UCM.txt` or `descriptions_SYDNEY.txt`: an image's number, a blank, a sentence, on each line.

    The split is taken from `filenames_train.txt`, `filenames_val.txt` and `filenames_test.txt` beside it, where these
    files exist: one file name a line, which also gives the ending.

    Raises:
        InputError: a file can't be read, or a line is faulty; the message names it.
    """
    listed: dict[str, tuple[str, str]] = {}
    for side in ("train", "val", "test"):
        companion = path.with_name(f"filenames_{side}.txt")
        if companion.is_file():
            names = [line.strip() for line in read_lines(companion)]
            listed |= {PurePosixPath(name).stem: (name, side) for name in names if name}
    rows: list[Row] = []
    faults = []
    for line, text in enumerate(read_lines(path), 1):
        number, _, sentence = text.strip().partition(" ")
        if not number:
            continue
        if not (number.isascii() and number.isdigit()):
            faults.append(f"line {line}: expected a number, a blank and a sentence, found {shown(text)}")
        elif listed and number not in listed:
            faults.append(f"line {line}: image {number} is in none of the filenames_*.txt beside this file")
        else:
            name, given = listed.get(number, (number + DESCRIBED_ENDING, None))
            rows.append((f"line {line}", name, [sentence], given))
    refuse_faults(path, faults, "Expected lines such as: 12 There are two planes on the ground .")
    return gather_entries(path, rows, repeats=True)


def read_captions(path: Path) -> list[Entry]:
    """Read a `captions.txt`: a file name, a tab, a caption on each line; `name#0` counts as `name`.

    Raises:
        InputError: the file can't be read, or a line is faulty; the message names it.
    """
    rows: list[Row] = []
    faults = []
    for line, text in enumerate(read_lines(path), 1):
        name, tab, caption = text.partition("\t")
        if tab:
            rows.append((f"line {line}", re.sub(r"#\d+\s*$", "", name), [caption], None))
        elif text.strip():
            faults.append(f"line {line}: no tab in {shown(text)}")
    refuse_faults(path, faults, "Each line is a file name, a tab character and a caption.")
    return gather_entries(path, rows, repeats=True)


def gather_entries(path: Path, rows: Iterable[Row], repeats: bool = False) -> list[Entry]:
    """Entries from what a reader found, in the order of their first appearance.

    A name that comes again adds captions if it `repeats`, else it is a fault.

    Raises:
        InputError: nothing was found, or a name or split is faulty; the message names the places.
    """
    captions: dict[str, list[str]] = {}
    sides: dict[str, Side | None] = {}
    faults = []
    for place, written, sentences, split in rows:
        name = written.replace("\ufeff", "").strip()  # what a reader of lists would take away
        side = SPLITS.get(split.strip().lower()) if split is not None else None
        fault = "line break in the file name" if re.search(r"[\r\n]", name) else name_fault(name, "image")
        fault = fault or next(filter(None, map(line_fault, sentences)), None)
        if fault:
            faults.append(f"{place}: {fault}")
        elif split is not None and side is None:
            faults.append(f"{place}: split {shown(split)}, expected one of {', '.join(SPLITS)}")
        elif name in captions and not repeats:
            faults.append(f"{place}: {shown(name)} comes again")
        elif sides.setdefault(name, side) != side:
            faults.append(f"{place}: {shown(name)} is in {side}, before it was in {sides[name]}")
        else:
            captions.setdefault(name, []).extend(one_line(sentence) for sentence in sentences)
    refuse_faults(path, faults, "Each image has one file name, relative to the folder of images, and one split.")
    if not captions:
        raise InputError(f"{path}: no image with a caption is in it")
    unsplit = [name for name, side in sides.items() if side is None]
    if 0 < len(unsplit) < len(sides):
        raise InputError(
            f"{path}: {len(unsplit)} of {len(sides)} images have no split, the first is {shown(unsplit[0])}; give "
            "each image one, or none"
        )
    return [Entry(name, tuple(captions[name]), sides[name]) for name in captions]


def one_line(caption: str) -> str:
    """A caption as a list can hold it: without line breaks and byte-order marks, else unchanged."""
    return re.sub(r"[\r\n]+", " ", caption.replace("\ufeff", ""))
