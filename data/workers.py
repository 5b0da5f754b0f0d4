"""The same work on many things, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

from runtime.progress import progress_bar

Job = TypeVar("Job")
Found = TypeVar("Found")


def in_parallel(work: Callable[[Job], Found], jobs: Sequence[Job], workers: int, title: str, unit: str) -> list[Found]:
    """What `work` makes of each job, in their order, under a progress bar; 1 worker stays in this process."""
    bar = partial(progress_bar, total=len(jobs), desc=title, unit=unit)
    if workers < 2 or len(jobs) < 2:
        return list(bar(map(work, jobs)))
    # Not forked: a copy of a process in which torch has started its threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(bar(pool.map(work, jobs, chunksize=8)))
