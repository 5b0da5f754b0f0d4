"""An index that follows its folder: which images are new, changed, moved or missing, and what becomes of their rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from archive.index_folder import Manifest, add_shard, retire_shard
from archive.mending import Parts, rows_of
from archive.records import Record, write_records
from archive.store import VectorStore
from runtime.progress import progress_bar
from utils import logger

PIECE = 2**20  # bytes that are read at a time


@dataclass(frozen=True)
class Stamp:
    """The state of a file: bytes, and time of modification in nanoseconds since 1970."""

    size: int
    modified: int


@dataclass(frozen=True)
class Changes:
    """How a folder differs from what its index knows.

    Attributes:
        new: images that the index lacks.
        changed: images of another content than was encoded.
        moved: name in the index -> the image that has that content now.
        missing: images of the index that are no longer in the folder.
        looked_at: images of the same content whose file has another stamp, or was never looked at.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    moved: dict[str, Record] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    looked_at: dict[str, Record] = field(default_factory=dict)


def stamps_of(images: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """The stamp of each image of a folder that is still there."""
    found = {}
    for name in names:
        try:
            status = (images / name).stat()
        except OSError:
            continue
        found[name] = Stamp(status.st_size, status.st_mtime_ns)
    return found


def digest_of(path: Path) -> str | None:
    """BLAKE2b of a file's content, 16 bytes in hexadecimal digits; None where it can't be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except OSError:
        return None
    return digest.hexdigest()


def record_of(images: Path, name: str) -> Record:
    """What an index is to know of an image that is encoded now; looked at before its content is read."""
    stamp = stamps_of(images, [name]).get(name)
    return Record(name) if stamp is None else Record(name, stamp.size, stamp.modified, digest_of(images / name))


def compare(
    records: Collection[Record], files: Mapping[str, Stamp], images: Path, verify: bool, follow: bool
) -> Changes:
    """Tell new, changed, moved and missing images apart.

    A content is read only where a stamp differs, or where a new image has the size of a missing one.

    Args:
        records: of the index, each name once.
        files: stamps of the images in the folder.
        images: the folder.
        verify: read every content, whatever its stamp.
        follow: whether an embedding may go on under another name.
    """
    known = {record.name for record in records}
    missing = [record for record in records if record.name not in files]
    new = [name for name in files if name not in known]
    sizes = {record.size for record in missing if record.digest is not None} if follow else set()
    doubtful = [
        record for record in records if record.name in files and (verify or differs(record, files[record.name]))
    ]
    candidates = [name for name in new if files[name].size in sizes]
    digests = _digests(images, [*(record.name for record in doubtful), *candidates])
    changes = Changes()
    for record in doubtful:
        digest = digests[record.name]
        if digest is not None and record.digest is not None and digest != record.digest:
            changes.changed.append(record.name)
        elif digest is not None and differs(record, stamp := files[record.name]):
            changes.looked_at[record.name] = record._replace(size=stamp.size, modified=stamp.modified, digest=digest)
    alike: dict[str | None, list[str]] = {}
    for name in reversed(candidates):
        alike.setdefault(digests[name], []).append(name)
    for record in missing:
        if record.digest is None or not alike.get(record.digest):
            changes.missing.append(record.name)
        else:
            name = alike[record.digest].pop()
            stamp = files[name]
            changes.moved[record.name] = record._replace(name=name, size=stamp.size, modified=stamp.modified)
    moved = {record.name for record in changes.moved.values()}
    changes.new.extend(name for name in new if name not in moved)
    return changes


def differs(record: Record, stamp: Stamp) -> bool:
    """Whether a file may have another content than was encoded."""
    return record.digest is None or (record.size, record.modified) != (stamp.size, stamp.modified)


def _digests(images: Path, names: Sequence[str]) -> dict[str, str | None]:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(digest_of, [images / name for name in names])
        return dict(
            zip(names, progress_bar(found, total=len(names), desc="images compared", unit="image"), strict=True)
        )


def take_in(
    folder: Path,
    manifest: Manifest,
    parts: Parts,
    changes: Changes,
    dropped: Collection[str],
    store: VectorStore | None,
) -> None:
    """Bring the shards of an index up to its folder, one after the other; killed in between, the next run goes on.

    Args:
        folder: of the index, which no other run writes.
        manifest: of it.
        parts: what it holds.
        changes: what became of its images.
        dropped: images to take out.
        store: has the embeddings; None: the folder.
    """
    now = changes.looked_at | changes.moved
    if store is not None and changes.moved:
        store.copy({old: record.name for old, record in changes.moved.items()})
    for shard, records in parts.items():
        places = [place for place, record in enumerate(records) if record.name not in dropped]
        kept = [now.get(records[place].name, records[place]) for place in places]
        if kept == records:
            continue
        if len(kept) == len(records):
            write_records(folder / "shards" / f"{shard}.json", kept)  # each keeps its row
            continue
        if kept:
            values = (
                None if store is not None else rows_of(folder, manifest, shard, len(records)).rows(np.array(places))
            )
            add_shard(folder, kept, values, manifest.dtype)
        retire_shard(folder, shard)
    if store is not None:
        store.remove([*changes.moved, *dropped])


def say(changes: Changes, prune: bool) -> None:
    """Tell what is new, changed, moved and missing."""
    counts = {"new": changes.new, "changed": changes.changed, "moved": changes.moved, "missing": changes.missing}
    told = [f"{len(names)} {what}" for what, names in counts.items() if names]
    if told:
        logger.info("images: %s", ", ".join(told))
    if changes.missing and not prune:
        logger.warning(
            "%d images of the index are no longer in the folder; answers leave them out, --prune takes them out.",
            len(changes.missing),
        )
