"""Exact search against vector indexes on synthetic vectors: python -m bench.search --count 1000000 --dim 512.

Letters: N vectors, Q queries, D embedding, K best.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from torch import Tensor

from archive import exact, nearest
from archive.arguments import KINDS, Kind
from archive.measure import recall, timed
from archive.shards import Shards, write_shard
from bench.machine import description
from bench.table import machine_line
from layers.base import l2norm
from runtime.entry_point import run_entry_point
from utils import InputError, markdown, write_text_atomic

SHARD = 8192
K = 10


@dataclass(frozen=True)
class Row:
    """One way to search: its build, its size in MiB, the median query and recall@10; times as in `Timing`."""

    name: str
    build_seconds: float
    build_processor_seconds: float
    mebibytes: float
    milliseconds: float
    processor_milliseconds: float
    recall: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.search", description="Exact search against vector indexes on synthetic vectors."
    )
    parser.add_argument("--count", type=int, default=100_000, help="vectors (default %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="numbers in each (default %(default)s)")
    parser.add_argument("--queries", type=int, default=100, help="default %(default)s")
    parser.add_argument("--clusters", type=int, default=0, help="groups of vectors; 0: evenly random, the hardest case")
    parser.add_argument("--spread", type=float, default=1.0, help="length of a vector's own part; its group's is 1")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--folder", type=Path, help="where the vectors go for the time; default: the system's")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    given = parser.parse_args(arguments)
    if min(given.count, given.dim, given.queries) < 1 or given.clusters < 0:
        raise InputError("--count, --dim and --queries must be at least 1, --clusters at least 0.")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        draw = Draw(given.dim, given.clusters, given.spread)
        vectors = draw.write(Path(folder), given.count)
        rows = run(vectors, draw.vectors(given.queries), given.kinds)
    kind = f"{given.clusters} groups, spread {given.spread:g}" if given.clusters else "evenly random"
    machine = machine_line(description(torch.device("cpu"), torch.get_num_threads()))
    setting = f"{given.count} vectors of {given.dim}, {kind}; {given.queries} queries; {machine}"
    print(as_table(rows, setting))
    if given.json is not None:
        write_text_atomic(given.json, json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=2))


class Draw:
    """Unit vectors by chance, in groups or evenly; the same for the same arguments."""

    def __init__(self, dim: int, clusters: int, spread: float) -> None:
        """Draw the middles of the groups.

        Args:
            dim: D.
            clusters: groups; 0: none.
            spread: length of what each vector adds to the middle of its group, which has length 1.
        """
        self.dim = dim
        self.spread = spread
        self.generator = torch.Generator().manual_seed(0)
        self.middles = self._unit(clusters) if clusters else None

    def vectors(self, count: int) -> Tensor:
        """The next vectors, [count, D]."""
        own = self._unit(count)
        if self.middles is None:
            return own
        groups = torch.randint(len(self.middles), (count,), generator=self.generator)
        return l2norm(self.middles[groups] + self.spread * own)

    def write(self, folder: Path, count: int) -> Shards:
        """Vectors [N, D] as an index folder keeps them."""
        counts = {}
        for start in range(0, count, SHARD):
            name = f"{start:012d}"
            counts[name] = min(SHARD, count - start)
            write_shard(folder / f"{name}.npy", self.vectors(counts[name]), "float32")
        return Shards(folder, counts, self.dim, "float32")

    def _unit(self, count: int) -> Tensor:
        return l2norm(torch.randn(count, self.dim, generator=self.generator))


def run(vectors: Shards, queries: Tensor, kinds: Sequence[Kind]) -> list[Row]:
    """Build and measure each kind in turn; only one is in memory at a time.

    Args:
        vectors: N of them.
        queries: [Q, D].
        kinds: of vector indexes.
    """

    def exactly(query: Tensor) -> exact.Ranked:
        return exact.search(vectors.blocks(), query[None], exact.cosine, K)[0]

    timing, truth = timed(queries, exactly)
    rows = [Row("exact", 0.0, 0.0, 4 * len(vectors) * vectors.dim / 2**20, timing.wall, timing.processor, 1.0)]
    for kind in kinds:
        started, used = time.perf_counter(), time.process_time()
        index = nearest.Nearest(kind, nearest.build(kind, vectors), vectors)
        build = time.perf_counter() - started, time.process_time() - used
        timing, found = timed(queries, index.finder(exact.cosine, K))
        mebibytes = index.size() / 2**20
        rows.append(Row(kind, *build, mebibytes, timing.wall, timing.processor, recall(found, truth)))
        print(as_table(rows[-1:], "so far"), flush=True)
    return rows


def as_table(rows: Sequence[Row], title: str) -> str:
    """A Markdown table below its title."""
    cells = [["index", "build s", "processor s", "MiB", "query ms", "processor ms", f"recall@{K}"]]
    for row in rows:
        name, *numbers = astuple(row)
        digits = (1, 1, 0, 2, 2, 4)
        cells.append([name, *(f"{number:.{places}f}" for number, places in zip(numbers, digits, strict=True))])
    return f"{title}\n\n{markdown(cells)}\n"


if __name__ == "__main__":
    run_entry_point(main)
