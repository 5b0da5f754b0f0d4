"""MCRN's self-supervised pretraining: one modality a step, two views of each item, no pairs.

A discriminator learns to tell from which modality an embedding comes. Every few steps the model, which is the
generator, learns to bring both views together and to be taken for another modality. Yuan et al., "MCRN", JAG 2022.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from layers.mcrn import MCRN, Discriminator, McrnParameters
from option import ModalityOptions
from pretraining.adversaries import Adversaries, adversarial_epoch, validate
from pretraining.run import NAME_KEY, folder_of, locked_run
from pretraining.unpaired_sources import Sources, open_sources
from runs.checkpoints import ending_clearly, fit_weights, save_checkpoint
from runs.fold import written
from runs.loaders import read_vocabulary
from runs.models import place, start_state
from runs.resume import Keeper, carry_on
from runtime.distributed import ALONE
from runtime.interruption import Watch
from training.epoch import ScalarWriter
from utils import InputError, derive_seed, logger
from vocab import Vocabulary


def pretrain_modalities(options: ModalityOptions, device: torch.device, resume: bool) -> Path:
    """Pretrain a model without pairs.

    Args:
        options: the run.
        device: where to train.
        resume: go on with what was begun.

    Returns:
        The file that `model.init_from` takes: the weights after the last epoch.

    Raises:
        InputError: the model can't be pretrained so, or data, weights or checkpoint are at fault.
    """
    parameters, folder = options.model, folder_of(options)
    if not isinstance(parameters, McrnParameters):
        raise InputError(f"model.name: given {parameters.name}; a pretraining without pairs is MCRN's")
    result = folder / "pretrained.pth.tar"

    def train(begun: dict[str, Any] | None) -> None:
        vocabulary = read_vocabulary(options)
        sources = open_sources(options, vocabulary, folder / "cache", device)
        sides = start_adversaries(options, parameters, vocabulary, device, begun)
        extra = {"vocabulary": vocabulary.digest}
        keeper = Keeper(folder, result, options, partial(_save_model, result, sides, options, extra), extra)
        written_run = written(options, folder, sides.generating, sources.steps, device, ALONE)
        with ending_clearly(folder), written_run as writer:
            keeper.settle(sides, begun)
            fit_adversaries(sides, sources, options, device, keeper, writer)

    locked_run(options, result, resume, train)
    return result


def _save_model(path: Path, sides: Adversaries, options: ModalityOptions, extra: dict[str, Any]) -> None:
    weights = {"model": sides.model.state_dict(), "epoch": sides.generating.epoch}
    save_checkpoint(path, weights | extra, options)


def fit_adversaries(
    sides: Adversaries,
    sources: Sources,
    options: ModalityOptions,
    device: torch.device,
    keeper: Keeper,
    writer: ScalarWriter,
) -> None:
    """Train to the last epoch, validating after each, and saving as `engine.fit` does.

    Raises:
        InputError: a loss is not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    watch = Watch(options.logs.save_minutes)

    def keep(is_best: bool) -> None:
        writer.flush()
        keeper.save(sides, is_best)
        watch.saved()

    def between_steps() -> None:
        if watch.due:
            keep(False)

    with watch.signals():
        while sides.generating.epoch < options.optim.epochs:
            figures = adversarial_epoch(sides, sources, options, device, writer, between_steps)
            scores = validate(sides, sources.val, device, options.optim.amp)
            _end_epoch(sides, figures, scores, options.optim.epochs, writer, sources.steps)
            keep(True)


def _end_epoch(
    sides: Adversaries,
    figures: dict[str, float],
    scores: dict[str, float],
    epochs: int,
    writer: ScalarWriter,
    steps: int,
) -> None:
    """Enter what an epoch of `steps` came to into the history and the events, and say it in one line."""
    epoch = sides.generating.epoch + 1
    for name, value in scores.items():
        writer.add_scalar(f"val/{name}", value, epoch * steps)
    sides.discriminating.step_schedule()
    sides.discriminating.epoch += 1
    row = sides.generating.end_epoch(figures | {f"val_{name}": value for name, value in scores.items()})
    sides.generating.best_epoch = epoch
    logger.info(
        "epoch %d/%d: generator %.4f, discriminator %.4f; val: it is right in %.1f %%, distance f %.3f, g %.3f; %.0f s",
        *(epoch, epochs, row.get("generator_loss", float("nan")), row["discriminator_loss"]),
        *(scores["discriminator_accuracy"], scores["distance_f"], scores["distance_g"], row["seconds"]),
    )


def start_adversaries(
    options: ModalityOptions,
    parameters: McrnParameters,
    vocabulary: Vocabulary,
    device: torch.device,
    begun: dict[str, Any] | None,
) -> Adversaries:
    """Model, discriminator and optimisers, as at the start of a run or as a checkpoint holds them.

    Raises:
        InputError: weights that the options name, or the checkpoint, do not fit.
    """
    optim = options.optim
    torch.manual_seed(derive_seed(optim.seed, "model"))
    model = MCRN.from_parameters(parameters, options.dataset.image_size, vocabulary, load_weights=begun is None)
    discriminator = Discriminator(parameters.discriminator)
    if begun is not None:
        fit_weights(model, begun, folder_of(options) / "last.pth", options, vocabulary)
    place(model, device)
    discriminator.to(device)
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slower = optim.model_copy(
        update={"lr_decay_param": optim.lr_D_decay_param, "lr_update_epoch": optim.lr_D_update_epoch}
    )
    sides = Adversaries(
        model,
        discriminator,
        start_state(model, [{"params": live, "lr": optim.lr}], optim, device),
        start_state(discriminator, [{"params": list(discriminator.parameters()), "lr": optim.lr_D}], slower, device),
    )
    if begun is not None:
        carry_on(sides, begun, folder_of(options), NAME_KEY)
    return sides
