"""The one reader of tables: records with named columns, out of CSV and its kin, JSON, parquet files or archives."""

from __future__ import annotations

import ast
import csv
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.lists import read_lines, refuse_faults, shown
from data.prepare.captions import USUAL, Captions, Keys, Row
from runtime.untrusted import parse_json
from utils import InputError

IMAGE_KEYS = (
    *("filename", "file_name", "filepath", "file_path", "image_filename", "image_file_name", "image_file"),
    *(
        "image_path",
        "image_name",
        "imagepath",
        "img_path",
        "img_name",
        "image",
        "img",
        "jpg_name",
        "path",
        "file",
        "name",
    ),
)
CAPTION_KEYS = (
    *("captions", "caption", "sentences", "sentence", "raw", "title", "texts", "text", "comment"),
    *("descriptions", "description"),
)
"""Of the keys of a table the first of these is taken; `caption` brings `caption_1`, `caption_2` and so on along."""
SPLIT_KEYS = ("split", "subset", "partition")
SENTENCE_KEYS = ("raw", "caption", "sentence", "text")
"""Of an object that stands for a caption."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
NAMES = "Give their names by --image_key and --caption_key."

_LITERAL = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LISTED = re.compile(rf"(?:array\()?\[\s*(?:(?:{_LITERAL})[\s,]*)*\](?:,\s*dtype=\w+\s*)?\)?", re.DOTALL)
_BEGINS_LIST = re.compile(r"""\s*(?:array\()?\[\s*['"\]]""")


@dataclass(frozen=True)
class Record:
    """One object or line of a source.

    Attributes:
        place: where it stands, for messages.
        values: by column or key.
        split: that the place says, such as the key of the list that it stands in.
    """

    place: str
    values: Mapping[str, Any]
    split: str | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns are read. The names are those of the source."""

    image: str
    caption: str
    split: str | None

    @property
    def words(self) -> str:
        """What was taken for what."""
        return f"images: {self.image}, captions: {self.caption}" + (f", split: {self.split}" if self.split else "")


def read_table(path: Path, keys: Keys = USUAL, words: Sequence[str] = CAPTION_KEYS) -> Captions:
    """Read a text whose lines are split at commas, semicolons, tabs or bars, with or without names of columns.

    Without them each line is a file name, a tab and a caption; `name#0` counts as `name` (Flickr30k). With them a cell
    may hold one caption, or the text of a Python list or NumPy array of captions. Rows without anything are passed
    over. Where `keys` does not name the column of captions, it is the first that has one of the `words`.

    Raises:
        InputError: the file can't be read, no columns of names and captions are in it, or a row is faulty; the message
            names the lines.
    """
    lines = read_lines(path)
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    head = lines[first] if first < len(lines) else ""
    for delimiter in DELIMITERS:
        names = [name.strip() for name in _cells(head, delimiter)]
        columns = find_columns(names, keys, words)
        if columns is not None:
            captions = rows_of(path, _records(path, lines, first, names, delimiter), columns)
            return Captions(captions.rows, f"{captions.words} (split at {DELIMITERS[delimiter]})")
    if "\t" in head and keys == USUAL:
        return _read_pairs(path, lines)
    names = max((_cells(head, delimiter) for delimiter in DELIMITERS), key=len)
    raise InputError(
        f"{path}, line {first + 1}: expected columns of file names and captions, such as filepath,caption (and "
        f"split), found {', '.join(map(shown, names)) or 'nothing'}. {NAMES} Without a line of names, each line is a "
        "file name, a tab and a caption."
    )


def find_columns(names: Iterable[str], keys: Keys, words: Sequence[str] = CAPTION_KEYS) -> Columns | None:
    """The columns that hold file names and captions: those that are asked for, else the first that are known."""
    by_word = {name.strip().lower(): name for name in reversed(list(names))}

    def known(asked: str | None, words: Sequence[str]) -> str | None:
        if asked is not None:
            return by_word.get(asked.strip().lower())
        return next((by_word[word] for word in words if word in by_word), None)

    image, caption = known(keys.image, IMAGE_KEYS), known(keys.caption, words)
    if caption is None and keys.caption is None:
        numbered = [re.sub(r"[ _-]?\d+$", "", word) for word in by_word]
        caption = next((word for word in words if word in numbered), None)
    if image is None or caption is None or image == caption:
        return None
    return Columns(image, caption, known(None, SPLIT_KEYS))


def rows_of(path: Path, records: Iterable[Record], columns: Columns) -> Captions:
    """The rows of records.

    Raises:
        InputError: one has no file name, or its captions are of another kind; the message names the places.
    """
    rows, faults = [], []
    for record in records:
        name = record.values.get(columns.image)
        split = record.values.get(columns.split) if columns.split else record.split
        captions, whole = _captions(record.values, columns.caption)
        if not isinstance(name, str):
            faults.append(f"{record.place}: {columns.image} is {shown(str(name))}, expected a file name")
        elif not captions:
            faults.append(f"{record.place}: {columns.caption} is neither a text nor a list of texts with one in it")
        elif split is not None and not isinstance(split, str):
            faults.append(f"{record.place}: {columns.split} is {shown(str(split))}, expected a word")
        else:
            rows.append(Row(record.place, name, captions, split, whole))
    refuse_faults(path, faults, f"Read as {columns.words}. {NAMES}")
    return Captions(rows, columns.words)


def listed_texts(cell: str) -> list[str] | None:
    """The texts of a cell that is a list: Python's (`['a', "b's"]`), NumPy's (without commas) or JSON's.

    Returns:
        None where it is no list, but one text.

    Raises:
        ValueError: it begins as a list and does not go on as one.
    """
    if not _BEGINS_LIST.match(cell):
        return None
    try:
        parsed = parse_json(cell.encode("utf-8", "replace"))
        if isinstance(parsed, list) and all(isinstance(text, str) for text in parsed):
            return parsed
    except ValueError:
        pass  # Python's quotes, or NumPy's blanks between the texts
    if not _LISTED.fullmatch(cell.strip()):
        raise ValueError("it begins as a list of texts and does not end as one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know and keeps as they are
            return [ast.literal_eval(literal) for literal in re.findall(_LITERAL, cell.replace("\n", " "), re.DOTALL)]
    except SyntaxError as error:
        raise ValueError(f"a text in its list has an escape that is none ({error.msg})") from error


def _captions(values: Mapping[str, Any], column: str) -> tuple[list[str], bool]:
    """The captions of a record, and whether they were several: then they are all that the image has."""
    numbered = {key: found for key in values if (found := re.fullmatch(rf"{re.escape(column)}[ _-]?(\d+)", key))}
    if not numbered:
        return _texts(values.get(column))
    # Images with fewer captions than columns leave the last ones empty.
    keys = [*([column] if column in values else []), *sorted(numbered, key=lambda key: int(numbered[key][1]))]
    return [values[key] for key in keys if isinstance(values[key], str) and values[key]], True


def _texts(value: Any) -> tuple[list[str], bool]:
    if isinstance(value, str):
        return [value], False
    if isinstance(value, Mapping):
        return [text for key in SENTENCE_KEYS if isinstance(text := value.get(key), str)][:1], True
    if not isinstance(value, list):
        return [], True
    texts = [text for part in value for text in (_texts(part)[0] if not isinstance(part, list) else [])]
    return (texts if len(texts) == len(value) else []), True


def _records(path: Path, lines: Sequence[str], first: int, names: Sequence[str], delimiter: str) -> list[Record]:
    """The rows below the names of the columns, which stand on line `first` (from 0)."""
    reader = csv.reader(io.StringIO("\n".join(lines[first + 1 :]) + "\n"), delimiter=delimiter, strict=True)
    records, faults = [], []
    line = first + 1
    try:
        for cells in reader:
            line = first + 1 + reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                faults.append(f"line {line}: expected {len(names)} values, as line {first + 1} has columns")
                continue
            try:
                values = {name: _value(cell) for name, cell in zip(names, cells, strict=True)}
                records.append(Record(f"line {line}", values))
            except ValueError as fault:
                faults.append(f"line {line}: {fault}")
    except csv.Error as error:
        faults.append(f"line {line + 1}: {error}")  # where the row begins that fails
    refuse_faults(
        path, faults, f"A caption that holds one of {delimiter!r} or a quotation mark stands in quotation marks."
    )
    return records


def _value(cell: str) -> str | list[str]:
    """A cell: a text, or the texts of a list."""
    texts = listed_texts(cell)
    return cell if texts is None else texts


def _read_pairs(path: Path, lines: Sequence[str]) -> Captions:
    """Lines of a file name, a tab and a caption."""
    rows, faults = [], []
    for line, text in enumerate(lines, 1):
        name, tab, caption = text.partition("\t")
        if tab:
            rows.append(Row(f"line {line}", re.sub(r"#\d+\s*$", "", name), [caption]))
        elif text.strip():
            faults.append(f"line {line}: no tab in {shown(text)}")
    refuse_faults(path, faults, "Each line is a file name, a tab character and a caption.")
    return Captions(rows, "each line is a file name, a tab and a caption")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []
