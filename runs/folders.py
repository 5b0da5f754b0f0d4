"""Where an experiment and its folds write."""

from __future__ import annotations

from pathlib import Path

from option import Options
from utils import InputError


def experiment_folder(options: Options) -> Path:
    """Where all folds of an experiment write."""
    return Path(options.logs.ckpt_save_path) / options.k_fold.experiment_name


def run_folder(options: Options, fold: int) -> Path:
    """Where one fold writes."""
    return experiment_folder(options) / str(fold)


def best_checkpoint(options: Options, fold: int) -> Path:
    """The weights of a fold that were best on val."""
    return run_folder(options, fold) / f"{options.model.name}_best.pth.tar"


def parse_folds(text: str | None, count: int) -> list[int]:
    """Folds chosen by `--folds 0,2`; all of them without it.

    Raises:
        InputError: not a list of numbers in 0..count - 1.
    """
    if text is None:
        return list(range(count))
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError as fault:
        raise InputError(f"--folds {text}: expected numbers with commas between them, e.g. --folds 0,2.") from fault
    if folds[0] < 0 or folds[-1] >= count:
        raise InputError(f"--folds {text}: this experiment has the folds 0 to {count - 1} (k_fold.nums).")
    return folds
