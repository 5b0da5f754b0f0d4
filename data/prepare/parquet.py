"""Reads a data set in the Hugging Face form: parquet files with the columns image, filename and captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data.lists import refuse_faults
from data.prepare.captions import SPLITS, Entry, Row, gather_entries
from utils import InputError, write_atomic

ROWS_AT_ONCE = 64
INSTALL = "install the extra hub: bash exec/environment.sh hub"


def download(name: str) -> Path:
    """Download the parquet files of a data set, `owner/name`, from the Hugging Face hub into its cache.

    Raises:
        InputError: the hub's library is missing, or can't find or reach the data set.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{name}: no such file or folder; to download it from the Hugging Face hub, {INSTALL}"
        ) from error
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet"]))
    except Exception as error:  # the library and what it is built on raise errors of many classes
        raise InputError(
            f"{name}: no such file or folder, and not to be had from the Hugging Face hub either "
            f"({type(error).__name__}: {error})"
        ) from error


def parquet_files(path: Path) -> list[Path]:
    """The parquet files at or below a path, in the order of their names."""
    return [path] if path.is_file() else sorted(path.rglob("*.parquet"))


def read_parquet(path: Path) -> list[Entry]:
    """Read the names and captions; the split is told by a file's name or folder (`train-00000-of-00001.parquet`).

    Folders are left out of file names as long as these stay different.

    Raises:
        InputError: pyarrow is missing, a file can't be read, or a row is faulty; the message names file and row.
    """
    rows: list[Row] = []
    for file in parquet_files(path):
        faults = []
        for number, row in enumerate(_rows(file, ["filename", "captions"]), 1):
            name, captions = row["filename"], row["captions"]
            captions = [captions] if isinstance(captions, str) else captions
            if not isinstance(name, str):
                faults.append(f"row {number}: filename is {name!r}, expected a text")
            elif not (isinstance(captions, list) and captions and all(isinstance(text, str) for text in captions)):
                faults.append(f"row {number}: captions is not a list of texts with at least one in it")
            else:
                rows.append((f"{file.name}, row {number}", name, captions, _side(path, file)))
        refuse_faults(file, faults, "Expected the columns filename (text) and captions (list of texts).")
    bare = [PurePosixPath(name).name for _, name, _, _ in rows]
    if len(set(bare)) == len(bare):
        rows = [(place, name, captions, split) for (place, _, captions, split), name in zip(rows, bare, strict=True)]
    return gather_entries(path, rows)


def write_images(path: Path, entries: list[Entry], folder: Path) -> None:
    """Write the images of all rows, whose entries `read_parquet` returned, as files, byte for byte.

    Raises:
        InputError: a row holds no image; the message names file and row.
    """
    names = iter(entries)
    for file in parquet_files(path):
        for number, row in enumerate(_rows(file, ["image"]), 1):
            image = row["image"]
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes):
                raise InputError(
                    f"{file}, row {number}: no image in the column image: expected bytes, or a struct with the key "
                    "bytes. A data set that only has paths is read from its folder: give a CSV or captions.txt"
                )
            write_atomic(folder / next(names).name, lambda out, content=content: out.write(content))  # type: ignore[misc]


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file as dicts; few are in memory at a time."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{file}: reading parquet needs pyarrow: {INSTALL}") from error
    try:
        with ParquetFile(file) as opened:
            missing = [name for name in columns if name not in opened.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{file}: no column {', '.join(missing)}; found {', '.join(opened.schema_arrow.names)}. Expected "
                    "image, filename and captions"
                )
            for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: a text that is not UTF-8
        raise InputError(f"{file}: not a whole parquet file ({error}); download it again") from error


def _side(path: Path, file: Path) -> str | None:
    """The split that a file's name, or else its folder's, begins with."""
    places = [file.stem, *([] if file == path else [file.parent.name])]
    words = [re.split(r"[-_.]", place)[0] for place in places]
    return next((word for word in words if word.lower() in SPLITS), None)
