"""Moves the embeddings of an index to a Milvus server, without encoding an image again: python -m archive.moving."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archive.index_folder import IndexFolder
from archive.nearest import refuse_pair_scores
from archive.store import ROWS_PER_CALL, check_url, new_collection, open_full_store, open_store
from runtime.arguments import entry_parser
from runtime.entry_point import run_entry_point
from runtime.locks import folder_lock
from runtime.progress import progress_bar
from utils import InputError, write_text_atomic


def move(folder: Path, url: str) -> int:
    """Put all embeddings into a collection of a server; from then on the index searches there.

    Killed in between, the index is as it was, and the same command begins anew; what is there already is written over.

    Args:
        folder: of the index, whose embeddings are in files, in Milvus Lite or on another server.
        url: of the server, `http://HOST:PORT`.

    Returns:
        How many embeddings are there now.

    Raises:
        InputError: no index, one whose model scores by more than a cosine, or the server does not answer.
    """
    check_url(url)
    with folder_lock(folder, "wait for its end"):
        index = IndexFolder.open(folder)
        refuse_pair_scores(index.manifest.typed_options().model.name, "its index is searched exactly.")
        manifest = index.manifest.model_copy(update={"store": url, "dtype": "float32"})
        manifest = manifest.model_copy(
            update={"collection": new_collection(manifest, folder), "crc32": dict.fromkeys(manifest.shards, 0)}
        )
        target = open_store(folder, manifest)
        with progress_bar(total=len(index), desc="moved", unit="image") as bar:
            for names, vectors in _all(index):
                target.add(names, vectors)
                bar.update(len(names))
        count = target.count()
        if count < len(index):
            raise InputError(f"{url} holds {count} of {len(index)} images after the move; the index stays as it was.")
        write_text_atomic(folder / "index.json", json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
        for path in (folder / "shards").glob("*.npy"):
            path.unlink()
    return count


def _all(index: IndexFolder) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
    """All names with their embeddings [n, D], some at a time."""
    names = index.names()
    store = None if index.embeddings is not None else open_full_store(index.folder, index.manifest, len(index))
    for start in range(0, len(names), ROWS_PER_CALL):
        some = names[start : start + ROWS_PER_CALL]
        if store is not None:
            yield some, store.vectors(some)
        elif index.embeddings is not None:
            yield some, index.embeddings.rows(np.arange(start, start + len(some))).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Move an index."""
    parser = entry_parser("Move the embeddings of an index to a Milvus server (docs/outgrowing.md).")
    parser.prog = "python -m archive.moving"
    parser.add_argument("folder", type=Path, metavar="INDEX")
    parser.add_argument("--store", required=True, metavar="URL", help="of the server: http://HOST:19530")
    given = parser.parse_args(arguments)
    print(f"{given.folder}: {move(given.folder, given.store)} embeddings are at {given.store} now.")


if __name__ == "__main__":
    run_entry_point(main)
