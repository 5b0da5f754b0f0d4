"""Train every fold of one experiment: python train.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from runtime.arguments import add_check, add_folds, add_force, add_resume, command, entry_parser


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed."""
    parser = entry_parser("Train every fold of one experiment.")
    for add in (add_folds, add_resume, add_force, add_check):
        add(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_arguments()  # before PyTorch is imported, so that --help and misspelt flags are answered at once

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

import option
from data.annotations import Annotations
from engine import chance_of, fit
from layers.losses.objective import build_objective
from layers.packaged import count_line
from option import Options
from preflight import check_training
from runs.checkpoints import ending_clearly
from runs.examples import Examples
from runs.features import list_features, quick_start, train_views
from runs.fold import is_over, keeper_of, saved, validated, written
from runs.folders import parse_folds, run_folder
from runs.images import note_images
from runs.loaders import evaluation_loader, pair_source, read_vocabulary, split_of, train_loader
from runs.media import Media, image_files
from runs.models import plan_of, refuse_ranks, start_model, start_state
from runs.ranges import with_range_of_run
from runs.resume import begun_run, carry_on, own_random_states
from runs.sets import with_joined
from runs.trackers import require_trackers
from runtime.devices import choose_device
from runtime.distributed import ALONE, World, refuse_torchrun, session
from runtime.entry_point import run_entry_point
from runtime.interruption import stopped_at_once
from runtime.locks import run_lock
from runtime.log import log_to
from training.learner import Losses, compile_encoders
from training.optimiser import slow_backbones
from utils import Gate, logger
from vocab import Vocabulary

NAME_KEY = "k_fold.experiment_name"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the chosen folds one after the other."""
    given = read_arguments(arguments)
    with stopped_at_once():
        if given.check:
            print(check(given))
            return
        with session(given.device) as (world, device):
            train_folds(given, world, device)


def check(given: argparse.Namespace) -> str:
    """The options with all that they extend, and what `--check` finds, for the arguments of `main`."""
    refuse_torchrun("train.py --check")
    options = option.load_options(given.path_opt, given.set)
    folds, device = parse_folds(given.folds, options.k_fold.nums), choose_device(given.device)
    verdict = check_training(given.path_opt, options, folds, device, given.resume == "auto", Gate(given.force))
    return f"{option.to_yaml(options, given=True)}\n{verdict}"


def train_folds(given: argparse.Namespace, world: World, device: torch.device) -> None:
    """Train the folds that the arguments of `main` choose."""
    options = option.load_options(given.path_opt, given.set)
    folds = parse_folds(given.folds, options.k_fold.nums)
    require_trackers(options.logs.trackers)
    refuse_ranks(options, world, device)
    vocabulary = read_vocabulary(options)
    with world.in_turn():
        options = with_joined(options)
    media: Media | None = None
    for fold in folds:
        folder = run_folder(options, fold)
        with run_lock(folder, NAME_KEY) if world.leads else nullcontext():
            begun = begun_run(folder, options, given.resume == "auto", NAME_KEY)
            if begun is not None and is_over(options, fold, begun):
                logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
                continue
            with log_to(folder / "train.log") if world.leads else nullcontext():
                ranks = "" if world.size == 1 else f", {world.size} ranks"
                logger.info("Fold %d of %s on %s%s", fold, options.k_fold.experiment_name, device, ranks)
                with world.in_turn():
                    train, val = split_of(options, fold, begun is not None or not world.leads)
                options = with_range_of_run(options, image_files(options, train, val), begun, folder)
                if media is None or not (media.holds(train) and media.holds(val)):
                    media = Media.of(options, (train, val), device, world.local_size)
                if world.leads:
                    note_images(folder, media.files(train, val), begun is not None)
                train_fold(options, fold, vocabulary, train, val, media, device, begun, given.force, world)
    chosen = [] if given.folds is None else ["--folds", given.folds]
    logger.info("Trained. Next: %s", command("test.py", given.path_opt, given.set, *chosen))


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
    model = start_model(options, fold, vocabulary, device, begun, Gate(force), world)
    if line := count_line(model):
        logger.info("With %s.", line)
    with world.in_turn():
        seen = list_features(model, options, val, vocabulary, 1, device)  # as `evaluate` sees them
        validation = evaluation_loader(options, val, vocabulary, media, device, world, seen)
        seen = list_features(model, options, train, vocabulary, train_views(options), device)
        loader = train_loader(options, fold, vocabulary, train, media, device, world, seen)
        source = pair_source(options, train)
    objective = build_objective(options.optim).to(device)
    objective.prepare(train)
    groups = slow_backbones(model, model.parameter_groups(options), options.optim.lr_backbone)
    state = start_state(model, groups, options.optim, device, objective, options.optim.ema)
    folder = run_folder(options, fold)
    if begun is not None:
        carry_on(state, own_random_states(begun, world, folder), folder, NAME_KEY)
    if options.optim.compile:
        compile_encoders(model)
    begin = quick_start(model, options, device) if seen.images is None else None
    losses = world.parallel(Losses(model, objective, source, world, begin))
    keeper = keeper_of(options, fold, vocabulary, state)
    with ending_clearly(folder), written(options, folder, state, len(loader), device, world) as writer:
        if world.leads:
            keeper.settle(state, begun)
        examples = Examples.of(options, fold, val, validation)
        validate = partial(
            validated, state, validation, device, options.optim.amp, world, examples, len(loader), writer
        )
        chance = chance_of(validation)[model.selected_by]
        plan = plan_of(options.optim, options.logs, model.selected_by, chance)
        fit(state, loader, losses, validate, plan, device, writer, partial(saved, keeper, world), world)


if __name__ == "__main__":
    run_entry_point(main)
