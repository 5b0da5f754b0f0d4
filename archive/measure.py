"""Latency and recall of the vector indexes of an archive, against exact search.

Letters: Q queries, D embedding, K best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from archive import exact, nearest
from archive.arguments import KINDS
from archive.searcher import Searcher
from data.lists import read_lines
from utils import InputError


def read_queries(path: Path) -> list[str]:
    """Each different line of a text that is not blank.

    Raises:
        InputError: it can't be read, or holds none.
    """
    lines = [line for line in dict.fromkeys(map(str.strip, read_lines(path, "--captions"))) if line]
    if not lines:
        raise InputError(f"{path}: no query there; write one a line.")
    return lines


def measure(searcher: Searcher, sentences: Sequence[str] | None, count: int, k: int) -> str:
    """A table of exact search and every vector index that is built.

    Args:
        searcher: of an exact search.
        sentences: the queries; None: images of the archive are.
        count: queries, Q; spread evenly over what there is.
        k: images that recall is counted in, K.

    Raises:
        InputError: an index can't be read.
    """
    folder, embeddings = searcher.index, searcher.index.embeddings
    assert embeddings is not None
    available = len(sentences) if sentences is not None else len(folder)
    chosen = np.linspace(0, available - 1, min(count, available)).round().astype(np.int64)
    score: exact.Scorer = exact.cosine
    if sentences is None:
        queries = embeddings.rows(chosen).to(searcher.encoder.device)
    else:
        queries = torch.cat([searcher.encoder.text(sentences[number]) for number in chosen])
        score = searcher.encoder.model.score
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "exact": lambda query: exact.search(embeddings.blocks(), query[None], score, k)[0][1]
    }
    for kind in KINDS:
        if (folder.folder / f"{kind}.faiss").is_file():
            ways[kind] = nearest.Nearest.open(folder, kind).finder(score, k)
    what = "sentences" if sentences is not None else "images"
    lines = [
        f"{len(folder)} images, {len(queries)} {what} as queries",
        f"{'index':8} {'ms per query':>12} {'processor ms':>12} {f'recall@{k}':>10}",
    ]
    truth: list[set[int]] = []
    for name, way in ways.items():
        timing, found = timed(queries, way)
        truth = truth or found
        lines.append(f"{name:8} {timing.wall:12.2f} {timing.processor:12.2f} {recall(found, truth):10.4f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Timing:
    """Median milliseconds of a query.

    Attributes:
        wall: by the clock.
        processor: of all processors together; what else a machine does adds little to it.
    """

    wall: float
    processor: float


def timed(queries: Tensor, way: Callable[[Tensor], Tensor]) -> tuple[Timing, list[set[int]]]:
    """Search with one query after the other.

    Args:
        queries: [Q, D].
        way: gives the rows [K] of a query [D].

    Returns:
        The time of a query, and the rows that each found.
    """
    way(queries[0])  # what is read for the first time is slow
    wall, processor, found = [], [], []
    for query in queries:
        started, used = time.perf_counter(), time.process_time()
        rows = way(query)
        processor.append(time.process_time() - used)
        wall.append(time.perf_counter() - started)
        found.append(set(rows.tolist()))
    return Timing(1000 * statistics.median(wall), 1000 * statistics.median(processor)), found


def recall(found: Sequence[set[int]], truth: Sequence[set[int]]) -> float:
    """The share of the right rows that was found, averaged over queries."""
    return statistics.fmean(len(mine & right) / len(right) for mine, right in zip(found, truth, strict=True))
