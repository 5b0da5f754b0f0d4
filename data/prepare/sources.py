"""Finds out which form a source of captions has, and where its images are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from data.images import ENDINGS
from data.lists import refuse_outside
from data.prepare.captions import SPLITS, USUAL, Captions, Entry, Keys, gather_entries, in_split, plain_name
from data.prepare.descriptions import read_descriptions
from data.prepare.folders import has_sidecars, metadata_files, read_metadata, read_sidecars
from data.prepare.nested import read_json, read_json_lines
from data.prepare.parquet import bare_names, download, parquet_images, read_parquet
from data.prepare.shards import read_shard, shard_images
from data.prepare.tables import read_table
from utils import InputError, write_atomic

JSON, JSON_LINES, TABLES = (".json",), (".jsonl", ".ndjson"), (".csv", ".tsv", ".txt", ".token")
PACKED = (".parquet", ".tar")
"""Files that hold the images, too."""
SHOWN = 5
"""Of several files, those of which is said how they were read."""
FORMS = (
    "a .json, .jsonl, .csv or .tsv with file names and captions, descriptions_*.txt, captions.txt or a folder with it, "
    "parquet files, .tar shards, or a folder of images with metadata.jsonl, metadata.csv or a .txt beside each"
)


@dataclass(frozen=True)
class Part:
    """One file or folder of a source.

    Attributes:
        path: that was read.
        captions: its rows.
        folders: where the images may be; empty where they are inside of the file.
        images: gives the image of each row, in their order, where they are inside.
    """

    path: Path
    captions: Captions
    folders: tuple[Path, ...] = ()
    images: Callable[[Path], Iterator[bytes]] | None = None


@dataclass(frozen=True)
class Source:
    """Captions that were read, and where their images are.

    Attributes:
        path: the first file or folder that was given.
        entries: the images with their captions.
        parts: the files.
        words: what was taken for what.
    """

    path: Path
    entries: list[Entry]
    parts: tuple[Part, ...]
    words: str

    @property
    def beside(self) -> tuple[Path, ...]:
        """Where what belongs to the source may lie."""
        return tuple(dict.fromkeys(part.path if part.path.is_dir() else part.path.parent for part in self.parts))

    @property
    def packed(self) -> bool:
        """Whether the images are inside of the files."""
        return self.parts[0].images is not None

    def places(self, given: Path | None) -> list[Path]:
        """The folder of images that was given, else for each file the first of the usual ones that exists.

        Raises:
            InputError: it is not there.
        """
        found = [(part, images_folder(given, part.folders)) for part in self.parts]
        for part, place in found:
            if place is None:
                raise InputError(
                    f"{part.path}: where are its images? {' or '.join(map(str, part.folders))} is not there; give "
                    "--images FOLDER, or --image_files none to make the lists alone"
                )
        return list(dict.fromkeys(place for _, place in found if place is not None))

    def write_images(self, folder: Path) -> None:
        """Write the images that are inside of the files, byte for byte.

        Raises:
            InputError: a file is damaged, or lacks one.
        """
        for part in self.parts:
            contents = part.images(part.path) if part.images else iter(())
            for row, content in zip(part.captions.rows, contents, strict=True):
                write_atomic(folder / plain_name(row.name), lambda out, content=content: out.write(content))  # type: ignore[misc]


def open_source(given: Sequence[tuple[str, str | None]], keys: Keys = USUAL, images: Path | None = None) -> Source:
    """Read the captions of a source of any form.

    Args:
        given: each a path, or `owner/name` on the Hugging Face hub, and the split of all that is in it, or None.
        keys: columns of file names and captions, where these are not to be guessed.
        images: the folder of the images, where it was given.

    Raises:
        InputError: there is no such source, its form isn't known, or see the readers.
    """
    parts = [part for text, side in given for part in _parts_of(text, side, keys)]
    packed = [part for part in parts if part.images is not None]
    if packed and len(packed) < len(parts):
        raise InputError(f"{packed[0].path}: holds its images, and other sources don't; make a set of each alone")
    if packed:
        rows = iter(bare_names([row for part in parts for row in part.captions.rows]))
        read = [replace(part.captions, rows=[next(rows) for _ in part.captions.rows]) for part in parts]
        parts = [replace(part, captions=captions) for part, captions in zip(parts, read, strict=True)]
    if len(parts) > 1:
        parts = [replace(part, captions=_placed(part)) for part in parts]
    first = parts[0].path if len(parts) == 1 or not Path(given[0][0]).exists() else Path(given[0][0])
    folders = [images] if images is not None else list(dict.fromkeys(chain(*(part.folders for part in parts))))
    words = "\n".join(dict.fromkeys(f"{part.path.name}: {part.captions.words}" for part in parts[:SHOWN]))
    entries = gather_entries(first, chain(*(part.captions.rows for part in parts)), folders)
    return Source(first, entries, tuple(parts), words)


def _placed(part: Part) -> Captions:
    """The captions of one of several files, whose rows name it."""
    rows = [replace(row, place=f"{part.path.name}, {row.place}") for row in part.captions.rows]
    return replace(part.captions, rows=rows)


def _parts_of(given: str, side: str | None, keys: Keys) -> list[Part]:
    """The files of one source, read."""
    path = Path(given).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
            raise InputError(f"{given}: no such file or folder. Expected {FORMS}")
        path = download(given)
    parts = _of_folder(path, keys) if path.is_dir() else [_of_file(path, keys)]
    return [replace(part, captions=in_split(part.captions, side or _split_told(path, part))) for part in parts]


def _split_told(path: Path, part: Part) -> str | None:
    """The split that the name of one of several files, or of its folder, begins with."""
    if part.images is None and part.path in (path, path / "captions.txt"):
        return None
    if any(row.split is not None for row in part.captions.rows):
        return None
    names = [part.path.stem, *([part.path.parent.name] if part.path != path else [])]
    words = [re.split(r"[-_.]", name)[0] for name in names]
    return next((word for word in words if word.lower() in SPLITS), None)


def _of_folder(folder: Path, keys: Keys) -> list[Part]:
    """What a folder holds, of the first form that is there."""
    if (folder / "captions.txt").is_file():
        return [_of_file(folder / "captions.txt", keys)]
    if metadata_files(folder):
        return [Part(folder, read_metadata(folder, keys), (folder,))]
    for ending in PACKED:
        if files := sorted(path for path in folder.rglob(f"*{ending}") if path.is_file()):
            return [_of_file(file, keys) for file in files]
    splits = [path for path in sorted(folder.iterdir()) if path.stem.lower() in SPLITS and _is_text(path)]
    if splits:
        return [_of_file(path, keys) for path in splits]
    if has_sidecars(folder):
        return [Part(folder, read_sidecars(folder), (folder,))]
    raise InputError(f"{folder}: not a source that is known. Expected {FORMS}")


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in (*JSON, *JSON_LINES, ".csv", ".tsv")


def _of_file(path: Path, keys: Keys) -> Part:
    """A file, read by what its name ends in."""
    beside = (path.parent / "images", path.parent)
    ending = path.suffix.lower()
    if ending == ".parquet":
        return Part(path, read_parquet(path, keys), images=parquet_images)
    if ending == ".tar":
        return Part(path, read_shard(path, keys), images=shard_images)
    if ending in JSON:
        return Part(path, read_json(path, keys), beside[:1])
    if ending in JSON_LINES:
        return Part(path, read_json_lines(path, keys), beside)
    if ending == ".txt" and path.name.lower().startswith("descriptions"):
        return Part(path, read_descriptions(path), (beside[0], path.parent.parent / "images"))
    if ending in TABLES:
        return Part(path, read_table(path, keys), beside[1:] if ending == ".csv" else beside)
    raise InputError(f"{path}: not a source that is known. Expected {FORMS}")


def images_folder(given: Path | None, usual: Sequence[Path]) -> Path | None:
    """The folder of images that was given, else the first of the usual ones that exists, else None.

    Raises:
        InputError: the folder that was given is not there.
    """
    if given is not None and not given.is_dir():
        raise InputError(f"{given}: no such folder of images; check --images")
    return given or next((folder for folder in usual if folder.is_dir()), None)


def find_images(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The file of each name: at its path, else anywhere below by file name, without ending, or in other letters.

    Hidden folders are passed over. A name that fits several files, or whose file belongs to another name, has none.

    Raises:
        InputError: some of them lie outside of the folder behind symbolic links.
    """
    files: dict[str, Path] = {}
    for place, folders, found in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files |= {Path(place, name).relative_to(folder).as_posix(): Path(place, name) for name in found}
    fitting: dict[str, list[Path]] = {}
    for relative, path in files.items():
        image = path.suffix.lower() in ENDINGS  # another ending is another image's, not that of a text beside it
        for key in _keys_of(relative)[: None if image else 1]:
            fitting.setdefault(key, []).append(path)
    owner: dict[Path, str] = {}
    for name in sorted(names, key=lambda name: name not in files):  # a file belongs first to who names its path
        wanted = [[files[name]]] if name in files else [fitting[key] for key in _keys_of(name) if key in fitting]
        if wanted and len(wanted[0]) == 1:
            owner.setdefault(wanted[0][0], name)
    refuse_outside(owner, folder)
    return {name: path for path, name in owner.items()}


def _keys_of(name: str) -> tuple[str, ...]:
    """What a name is found by, the strictest first; no file name holds a slash."""
    path = PurePosixPath(name)
    return path.name, f"{path.stem}/", f"{path.stem.lower()}//"
