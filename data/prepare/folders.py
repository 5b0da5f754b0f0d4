"""Reads folders of images with their captions: a `metadata.jsonl` or `metadata.csv`, or a `.txt` beside each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data.images import ENDINGS, image_names
from data.lists import read_content, refuse_outside
from data.prepare.captions import SPLITS, USUAL, Captions, Keys, Row
from data.prepare.nested import read_json_lines
from data.prepare.shards import lines_of
from data.prepare.tables import read_table

METADATA = ("metadata.jsonl", "metadata.csv")


def metadata_files(folder: Path) -> list[Path]:
    """The files of captions in a folder and in the folders of its splits, as Hugging Face's `datasets` writes them."""
    return [path for place in (".", "*") for name in METADATA for path in sorted(folder.glob(f"{place}/{name}"))]


def read_metadata(folder: Path, keys: Keys = USUAL) -> Captions:
    """Read all of `metadata_files`, in which names are relative to their own folder.

    Raises:
        InputError: see the readers of tables and of JSON lines.
    """
    rows, words = [], []
    for path in metadata_files(folder):
        found = read_json_lines(path, keys) if path.suffix == ".jsonl" else read_table(path, keys)
        below = path.parent.relative_to(folder)
        side = next((part for part in below.parts if part.lower() in SPLITS), None)
        words.append(found.words)
        rows += [
            replace(row, place=f"{below / path.name}, {row.place}", name=str(below / row.name), split=row.split or side)
            for row in found.rows
        ]
    return Captions(rows, words[0])


def holds_images(folder: Path) -> bool:
    """Whether an image is in a folder or below it."""
    return any(path.suffix.lower() in ENDINGS and path.is_file() for path in folder.rglob("*"))


def has_sidecars(folder: Path) -> bool:
    """Whether an image of a folder has a `.txt` of its name beside it."""
    return any(True for _ in _sidecars(folder))


def read_sidecars(folder: Path) -> Captions:
    """Read the `.txt` beside each image, a caption a line; the split is the folder at the top, where that says one.

    Raises:
        InputError: a text is empty, not UTF-8 or a link that leads elsewhere.
    """
    found = list(_sidecars(folder))
    count = len(image_names(folder))
    rows = []
    for name, text in found:
        top = PurePosixPath(name).parts[0]
        split = top if top.lower() in SPLITS and top != name else None
        rows.append(Row(name, name, lines_of(name, read_content(text)), split, whole=True))
    alone = f"; {count - len(rows):,} images without one are left out" if count > len(rows) else ""
    return Captions(rows, f"captions: the .txt beside each image{alone}")


def _sidecars(folder: Path) -> Iterator[tuple[str, Path]]:
    """The images that have a `.txt` beside them; none in a folder without images."""
    if not holds_images(folder):
        return
    for name in image_names(folder):
        text = (folder / name).with_suffix(".txt")
        if text.is_file():
            refuse_outside([text], folder)
            yield name, text
