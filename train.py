"""Train every fold of one experiment: python train.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

import option
from data.annotations import Annotations
from data.splits import recorded_or_new
from engine import Plan, TrainingState, fit
from experiment import (
    FORMAT,
    PictureLibrary,
    best_checkpoint,
    command,
    entry_parser,
    evaluation_loader,
    fit_weights,
    load_weights,
    parse_folds,
    place,
    read_checkpoint,
    read_vocabulary,
    run_folder,
    save_checkpoint,
    train_loader,
)
from layers import build_model
from layers.losses import triplet_criterion
from option import Options
from report import as_csv
from utils import InputError, choose_device, derive_seed, log_to, logger, run_entry_point, write_text_atomic
from vocab import Vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the chosen folds one after the other."""
    parser = entry_parser("Train every fold of one experiment.")
    parser.add_argument("--resume", action="store_true", help="go on where the folds stopped; skip finished ones")
    given = parser.parse_args(arguments)
    options = option.load_options(given.path_opt, given.set)
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    vocabulary = read_vocabulary(options)
    library: PictureLibrary | None = None
    for fold in folds:
        folder = run_folder(options, fold)
        begun = _begun(folder, given.resume)
        if begun is not None and _finished(begun, options):
            logger.info("%s is finished (%d epochs).", folder, begun["epoch"])
            continue
        with log_to(folder / "train.log"):
            logger.info("Fold %d of %s on %s", fold, options.k_fold.experiment_name, device)
            k_fold = options.k_fold
            train, val = recorded_or_new(
                options.dataset.data_path, folder, k_fold.strategy, fold, k_fold.nums, k_fold.seed, given.resume
            )
            names = train.image_names + val.image_names
            if library is None or not library.holds(names):
                library = PictureLibrary(options, names, device)
            train_fold(options, fold, vocabulary, train, val, library, device, begun)
    logger.info("Trained. Next: %s", command("test.py", given.path_opt, given.set))


def train_fold(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    train: Annotations,
    val: Annotations,
    library: PictureLibrary,
    device: torch.device,
    begun: dict[str, Any] | None,
) -> None:
    """Train one fold and keep its best and its last epoch.

    Args:
        options: the experiment.
        fold: 0..k_fold.nums - 1.
        vocabulary: the words whose ids the captions become.
        train: captions to train on.
        val: captions to choose the best epoch by.
        library: pictures of both.
        device: where to train.
        begun: the checkpoint to go on from.

    Raises:
        InputError: data, weights or checkpoint are at fault.
    """
    folder = run_folder(options, fold)
    validation = evaluation_loader(options, val, vocabulary, library, device)
    loader = train_loader(options, fold, vocabulary, train, library, device)
    state = start_state(options, fold, vocabulary, device, begun)
    write_text_atomic(folder / "options.yaml", option.to_yaml(options))

    def save(state: TrainingState, is_best: bool) -> None:
        if is_best:
            best = {"model": state.model.state_dict(), "epoch": state.epoch, "scores": state.history[-1]}
            save_checkpoint(best_checkpoint(options, fold), best, options, vocabulary, fold)
        save_checkpoint(folder / "last.pth", state.state_dict(), options, vocabulary, fold)
        write_text_atomic(folder / "history.csv", as_csv(state.history))

    optim = options.optim
    plan = Plan(
        epochs=optim.epochs,
        eval_step=options.logs.eval_step,
        print_freq=options.logs.print_freq,
        patience=optim.patience,
        accumulate=optim.accumulate,
        grad_clip=optim.grad_clip,
        amp=optim.amp,
    )
    criterion = triplet_criterion(optim.margin, optim.max_violation)
    with SummaryWriter(str(folder), purge_step=state.epoch * len(loader) + 1) as writer:
        fit(state, loader, validation, criterion, plan, device, writer, save)


def start_state(
    options: Options, fold: int, vocabulary: Vocabulary, device: torch.device, begun: dict[str, Any] | None
) -> TrainingState:
    """Model, optimiser, learning rate and loss scale, as at the start of a run or as a checkpoint holds them.

    Args:
        options: the experiment.
        fold: seeds the random weights.
        vocabulary: sizes the word table.
        device: where the model goes.
        begun: the checkpoint to go on from.

    Raises:
        InputError: weights that the options name, or the checkpoint, do not fit.
    """
    optim = options.optim
    torch.manual_seed(derive_seed(optim.seed, "model", fold))
    model = build_model(options, vocabulary, load_weights=begun is None)
    if begun is not None:
        fit_weights(model, begun, run_folder(options, fold) / "last.pth", options, vocabulary)
    elif optim.resume is not None:
        load_weights(model, optim.resume, options, vocabulary)
    place(model, device)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(live, lr=optim.lr, fused=True)
    # Differs from the released code: the rate falls before epochs 20, 40, ... (counted from 0), as the papers say; the
    # released schedule is one epoch early.
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, optim.lr_update_epoch, optim.lr_decay_param)
    scaler = torch.amp.GradScaler(device.type, enabled=optim.amp == "fp16")
    state = TrainingState(model, optimizer, scheduler, scaler)
    if begun is not None:
        state.load_state_dict(begun)
        logger.info("Goes on after epoch %d.", state.epoch)
    return state


def _begun(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The last checkpoint of a fold; one that was begun is only gone on with where `--resume` says so."""
    last = folder / "last.pth"
    if not last.is_file():
        return None
    if not resume:
        raise InputError(
            f"{folder} already holds a run. Go on with it (--resume), or train under another name "
            "(--set k_fold.experiment_name=NAME), or delete that folder."
        )
    content = read_checkpoint(last)
    if content.get("format") != FORMAT:
        raise InputError(f"{last} was not written by this version of train.py (format {FORMAT}): it can't be resumed.")
    return content


def _finished(begun: dict[str, Any], options: Options) -> bool:
    """Whether a run has all its epochs, or has stopped early."""
    patience = options.optim.patience
    return bool(begun["epoch"] >= options.optim.epochs or 0 < patience <= begun["validations_since_best"])


if __name__ == "__main__":
    run_entry_point(main)
