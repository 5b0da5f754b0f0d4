"""The row of an image by its name, for what a vector store found. Letters: N images."""

from __future__ import annotations

import hashlib

import numpy as np

from archive.index_folder import IndexFolder


class NameRows:
    """Finds the row of a name; takes 16 bytes per image, since the names themselves stay in their files."""

    def __init__(self, index: IndexFolder) -> None:
        """Read the names of an index.

        Raises:
            InputError: a part of the index is damaged.
        """
        self._index = index
        digests = np.fromiter((_digest(name) for name in index.names()), np.uint64, len(index))
        self._rows = digests.argsort(kind="stable")
        self._digests = digests[self._rows]

    def row(self, name: str) -> int | None:
        """The row of a name; None where the index lacks it."""
        digest = np.uint64(_digest(name))
        first, last = (int(np.searchsorted(self._digests, digest, side)) for side in ("left", "right"))
        return next((row for row in self._rows[first:last].tolist() if self._index.name(row) == name), None)


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
