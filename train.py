"""Train every fold of one experiment: python train.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

import option
from batches.pairs import PairSource
from data.annotations import Annotations
from data.similarity.prior import PriorSimilarity
from data.splits import recorded_or_new
from dataloader import EvaluationLoader
from engine import evaluate, fit
from layers import build_model
from layers.backbone import synchronise_norms
from layers.base import RetrievalModel
from layers.objective import build_objective
from layers.registry import registered
from option import Options
from preflight import check_training
from runs.builders import evaluation_loader, place, plan_of, read_vocabulary, start_state, train_loader
from runs.checkpoints import ending_clearly, fit_weights, load_weights
from runs.events import EventLog, NoEvents
from runs.folders import best_checkpoint, experiment_folder, parse_folds, run_folder
from runs.media import Media, audio_folder_of
from runs.provenance import LIST_DIGEST, check_data_set, train_digest
from runs.record import recorded
from runs.resume import Keeper, begun_run, carry_on, is_finished, is_settled, save_best
from runtime.arguments import add_check, add_folds, add_force, add_resume, command, entry_parser
from runtime.devices import choose_device
from runtime.distributed import ALONE, World, own_random_states, refuse_torchrun, session
from runtime.entry_point import run_entry_point
from runtime.interruption import stopped_at_once
from runtime.locks import run_lock
from runtime.log import log_to
from training.learner import Losses, compile_encoders
from training.optimiser import slow_backbones
from training.state import TrainingState, random_states
from utils import Gate, InputError, derive_seed, logger, write_text_atomic
from vocab import Vocabulary

NAME_KEY = "k_fold.experiment_name"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the chosen folds one after the other."""
    parser = entry_parser("Train every fold of one experiment.")
    add_folds(parser)
    add_resume(parser)
    add_force(parser)
    add_check(parser)
    given = parser.parse_args(arguments)
    with stopped_at_once():
        if given.check:
            print(check(given))
            return
        with session(given.device) as (world, device):
            train_folds(given, world, device)


def check(given: argparse.Namespace) -> str:
    """What `--check` finds for the arguments of `main`."""
    refuse_torchrun("train.py --check")
    options = option.load_options(given.path_opt, given.set)
    folds, device = parse_folds(given.folds, options.k_fold.nums), choose_device(given.device)
    return check_training(given.path_opt, options, folds, device, given.resume == "auto", Gate(given.force))


def train_folds(given: argparse.Namespace, world: World, device: torch.device) -> None:
    """Train the folds that the arguments of `main` choose."""
    options = option.load_options(given.path_opt, given.set)
    folds = parse_folds(given.folds, options.k_fold.nums)
    check_ranks(options, world, device)
    vocabulary = read_vocabulary(options)
    media: Media | None = None
    for fold in folds:
        folder = run_folder(options, fold)
        with run_lock(folder, NAME_KEY) if world.leads else nullcontext():
            begun = begun_run(folder, options, given.resume == "auto", NAME_KEY)
            if begun is not None and is_over(options, fold, begun):
                logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
                continue
            with log_to(folder / "train.log") if world.leads else nullcontext():
                logger.info("Fold %d of %s on %s%s", fold, options.k_fold.experiment_name, device, _number_of(world))
                with world.in_turn():
                    train, val = split_of(options, fold, begun is not None or not world.leads)
                if media is None or not (media.holds(train) and media.holds(val)):
                    media = Media.of(options, (train, val), device, world.local_size)
                train_fold(options, fold, vocabulary, train, val, media, device, begun, given.force, world)
    chosen = [] if given.folds is None else ["--folds", given.folds]
    logger.info("Trained. Next: %s", command("test.py", given.path_opt, given.set, *chosen))


def _number_of(world: World) -> str:
    return "" if world.size == 1 else f", {world.size} ranks"


def check_ranks(options: Options, world: World, device: torch.device) -> None:
    """Refuse what several ranks can't do.

    Raises:
        InputError: synchronised batch norms without a GPU, or a model with a training loss of one device alone.
    """
    if world.size == 1:
        return
    if options.optim.sync_batch_norm and device.type == "cpu":
        raise InputError("optim.sync_batch_norm: true; torch's SyncBatchNorm needs GPUs: leave it false on the CPU.")
    model = registered()[options.model.name].model
    if model.training_loss is not RetrievalModel.training_loss:
        raise InputError(
            f"model.name: {options.model.name} overrides `training_loss`, which sees one rank's batch; torchrun needs "
            "`encodings` and `loss_of` in its place (layers/base.py). Train it with python train.py."
        )


