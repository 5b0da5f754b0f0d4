"""The one reader of nested lists: JSON, whatever key its images stand below, and JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data.images import ENDINGS
from data.lists import read_content, refuse_faults, shown
from data.prepare.captions import SPLITS, USUAL, Captions, Keys
from data.prepare.tables import NAMES, Record, find_columns, rows_of
from runtime.untrusted import parse_json
from utils import InputError

ADVICE = (
    "Expected objects with a file name and captions: a list of them, on its own or below any key ({images: [{filename, "
    "split, sentences: [{raw}]}]}), or a list for each class or split; or COCO's images and annotations; or an object "
    f"of file name -> captions. {NAMES}"
)


def read_json(path: Path, keys: Keys = USUAL) -> Captions:
    """Read a JSON file with objects that hold a file name and captions, wherever in it their list stands.

    Known are Karpathy's form (`dataset_rsicd.json`, `dataset_RSITMD.json`), NWPU's (class -> list), lists by split,
    COCO's captions (`images` and `annotations`), a list of pairs below any key, file name -> captions, and JSON lines.

    Raises:
        InputError: the file can't be read or has another form; the message names the dotted keys.
    """
    content = read_content(path)
    try:
        tree = parse_json(content)
    except ValueError as error:
        if _is_object(content.lstrip().partition(b"\n")[0]):
            return read_json_lines(path, keys)
        raise InputError(f"{path}: not JSON: {error}; save the file again as it was published") from error
    return _of_records(path, list(_records(path, tree, keys)), keys)


def read_json_lines(path: Path, keys: Keys = USUAL) -> Captions:
    """Read a text with an object on each line: a file name, and a caption or a list of them.

    Raises:
        InputError: the file can't be read, or a line is of another form; the message names it.
    """
    records, faults = [], []
    for number, line in enumerate(read_content(path).split(b"\n"), 1):
        if line.strip():
            try:
                records.append(Record(f"line {number}", parse_json(line)))
            except ValueError as error:
                faults.append(f"line {number}: not JSON: {error}")
    refuse_faults(path, faults, ADVICE)
    return _of_records(path, records, keys)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _of_records(path: Path, records: list[Record], keys: Keys) -> Captions:
    """The rows of objects, whose keys the first one shows."""
    faults = [f"{record.place}: not an object" for record in records if not isinstance(record.values, Mapping)]
    refuse_faults(path, faults, ADVICE)
    if not records:
        raise InputError(f"{path}: not a caption file that is known: no list of objects is in it\n{ADVICE}")
    columns = find_columns(records[0].values, keys)
    if columns is None:
        found = ", ".join(map(shown, records[0].values)) or "none"
        raise InputError(f"{path}: {records[0].place}: no file name or no captions; found the keys {found}\n{ADVICE}")
    return rows_of(path, records, columns)


def _records(path: Path, tree: Any, keys: Keys) -> Iterator[Record]:
    """The objects of the lists in a file."""
    if isinstance(tree, list):
        yield from _listed("", tree)
    if not isinstance(tree, dict):
        return
    if isinstance(tree.get("images"), list) and isinstance(tree.get("annotations"), list):
        yield from _coco(path, tree["images"], tree["annotations"], keys)
        return
    lists = {key: value for key, value in tree.items() if isinstance(value, list) and dict in map(type, value)}
    by_split = all(key.strip().lower() in SPLITS for key in lists)
    for key, value in lists.items():
        yield from _listed(f"{key}.", value, key if by_split else None)
    if not lists and all(PurePosixPath(name).suffix.lower() in ENDINGS for name in tree):
        for name, value in tree.items():
            yield Record(name, {keys.image or "filename": name, keys.caption or "captions": value})


def _listed(prefix: str, values: Iterable[Any], split: str | None = None) -> Iterator[Record]:
    return (Record(f"{prefix}{place}", value, split) for place, value in enumerate(values))


def _coco(path: Path, images: list[Any], annotations: list[Any], keys: Keys) -> Iterator[Record]:
    """COCO's images, each with the captions of the annotations that name its id."""
    of_image: dict[Any, list[Any]] = {}
    faults = []
    for place, image in enumerate(images):
        number = image.get("id") if isinstance(image, dict) else None
        if not isinstance(number, int | str) or number in of_image:
            faults.append(f"images.{place}: expected an object with an id of its own")
        else:
            of_image[number] = []
    for place, annotation in enumerate(annotations):
        number = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(number, int | str) or number not in of_image:
            faults.append(f"annotations.{place}: no image has the id {shown(str(number))}")
        else:
            of_image[number].append(annotation.get(keys.caption or "caption"))
    refuse_faults(path, faults, "Expected COCO's captions: images (id, file_name) and annotations (image_id, caption).")
    for place, image in enumerate(images):
        yield Record(f"images.{place}", {**image, keys.caption or "caption": of_image[image["id"]]})
