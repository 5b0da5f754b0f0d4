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

ROUNDING = 1e-5
"""What a score may lose where images are scored in other company."""


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
    ways: dict[str, Callable[[Tensor], exact.Ranked]] = {
        "exact": lambda query: exact.search(embeddings.blocks(), query[None], score, k)[0]
    }
    for kind in KINDS:
        if (folder.folder / f"{kind}.faiss").is_file():
            ways[kind] = nearest.Nearest.open(folder, kind).finder(score, k)
    what = "sentences" if sentences is not None else "images"
    lines = [
        f"{len(folder)} images, {len(queries)} {what} as queries",
        f"{'index':8} {'ms per query':>12} {'processor ms':>12} {f'recall@{k}':>10}",
    ]
    truth: list[Tensor] = []
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


def timed(queries: Tensor, way: Callable[[Tensor], exact.Ranked]) -> tuple[Timing, list[Tensor]]:
    """Search with one query after the other.

    Args:
        queries: [Q, D].
        way: gives scores and rows [K] of a query [D].

    Returns:
        The time of a query, and the scores [K] of what each found, the best first.
    """
    way(queries[0])  # what is read for the first time is slow
    wall, processor, found = [], [], []
    for query in queries:
        started, used = time.perf_counter(), time.process_time()
        scores, _ = way(query)
        processor.append(time.process_time() - used)
        wall.append(time.perf_counter() - started)
        found.append(scores)
    return Timing(1000 * statistics.median(wall), 1000 * statistics.median(processor)), found


def recall(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The share of the best images that was found, averaged over queries.

    Scores are compared, not rows: of images that score alike, such as copies, each is as good as the other.

    Args:
        found: scores of what each query found, of different images.
        truth: of its K best images.
    """
    return statistics.fmean(
        float((mine >= right[-1] - ROUNDING * right[-1].abs()).sum().clamp(max=len(right))) / len(right)
        for mine, right in zip(found, truth, strict=True)
    )
