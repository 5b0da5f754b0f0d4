"""Before an index is added to: damaged parts are taken out, to be encoded again, and each image is left in it once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from archive.index_folder import Manifest, add_shard, finished_shards, read_manifest, remove_retired, update_manifest
from archive.records import Record, read_records
from archive.shards import AGAIN, Shards
from runtime.progress import progress_bar
from utils import InputError, logger

Parts = dict[str, list[Record]]
"""The images of each shard, by its id."""


def mended(folder: Path, recipe: Manifest, alone: bool) -> Parts:
    """What an index holds, once what is damaged or repeated is taken out.

    Args:
        folder: of the index, which no other run writes.
        recipe: what it is made with.
        alone: whether no other process of the same job writes it either; else nothing is changed.

    Raises:
        InputError: something is damaged or repeated, and this process is not alone.
    """
    present = read_manifest(folder)
    if present is None:
        present = recipe
    if alone:
        remove_retired(folder)
    found = _sound(folder, present, alone)
    while repeated := _repeated(found):
        for shard, places in repeated.items():
            told = f"{len(found[shard]) - len(places)} of its {len(found[shard])} images are in the index already"
            _tell(f"{folder / 'shards' / shard}.json: {told}; {AGAIN}", alone)
            _keep(folder, present, shard, found[shard], places)
        found = _sound(folder, present, alone)
    if alone and present is not recipe:
        update_manifest(folder, present)
    return found


def _sound(folder: Path, manifest: Manifest, alone: bool) -> Parts:
    """The shards that can be read; the others are removed."""
    found = {}
    for shard in progress_bar(finished_shards(folder, manifest.store), desc="parts checked", unit="part"):
        try:
            records = read_records(folder / "shards" / f"{shard}.json", manifest.shards.get(shard))
            if manifest.store is None:
                rows_of(folder, manifest, shard, len(records)).check(0)
        except InputError as fault:
            _tell(str(fault), alone)
            _remove(folder, shard)
        else:
            found[shard] = records
    return found


def _repeated(found: Parts) -> dict[str, list[int]]:
    """The places of the images to be kept, of each shard that has some of an earlier one, or one twice."""
    earlier: set[str] = set()
    repeated = {}
    for shard, records in found.items():
        first = {record.name: place for place, record in reversed(list(enumerate(records)))}
        kept = sorted(place for name, place in first.items() if name not in earlier)
        earlier.update(first)
        if len(kept) < len(records):
            repeated[shard] = kept
    return repeated


def _keep(folder: Path, manifest: Manifest, shard: str, records: list[Record], places: list[int]) -> None:
    """Put a shard of some of its images in its place."""
    if places:
        values = None
        if manifest.store is None:
            values = rows_of(folder, manifest, shard, len(records)).rows(np.array(places))
        add_shard(folder, [records[place] for place in places], values, manifest.dtype)
    _remove(folder, shard)


def rows_of(folder: Path, manifest: Manifest, shard: str, count: int) -> Shards:
    """The embeddings of a shard.

    Raises:
        InputError: they are damaged.
    """
    return Shards(folder / "shards", {shard: count}, manifest.dim, manifest.dtype, manifest.crc32)


def _remove(folder: Path, shard: str) -> None:
    path = folder / "shards" / f"{shard}.json"
    path.unlink()  # first: without it the shard does not count
    path.with_suffix(".npy").unlink(missing_ok=True)


def _tell(fault: str, alone: bool) -> None:
    """Say what is to be mended, or that this process can't do so."""
    if not alone:
        raise InputError(f"{fault} Do so once without torchrun.")
    logger.warning("%s: it is mended now.", fault.partition(f"; {AGAIN}")[0].rstrip("."))
