"""Encodes the images of a folder into an index, a shard at a time, and goes on where it was stopped.

Letters: B batch, n images of a shard, S image side in pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import option
from archive.encoder import Encoder
from archive.index_folder import Manifest, add_shard, check_recipe, update_manifest
from archive.mending import mended_names
from archive.shards import Dtype
from archive.store import VectorStore, open_full_store
from data.images import image_names, load_square
from data.lists import first_faults, name_fault
from option.schema import ImageReading
from runs.ready.folder import is_ready
from runtime.devices import choose_device
from runtime.distributed import environment_number, ranks, told
from runtime.locks import folder_lock
from runtime.progress import progress_bar
from utils import InputError, file_sha256, logger, remove_unfinished, write_atomic


@dataclass(frozen=True)
class Share:
    """Which of several processes this is, as torchrun says: number `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> Share:
        """What `torchrun` says; alone without it.

        Raises:
            InputError: the environment says it in part, so that images would be left out.
        """
        return cls() if ranks() == 1 else cls(*told(("RANK", "WORLD_SIZE"), "search.py"))

    def of(self, names: Iterable[str]) -> list[str]:
        """The images that fall to this process: by their names alone, so that nothing has to be agreed on."""
        return [name for name in names if _number(name) % self.world == self.rank]


def local_device(name: str | None) -> torch.device:
    """The device of this process: under torchrun each of a machine has a GPU of its own.

    Raises:
        InputError: no such device.
    """
    local_rank = environment_number("LOCAL_RANK")
    if name is None and torch.cuda.is_available() and local_rank is not None:
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return choose_device(name)


def _number(name: str) -> int:
    """A number that spreads evenly over names, however alike they are."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "little")


@dataclass(frozen=True)
class Target:
    """Where an index goes.

    Attributes:
        folder: of the index.
        shard: images that are written at a time: what a stopped run has to encode again.
        dtype: of the files.
        store: None: the folder keeps the embeddings; else see `archive.store`.
    """

    folder: Path
    shard: int
    dtype: Dtype
    store: str | None


def index_archive(encoder: Encoder, checkpoint: Path, images: Path, target: Target, share: Share) -> Manifest:
    """Encode what an index does not have yet.

    Args:
        encoder: with the weights of `checkpoint`.
        checkpoint: their file.
        images: folder of the images, searched with all folders in it.
        target: where the embeddings go.
        share: which of the images fall to this process.

    Returns:
        What the index holds at the end.

    Raises:
        InputError: no images, none that can be read, some without regions that the model reads, or the index was
            made otherwise, or another run is adding to it.
    """
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder.")
    names = image_names(images)
    recipe = make_recipe(encoder, checkpoint, images, target)
    with folder_lock(target.folder, "give another --out", share.rank, share.world):
        return _add(encoder, images, names, target, share, recipe)


def _add(
    encoder: Encoder, images: Path, names: Sequence[str], target: Target, share: Share, recipe: Manifest
) -> Manifest:
    """`index_archive` of an index that no other run writes."""
    check_recipe(target.folder, recipe)
    if share.world == 1:
        remove_unfinished(target.folder)
        remove_unfinished(target.folder / "shards")
    done = mended_names(target.folder, recipe, share.world == 1)
    missing = share.of(name for name in names if name not in done)
    encoder.check_regions(missing)
    _say_start(len(names), done, set(names), len(missing), share)
    if encoder.model.own_vocabulary(encoder.options.model) is None:
        encoder.vocabulary.save(target.folder / "vocabulary.json")
    faults = _encode(encoder, images, missing, target, recipe, share, len(done))
    _report(faults, target.folder / f"skipped-{share.rank}.txt")
    manifest = update_manifest(target.folder, recipe) if len(faults) < len(missing) or done else recipe
    if not manifest.count and share.world == 1:
        raise InputError(f"{images}: none of the {len(names)} images can be read; see above.")
    return manifest


def make_recipe(encoder: Encoder, checkpoint: Path, images: Path, target: Target) -> Manifest:
    """What the embeddings are made with, of an index that holds nothing yet."""
    return Manifest(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        options=option.dump(encoder.options),
        checkpoint=checkpoint.resolve(),
        checkpoint_sha256=file_sha256(checkpoint),
        vocabulary_sha256=encoder.vocabulary.digest,
        ready=is_ready(checkpoint),
        images=images.resolve(),
        dtype=target.dtype,
        dim=encoder.dim,
        store=target.store,
        keyword_ids=None if encoder.keyword_ids is None else list(encoder.keyword_ids),
    )


def _encode(
    encoder: Encoder, images: Path, names: Sequence[str], target: Target, recipe: Manifest, share: Share, done: int
) -> list[str]:
    """Encode images and write their shards; returns what is wrong with those that can't be read.

    Raises:
        InputError: the vector store lacks some of the `done` images that it was given before.
    """
    dataset = encoder.options.dataset
    shards = [names[start : start + target.shard] for start in range(0, len(names), target.shard)]
    batches = [
        [shard[start : start + dataset.batch_size_val] for start in range(0, len(shard), dataset.batch_size_val)]
        for shard in shards
    ]
    decoded = _read([batch for shard in batches for batch in shard], images, dataset)
    # After the start of the processes that read: the client has threads, which must not be there when it forks.
    store = open_full_store(target.folder, recipe, done) if target.store is not None else None
    faults: list[str] = []
    title = "images" if share.world == 1 else f"images of process {share.rank}"
    with progress_bar(total=len(names), desc=title, unit="image") as bar:
        for shard in batches:
            kept: list[str] = []
            embeddings: list[Tensor] = []
            for batch in shard:
                pixels, outcome = next(decoded)
                readable = [name for name, fault in zip(batch, outcome, strict=True) if fault is None]
                faults += [fault for fault in outcome if fault is not None]
                if readable:
                    kept += readable
                    embeddings.append(encoder.images(pixels, readable).cpu())
                bar.update(len(batch))
            if kept:
                _write(kept, torch.cat(embeddings), target, store)
                update_manifest(target.folder, recipe)
    return faults


def _write(names: Sequence[str], embeddings: Tensor, target: Target, store: VectorStore | None) -> None:
    """Keep a shard [n, D].

    Raises:
        InputError: an embedding is not finite: it would be found first, or hide others.
    """
    broken = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise InputError(
            f"{names[int(broken[0])]}: the model gives an embedding that is not finite: its weights are damaged, or "
            "its numbers too large for optim.amp; try --set optim.amp=off."
        )
    if store is not None:
        store.add(names, embeddings.numpy())
    add_shard(target.folder, names, embeddings if store is None else None, target.dtype)


Outcome = list[str | None]
"""For each image of a batch what is wrong with it, or None."""


class _Squares(Dataset[tuple[Tensor, Outcome]]):
    """Images [B, 3, S, S] by batches of names, without those that can't be read."""

    def __init__(self, folder: Path, size: int, max_pixels: int) -> None:
        self.folder = folder
        self.size = size
        self.max_pixels = max_pixels

    def __getitem__(self, names: Sequence[str]) -> tuple[Tensor, Outcome]:
        squares: list[np.ndarray] = []
        outcome: Outcome = []
        for name in names:
            try:
                if fault := name_fault(name, "image"):
                    raise InputError(fault)
                squares.append(load_square(self.folder / name, self.size, self.max_pixels))
                outcome.append(None)
            except InputError as error:
                outcome.append(str(error))
        empty = np.empty((0, 3, self.size, self.size), np.uint8)
        return torch.from_numpy(np.stack(squares) if squares else empty), outcome


def _read(batches: Sequence[Sequence[str]], folder: Path, dataset: ImageReading) -> Iterator[tuple[Tensor, Outcome]]:
    """The readable images of each batch, and what is wrong with the others, read ahead by `dataset.workers`."""
    squares = _Squares(folder, dataset.image_size, dataset.max_pixels)
    if dataset.workers == 0:
        return map(squares.__getitem__, batches)
    return iter(DataLoader(squares, batch_size=None, sampler=batches, num_workers=dataset.workers))


def _say_start(found: int, done: set[str], names: set[str], missing: int, share: Share) -> None:
    share_of = f", of which process {share.rank} of {share.world} takes {missing}" if share.world > 1 else ""
    logger.info("%d images, %d of them in the index already%s", found, len(done & names), share_of)
    if gone := len(done - names):
        logger.warning("%d images of the index are no longer in the folder; they can still be found.", gone)


def _report(faults: Sequence[str], path: Path) -> None:
    """Name some of the images that were skipped, and write all of them down."""
    path.unlink(missing_ok=True)
    if faults:
        # A name that is not UTF-8 can't be written as it is.
        listed = "".join(f"{fault}\n" for fault in faults).encode("utf-8", "backslashreplace")
        write_atomic(path, lambda file: file.write(listed))
        logger.warning(
            "%d images can't be read and were skipped, listed in %s:%s", len(faults), path, first_faults(faults)
        )
