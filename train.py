"""Train every fold of one experiment: python train.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

import option
import vocab
from data.annotations import Annotations, blank_captions, check_images, describe_blank
from data.splits import recorded_or_new
from dataloader import Captions, TrainLoader, margin_size
from engine import Plan, TrainingState, fit
from experiment import (
    PictureLibrary,
    best_checkpoint,
    evaluation_loader,
    load_weights,
    parse_folds,
    place,
    read_checkpoint,
    read_vocabulary,
    run_folder,
    save_checkpoint,
)
from layers import build_model
from layers.losses import triplet_criterion
from option import Options
from utils import InputError, choose_device, derive_seed, log_to, logger, run_entry_point, write_text_atomic
from vocab import Vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the chosen folds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path_opt", required=True, help="the experiment's YAML")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override options")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: CUDA where there is one")
    parser.add_argument("--folds", help="train only these, e.g. 0,2")
    parser.add_argument("--resume", action="store_true", help="go on where the folds stopped; skip finished ones")
    given = parser.parse_args(arguments)
    options = option.load_options(given.path_opt, given.set)
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    vocabulary = read_vocabulary(options)
    library: PictureLibrary | None = None
    for fold in folds:
        folder = run_folder(options, fold)
        if _finished(folder, options, given.resume):
            continue
        with log_to(folder / "train.log"):
            logger.info("Fold %d of %s on %s", fold, options.k_fold.experiment_name, device)
            k_fold = options.k_fold
            train, val = recorded_or_new(
                options.dataset.data_path, folder, k_fold.strategy, fold, k_fold.nums, k_fold.seed, given.resume
            )
            if library is None:
                library = PictureLibrary(options, train.image_names + val.image_names, device)
            train_fold(options, fold, vocabulary, train, val, library, device)
    logger.info("Trained. Next: python test.py --path_opt %s%s", given.path_opt, _repeat(given.set))


def train_fold(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    train: Annotations,
    val: Annotations,
    library: PictureLibrary,
    device: torch.device,
) -> None:
    """Train one fold, from its last checkpoint where there is one, and keep its best and its last epoch.

    Args:
        options: the experiment.
        fold: 0..k_fold.nums - 1.
        vocabulary: the words whose ids the captions become.
        train: captions to train on.
        val: captions to choose the best epoch by.
        library: pictures of both.
        device: where to train.

    Raises:
        InputError: data, weights or checkpoint are at fault.
    """
    folder = run_folder(options, fold)
    validation = evaluation_loader(options, val, vocabulary, library, device)
    loader = train_loader(options, fold, vocabulary, train, library, device)
    write_text_atomic(folder / "options.yaml", option.to_yaml(options))
    last = folder / "last.pth"
    torch.manual_seed(derive_seed(options.optim.seed, "model", fold))
    state = start_state(options, vocabulary, device, resumed=last.is_file())
    if last.is_file():
        state.load_state_dict(read_checkpoint(last))
        logger.info("Goes on after epoch %d.", state.epoch)

    def save(state: TrainingState, is_best: bool) -> None:
        if is_best:
            best = {"model": state.model.state_dict(), "epoch": state.epoch, "scores": state.history[-1]}
            save_checkpoint(best_checkpoint(options, fold), best, options, vocabulary, fold)
        save_checkpoint(last, state.state_dict(), options, vocabulary, fold)
        write_text_atomic(folder / "history.csv", _csv(state.history))

    optim = options.optim
    with SummaryWriter(str(folder), purge_step=state.epoch * len(loader) + 1) as writer:
        fit(
            state,
            loader,
            validation,
            triplet_criterion(optim.margin, bool(optim.max_violation)),
            Plan(
                epochs=optim.epochs,
                eval_step=options.logs.eval_step,
                print_freq=options.logs.print_freq,
                patience=optim.patience,
                accumulate=optim.accumulate,
                grad_clip=optim.grad_clip,
                amp=optim.amp,
            ),
            device,
            writer,
            save,
        )


def train_loader(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    train: Annotations,
    library: PictureLibrary,
    device: torch.device,
) -> TrainLoader:
    """Training pairs of a fold; captions without a word are left out, with one warning that counts them."""
    check_images(train, options.dataset.image_folder)
    blank = blank_captions(train, vocab.tokenize)
    if blank.any():
        logger.warning("%s", describe_blank(train, blank))
    size = options.dataset.image_size
    store, rows = library.open(train.image_names, margin_size(size), "pictures (train)")
    return TrainLoader(
        train,
        Captions.encode(train.captions, vocabulary),
        torch.from_numpy(~blank),
        store,
        rows,
        batch_size=options.dataset.batch_size,
        image_size=size,
        workers=options.dataset.workers,
        seed=derive_seed(options.optim.seed, "order", fold),
        device=device,
    )


def start_state(options: Options, vocabulary: Vocabulary, device: torch.device, resumed: bool) -> TrainingState:
    """Model, optimiser, learning rate and loss scale at the start of a run.

    Args:
        options: the experiment.
        vocabulary: sizes the word table.
        device: where the model goes.
        resumed: the run's own checkpoint follows, so that no other weights need be read.
    """
    optim = options.optim
    model = build_model(options, vocabulary, load_weights=not resumed)
    if optim.resume is not None and not resumed:
        load_weights(model, Path(optim.resume), options, vocabulary)
    place(model, device)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(live, lr=optim.lr, fused=True)
    # Differs from the released code: the rate falls before epochs 20, 40, ... (counted from 0), as the papers say; the
    # released schedule is one epoch early.
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, optim.lr_update_epoch, optim.lr_decay_param)
    scaler = torch.amp.GradScaler(device.type, enabled=optim.amp == "fp16")
    return TrainingState(model, optimizer, scheduler, scaler)


def _finished(folder: Path, options: Options, resume: bool) -> bool:
    """Whether a fold needs no training; a fold that was begun is only gone on with where `--resume` says so."""
    last = folder / "last.pth"
    if not last.is_file():
        return False
    if not resume:
        raise InputError(
            f"{folder} already holds a run. Go on with it (--resume), or train under another name "
            "(--set k_fold.experiment_name=NAME), or delete that folder."
        )
    content = read_checkpoint(last)
    patience = options.optim.patience
    stopped = patience > 0 and content["validations_since_best"] >= patience
    if content["epoch"] < options.optim.epochs and not stopped:
        return False
    logger.info("%s is finished (%d epochs).", folder, content["epoch"])
    return True


def _csv(history: Sequence[dict[str, float]]) -> str:
    """One line per epoch; an epoch without validation leaves its columns empty."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _repeat(overrides: Sequence[str]) -> str:
    return f" --set {' '.join(overrides)}" if overrides else ""


if __name__ == "__main__":
    run_entry_point(main)
