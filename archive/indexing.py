"""Encodes the images of a folder into an index, a shard at a time, and goes on where it was stopped.

Letters: B batch, n images of a shard, S image side in pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import option
from archive.encoder import Encoder
from archive.index_folder import Manifest, add_shard, check_recipe, read_manifest, update_manifest
from archive.mending import Parts, mended
from archive.records import Record
from archive.shards import Dtype
from archive.squares import Outcome, read_squares
from archive.store import VectorStore, collection_of, new_collection, open_full_store, remove_strangers
from archive.upkeep import Changes, Stamp, compare, differs, say, stamps_of, take_in
from data.images import DECODING_RULES, image_names, mark_of
from data.lists import first_faults, shown
from option import Options
from option.images import ImageRule
from runs.ranges import begun_with, with_range
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
class Upkeep:
    """How far an index follows its folder.

    Attributes:
        prune: images that are no longer in the folder are taken out.
        verify: contents are compared even where a file's size and time of modification are as they were.
        encode: images that the index lacks are encoded.
    """

    prune: bool = False
    verify: bool = False
    encode: bool = True


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


def with_known_range(options: Options, folder: Path, images: Path, checkpoint: Mapping[str, Any]) -> Options:
    """Options of which `dataset.range` is a number where images have more than 8 bits: the index's, or else found out.

    Args:
        options: as they were given.
        folder: of the index.
        images: folder of the images.
        checkpoint: its content, which may know a range.
    """
    present = read_manifest(folder)
    if present is None:
        return with_range(options, list(images.rglob("*")), checkpoint)
    return begun_with(options, {"options": present.options})


def index_archive(
    encoder: Encoder, checkpoint: Path, images: Path, target: Target, share: Share, upkeep: Upkeep
) -> Manifest:
    """Bring an index up to its folder: take in what changed, and encode what it does not have yet.

    Args:
        encoder: with the weights of `checkpoint`.
        checkpoint: their file.
        images: folder of the images, searched with all folders in it.
        target: where the embeddings go.
        share: which of the images fall to this process.
        upkeep: how far to follow the folder.

    Returns:
        What the index holds at the end.

    Raises:
        InputError: no images, none that can be read, some without regions that the model reads, or the index was
            made otherwise or of other images, or another run is adding to it.
    """
    if not images.is_dir():
        raise InputError(f"--images {images}: no such folder.")
    names = image_names(images)
    recipe = make_recipe(encoder, checkpoint, images, target)
    with folder_lock(target.folder, "give another --out", share.rank, share.world):
        present = read_manifest(target.folder)
        if present is not None:
            present = _taken_over(present, target.folder, images, names, encoder.options.dataset.rule)
            check_recipe(present, recipe, target.folder)
        collection = collection_of(present) if present is not None else new_collection(recipe, target.folder)
        recipe = recipe.model_copy(update={"collection": collection})
        return _run(_Job(encoder, images, target, share, upkeep, recipe), names)


def _taken_over(present: Manifest, folder: Path, images: Path, names: Sequence[str], rule: ImageRule) -> Manifest:
    """An index of an earlier version as one of this version, where both read all of its images alike.

    Raises:
        InputError: they don't; names one.
    """
    if present.decoding == DECODING_RULES:
        return present
    for name in progress_bar(names, desc="images looked at", unit="image"):
        try:
            alike = mark_of(images / name, rule) == ""
        except InputError:
            continue  # it can't be read now either, and is told of later
        if not alike:
            raise InputError(
                f"{folder} is of an earlier version, which read images such as {shown(name)} otherwise "
                "(docs/images.md): index again into another --out."
            )
    return present.model_copy(update={"decoding": DECODING_RULES})


@dataclass(frozen=True, eq=False)
class _Job:
    """What `index_archive` is given, and the recipe of its index."""

    encoder: Encoder
    images: Path
    target: Target
    share: Share
    upkeep: Upkeep
    recipe: Manifest

    @property
    def alone(self) -> bool:
        """Whether no other process shares the work."""
        return self.share.world == 1


def _run(job: _Job, names: Sequence[str]) -> Manifest:
    """`index_archive` of an index that no other run writes, and the images of its folder."""
    encoder, folder, share = job.encoder, job.target.folder, job.share
    if job.alone:
        remove_unfinished(folder)
        remove_unfinished(folder / "shards")
    parts = mended(folder, job.recipe, job.alone)
    count, changes = sum(map(len, parts.values())), _changes(job, parts, names)
    dropped = {*changes.changed, *(changes.missing if job.upkeep.prune else ())}
    mine = share.of([*changes.new, *changes.changed]) if job.upkeep.encode else []
    encoder.check_regions(mine)
    _say_start(len(names), count - len(dropped), len(mine), share)
    if encoder.model.own_vocabulary(encoder.options.model) is None:
        encoder.vocabulary.save(folder / "vocabulary.json")
    shards = _shards(mine, job.target.shard, encoder.options.dataset.batch_size_val)
    decoded = read_squares([batch for shard in shards for batch in shard], job.images, encoder.options.dataset)
    # After the start of the processes that read: the client has threads, which must not be there when it forks.
    store = open_full_store(folder, job.recipe, count) if job.target.store is not None else None
    if job.alone and parts:
        if store is not None:
            remove_strangers(store, {record.name for records in parts.values() for record in records})
        take_in(folder, job.recipe, parts, changes, dropped, store)
        update_manifest(folder, job.recipe, renamed=bool(changes.moved))
    faults = _encode(job, shards, decoded, store)
    _report(faults, folder / f"skipped-{share.rank}.txt")
    manifest = update_manifest(folder, job.recipe) if len(faults) < len(mine) or parts else job.recipe
    if not manifest.count and job.alone:
        raise InputError(f"{job.images}: none of the {len(names)} images can be read; see above.")
    return manifest


def _changes(job: _Job, parts: Parts, names: Sequence[str]) -> Changes:
    """What became of the images of an index; of several processes each takes in new ones alone.

    Raises:
        InputError: it has none of the folder's images; or some changed, and this process is not alone.
    """
    records = [record for part in parts.values() for record in part]
    known, files = {record.name for record in records}, stamps_of(job.images, names)
    if not job.alone:
        _refuse_changed(records, files)
        changes = Changes(new=[name for name in names if name not in known], missing=[*known - files.keys()])
    else:
        changes = compare(records, files, job.images, job.upkeep.verify, follow=not job.encoder.reads_regions)
    if records and len(changes.missing) == len(records):
        _refuse_others(job.target.folder, job.images)
    say(changes, job.upkeep.prune)
    return changes


def _refuse_others(folder: Path, images: Path) -> None:
    """Raise an InputError where an index that has none of a folder's images is to follow it in place of its own."""
    present = read_manifest(folder)
    if present is not None and present.images != images.resolve():
        raise InputError(
            f"{folder} has none of the images in {images}: another archive? Its own were in {present.images}. Give the "
            "folder where they are now, or another --out."
        )


