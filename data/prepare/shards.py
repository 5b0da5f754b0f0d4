"""Reads WebDataset's shards: `.tar` files with the parts of a sample side by side (`a.jpg`, `a.txt`, `a.json`).

They are read as a stream, from front to back, a part at a time.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.images import ENDINGS
from data.lists import shown
from data.prepare.captions import USUAL, Captions, Keys, Row
from data.prepare.tables import NAMES, Record, find_columns, rows_of
from runtime.untrusted import MAX_BYTES, parse_json
from utils import InputError, first_line

MOST_TEXT = 2**20
"""Bytes of a caption's file."""
TEXTS = (".txt", ".json")


def read_shard(file: Path, keys: Keys = USUAL) -> Captions:
    """The captions of a shard: of a sample's `.txt`, a line each, or else of its `.json`.

    Raises:
        InputError: the file is damaged, or a sample lacks its captions or has two images; the message names it.
    """
    rows: list[Row] = []
    words = "captions: .txt"
    images: dict[str, str] = {}
    texts: dict[str, dict[str, bytes]] = {}
    for name, ending, content in _parts(file, TEXTS, MOST_TEXT):
        key = name.removesuffix(ending)
        if ending.lower() in ENDINGS:
            if key in images:
                raise InputError(
                    f"{file}: {shown(images[key])} and {shown(name)}: expected one image of a name; rename one"
                )
            images[key] = name
        elif content is not None:
            texts.setdefault(key, {})[ending.lower()] = content
    for key, name in images.items():
        found = texts.get(key, {})
        if ".txt" in found and keys.caption is None:
            rows.append(Row(name, name, lines_of(f"{file}, {name}", found[".txt"]), whole=True))
        elif ".json" in found:
            try:
                record = Record(name, {"image file": name, **_object(found[".json"])})
            except ValueError as error:
                raise InputError(f"{file}, {name}: its .json is no object ({error})") from error
            columns = find_columns(record.values, Keys("image file", keys.caption))
            if columns is None:
                raise InputError(
                    f"{file}, {name}: no captions in its .json, which has {', '.join(record.values)}. {NAMES}"
                )
            rows += rows_of(file, [record], columns).rows
            words = f"captions: {columns.caption} of .json"
        else:
            raise InputError(f"{file}, {name}: expected captions beside it, {shown(key + '.txt')} or .json")
    if not rows:
        raise InputError(f"{file}: no image ({', '.join(ENDINGS)}) is in it")
    return Captions(rows, words)


def shard_images(file: Path) -> Iterator[bytes]:
    """The images of a shard, in the order of its rows."""
    for _, _, content in _parts(file, ENDINGS, MAX_BYTES):
        if content is not None:
            yield content


def lines_of(place: str, content: bytes) -> list[str]:
    """The captions of a `.txt` beside an image: its lines without the blank ones.

    Raises:
        InputError: it is not UTF-8, or has none.
    """
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: its .txt is not UTF-8 text") from error
    if not lines:
        raise InputError(f"{place}: its .txt is empty; expected a caption a line")
    return lines


def _object(content: bytes) -> dict[str, object]:
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError("another kind of value")
    return value


def _parts(file: Path, read: tuple[str, ...], most: int) -> Iterator[tuple[str, str, bytes | None]]:
    """The images and texts of a shard: name, ending, and the content of those whose endings are to be read.

    An ending begins at the first full stop of a name.
    """
    try:
        with tarfile.open(file, "r|*") as archive:
            for member in archive:
                ending = "." + PurePosixPath(member.name).name.partition(".")[2]
                if not member.isreg() or ending.lower() not in (*ENDINGS, *TEXTS):
                    continue
                wanted = ending.lower() in read
                if wanted and member.size > most:
                    raise InputError(
                        f"{file}: {shown(member.name)} has {member.size:,} bytes, at most {most:,} are read"
                    )
                content = archive.extractfile(member) if wanted else None
                yield member.name, ending, None if content is None else content.read()
    except InputError:
        raise
    except Exception as error:  # on damaged bytes tarfile and the unpackers raise errors of many classes
        raise InputError(f"{file}: not a whole .tar file ({first_line(error)}); download it again") from error
