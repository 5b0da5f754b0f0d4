"""Embeddings in files of some thousand rows, mapped into memory as they are read.

Letters: N rows in all, B rows of a block, D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.untrusted import file_crc32, read_array
from utils import InputError, first_line, write_atomic

Dtype = Literal["float32", "float16"]
BLOCK_NUMBERS = 2**25
"""Numbers of a block that is scored at once: 128 MiB of float32."""
OPEN_FILES = 256
"""Files that stay mapped; most systems allow a process about a thousand."""
AGAIN = "run the command that made the index again: it mends that."


def write_shard(path: Path, embeddings: Tensor, dtype: Dtype) -> None:
    """Write embeddings [n, D] as a `.npy` file.

    Raises:
        InputError: a number is too large for the type.
    """
    with np.errstate(over="ignore"):
        values = embeddings.numpy().astype(dtype)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: the embeddings hold numbers beyond {dtype}; index with --dtype float32.")
    write_atomic(path, partial(np.save, arr=values, allow_pickle=False))


class IndexFault(InputError):
    """An index or its store can't be read: no fault of who asks."""


class Shards:
    """N embeddings [N, D], in the order of their files."""

    def __init__(
        self,
        folder: Path,
        counts: Mapping[str, int],
        dim: int,
        dtype: Dtype,
        checksums: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Check that every file is there and has the form that is expected; its content is checked as it is first read.

        Args:
            folder: of the files.
            counts: name of each file, without its ending -> rows in it.
            dim: D.
            dtype: of the files.
            checksums: name -> CRC-32 of the file; one that has none is read without it.

        Raises:
            InputError: a file is missing, cut short or of another form.
        """
        self.folder = folder
        self.names = list(counts)
        self.starts = list(itertools.accumulate(counts.values(), initial=0))
        self.dim = dim
        self.dtype = dtype
        self.checksums = checksums
        self._sound: set[int] = set()
        self._open = lru_cache(maxsize=OPEN_FILES)(self._read)
        for place in range(len(self.names)):
            self._map(place)

    def __len__(self) -> int:
        """Rows, N."""
        return self.starts[-1]

    def blocks(self) -> Iterator[Tensor]:
        """All rows in order, in blocks [B, D] float32."""
        rows = max(1, BLOCK_NUMBERS // self.dim)
        for place in range(len(self.names)):
            values = self._open(place)
            for start in range(0, len(values), rows):
                yield torch.from_numpy(values[start : start + rows]).float()

    def rows(self, numbers: NDArray[np.int64]) -> Tensor:
        """Some rows [B, D] float32, in the order asked for."""
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        found = torch.empty(len(numbers), self.dim)
        for place in np.unique(places).tolist():
            mine = places == place
            values = self._open(place)[numbers[mine] - self.starts[place]]
            found[torch.from_numpy(mine)] = torch.from_numpy(values).float()
        return found

    def check(self, place: int) -> None:
        """Read through one file.

        Raises:
            InputError: it is another one than was written, or holds numbers that are not finite.
        """
        name, values = self.names[place], self._map(place)
        path = self.folder / f"{name}.npy"
        if name in self.checksums and file_crc32(path) != self.checksums[name]:
            raise IndexFault(f"{path}: damaged: its checksum is not that of index.json; {AGAIN}")
        rows = max(1, BLOCK_NUMBERS // self.dim)
        for start in range(0, len(values), rows):
            if not np.isfinite(values[start : start + rows]).all():
                raise IndexFault(f"{path}: damaged: it holds numbers that are not finite; {AGAIN}")
        self._sound.add(place)

    def _read(self, place: int) -> NDArray[np.floating]:
        """The rows of one file, whose content is checked once."""
        if place not in self._sound:
            self.check(place)
        return self._map(place)

    def _map(self, place: int) -> NDArray[np.floating]:
        """The rows of one file; mapped as copy on write, since torch warns of memory that can't be written."""
        path = self.folder / f"{self.names[place]}.npy"
        expected = (self.starts[place + 1] - self.starts[place], self.dim)
        try:
            values = read_array(path, mode="c")
        except FileNotFoundError as fault:
            raise IndexFault(f"{path}: this part of the index is missing; {AGAIN}") from fault
        except (OSError, ValueError) as fault:
            raise IndexFault(
                f"{path}: this part of the index is damaged or cut short ({first_line(fault)}); {AGAIN}"
            ) from fault
        if values.shape != expected or values.dtype != self.dtype:
            raise IndexFault(
                f"{path}: holds {values.shape} of {values.dtype}, expected {expected} of {self.dtype}; {AGAIN}"
            )
        return values
