"""Progress of long work: a bar in a terminal, else a line of the log now and then."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from utils import logger

SECONDS = 30
"""From one line to the next, and before the first."""


def progress_bar(
    things: Iterable[Any] | None = None,
    *,
    desc: str | None,
    unit: str,
    total: int | None = None,
    quiet: bool = False,
) -> tqdm[Any]:
    """A progress bar over things, or one to be updated by hand; `quiet` shows nothing at all."""
    if quiet or sys.stderr.isatty():
        return tqdm(things, desc=desc, unit=unit, total=total, disable=quiet)
    return tqdm(
        things,
        desc=desc,
        unit=unit,
        total=total,
        file=_Log(),
        mininterval=SECONDS,
        maxinterval=2 * SECONDS,
        delay=SECONDS,
        bar_format="{desc}: {n_fmt} of {total_fmt}, {remaining} left",
    )


class _Log(io.StringIO):
    """What a bar writes, as lines of the log."""

    def write(self, text: str) -> int:
        """One state of the bar."""
        if line := text.strip():
            logger.info("%s", line)
        return len(text)
