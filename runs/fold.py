"""What belongs to the training of one fold: whether it is over, what saves it, what it leaves besides checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

import option
from dataloader import EvaluationLoader
from engine import evaluate
from layers.base import RetrievalModel
from option import Options
from option.pretraining import PretrainingOptions
from runs.events import EventLog, event_log
from runs.examples import Examples
from runs.folders import best_checkpoint, run_folder
from runs.provenance import LIST_DIGEST, train_digest
from runs.record import recorded
from runs.resume import Keeper, is_finished, is_settled, save_best
from runs.sets import joined_sets, noted
from runtime.distributed import World
from training.state import TrainingState, random_states
from utils import write_text_atomic
from vocab import Vocabulary


def is_over(options: Options, fold: int, begun: dict[str, Any]) -> bool:
    """Whether nothing is left to do for a fold."""
    finished = is_finished(begun, options.optim.epochs, options.optim.patience)
    return finished and is_settled(begun, run_folder(options, fold), best_checkpoint(options, fold))


def keeper_of(options: Options, fold: int, vocabulary: Vocabulary, state: TrainingState) -> Keeper:
    """What saves a fold's run, with the words, the data set and the fold that belong to its weights."""
    folder, sets = options.dataset.folder, joined_sets(options.dataset)
    extra = {"vocabulary": vocabulary.digest, LIST_DIGEST: train_digest(folder), "fold": fold, **noted(sets)}
    best = best_checkpoint(options, fold)
    return Keeper(run_folder(options, fold), best, options, partial(save_best, best, state, options, extra), extra)


@contextmanager
def written(
    options: Options | PretrainingOptions,
    folder: Path,
    state: TrainingState,
    batches: int,
    device: torch.device,
    world: World,
) -> Iterator[EventLog]:
    """What a run leaves besides its checkpoints: its options, a record of it, and the events, to be written to."""
    events = event_log(options, folder, state.epoch * batches + state.batch + 1)
    if not world.leads:
        yield events  # not opened, it keeps none
        return
    write_text_atomic(folder / "options.yaml", option.to_yaml(options))
    sets = joined_sets(options.dataset) if isinstance(options, Options) else {}
    with recorded(folder, device, noted(sets)), events:
        events.add_text("options", option.to_yaml(options))
        yield events


def validated(
    state: TrainingState,
    loader: EvaluationLoader,
    device: torch.device,
    amp: str,
    world: World,
    examples: Examples,
    batches: int,
    events: EventLog,
) -> dict[str, float]:
    """The scores of val, the same on all ranks, at the end of an epoch of some batches; examples go to the log."""
    world.share_buffers(state.scored)
    scores = evaluate(cast(RetrievalModel, state.scored), loader, device, amp, examples.watch)
    if world.leads and len(examples.captions):
        events.add_image("val/examples", examples.sheet(), (state.epoch + 1) * batches)
    return world.agree(scores)


def saved(keeper: Keeper, world: World, state: TrainingState, is_best: bool) -> None:
    """Save the run; every rank gives its random states."""
    state.ranks = world.collect(random_states(state.device)) if world.size > 1 else []
    if world.leads:
        keeper.save(state, is_best)
