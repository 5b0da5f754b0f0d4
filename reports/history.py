"""The epochs of a run, as its `history.csv` holds them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.untrusted import read_bytes
from utils import InputError

VALIDATION_SCORES = {
    "val_tasks_mR": "mean mR of all tasks on val, %",
    "val_mR": "mR on val, %",
    "val_accuracy": "accuracy on val, %",
}
"""Column of `history.csv` that the best epoch was chosen by -> what it says."""


def read_history(folder: Path) -> list[dict[str, float]]:
    """The epochs of one fold from its `history.csv`; a column that an epoch has no value for is left out of its row.

    Raises:
        InputError: the file is missing or is not such a table.
    """
    path = folder / "history.csv"
    try:
        text = io.StringIO(read_bytes(path).decode("utf-8"), newline="")
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(text)]
        if not all({"epoch", "loss"} <= row.keys() for row in rows):
            raise ValueError("a row without epoch or loss")
        return rows
    except (OSError, ValueError, TypeError, csv.Error) as fault:
        raise InputError(f"{path}: not a training history ({fault}). train.py writes one after each epoch.") from fault


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The epoch that was best on val."""
    score = validation_score(history)
    return max((row for row in history if score in row), key=lambda row: row[score])


def validation_score(history: Sequence[Mapping[str, float]]) -> str:
    """The first of `VALIDATION_SCORES` that a history has values of."""
    return next((name for name in VALIDATION_SCORES if any(name in row for row in history)), "val_mR")


def training_time(history: Sequence[Mapping[str, float]]) -> float:
    """Seconds that all epochs took with their validation; 0 where the history does not tell."""
    return sum(row.get("seconds", 0.0) for row in history)


def duration(seconds: float) -> str:
    """A time as a person says it: 12.3 s, 5 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
