"""Sides of a comparison in processes of their own, since memory settings and threads are chosen when one starts."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from runtime.log import start_logging
from utils import InputError

Figures = dict[str, float]


class Subject(Protocol):
    """What a process holds ready and measures when it is asked to."""

    def run(self) -> Figures:
        """Measure once."""


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
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, tuple(arguments), threads))
        with _environment(environment):
            self._process.start()
        theirs.close()

    def run(self) -> Figures:
        """Figures of one measurement.

        Raises:
            InputError: the process met one, or it was ended from outside.
        """
        try:
            self._pipe.send("run")
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError) as fault:
            self._process.join()
            raise InputError(
                f"a measuring process was ended from outside (exit code {self._process.exitcode}), mostly for want of "
                "memory: try a smaller --batch, or fewer sides."
            ) from fault
        if kind == "input":
            raise InputError(answer)
        if kind == "fault":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Subject], arguments: Sequence[Any], threads: int) -> None:
    """The process: build the subject at the first request, measure at each."""
    start_logging()
    torch.set_num_threads(threads)
    subject: Subject | None = None
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            subject = subject or make(*arguments)
            pipe.send(("figures", subject.run()))
        except InputError as fault:
            pipe.send(("input", str(fault)))
        except Exception:
            pipe.send(("fault", traceback.format_exc()))


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Change the environment for processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _change(changes)
        yield
    finally:
        _change(before)


def _change(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
