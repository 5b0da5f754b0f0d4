"""The project's log: on the console beside progress bars, and in a run's folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from utils import logger


class _AboveProgressBars(logging.Handler):
    """Console log that does not tear the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line above the bars."""
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """Send the project's log to the console; warnings carry their level."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = _AboveProgressBars()
    handler.setFormatter(_ConsoleFormat())
    logger.addHandler(handler)
    logger.propagate = False


class _ConsoleFormat(logging.Formatter):
    """The bare message; its level before it from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + record.getMessage()


class _LogFile(logging.FileHandler):
    """A log that a full disk silences, with one warning, where Python's own prints a traceback for every line."""

    broken = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, unless an earlier one could not be written."""
        if not self.broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the log ends here."""
        self.broken = True
        logger.warning("%s can't be written any more (%s); the work goes on.", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Close it; what is still to be written may be lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append the project's log, with times, to a file as long as the context lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
