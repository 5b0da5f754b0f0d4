"""Finds out which form a source of captions has, and where its images are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.lists import refuse_outside
from data.prepare.captions import Entry, read_captions, read_csv, read_descriptions, read_json
from data.prepare.parquet import download, parquet_files, read_parquet
from utils import InputError

FORMS = "a .json (RSICD, RSITMD, NWPU), a .csv, descriptions_*.txt, captions.txt or a folder with it, or parquet files"


@dataclass(frozen=True)
class Source:
    """Captions that were read, and where their images are.

    Attributes:
        path: the file or folder that was read.
        entries: the images with their captions.
        folders: where the images may be; empty where they are inside of the parquet files.
    """

    path: Path
    entries: list[Entry]
    folders: tuple[Path, ...]


def open_source(given: str) -> Source:
    """Read the captions of a source of any form: a path, or `owner/name` on the Hugging Face hub.

    Raises:
        InputError: there is no such source, its form isn't known, or see the readers.
    """
    path = Path(given)
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", given):
            raise InputError(f"{given}: no such file or folder. Expected {FORMS}")
        path = download(given)
    if path.is_dir() and (path / "captions.txt").is_file():
        path = path / "captions.txt"
    beside = (path.parent / "images", path.parent)
    if path.suffix == ".parquet" or (path.is_dir() and parquet_files(path)):
        return Source(path, read_parquet(path), ())
    if path.suffix == ".json":
        return Source(path, read_json(path), beside[:1])
    if path.suffix == ".csv":
        return Source(path, read_csv(path), beside[1:])
    if path.suffix == ".txt" and path.name.lower().startswith("descriptions"):
        return Source(path, read_descriptions(path), (beside[0], path.parent.parent / "images"))
    if path.suffix == ".txt":
        return Source(path, read_captions(path), beside)
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
    """The file of each name: at its path, else anywhere below by file name, else by file name without ending.

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
        for key in (PurePosixPath(relative).name, _any_ending(relative)):
            fitting.setdefault(key, []).append(path)
    owner: dict[Path, str] = {}
    for name in sorted(names, key=lambda name: name not in files):  # a file belongs first to who names its path
        exact = [files[name]] if name in files else fitting.get(PurePosixPath(name).name)
        candidates = exact or fitting.get(_any_ending(name), [])
        if len(candidates) == 1:
            owner.setdefault(candidates[0], name)
    refuse_outside(owner, folder)
    return {name: path for path, name in owner.items()}


def _any_ending(name: str) -> str:
    """The key of all files that a name fits if endings don't count; no file name holds a slash."""
    return f"{PurePosixPath(name).stem}/"
