"""Embeddings in a vector engine, for archives that outgrow one machine: Milvus (extra `store`).

One client speaks to all its editions: Milvus Lite, which runs inside this process and keeps a folder, and a server or
cluster behind an address. Letters: n vectors, D embedding, K best.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from archive.arguments import EMBEDDED
from archive.index_folder import IndexFolder, Manifest
from archive.shards import IndexFault
from data.lists import shown
from utils import InputError, first_line, import_extra

TOKEN = "MILVUS_TOKEN"
"""The environment variable of a server's token, or `user:password`: no index holds it."""
LONGEST_NAME = 4096  # bytes
MOST_HITS = 16_384  # that Milvus gives at once
ROWS_PER_CALL = 1000  # 2 MiB of 512 float32 numbers; Milvus takes up to 64 MiB

Thing = TypeVar("Thing")


class VectorStore(Protocol):
    """What holds vectors under names and finds those of the highest cosine."""

    def add(self, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep n vectors [n, D]; a name that is there gets the new one."""

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[str, float]]:
        """Names and cosines of the K nearest of a vector [D], the best first."""

    def count(self) -> int:
        """Vectors that it holds."""

    def names(self) -> Iterator[str]:
        """The names of all of them, in any order."""

    def vectors(self, names: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of n names [n, D], in their order."""

    def copy(self, names: Mapping[str, str]) -> None:
        """Keep the vector of each name under another one, too."""

    def remove(self, names: Sequence[str]) -> None:
        """Forget vectors; those that are not there are no matter."""


def open_store(folder: Path, manifest: Manifest) -> VectorStore:
    """The store of an index.

    Raises:
        InputError: the client is missing, or nothing answers.
    """
    assert manifest.store is not None
    url = str(folder / "milvus.db") if manifest.store == EMBEDDED else manifest.store
    return MilvusStore(url, collection_of(manifest), manifest.dim)


def collection_of(manifest: Manifest) -> str:
    """The collection of an index, which indexes of earlier versions named by their recipe alone."""
    return manifest.collection or new_collection(manifest)


def new_collection(manifest: Manifest, folder: Path | None = None) -> str:
    """A name that all processes agree on which make an index in a folder."""
    recipe = {key: value for key, value in manifest.recipe().items() if not key.startswith("model.")}
    recipe["the model's options"] = manifest.options["model"]
    if folder is not None:
        recipe["--out"] = str(folder.resolve())
    return f"rsretrieval_{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]}"


def open_full_store(folder: Path, manifest: Manifest, count: int) -> VectorStore:
    """`open_store` of an index that has `count` images in it.

    Raises:
        InputError: as `open_store`; or it lacks some.
    """
    store = open_store(folder, manifest)
    if (found := store.count()) < count:
        raise InputError(
            f"the vector store of {folder} holds {found} of {count} images: another server, or its content was "
            f"deleted. Delete {folder} and index again."
        )
    return store


def remove_strangers(store: VectorStore, known: Collection[str]) -> None:
    """Forget vectors that an index does not know: of images that a stopped run was about to move or to take out."""
    if store.count() > len(known):
        store.remove([name for name in store.names() if name not in known])


def check_url(store: str | None) -> None:
    """Refuse what is no address of a store; None: there is none.

    Raises:
        InputError: neither `EMBEDDED` nor `http://HOST:PORT`; or it holds a password.
    """
    if store is None or store == EMBEDDED:
        return
    if not store.startswith(("http://", "https://")):
        raise InputError(f"--store {store}: expected an address such as http://127.0.0.1:19530, or nothing after it.")
    if "@" in store:
        raise InputError(f"--store: give user and password by the environment variable {TOKEN}, not in the address.")


class MilvusStore:
    """A collection of Milvus. See `VectorStore`."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        """Connect, and make the collection where there is none.

        Args:
            url: address of a server, or the folder of Milvus Lite.
            collection: its name.
            dim: D.

        Raises:
            InputError: the client is missing, or nothing answers.
        """
        self.url = url
        self.collection = collection
        pymilvus = import_extra("pymilvus", "vector stores need the client pymilvus", "store")
        self._failures = (pymilvus.MilvusException, OSError, RuntimeError)
        with self._failures_told():
            self.client = pymilvus.MilvusClient(url, token=os.environ.get(TOKEN, ""))
            self._create(pymilvus, dim)
            self.client.load_collection(collection)

    def _create(self, pymilvus: Any, dim: int) -> None:
        """Make the collection, unless it is there or another process makes it at the same moment."""
        if self.client.has_collection(self.collection):
            return
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("name", pymilvus.DataType.VARCHAR, is_primary=True, max_length=LONGEST_NAME)
        schema.add_field("embedding", pymilvus.DataType.FLOAT_VECTOR, dim=dim)
        indexes = pymilvus.MilvusClient.prepare_index_params()
        indexes.add_index("embedding", index_type="AUTOINDEX", metric_type="COSINE")
        try:
            self.client.create_collection(self.collection, schema=schema, index_params=indexes)
        except pymilvus.MilvusException:
            if not self.client.has_collection(self.collection):
                raise

    def add(self, names: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """See `VectorStore.add`.

        Raises:
            InputError: the store refuses.
        """
        rows = [{"name": name, "embedding": vector} for name, vector in zip(names, vectors, strict=True)]
        with self._failures_told():
            for piece in _pieces(rows):
                self.client.upsert(self.collection, piece)
            self.client.flush(self.collection)

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[str, float]]:
        """See `VectorStore.search`.

        Raises:
            InputError: the store refuses, or K is more than it gives at once.
        """
        if k > MOST_HITS:
            raise InputError(f"Milvus finds at most {MOST_HITS} images at once, not {k}.")
        with self._failures_told():
            found = self.client.search(
                self.collection, data=[vector], limit=k, output_fields=["name"], search_params={"metric_type": "COSINE"}
            )
        return [(hit["entity"]["name"], float(hit["distance"])) for hit in found[0]]

    def count(self) -> int:
        """See `VectorStore.count`."""
        with self._failures_told():
            return int(self.client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def names(self) -> Iterator[str]:
        """See `VectorStore.names`."""
        with self._failures_told():
            rows = self.client.query_iterator(self.collection, batch_size=ROWS_PER_CALL, output_fields=["name"])
            while found := rows.next():
                yield from (row["name"] for row in found)
            rows.close()

    def vectors(self, names: Sequence[str]) -> NDArray[np.float32]:
        """See `VectorStore.vectors`.

        Raises:
            IndexFault: some are not there, or the store does not answer.
        """
        with self._failures_told():
            rows = [
                row
                for piece in _pieces(names)
                for row in self.client.get(self.collection, ids=piece, output_fields=["name", "embedding"])
            ]
        found = {row["name"]: row["embedding"] for row in rows}
        if lost := [name for name in names if name not in found]:
            raise IndexFault(f"the vector store {self.url} does not have {shown(lost[0])}, as the index has it.")
        return np.array([found[name] for name in names], np.float32)

    def copy(self, names: Mapping[str, str]) -> None:
        """See `VectorStore.copy`."""
        with self._failures_told():
            for old in _pieces(list(names)):
                found = self.client.get(self.collection, ids=old, output_fields=["name", "embedding"])
                self.client.upsert(self.collection, [row | {"name": names[row["name"]]} for row in found])
            self.client.flush(self.collection)

    def remove(self, names: Sequence[str]) -> None:
        """See `VectorStore.remove`."""
        with self._failures_told():
            for gone in _pieces(names):
                self.client.delete(self.collection, ids=gone)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Puts a failure of the store into one message."""
        try:
            yield
        except self._failures as fault:
            raise IndexFault(
                f"the vector store {self.url} does not work: {first_line(fault)}. Check that it runs, that "
                f"no other process has its folder open (Milvus Lite serves one), and {TOKEN} where it wants one."
            ) from fault


def _pieces(things: Sequence[Thing]) -> Iterator[list[Thing]]:
    """As many at a time as a call takes."""
    return (list(things[start : start + ROWS_PER_CALL]) for start in range(0, len(things), ROWS_PER_CALL))


class NameRows:
    """Finds the row of an image by its name; takes 16 bytes per image, since the names stay in their files."""

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
