"""Vector indexes of FAISS (extra `index`) for models whose score is a cosine: `flat`, `hnsw`, `ivfpq`.

They propose images; the model's score, from the stored embeddings, decides. Letters: N images, D embedding, K best.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from archive.arguments import KINDS, Kind
from archive.exact import Ranked, Scorer, order
from archive.index_folder import IndexFolder
from archive.shards import Shards
from layers.base import l2norm
from layers.registry import registered
from runtime.locks import waiting_lock
from runtime.progress import progress_bar
from runtime.untrusted import file_crc32, parse_json, read_bytes
from utils import InputError, first_line, import_extra, write_atomic, write_text_atomic

LINKS = 32  # of each vector in HNSW's graph
BUILD_BREADTH = 80  # vectors that HNSW keeps in mind while it links one
SEARCH_BREADTH = 128  # and while it searches
LISTS_PER_ROOT = 4  # IVF: lists = 4 sqrt(N)
POINTS_PER_LIST = 39  # that k-means learns a list from; FAISS asks for as many
PROBED_SHARE = 1 / 32  # of IVF's lists that a search reads
LEAST_PROBED = 16
CODE_NUMBERS = 8  # numbers of a vector that PQ writes as one byte
FEWEST = 256  # vectors that the 256 codes of a byte can be learned from
ROWS_ADDED = 2**16  # to a vector index at once
CANDIDATES_PER_HIT = 20  # of PQ, whose distances are coarse
"""All of them are settings that `python -m bench.search` shows the price of."""


def build(kind: Kind, embeddings: Shards) -> Any:
    """Make a vector index of all embeddings, scaled to length 1, for inner products.

    Raises:
        InputError: FAISS is missing, or there are too few images.
    """
    faiss = _faiss()
    count, dim = len(embeddings), embeddings.dim
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_BREADTH
    else:
        index = _trained_ivfpq(faiss, embeddings)
    with progress_bar(total=count, desc=kind, unit="image") as bar:
        for block in embeddings.blocks():
            index.add(_unit(block))
            bar.update(len(block))
    return index


def _trained_ivfpq(faiss: Any, embeddings: Shards) -> Any:
    """IVF-PQ with its lists and codes learned from an even sample of the embeddings."""
    count, dim = len(embeddings), embeddings.dim
    if count < FEWEST:
        raise InputError(f"--kind ivfpq needs at least {FEWEST} images to learn its codes, found {count}: use flat.")
    lists = max(1, min(round(LISTS_PER_ROOT * count**0.5), count // POINTS_PER_LIST))
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, code_bytes(dim), 8, faiss.METRIC_INNER_PRODUCT)
    # Small archives have fewer than FAISS would like to warn of.
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    sample = min(count, max(lists * POINTS_PER_LIST, FEWEST * POINTS_PER_LIST))
    rows = np.linspace(0, count - 1, sample).round().astype(np.int64)
    index.train(_unit(embeddings.rows(rows)))
    return index


def code_bytes(dim: int) -> int:
    """Bytes that PQ keeps of a vector: one for 8 numbers, or for the next more that divide D."""
    return next(parts for parts in range(max(1, dim // CODE_NUMBERS), 0, -1) if dim % parts == 0)


@dataclass(frozen=True)
class Nearest:
    """A vector index in use.

    Attributes:
        kind: of the index.
        index: FAISS's.
        embeddings: that it was built from.
    """

    kind: Kind
    index: Any
    embeddings: Shards

    @classmethod
    def open(cls, folder: IndexFolder, kind: Kind) -> Nearest:
        """Read what `build_in` wrote.

        Raises:
            InputError: FAISS is missing; the file is missing, damaged, or does not fit the index any more.
        """
        again = f"build it: python search.py build {folder.folder} --kind {kind}"
        path, about = _paths(folder.folder, kind)
        if not path.is_file() or not about.is_file():
            raise InputError(f"{folder.folder} has no {kind} index; {again}")
        try:
            built = parse_json(read_bytes(about))
            if not isinstance(built, dict):
                raise ValueError(f"{about.name} describes nothing")
            if built.get("crc32") not in (None, file_crc32(path)):  # first: FAISS believes what a file says
                raise ValueError(f"its checksum is not that of {about.name}")
            index = _faiss().read_index(str(path))
        except (OSError, ValueError, RuntimeError) as fault:
            raise InputError(f"{path}: damaged ({first_line(fault)}); {again}") from fault
        fits = built.get("shards_sha256") == folder.manifest.shards_sha256 and index.ntotal == len(folder)
        if not fits or folder.embeddings is None:
            raise InputError(f"{path} was built before {folder.folder} changed; {again}")
        return cls(kind, index, folder.embeddings)

    def search(self, query: Tensor, score: Scorer, k: int) -> Ranked:
        """The best images of a query, as far as the index proposes them.

        Args:
            query: [D].
            score: of the model.
            k: how many, K.

        Returns:
            Scores [K] and rows [K], see `archive.exact`.
        """
        rows = self.propose(query, k)
        images = self.embeddings.rows(rows).to(query.device)
        with torch.no_grad():
            scores = score(images, query[None])[:, 0].cpu()
        return order(scores, torch.from_numpy(rows), k)

    def finder(self, score: Scorer, k: int) -> Callable[[Tensor], Ranked]:
        """`search` as a function of a query [D] alone."""
        return lambda query: self.search(query, score, k)

    def size(self) -> int:
        """Bytes that the index takes, embeddings not counted unless it copies them."""
        faiss, sizes = _faiss(), []
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(lambda piece: sizes.append(len(piece))))
        return sum(sizes)

    def propose(self, query: Tensor, k: int) -> NDArray[np.int64]:
        """Rows that may be among the K best, each once."""
        faiss = _faiss()
        count, parameters = min(k, len(self.embeddings)), None
        if self.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=max(SEARCH_BREADTH, 2 * count))
        elif self.kind == "ivfpq":
            probed = max(LEAST_PROBED, round(self.index.nlist * PROBED_SHARE))
            parameters = faiss.SearchParametersIVF(nprobe=min(probed, self.index.nlist))
            count = min(CANDIDATES_PER_HIT * count, len(self.embeddings))
        _, rows = self.index.search(_unit(query[None].cpu()), count, params=parameters)
        return np.asarray(rows[0][rows[0] >= 0], dtype=np.int64)


def build_in(folder: IndexFolder, kind: Kind) -> str:
    """Build a vector index and keep it in the folder; returns a line on what was built.

    Raises:
        InputError: see `build`; or the score is not the cosine, or the embeddings are in a vector store.
    """
    refuse_pair_scores(folder.manifest.typed_options().model.name, "its index is searched exactly.")
    if folder.embeddings is None:
        raise InputError(f"{folder.folder} keeps its embeddings in a vector store, which has an index of its own.")
    started = time.perf_counter()
    index = build(kind, folder.embeddings)
    return _keep(folder, kind, index, len(folder), time.perf_counter() - started)


def is_built(folder: IndexFolder, kind: Kind) -> bool:
    """Whether a folder has a vector index of all its images as they are."""
    path, about = _paths(folder.folder, kind)
    return path.is_file() and _read_about(about).get("shards_sha256") == folder.manifest.shards_sha256


def follow(folder: IndexFolder) -> list[str]:
    """Bring the vector indexes of a folder up to its images; returns a line on each that was outdated.

    Where images were added alone, their vectors are added; else, or once there are twice as many as IVF-PQ learned its
    codes from, the index is built anew.
    """
    told = []
    for kind in KINDS:
        path, about = _paths(folder.folder, kind)
        if not path.is_file() or folder.embeddings is None or is_built(folder, kind):
            continue
        told.append(_extended(folder, kind, _read_about(about)) or build_in(folder, kind))
    return told


def _extended(folder: IndexFolder, kind: Kind, built: dict[str, Any]) -> str | None:
    """Add the vectors of the shards that came last; None where there is more to it."""
    path, _ = _paths(folder.folder, kind)
    shards, learned, earlier = list(folder.manifest.shards.items()), built.get("learned", 0), built.get("shards", {})
    known = list(earlier.items())
    outgrown = kind == "ivfpq" and len(folder) > 2 * learned
    if not known or shards[: len(known)] != known or outgrown or built.get("crc32") != file_crc32(path):
        return None
    started = time.perf_counter()
    index = _faiss().read_index(str(path))
    assert folder.embeddings is not None
    rows = np.arange(index.ntotal, len(folder))
    for part in np.array_split(rows, max(1, len(rows) // ROWS_ADDED)):
        index.add(_unit(folder.embeddings.rows(part)))
    return _keep(folder, kind, index, learned, time.perf_counter() - started)


def _keep(folder: IndexFolder, kind: Kind, index: Any, learned: int, seconds: float) -> str:
    """Write a vector index and what it was built from."""
    path, about = _paths(folder.folder, kind)
    faiss, manifest = _faiss(), folder.manifest
    content = {
        "kind": kind,
        "count": len(folder),
        "learned": learned,
        "shards": manifest.shards,
        "shards_sha256": manifest.shards_sha256,
        "seconds": seconds,
    }
    with waiting_lock(path):  # of two that build at once, one would describe the other's file
        write_atomic(path, lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write)))
        write_text_atomic(about, json.dumps(content | {"crc32": file_crc32(path)}, indent=2) + "\n")
    return f"{path}: {len(folder)} images, {path.stat().st_size / 2**20:.1f} MiB, built in {seconds:.1f} s"


def _read_about(about: Path) -> dict[str, Any]:
    """What is written beside a vector index; nothing where it is missing or damaged, so that nothing fits it."""
    try:
        built = parse_json(read_bytes(about))
    except (OSError, ValueError):
        return {}
    return built if isinstance(built, dict) else {}


def refuse_pair_scores(model: str, advice: str) -> None:
    """Raise an InputError with some advice for a model whose score is not the cosine of embeddings."""
    if not registered()[model].model.scores_by_cosine():
        raise InputError(f"{model} scores each pair by more than a cosine: {advice}")


def _paths(folder: Path, kind: Kind) -> tuple[Path, Path]:
    return folder / f"{kind}.faiss", folder / f"{kind}.json"


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    return l2norm(vectors.float()).numpy()


def _faiss() -> Any:
    return import_extra("faiss", "vector indexes are built by FAISS", "index")