def _refuse_changed(records: Sequence[Record], files: Mapping[str, Stamp]) -> None:
    """Raise an InputError where files are not as they were encoded, which one process alone can look into."""
    changed = [record.name for record in records if record.name in files and differs(record, files[record.name])]
    if changed:
        raise InputError(
            f"{len(changed)} images of the index have another size or time of modification by now, such as "
            f"{shown(changed[0])}. Look into that once without torchrun: the same command with --upkeep."
        )


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
        decoding=DECODING_RULES,
        keyword_ids=None if encoder.keyword_ids is None else list(encoder.keyword_ids),
    )


def _shards(names: Sequence[str], size: int, batch: int) -> list[list[Sequence[str]]]:
    """Images by shards of a size, and these by batches."""
    shards = [names[start : start + size] for start in range(0, len(names), size)]
    return [[shard[start : start + batch] for start in range(0, len(shard), batch)] for shard in shards]


def _encode(
    job: _Job,
    shards: Sequence[Sequence[Sequence[str]]],
    decoded: Iterator[tuple[Tensor, Outcome]],
    store: VectorStore | None,
) -> list[str]:
    """Encode images and write their shards; returns what is wrong with those that can't be read."""
    faults: list[str] = []
    title = "images" if job.alone else f"images of process {job.share.rank}"
    total = sum(len(batch) for shard in shards for batch in shard)
    with progress_bar(total=total, desc=title, unit="image") as bar:
        for shard in shards:
            kept: list[Record] = []
            embeddings: list[Tensor] = []
            for batch in shard:
                pixels, outcome = next(decoded)
                readable = [found for found in outcome if isinstance(found, Record)]
                faults += [found for found in outcome if isinstance(found, str)]
                if readable:
                    kept += readable
                    embeddings.append(job.encoder.images(pixels, [record.name for record in readable]).cpu())
                bar.update(len(batch))
            if kept:
                _write(kept, torch.cat(embeddings), job.target, store)
                update_manifest(job.target.folder, job.recipe)
    return faults


def _write(records: Sequence[Record], embeddings: Tensor, target: Target, store: VectorStore | None) -> None:
    """Keep a shard [n, D].

    Raises:
        InputError: an embedding is not finite: it would be found first, or hide others.
    """
    broken = [record.name for record, good in zip(records, embeddings.isfinite().all(dim=1), strict=True) if not good]
    if broken:
        raise InputError(
            f"{broken[0]}: the model gives an embedding that is not finite: its weights are damaged, "
            "or its numbers too large for optim.amp; try --set optim.amp=off."
        )
    if store is not None:
        store.add([record.name for record in records], embeddings.numpy())
    add_shard(target.folder, records, embeddings if store is None else None, target.dtype)


def _say_start(found: int, done: int, missing: int, share: Share) -> None:
    share_of = f", of which process {share.rank} of {share.world} takes {missing}" if share.world > 1 else ""
    logger.info("%d images in the folder, %d in the index already%s", found, done, share_of)


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
