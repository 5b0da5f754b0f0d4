"""Before an index is added to: damaged parts are taken out, to be encoded again, and each image is left in it once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from archive.index_folder import Manifest, add_shard, finished_shards, read_manifest, read_names, update_manifest
from archive.shards import AGAIN, Shards
from utils import InputError, logger


def mended_names(folder: Path, recipe: Manifest, alone: bool) -> set[str]:
    """The images that an index holds, once what is damaged or repeated is taken out.

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
    names: set[str] = set()
    for shard in tqdm(finished_shards(folder, recipe.store), "parts checked", disable=None, leave=False):
        path = folder / "shards" / f"{shard}.json"
        try:
            listed, rows = _read(folder, present, shard)
        except InputError as fault:
            _tell(str(fault), alone)
        else:
            kept = _new(listed, names)
            names.update(listed)
            if len(kept) == len(listed):
                continue
            repeated = f"{len(listed) - len(kept)} of its {len(listed)} images are in the index already"
            _tell(f"{path}: {repeated}; {AGAIN}", alone)
            if kept:
                values = None if rows is None else rows.rows(np.array(kept))
                add_shard(folder, [listed[place] for place in kept], values, recipe.dtype)
        path.unlink()  # first: without it the shard does not count
        path.with_suffix(".npy").unlink(missing_ok=True)
    if alone and present is not recipe:
        update_manifest(folder, recipe)
    return names


def _read(folder: Path, manifest: Manifest, shard: str) -> tuple[list[str], Shards | None]:
    """Names and embeddings of a shard; None: a vector store has them.

    Raises:
        InputError: it is damaged.
    """
    listed = read_names(folder / "shards" / f"{shard}.json", manifest.shards.get(shard))
    if manifest.store is not None:
        return listed, None
    rows = Shards(folder / "shards", {shard: len(listed)}, manifest.dim, manifest.dtype, manifest.crc32)
    rows.check(0)
    return listed, rows


def _new(listed: list[str], earlier: set[str]) -> list[int]:
    """Places of the names that are not among the earlier ones, equal names once."""
    first = {name: place for place, name in reversed(list(enumerate(listed)))}
    return sorted(place for name, place in first.items() if name not in earlier)


def _tell(fault: str, alone: bool) -> None:
    """Say what is to be mended, or that this process can't do so."""
    if not alone:
        raise InputError(f"{fault} Do so once without torchrun.")
    logger.warning("%s: it is mended now.", fault.partition(f"; {AGAIN}")[0].rstrip("."))
