"""Sides of a comparison in processes of their own, since memory settings and threads are chosen when one starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from typing import Any, Protocol
from unittest.mock import patch

import torch

from runtime.log import start_logging
from utils import InputError

Figures = dict[str, float]


class Subject(Protocol):
    """What a process holds ready and measures when it is asked to."""

    def run(self) -> Figures:
        """Measure once."""


_subjects: list[Subject] = []
"""In the process of a side: its subject, once it is built."""


class Side:
    """A process that builds a subject and measures it on demand."""

    def __init__(
        self,
        make: Callable[..., Subject],
        arguments: Sequence[Any],
        environment: Mapping[str, str | None],
        threads: int,
    ) -> None:
        """Start it.

        Args:
            make: builds the subject; importable by name.
            arguments: of `make`.
            environment: variables to set, or where None to unset, before the process starts.
            threads: of its tensor operations.
        """
        self._subject = make, tuple(arguments)
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (threads,))
        with patch.dict(os.environ):
            for name, value in environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            self._pool.submit(os.getpid)  # starts the process

    def run(self) -> Figures:
        """Figures of one measurement; the first builds the subject.

        Raises:
            InputError: the process met one, or it was ended from outside.
        """
        try:
            return self._pool.submit(_measure, *self._subject).result()
        except BrokenProcessPool as fault:
            raise InputError(
                "a measuring process was ended from outside, mostly for want of memory: try a smaller --batch, or "
                "fewer sides."
            ) from fault

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _start(threads: int) -> None:
    start_logging()
    torch.set_num_threads(threads)


def _measure(make: Callable[..., Subject], arguments: Sequence[Any]) -> Figures:
    if not _subjects:
        _subjects.append(make(*arguments))
    return _subjects[0].run()


def measured_once(
    make: Callable[..., Subject],
    arguments: Sequence[Any],
    environment: Mapping[str, str | None],
    threads: int,
    rounds: int = 1,
) -> list[Figures]:
    """Figures of some measurements in a process that ends with them; arguments as of `Side`."""
    with closing(Side(make, arguments, environment, threads)) as side:
        return [side.run() for _ in range(rounds)]
