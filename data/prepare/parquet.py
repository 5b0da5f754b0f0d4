"""Reads data sets in the Hugging Face form: parquet files with the images in them, their names and captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from data.prepare.captions import USUAL, Captions, Keys, Row
from data.prepare.tables import NAMES, Columns, Record, find_columns, rows_of
from utils import InputError

MOST_ROWS, MOST_BYTES = 1000, 2**25
"""Of what is in memory at a time; a single row may be larger."""
IMAGE = "image"
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


def read_parquet(file: Path, keys: Keys = USUAL) -> Captions:
    """Read names and captions; where no column has names, they are the paths that the images bring along.

    Raises:
        InputError: pyarrow is missing, the file can't be read, or a row is faulty; the message names file and row.
    """
    columns = _columns(file, keys)
    names = f"{IMAGE}.path" if columns.image == IMAGE else columns.image
    wanted = [names, columns.caption, *([columns.split] if columns.split else [])]
    records = (
        Record(f"row {number}", row | {columns.image: _path_of(row[columns.image])})
        for number, row in enumerate(_rows(file, wanted), 1)
    )
    return rows_of(file, records, columns)


def bare_names(rows: Sequence[Row]) -> list[Row]:
    """The rows without folders in their names, as long as different names stay different."""
    bare = {row.name: PurePosixPath(row.name).name for row in rows}
    return [replace(row, name=bare[row.name]) for row in rows] if len(set(bare.values())) == len(bare) else list(rows)


def parquet_images(file: Path) -> Iterator[bytes]:
    """The image of each row, byte for byte.

    Raises:
        InputError: a row holds none; the message names file and row.
    """
    for number, row in enumerate(_rows(file, [IMAGE]), 1):
        image = row[IMAGE]
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            raise InputError(
                f"{file}, row {number}: no image in the column image: expected bytes, or a struct with the key "
                "bytes. A data set that only has paths is read from its folder: give a CSV or captions.txt"
            )
        yield content


def _columns(file: Path, keys: Keys) -> Columns:
    """The columns of names and captions."""
    with _opened(file) as opened:
        names = opened.schema_arrow.names
        texts = [name for name in names if name != IMAGE]
        columns = find_columns(texts, keys) or find_columns(names, Keys(keys.image or IMAGE, keys.caption))
        paths = opened.schema_arrow.field(IMAGE).type if IMAGE in names else None
    by_path = columns is not None and columns.image == IMAGE
    if columns is None or IMAGE not in names or (by_path and "path" not in [field.name for field in _fields(paths)]):
        raise InputError(
            f"{file}: no column of images, file names or captions; found {', '.join(names)}. Expected image (with the "
            f"bytes), filename and captions. {NAMES}"
        )
    return columns


def _fields(kind: Any) -> list[Any]:
    """The fields of a struct's type; none of another."""
    return [kind.field(place) for place in range(kind.num_fields)]


def _path_of(value: Any) -> Any:
    return value.get("path") if isinstance(value, dict) else value


def _rows(file: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file as dicts; few are in memory at a time."""
    import pyarrow

    try:
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=_rows_at_once(opened.metadata), columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: a text that is not UTF-8
        raise InputError(f"{file}: not a whole parquet file ({error}); download it again") from error


def _rows_at_once(metadata: Any) -> int:
    """As many rows as take little memory on average."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    return max(1, min(MOST_ROWS, int(MOST_BYTES / max(largest, 1))))


def _opened(file: Path) -> Any:
    """A parquet file, read in pieces."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{file}: reading parquet needs pyarrow: {INSTALL}") from error
    try:
        return ParquetFile(file, buffer_size=2**20)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: not a whole parquet file ({error}); download it again") from error
