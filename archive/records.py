"""What an index knows of each image, in a file beside the embeddings of a shard: `shards/<id>.json`.

A file holds a column for each field of `Record`. Those of earlier versions are a list of names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from archive.shards import AGAIN, IndexFault
from data.lists import name_fault
from runtime.untrusted import parse_json, read_bytes
from utils import first_line, write_text_atomic


class Record(NamedTuple):
    """An image of an index; a further field needs a default, which older files have it by.

    Attributes:
        name: relative to the folder of the images.
        size: bytes of the file when it was last looked at.
        modified: its time of modification, in nanoseconds since 1970.
        digest: of its content, see `archive.upkeep.digest_of`.
        bounds: west, south, east and north in degrees (WGS 84), where its file knows them; west is greater than east
            where it lies across the date line.
    """

    name: str
    size: int | None = None
    modified: int | None = None
    digest: str | None = None
    bounds: tuple[float, float, float, float] | None = None


_RECORDS = TypeAdapter(list[Record])
_CHECK = "check"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write the file of a shard, atomically."""
    columns = {
        field: list(values)
        for field, values in zip(Record._fields, zip(*records, strict=True), strict=True)
        if any(value is not None for value in values)
    }
    write_text_atomic(path, json.dumps(columns | {_CHECK: _digest(columns)}))


def read_records(path: Path, count: int | None = None) -> list[Record]:
    """The images of a shard.

    Args:
        path: the file.
        count: how many there must be; None: any number.

    Raises:
        IndexFault: it is missing or damaged, or a name would leave the folder of the images.
    """
    try:
        content = parse_json(read_bytes(path))
        records = _records(content)
    except (OSError, ValueError) as fault:
        raise IndexFault(
            f"{path}: this part of the index is missing or damaged ({first_line(fault)}); {AGAIN}"
        ) from fault
    if count is not None and len(records) != count:
        raise IndexFault(f"{path}: {len(records)} names, expected {count}; {AGAIN}")
    for record in records:
        if fault_found := name_fault(record.name, "image"):
            raise IndexFault(f"{path}: {fault_found}.")
    if not _is_sound(content, path.stem):
        raise IndexFault(f"{path}: damaged: its names are not those that it was made with; {AGAIN}")
    return records


def free_id(folder: Path, records: Sequence[Record]) -> str:
    """What a new shard of these images is called: the same for the same files, unless a shard has that name already."""
    key = _digest([list(record) for record in records])
    while (folder / f"{key}.json").exists():
        key = _digest(key)
    return key


def _records(content: Any) -> list[Record]:
    """The records of a parsed file; ValueError where it has another form."""
    if isinstance(content, list):
        content = {"name": content}
    if not isinstance(content, dict) or not isinstance(content.get("name"), list):
        raise ValueError("no list of images")
    absent = [None] * len(content["name"])
    columns = [content.get(field, absent) for field in Record._fields]
    if not all(isinstance(column, list) for column in columns):
        raise ValueError("no list of images")
    try:
        return _RECORDS.validate_python(list(zip(*columns, strict=True)))
    except ValidationError as fault:
        raise ValueError("no list of images") from fault


def _is_sound(content: Any, shard: str) -> bool:
    """Whether a file is what was written; of an earlier version: whether it is the shard of that id."""
    if isinstance(content, list):
        return _digest(content) == shard
    return bool(_digest({key: column for key, column in content.items() if key != _CHECK}) == content.get(_CHECK))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
