"""Signals that ask a run to stop, and when it saves: cluster schedulers send SIGTERM, a keyboard SIGINT."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from utils import Interrupted, logger

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let a handler receive the stopping signals; Python gives them to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Around a whole run: outside of its steps a signal ends it on the spot, since nothing new is there to be saved.

    Raises:
        Interrupted: a signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _say(number, "what was saved stays")
        raise Interrupted

    with _handled(stop):
        yield


class Watch:
    """Between two steps of a training: is it time to save, and was a signal received?

    Attributes:
        received: the signals that asked to stop.
    """

    def __init__(self, minutes: float) -> None:
        """Start the clock; a save is due every `minutes`, 0: only when a signal asks to stop."""
        self.seconds = 60 * minutes
        self.received: list[int] = []
        self._saved_at = time.monotonic()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Keep signals until the step is done; the same one again ends the process at once."""
        with _handled(self._receive):
            yield

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Launchers send SIGTERM after a keyboard's SIGINT: only the same one again is impatience.
        if number in self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received.append(number)

    @property
    def due(self) -> bool:
        """Whether the state is to be saved now."""
        return bool(self.received) or 0 < self.seconds <= time.monotonic() - self._saved_at

    def saved(self, heard: Sequence[int] | None = None) -> None:
        """Restart the clock; `heard`: the signals that any process of the run has received, None: it has but this one.

        Raises:
            Interrupted: a signal asked to stop.
        """
        self._saved_at = time.monotonic()
        if signals := self.received if heard is None else heard:
            _say(signals[0], "all steps so far are saved")
            raise Interrupted


@contextmanager
def termination_held() -> Iterator[None]:
    """While workers are started: threads that a library starts in them before `obey_parent_alone` inherit the block."""
    if not hasattr(signal, "sigwaitinfo"):  # as there: who does not wait for the signal must not block it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_alone(worker: int) -> None:
    """For a loader's worker: schedulers signal every process of a job, but the last step still needs its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    """End this process when its parent terminates it, and for nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _say(number: int, kept: str) -> None:
    logger.warning("Stopped by %s; %s. Run the same command again to go on.", signal.Signals(number).name, kept)