def train_fold(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    train: Annotations,
    val: Annotations,
    media: Media,
    device: torch.device,
    begun: dict[str, Any] | None,
    force: bool = False,
    world: World = ALONE,
) -> None:
    """Train one fold and keep its best and its last epoch.

    Args:
        options: the experiment.
        fold: 0..k_fold.nums - 1.
        vocabulary: the words whose ids the captions become.
        train: captions to train on.
        val: captions to choose the best epoch by.
        media: images and spectrograms of both.
        device: where to train.
        begun: the checkpoint to go on from.
        force: go on with weights of another vocabulary, model or data set.
        world: the ranks that train it together.

    Raises:
        InputError: data, weights or checkpoint are at fault.
        RunFault: something stopped the training midway.
    """
    with world.in_turn():
        validation = evaluation_loader(options, val, vocabulary, media, device, world)
        loader = train_loader(options, fold, vocabulary, train, media, device, world)
        source = pair_source(options, train)
    model = start_model(options, fold, vocabulary, device, begun, Gate(force), world)
    objective = build_objective(options.optim).to(device)
    groups = slow_backbones(model, model.parameter_groups(options), options.optim.lr_backbone)
    state = start_state(model, groups, options.optim, device, objective, options.optim.ema)
    folder = run_folder(options, fold)
    if begun is not None:
        carry_on(state, own_random_states(begun, world, folder), folder, NAME_KEY)
    if options.optim.compile:
        compile_encoders(model)
    losses = world.parallel(Losses(model, objective, source, world))
    keeper = keeper_of(options, fold, vocabulary, state)
    with ending_clearly(folder), _written(options, folder, state, len(loader), device, world) as writer:
        if world.leads:
            keeper.settle(state, begun)
        plan = plan_of(options.optim, options.logs, model.selected_by)
        fit(
            state,
            loader,
            losses,
            partial(_validated, state, validation, device, options.optim.amp, world),
            plan,
            device,
            writer,
            partial(_saved, keeper, world),
            world,
        )


def keeper_of(options: Options, fold: int, vocabulary: Vocabulary, state: TrainingState) -> Keeper:
    """What saves a fold's run, with the words, the data set and the fold that belong to its weights."""
    extra = {"vocabulary": vocabulary.digest, LIST_DIGEST: train_digest(options.dataset.data_path), "fold": fold}
    best = best_checkpoint(options, fold)
    return Keeper(run_folder(options, fold), best, options, partial(save_best, best, state, options, extra), extra)


@contextmanager
def _written(
    options: Options, folder: Path, state: TrainingState, batches: int, device: torch.device, world: World
) -> Iterator[EventLog | NoEvents]:
    """What a run leaves besides its checkpoints: its options, a record of it, and the events, to be written to."""
    if not world.leads:
        yield NoEvents()
        return
    write_text_atomic(folder / "options.yaml", option.to_yaml(options))
    with recorded(folder, device), EventLog(folder, state.epoch * batches + state.batch + 1) as writer:
        yield writer


def _validated(
    state: TrainingState, loader: EvaluationLoader, device: torch.device, amp: str, world: World
) -> dict[str, float]:
    """The scores of val, the same on all ranks."""
    world.share_buffers(state.scored)
    return world.agree(evaluate(cast(RetrievalModel, state.scored), loader, device, amp))


def _saved(keeper: Keeper, world: World, state: TrainingState, is_best: bool) -> None:
    """Save the run; every rank gives its random states."""
    state.ranks = world.collect(random_states(state.device)) if world.size > 1 else []
    if world.leads:
        keeper.save(state, is_best)


def split_of(options: Options, fold: int, begun: bool) -> tuple[Annotations, Annotations]:
    """Train and val list of a fold, of one that was begun those that it was begun with."""
    k_fold, folder = options.k_fold, run_folder(options, fold)
    return recorded_or_new(
        options.dataset.data_path,
        folder,
        k_fold.strategy,
        fold,
        k_fold.nums,
        k_fold.seed,
        begun,
        audio_folder_of(options),
    )


def is_over(options: Options, fold: int, begun: dict[str, Any]) -> bool:
    """Whether nothing is left to do for a fold."""
    finished = is_finished(begun, options.optim.epochs, options.optim.patience)
    return finished and is_settled(begun, run_folder(options, fold), best_checkpoint(options, fold))


def pair_source(options: Options, train: Annotations) -> PairSource:
    """What is known of the pairs of a training list, as far as the loss uses it."""
    prior = None
    if "dynamic" in options.optim.loss:
        prior = PriorSimilarity.cached(train, experiment_folder(options) / "cache")
    return PairSource(train, options.optim.mask, prior)


def start_model(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    device: torch.device,
    begun: dict[str, Any] | None,
    gate: Gate | None = None,
    world: World = ALONE,
) -> RetrievalModel:
    """The model as at the start of a run, or as a checkpoint holds it.

    Args:
        options: the experiment.
        fold: seeds the random weights, and the dropout.
        vocabulary: sizes the word table.
        device: where the model goes.
        begun: the checkpoint to go on from.
        gate: whether the user insists on a mismatch.
        world: the ranks, which begin with the same weights and drop out for themselves.

    Raises:
        InputError: weights that the options name, or the checkpoint, do not fit.
    """
    torch.manual_seed(derive_seed(options.optim.seed, "model", fold))
    model = build_model(options, vocabulary, load_weights=begun is None)
    if begun is not None:
        last = run_folder(options, fold) / "last.pth"
        check_data_set(begun, last, options.dataset.data_path, gate)
        fit_weights(model, begun, last, options, vocabulary, gate)
    elif options.optim.resume is not None:
        load_weights(model, options.optim.resume, options, vocabulary, gate)
    if not world.leads:
        torch.manual_seed(derive_seed(options.optim.seed, "dropout", fold, world.rank))
    if options.optim.sync_batch_norm and world.size > 1:
        model = cast(RetrievalModel, synchronise_norms(model))
    return place(model, device)


if __name__ == "__main__":
    run_entry_point(main)
