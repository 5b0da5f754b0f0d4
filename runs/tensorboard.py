"""TensorBoard's events in a run's folder: what can't be written is said once, and the training goes on."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from utils import logger, system_error

EVENTS = "events.out.tfevents."
"""How the names of TensorBoard's files begin; the second of their start follows, in ten digits."""
QUALITY = 85
"""Of its images, as JPEG: an eighth of the bytes of the PNG that `SummaryWriter.add_image` would write."""


class TensorBoard:
    """The events of a run; a full disk ends them, not the run."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Prepare the events of a run's folder; those of earlier runs from `purge_step` on are not shown."""
        self.folder = folder
        self.purge_step = purge_step
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook

    def open(self) -> None:
        """Open the file, and keep the writer's thread from printing a traceback of its own."""
        self._hook, threading.excepthook = threading.excepthook, self._quiet
        try:
            date_back(self.folder, int(time.time()))
            self._writer = SummaryWriter(str(self.folder), purge_step=self.purge_step)
        except Exception as fault:
            self._give_up(fault)

    def close(self, failed: bool = False) -> None:
        """Write what is left."""
        self._guarded(SummaryWriter.close)
        threading.excepthook = self._hook

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one number."""
        self._guarded(lambda writer: writer.add_scalar(tag, scalar_value, global_step))

    def add_text(self, tag: str, text: str) -> None:
        """Record a text, shown as it is."""
        shown = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's form of text that keeps its lines
        self._guarded(lambda writer: writer.add_text(tag, shown))

    def add_image(self, tag: str, image: Image.Image, global_step: int) -> None:
        """Record an RGB image."""
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        encoded = Summary.Image(
            height=image.height, width=image.width, colorspace=3, encoded_image_string=file.getvalue()
        )
        summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
        self._guarded(lambda writer: writer._get_file_writer().add_summary(summary, global_step))

    def flush(self) -> None:
        """Write out what was recorded."""
        self._guarded(SummaryWriter.flush)

    def _guarded(self, work: Callable[[SummaryWriter], Any]) -> None:
        if self._writer is None:
            return
        try:
            work(self._writer)
        except Exception as fault:
            self._give_up(fault)

    def _give_up(self, fault: Exception) -> None:
        error = system_error(fault)
        if error is None:
            raise fault
        self._writer = None
        logger.warning(
            "%s: TensorBoard's events can't be written any more (%s); the training goes on, and history.csv keeps its "
            "figures.",
            self.folder,
            error.strerror,
        )

    def _quiet(self, thrown: threading.ExceptHookArgs) -> None:
        if thrown.exc_value is None or system_error(thrown.exc_value) is None:
            self._hook(thrown)


def date_back(folder: Path, now: int) -> None:
    """Let the events of a folder be older than `now`, seconds since 1970, in the order that they have.

    TensorBoard reads files by the time in their names, and what is purged is what it has read before: if the clock was
    set back, or a run went on within a second, an earlier file would come last and purge the later epochs.
    """
    latest = now
    for path in sorted(folder.glob(f"{EVENTS}*"), reverse=True):
        written, _, rest = path.name.removeprefix(EVENTS).partition(".")
        if not written.isdecimal():
            continue
        latest = min(int(written), latest - 1)
        if latest < int(written):
            path.rename(path.with_name(f"{EVENTS}{latest:010}.{rest}"))


def note_hparams(folder: Path, options: Mapping[str, Any], scores: Mapping[str, float]) -> None:
    """Let the table of hparams show the options and test scores of a run, in place of an earlier test's.

    Args:
        folder: of the run.
        options: by dotted key.
        scores: by name, as they are shown.
    """
    place = folder / "hparams"
    named = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in options.items()}
    try:
        for earlier in place.glob(f"{EVENTS}*"):
            earlier.unlink()
        with SummaryWriter(str(place)) as writer:
            for summary in hparams(named, dict(scores)):
                writer._get_file_writer().add_summary(summary)
            for name, value in scores.items():
                writer.add_scalar(name, value, 0)
    except OSError as fault:
        logger.warning("%s can't be written (%s); test.json holds the scores.", place, fault.strerror)
