"""A pretraining as a run on disk: its folder, its lock, and what is begun or finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from option import BackboneOptions, ModalityOptions
from runs.resume import begun_run, is_finished, is_settled
from runtime.locks import run_lock
from runtime.log import log_to
from utils import logger

NAME_KEY = "logs.experiment_name"
Options = BackboneOptions | ModalityOptions


def folder_of(options: Options) -> Path:
    """The folder of a pretraining's run."""
    return Path(options.logs.ckpt_save_path) / options.logs.experiment_name


def locked_run(
    options: Options, best: Path, resume: bool, train: Callable[[dict[str, Any] | None], None], patience: int = 0
) -> None:
    """Train in the run's folder, which no other run may use meanwhile; a finished run is left as it is.

    Args:
        options: the run.
        best: the file that is written last when an epoch is the best one.
        resume: go on with what was begun.
        train: is given the run's last checkpoint, None where nothing was begun.
        patience: validations without a better one after which the run is over; 0: only its epochs count.

    Raises:
        InputError: the run was begun and can't be gone on with, or `train` raises one.
    """
    folder = folder_of(options)
    with run_lock(folder, NAME_KEY):
        begun = begun_run(folder, options, resume, NAME_KEY)
        if begun is not None and is_finished(begun, options.optim.epochs, patience) and is_settled(begun, folder, best):
            logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
            return
        with log_to(folder / "train.log"):
            train(begun)
