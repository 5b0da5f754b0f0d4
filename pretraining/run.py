"""A pretraining as a run on disk: its folder, its lock, what is begun or finished, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import option
from option import BackboneOptions, ModalityOptions
from runs.checkpoints import ending_clearly
from runs.events import EventLog
from runs.record import recorded
from runs.resume import Keeper, Resumable, begun_run, is_finished, is_settled
from runtime.locks import run_lock
from runtime.log import log_to
from utils import logger, write_text_atomic

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


@contextmanager
def written(
    keeper: Keeper, state: Resumable, begun: dict[str, Any] | None, done: int, device: torch.device
) -> Iterator[EventLog]:
    """What a run leaves besides its checkpoints: its options, a record of it, and the events, to be written to.

    What a killed run had still to write is made up first. `done`: how many steps of the training are behind.
    """
    folder = keeper.folder
    write_text_atomic(folder / "options.yaml", option.to_yaml(keeper.options))
    with ending_clearly(folder), recorded(folder, device), EventLog(folder, done + 1) as writer:
        keeper.settle(state, begun)
        yield writer
