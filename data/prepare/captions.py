"""What every reader of captions gives, a row per image or per caption, and the images that are made of the rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data.lists import line_fault, name_fault, refuse_faults, shown
from utils import InputError

Side = Literal["train", "val", "test"]

SPLITS: dict[str, Side] = {
    "train": "train",
    "restval": "train",  # Karpathy's name for val images that are trained on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
MOST_CAPTIONS = 1000
"""Of one image: since lists are filled up to the richest image, a single one could take any memory."""


@dataclass(frozen=True)
class Keys:
    """The columns or keys that hold file names and captions; None: the first that is known, see `tables`."""

    image: str | None = None
    caption: str | None = None


USUAL = Keys()


@dataclass(frozen=True)
class Row:
    """Captions of an image, as a source has them.

    Attributes:
        place: in the source, for messages ("line 3").
        name: of the image's file, as written.
        captions: at least one.
        split: as written; None where the source does not say.
        whole: whether these are all captions of the image, so that it may not come again.
    """

    place: str
    name: str
    captions: Sequence[str]
    split: str | None = None
    whole: bool = False


@dataclass(frozen=True)
class Captions:
    """What was read of a source.

    Attributes:
        rows: in its order.
        words: what was taken for file names and captions, to be said.
    """

    rows: list[Row]
    words: str = ""


@dataclass(frozen=True)
class Entry:
    """An image and its captions.

    Attributes:
        name: file name, relative to the folder of images.
        captions: at least one, each without line breaks; may be blank.
        side: which list the source puts it in; None where it doesn't say.
        copies: how many captions, the last ones, only repeat others to give each image of the list as many.
    """

    name: str
    captions: tuple[str, ...]
    side: Side | None = None
    copies: int = 0

    @property
    def own(self) -> tuple[str, ...]:
        """The captions without copies."""
        return self.captions[: len(self.captions) - self.copies]


def gather_entries(path: Path, rows: Iterable[Row], folders: Sequence[Path] = ()) -> list[Entry]:
    """The images of the rows, in the order of their first appearance; rows of one image belong together.

    Args:
        path: of the source, for messages.
        rows: of all its files.
        folders: where the images may be; an absolute file name below one of them becomes relative to it.

    Raises:
        InputError: there is none, or a name or split is faulty; the message names the places.
    """
    captions: dict[str, list[str]] = {}
    sides: dict[str, Side | None] = {}
    whole: set[str] = set()
    faults = []
    for row in rows:
        name = plain_name(row.name, folders)
        side = None if row.split is None else SPLITS.get(row.split.strip().lower())
        own = captions.setdefault(name, [])
        fault = _fault(row, name, folders)
        if fault:
            faults.append(f"{row.place}: {fault}")
        elif row.split is not None and side is None:
            faults.append(f"{row.place}: split {shown(row.split)}, expected one of {', '.join(SPLITS)}")
        elif own and (row.whole or name in whole):
            faults.append(f"{row.place}: {shown(name)} comes again")
        elif sides.setdefault(name, side) != side:
            faults.append(f"{row.place}: {shown(name)} is in {side}, before it was in {sides[name]}")
        elif len(own) + len(row.captions) > MOST_CAPTIONS:
            faults.append(f"{row.place}: {shown(name)} has more than {MOST_CAPTIONS:,} captions")
        else:
            own.extend(map(one_line, row.captions))
            whole |= {name} if row.whole else set()
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


def plain_name(written: str, folders: Sequence[Path] = ()) -> str:
    """A file name without what a reader of lists would take away, relative to that of the folders it lies below."""
    name = written.replace("\ufeff", "").strip().removeprefix("./")
    if name.startswith("/"):
        for folder in folders:
            for root in (folder.absolute(), folder.resolve()):
                if Path(name).is_relative_to(root):
                    return Path(name).relative_to(root).as_posix()
    return name


def in_split(captions: Captions, side: str | None) -> Captions:
    """The same rows, all of them in a split; as they are where it is None."""
    return captions if side is None else replace(captions, rows=[replace(row, split=side) for row in captions.rows])


def one_line(caption: str) -> str:
    """A caption as a list can hold it: without line breaks and byte-order marks, else unchanged."""
    return re.sub(r"[\r\n]+", " ", caption.replace("\ufeff", ""))


def _fault(row: Row, name: str, folders: Sequence[Path]) -> str | None:
    """What is wrong with the name or the captions of a row, or None."""
    if re.search(r"[\r\n]", name):
        return "line break in the file name"
    if fault := name_fault(name, "image"):
        absolute = name.startswith("/") or re.match(r"[A-Za-z]:\\", name)
        where = " or ".join(map(str, folders)) or "it"
        return f"{fault}: it is not below {where}; give the folder that it lies in by --images" if absolute else fault
    return next(filter(None, map(line_fault, row.captions)), None) or _not_text([name, *row.captions])


def _not_text(texts: Iterable[str]) -> str | None:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a character, U+{ord(error.object[error.start]):04X}, which no UTF-8 text has"
    return None
