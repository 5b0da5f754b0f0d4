"""Features of frozen networks, made once and kept on disk for all runs.

A store belongs to one network and one way of preparing its input. Its rows are found by what they were made of (the
digest of a file's content, the ids of a caption's tokens), so that a changed image has no row and equal images share
one. Rows come in shards, each written whole or not at all: a killed run goes on where it was, and two runs that fill
a store at once leave the same numbers. Beside a shard lies a checksum of each row, compared when a process first reads
the row; shards of earlier versions have none.

Letters: N keys, W numbers of a feature.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.locks import waiting_lock
from runtime.machine import free_bytes, in_words
from runtime.untrusted import read_array, read_bytes
from utils import InputError, first_line, remove_unfinished, write_atomic, write_text_atomic

KEY = 32  # hexadecimal digits
SHARD = 1024
SHARD_BYTES = 2**28
"""A shard has at most so many rows and bytes: what a killed run makes again, and what is held until it is written."""
CHECKSUMS, CHECKSUM = ".crc32", "<u4"


def key_of(content: bytes) -> str:
    """The key of what a feature is made of."""
    return hashlib.sha256(content).hexdigest()[:KEY]


class FeatureStore:
    """Features by key, memory-mapped."""

    def __init__(self, root: Path, recipe: Mapping[str, Any]) -> None:
        """Open the store of a recipe, or begin one.

        Args:
            root: folder of all stores.
            recipe: what decides the numbers: the network's digest, the preparation of its input, the precision.

        Raises:
            InputError: a shard is damaged.
        """
        text = json.dumps(recipe, sort_keys=True, indent=2)
        self.folder = root / key_of(text.encode())
        self.recipe = text
        self.shards: list[NDArray[np.float32]] = []
        self.checksums: list[NDArray[np.uint32] | None] = []
        self.places: dict[str, tuple[int, int]] = {}
        self._known: set[str] = set()
        self._read_new()

    def _read_new(self) -> None:
        """Take in the shards that are not known yet."""
        for keys_file in sorted(self.folder.glob("*.keys")):
            if keys_file.stem in self._known:
                continue
            self._known.add(keys_file.stem)
            try:
                keys = read_bytes(keys_file).decode("ascii").split()
                rows = read_array(keys_file.with_suffix(".npy"))
                if len(keys) != len(rows) or rows.dtype != np.float32 or (self.shards and rows.shape[1:] != self.shape):
                    raise ValueError(f"{len(keys)} keys, {len(rows)} rows")
                checksums = _checksums(keys_file.with_suffix(CHECKSUMS), len(rows))
            except (OSError, ValueError) as fault:
                raise InputError(
                    f"{keys_file}: the kept features are damaged ({first_line(fault)}). Delete {self.folder}: they are "
                    "made again."
                ) from fault
            self.places |= {key: (len(self.shards), row) for row, key in enumerate(keys)}
            self.shards.append(rows)
            self.checksums.append(checksums)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one feature; () while there is none."""
        return self.shards[0].shape[1:] if self.shards else ()

    def fill(
        self, keys: Sequence[str], make: Callable[[Sequence[int]], Iterable[Tensor]], size: int, shard: int = SHARD
    ) -> int:
        """Make the features that are not there.

        Args:
            keys: of all that is needed.
            make: from places in `keys` to their features, batch by batch, [*, W] float32.
            size: bytes of one feature.
            shard: features written at a time, see `SHARD`.

        Returns:
            How many were made.

        Raises:
            InputError: the disk has no room for them.
        """
        if not self.missing(keys):
            return 0
        with waiting_lock(self.folder / "lock"):
            self._read_new()  # what another run has made while this one waited
            remove_unfinished(self.folder)
            wanted = self.missing(keys)
            if not wanted:
                return 0
            if (needed := len(wanted) * size) > free_bytes(self.folder):
                free = in_words(free_bytes(self.folder))
                raise InputError(
                    f"{self.folder}: {in_words(needed)} of features do not fit, {free} are free. Give another folder "
                    "(dataset.feature_path), or compute them in every step (dataset.features=off)."
                )
            write_text_atomic(self.folder / "recipe.json", self.recipe + "\n")
            shard = min(shard, max(1, SHARD_BYTES // size))
            waiting: list[Tensor] = []
            done = 0
            for features in make(wanted):
                waiting.append(features)
                while sum(map(len, waiting)) >= shard:
                    whole = torch.cat(waiting)
                    self._write([keys[place] for place in wanted[done : done + shard]], whole[:shard])
                    waiting, done = [whole[shard:]], done + shard
            if waiting and done < len(wanted):
                self._write([keys[place] for place in wanted[done:]], torch.cat(waiting))
            self._read_new()
        return len(wanted)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Places of the keys without a feature, equal keys once."""
        first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
        return sorted(place for key, place in first.items() if key not in self.places)

    def _write(self, keys: Sequence[str], rows: Tensor) -> None:
        if not rows.isfinite().all():
            raise InputError("a frozen network gives numbers that are not finite: its weights are damaged.")
        name = key_of("".join(keys).encode())
        array = np.ascontiguousarray(rows.float().cpu().numpy())
        write_atomic(self.folder / f"{name}.npy", lambda file: np.save(file, array))
        checksums = np.array([zlib.crc32(row) for row in array], CHECKSUM)
        write_atomic(self.folder / f"{name}{CHECKSUMS}", lambda file: file.write(checksums.tobytes()))
        write_text_atomic(self.folder / f"{name}.keys", "\n".join(keys) + "\n")  # last: a shard counts once it is whole

    def table(self, keys: Sequence[str]) -> FeatureTable:
        """The features of some keys, all of which are there."""
        return FeatureTable(
            self.shards, self.checksums, torch.tensor([self.places[key] for key in keys]).reshape(-1, 2)
        )


class SequenceTable:
    """Sequences of rows, such as those of a caption's tokens, one sequence after the other in a table."""

    def __init__(self, table: FeatureTable, starts: Tensor, lengths: Tensor) -> None:
        """Take the rows and where each of N sequences starts [N], and how long it is [N]."""
        self.table, self.starts, self.lengths = table, starts, lengths

    def __len__(self) -> int:
        """Sequences, N."""
        return len(self.lengths)

    def rows(self, ids: Tensor) -> Tensor:
        """Some sequences [B], padded with zeros to the longest of them: [B, L, W]."""
        lengths = self.lengths[ids].tolist()
        places = [torch.arange(start, start + length) for start, length in zip(self.starts[ids], lengths, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(self.table.rows(torch.cat(places)).split(lengths), batch_first=True)


class FeatureTable:
    """Some rows of a store, in an order of their own."""

    def __init__(
        self, shards: Sequence[NDArray[np.float32]], checksums: Sequence[NDArray[np.uint32] | None], places: Tensor
    ) -> None:
        """Keep where the rows lie: `places` [N, 2] holds shard and row."""
        self.shards, self.checksums, self.places = shards, checksums, places
        self._checked = np.zeros(len(places), bool)

    def __len__(self) -> int:
        """Rows, N."""
        return len(self.places)

    def rows(self, ids: Tensor) -> Tensor:
        """The features [B, W] of some rows [B].

        Raises:
            InputError: one is another than was written.
        """
        places = self.places[ids]
        found = torch.empty(len(ids), *self.shards[0].shape[1:])
        for shard in places[:, 0].unique().tolist():
            here = (places[:, 0] == shard).nonzero().squeeze(1)
            found[here] = torch.from_numpy(self.shards[shard][places[here, 1].numpy()])
        for place in (~torch.from_numpy(self._checked)[ids]).nonzero().squeeze(1).tolist():
            self._check(int(ids[place]), found[place])
        return found

    def _check(self, row: int, found: Tensor) -> None:
        """Compare the checksum of one row, where there is one."""
        shard, place = self.places[row].tolist()
        checksums = self.checksums[shard]
        if checksums is not None and zlib.crc32(found.numpy().data) != checksums[place]:
            path = Path(str(getattr(self.shards[shard], "filename", "")))
            raise InputError(
                f"{path}: the kept features are damaged: row {place} does not match its checksum. Delete "
                f"{path.with_suffix('.*')}: they are made again."
            )
        self._checked[row] = True


def _checksums(path: Path, count: int) -> NDArray[np.uint32] | None:
    """The checksums of a shard's rows; None: an earlier version wrote it.

    Raises:
        ValueError: there are fewer or more than `count`.
    """
    if not path.exists():
        return None
    found = np.frombuffer(read_bytes(path), CHECKSUM)
    if len(found) != count:
        raise ValueError(f"{len(found)} checksums, {count} rows")
    return found
