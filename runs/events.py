"""What a run notes for those who watch it: one log, kept by TensorBoard and by the trackers of `logs.trackers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from PIL import Image

import option
from option import Options
from option.pretraining import PretrainingOptions
from runs.checkpoints import flat_options
from runs.folders import experiment_folder, run_folder
from runs.tensorboard import TensorBoard, note_hparams
from runs.trackers import LONG_PATIENCE, Background, backgrounds
from utils import logger, write_text_atomic


class Sink(Protocol):
    """What keeps a log. A fault of it is said once and raised nowhere."""

    def open(self) -> None:
        """Begin, or go on with what was begun."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one number."""

    def add_text(self, tag: str, text: str) -> None:
        """Record a text."""

    def add_image(self, tag: str, image: Image.Image, global_step: int) -> None:
        """Record an RGB image."""

    def flush(self) -> None:
        """Write out what was recorded."""

    def close(self, failed: bool) -> None:
        """End."""


class EventLog:
    """The log of a run, kept while its context is open; not opened, it keeps nothing."""

    def __init__(self, folder: Path, purge_step: int, trackers: Sequence[Background] = ()) -> None:
        """Prepare the log of a run's folder; in TensorBoard earlier events from `purge_step` on are not shown."""
        self._sinks: tuple[Sink, ...] = (TensorBoard(folder, purge_step), *trackers)
        self._opened: tuple[Sink, ...] = ()

    def __enter__(self) -> EventLog:
        """Open all that keep it."""
        self._opened = self._sinks
        for sink in self._opened:
            sink.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left."""
        for sink in self._opened:
            sink.close(failed=fault is not None)
        self._opened = ()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one number."""
        for sink in self._opened:
            sink.add_scalar(tag, scalar_value, global_step)

    def add_text(self, tag: str, text: str) -> None:
        """Record a text, shown as it is."""
        for sink in self._opened:
            sink.add_text(tag, text)

    def add_image(self, tag: str, image: Image.Image, global_step: int) -> None:
        """Record an RGB image."""
        for sink in self._opened:
            sink.add_image(tag, image, global_step)

    def flush(self) -> None:
        """Write out what was recorded."""
        for sink in self._opened:
            sink.flush()


def event_log(options: Options | PretrainingOptions, folder: Path, purge_step: int) -> EventLog:
    """The log of a training or pretraining in its folder, for the trackers that its options name, too."""
    return EventLog(folder, purge_step, backgrounds(options.logs, folder, flat_options(option.dump(options))))


def note_test(options: Options, results: Path, fold: int, scores: Mapping[str, float]) -> None:
    """Show a fold's test scores, in percent, beside its options: in TensorBoard's table of hparams and in trackers.

    Trackers name what the scores are of, where `results` is not the folder of the experiment but one in it.
    """
    flat = flat_options(option.dump(options))
    note_hparams(results / str(fold), flat, {f"test/{name}": value for name, value in scores.items()})
    kind = "/".join(["test", *results.relative_to(experiment_folder(options)).parts])
    named = {f"{kind}/{name}": value for name, value in scores.items()}
    for tracker in backgrounds(options.logs, run_folder(options, fold), flat):
        tracker.open()
        tracker.add_scores(named)
        tracker.close(failed=False, patience=LONG_PATIENCE)


def write_table(path: Path, text: str) -> None:
    """Write a table that the run can do without; where that fails, say so."""
    try:
        write_text_atomic(path, text)
    except OSError as fault:
        logger.warning("%s can't be written (%s); the training goes on.", path, fault.strerror)
