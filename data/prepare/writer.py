"""Writes a data set in the precomp format: all of it or nothing, and never over another."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from data.annotations import Split, copies_file, list_files, read_annotations
from data.lists import read_lines, write_lines
from data.prepare.captions import Entry
from data.prepare.lists import Lists, list_digest
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, write_text_atomic

ImageFiles = Literal["copy", "link", "either"]
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
RECORD = "prepare.json"  # what a set was made from, and the digests of its lists


def refuse_taken(out: Path) -> None:
    """Raise an InputError unless a data set may be made at `out`: nothing is there, or an empty folder."""
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise InputError(f"{out}: is there already, and nothing is ever overwritten; choose another --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well, and is removed when not.

    Raises:
        InputError: `out` is taken, or the disk refuses.
    """
    refuse_taken(out)
    staging = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        staging.mkdir(parents=True)
        yield staging
        staging.rename(out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise InputError(
            f"{out}: can't be made ({error.strerror}: {error.filename}); nothing was left of it"
        ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def put_images(lists: Lists, paths: Mapping[str, Path], folder: Path, how: ImageFiles) -> None:
    """Copy or hard-link the images of both lists into `images/`; what else is there is removed.

    Args:
        lists: the images.
        paths: the file of each by its name.
        folder: of the new set.
        how: "either" links where that is possible, and copies elsewhere; copies keep their date.

    Raises:
        InputError: hard links can't reach from the images to the new set.
    """
    target = folder / "images"
    target.mkdir(exist_ok=True)
    wanted = {target / entry.name: paths[entry.name] for entries in lists.values() for entry in entries}
    for path in [path for path in target.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()
    for path, source in wanted.items():
        if path == source:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # A symbolic link would lead out of the set's folder, which the loader refuses.
        if how == "copy" or not _linked(source.resolve(), path, must=how == "link"):
            shutil.copyfile(source, path)
            os.utime(path, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))


def _linked(source: Path, path: Path, must: bool) -> bool:
    """Make a hard link; False where no link can reach.

    Raises:
        InputError: the same, where it must.
    """
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        if must:
            raise InputError(
                f"{source}: can't be linked into {path.parent} ({error.strerror}); use --image_files copy"
            ) from error
        return False
    return True


def write_lists(lists: Lists, folder: Path, record: Mapping[str, Any]) -> None:
    """Write the lists, those of a val split, and the record of what the set was made from; then read the lists back.

    Each image has as many captions. Where some are copies, their lines are recorded: `data.annotations.read_copies`.

    Raises:
        InputError: what is read back differs.
    """
    splits: dict[Split, Sequence[Entry]] = {"train": lists["train"], "test": lists["test"]}
    val = [entry for entry in lists["train"] if entry.side == "val"]
    if 0 < len(val) < len(lists["train"]):
        splits |= {"train_verify": [entry for entry in lists["train"] if entry.side != "val"], "val_verify": val}
    digests = {}
    for split, entries in splits.items():
        names = [entry.name for entry in entries]
        captions = [caption for entry in entries for caption in entry.captions]
        places = [place < len(entry.own) for entry in entries for place in range(len(entry.captions))]
        copies = [str(line) for line, own in enumerate(places, 1) if not own]
        files = dict(zip(list_files(folder, split), (names, captions), strict=True))
        files |= {copies_file(folder, split): copies} if copies else {}
        for file, lines in files.items():
            write_lines(file, lines)
            digests[file.name] = list_digest(lines)
        back, own_captions = read_annotations(folder, split), [caption for entry in entries for caption in entry.own]
        if list(back.image_names) != names or list(back.captions) != own_captions:
            raise InputError(f"{split}: the lists read back otherwise than they were written; please report the source")
    content = {"made_by": "data.prepare", **record, "lists": digests}
    write_text_atomic(folder / RECORD, json.dumps(content, indent=2) + "\n")


def compare_record(folder: Path) -> str:
    """A line on whether the lists are still as they were written; "" where the set has no record.

    Raises:
        InputError: the record is not one.
    """
    if not (folder / RECORD).is_file():
        return ""
    changed = changed_lists(folder)
    return (
        f"{RECORD}: CHANGED since the set was made: {', '.join(changed)}"
        if changed
        else f"{RECORD}: the lists are as they were made (SHA-256)"
    )


def read_record(folder: Path) -> dict[str, Any]:
    """What `write_lists` recorded.

    Raises:
        InputError: the record is not there, or not one.
    """
    path = folder / RECORD
    try:
        content = parse_json(read_bytes(path))
        return {**content, "lists": dict(content["lists"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a record of data.prepare ({error}); remove it, or make the set anew") from error


def changed_lists(folder: Path) -> list[str]:
    """The lists of a set that are no longer as its record has them, or are gone.

    Raises:
        InputError: see `read_record`.
    """
    digests = read_record(folder)["lists"]
    # Only names that a list can have: the record may come from elsewhere.
    splits = get_args(Split)
    known = {file.name for split in splits for file in (*list_files(folder, split), copies_file(folder, split))}
    return [
        name
        for name in sorted(known & digests.keys())
        if not (folder / name).is_file() or list_digest(read_lines(folder / name)) != digests[name]
    ]
