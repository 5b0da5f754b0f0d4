"""Train every fold of one experiment: python train.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

import option
from checkpoints import ending_clearly, fit_weights, load_weights
from data.annotations import Annotations
from data.prior import PriorSimilarity
from data.splits import recorded_or_new
from dataloader import Batch
from engine import evaluate, fit
from event_log import EventLog
from experiment import (
    Media,
    add_check,
    add_folds,
    add_force,
    audio_folder_of,
    best_checkpoint,
    command,
    entry_parser,
    evaluation_loader,
    experiment_folder,
    parse_folds,
    place,
    plan_of,
    read_vocabulary,
    run_folder,
    start_state,
    train_loader,
)
from interruption import stopped_at_once
from layers import build_model
from layers.base import RetrievalModel
from layers.objective import Objective, build_objective
from locks import run_lock
from mismatch import Gate
from optimisation import slow_backbones
from option import Options
from pairs import PairSource
from preflight import check_training
from provenance import LIST_DIGEST, check_data_set, train_digest
from resume import Keeper, add_resume, begun_run, carry_on, is_finished, is_settled, save_best
from utils import choose_device, derive_seed, log_to, logger, run_entry_point, write_text_atomic
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
        train_folds(given)


def train_folds(given: argparse.Namespace) -> None:
    """Train the folds that the arguments of `main` choose."""
    options = option.load_options(given.path_opt, given.set)
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    if given.check:
        resume = given.resume == "auto"
        print(check_training(given.path_opt, options, folds, device, resume, Gate(given.force)))
        return
    vocabulary = read_vocabulary(options)
    media: Media | None = None
    for fold in folds:
        folder = run_folder(options, fold)
        with run_lock(folder, NAME_KEY):
            begun = begun_run(folder, options, given.resume == "auto", NAME_KEY)
            if begun is not None and is_over(options, fold, begun):
                logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
                continue
            with log_to(folder / "train.log"):
                logger.info("Fold %d of %s on %s", fold, options.k_fold.experiment_name, device)
                train, val = split_of(options, fold, begun is not None)
                if media is None or not (media.holds(train) and media.holds(val)):
                    media = Media.of(options, (train, val), device)
                train_fold(options, fold, vocabulary, train, val, media, device, begun, given.force)
    logger.info("Trained. Next: %s", command("test.py", given.path_opt, given.set))


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
) -> None:
    """Train one fold and keep its best and its last epoch.

    Args:
        options: the experiment.
        fold: 0..k_fold.nums - 1.
        vocabulary: the words whose ids the captions become.
        train: captions to train on.
        val: captions to choose the best epoch by.
        media: pictures and spectrograms of both.
        device: where to train.
        begun: the checkpoint to go on from.
        force: go on with weights of another vocabulary, model or data set.

    Raises:
        InputError: data, weights or checkpoint are at fault.
        RunFault: something stopped the training midway.
    """
    folder = run_folder(options, fold)
    validation = evaluation_loader(options, val, vocabulary, media, device)
    loader = train_loader(options, fold, vocabulary, train, media, device)
    model = start_model(options, fold, vocabulary, device, begun, Gate(force))
    optim = options.optim
    objective = build_objective(optim).to(device)
    groups = slow_backbones(model, model.parameter_groups(options), optim.lr_backbone)
    state = start_state(model, groups, optim, device, objective, optim.ema)
    if begun is not None:
        carry_on(state, begun, folder, NAME_KEY)
    source = pair_source(options, train)
    write_text_atomic(folder / "options.yaml", option.to_yaml(options))
    extra = {"vocabulary": vocabulary.digest, LIST_DIGEST: train_digest(options.dataset.data_path), "fold": fold}
    best = best_checkpoint(options, fold)
    keeper = Keeper(folder, best, options, lambda: save_best(best, state, options, extra), extra)
    with ending_clearly(folder), EventLog(folder, state.epoch * len(loader) + state.batch + 1) as writer:
        keeper.settle(state, begun)
        fit(
            state,
            loader,
            partial(training_losses, model, objective, source),
            lambda: evaluate(cast(RetrievalModel, state.scored), validation, device, optim.amp),
            plan_of(optim, options.logs, model.selected_by),
            device,
            writer,
            keeper.save,
        )


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


def training_losses(model: RetrievalModel, objective: Objective, source: PairSource, batch: Batch) -> dict[str, Tensor]:
    """Losses of a batch, summed over its items: key `loss`, and what else is to be logged.

    Besides the parts of the loss: `temperature` where one is learned, and with `optim.mask` the `masked_share` of the
    wrong pairs; both times the items, of which the log shows the mean.
    """
    pairs = source.of(batch)
    losses = model.training_loss(batch, partial(objective, pairs=pairs))
    figures = objective.figures()
    if pairs.matches is not None:
        figures["masked_share"] = pairs.masked_share()
    return losses | {name: len(batch) * value for name, value in figures.items()}


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
) -> RetrievalModel:
    """The model as at the start of a run, or as a checkpoint holds it.

    Args:
        options: the experiment.
        fold: seeds the random weights.
        vocabulary: sizes the word table.
        device: where the model goes.
        begun: the checkpoint to go on from.
        gate: whether the user insists on a mismatch.

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
    return place(model, device)


if __name__ == "__main__":
    run_entry_point(main)
