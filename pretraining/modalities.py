"""MCRN's self-supervised pretraining: one modality a step, two views of each item, no pairs.

A discriminator learns to tell from which modality an embedding comes. Every few steps the model, which is the
generator, learns to bring both views together and to be taken for another modality. Yuan et al., "MCRN", JAG 2022.
Letters: B batch, D embedding. f is a modality's feature, g what the shared module makes of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import option
from batches.batch import Batch
from layers.losses import generator_loss, modality_loss
from layers.mcrn import MCRN, MODALITIES, Discriminator, McrnParameters, Modality
from option import ModalityOptions
from pretraining.unpaired import ViewLoader
from pretraining.unpaired_sources import Sources, open_sources
from runs.checkpoints import ending_clearly, fit_weights, save_checkpoint
from runs.events import EventLog
from runs.loaders import read_vocabulary
from runs.models import place, start_state
from runs.record import recorded
from runs.resume import Keeper, begun_run, carry_on, is_finished, is_settled
from runtime.interruption import Watch
from runtime.locks import run_lock
from runtime.log import log_to
from training.epoch import ScalarWriter, autocast, check_finite
from training.state import TrainingState, optimiser_step
from utils import InputError, derive_seed, logger, write_text_atomic
from vocab import Vocabulary

VALIDATION_EPOCH = -1
"""Names the order and the views that every validation sees."""
NAME_KEY = "logs.experiment_name"
Entries = dict[str, list[Tensor]]
"""Each step's figures by name."""


@dataclass
class Adversaries:
    """Both sides of a pretraining, each with its optimiser; the generator's epoch and history are those of the run.

    Attributes:
        totals: figures of the present epoch's steps.
        recent: those since the last report.
    """

    model: MCRN
    discriminator: Discriminator
    generating: TrainingState
    discriminating: TrainingState
    totals: Entries = field(default_factory=lambda: defaultdict(list))
    recent: Entries = field(default_factory=lambda: defaultdict(list))

    @property
    def history(self) -> list[dict[str, float]]:
        """A row of figures for each whole epoch."""
        return self.generating.history

    @property
    def at_best(self) -> bool:
        """Whether an epoch has just ended: the last one is kept."""
        return self.generating.at_best

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on; the key `model` holds the retrieval model's weights."""
        return self.generating.state_dict() | {
            "discriminating": self.discriminating.state_dict(),
            "totals": {name: torch.stack(values) for name, values in self.totals.items()},
            "recent": {name: torch.stack(values) for name, values in self.recent.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.discriminating.load_state_dict(state["discriminating"])
        device = next(self.model.parameters()).device
        for entries, name in ((self.totals, "totals"), (self.recent, "recent")):
            entries.update({key: list(values.to(device).unbind()) for key, values in state.get(name, {}).items()})
        self.generating.load_state_dict(state)


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
    if not isinstance(options.model, McrnParameters):
        raise InputError(f"model.name: given {options.model.name}; a pretraining without pairs is MCRN's")
    folder = Path(options.logs.ckpt_save_path) / options.logs.experiment_name
    result = folder / "pretrained.pth.tar"
    with run_lock(folder, NAME_KEY):
        begun = begun_run(folder, options, resume, NAME_KEY)
        if begun is not None and is_finished(begun, options.optim.epochs) and is_settled(begun, folder, result):
            logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
            return result
        with log_to(folder / "train.log"):
            vocabulary = read_vocabulary(options)
            sources = open_sources(options, vocabulary, folder / "cache", device)
            sides = start_adversaries(options, options.model, vocabulary, device, begun)
            write_text_atomic(folder / "options.yaml", option.to_yaml(options))
            extra = {"vocabulary": vocabulary.digest}
            keeper = Keeper(folder, result, options, partial(save_model, result, sides, options, extra), extra)
            with ending_clearly(folder), recorded(folder, device):
                keeper.settle(sides, begun)
                fit_adversaries(sides, sources, options, device, keeper)
    return result


def save_model(path: Path, sides: Adversaries, options: ModalityOptions, extra: dict[str, Any]) -> None:
    """Write the weights that `model.init_from` takes."""
    weights = {"model": sides.model.state_dict(), "epoch": sides.generating.epoch}
    save_checkpoint(path, weights | extra, options)


def fit_adversaries(
    sides: Adversaries, sources: Sources, options: ModalityOptions, device: torch.device, keeper: Keeper
) -> None:
    """Train to the last epoch, saving as `engine.fit` does.

    Raises:
        InputError: a loss is not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    state, watch = sides.generating, Watch(options.logs.save_minutes)

    def keep(is_best: bool) -> None:
        writer.flush()
        keeper.save(sides, is_best)
        watch.saved()

    def between_steps() -> None:
        if watch.due:
            keep(False)

    purge_step = state.epoch * sources.steps + state.batch + 1
    with EventLog(keeper.folder, purge_step) as writer, watch.signals():
        while state.epoch < options.optim.epochs:
            one_epoch(sides, sources, options, device, writer, between_steps)
            keep(True)


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
        last = Path(options.logs.ckpt_save_path) / options.logs.experiment_name / "last.pth"
        fit_weights(model, begun, last, options, vocabulary)
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
        carry_on(sides, begun, last.parent, NAME_KEY)
    return sides


def one_epoch(
    sides: Adversaries,
    sources: Sources,
    options: ModalityOptions,
    device: torch.device,
    writer: ScalarWriter,
    between_steps: Callable[[], None],
) -> None:
    """Train for as many steps as all modalities have batches, then validate; the row of figures joins the history.

    Raises:
        InputError: a loss is not finite.
    """
    epoch = sides.generating.epoch
    figures = adversarial_epoch(sides, sources, options, device, writer, between_steps)
    scores = validate(sides, sources.val, device, options.optim.amp)
    for name, value in scores.items():
        writer.add_scalar(f"val/{name}", value, epoch + 1)
    sides.discriminating.step_schedule()
    sides.discriminating.epoch += 1
    row = sides.generating.end_epoch(figures | {f"val_{name}": value for name, value in scores.items()})
    sides.generating.best_epoch = sides.generating.epoch
    logger.info(
        "epoch %d/%d: generator %.4f, discriminator %.4f; val: it is right in %.1f %%, distance f %.3f, g %.3f; %.0f s",
        *(epoch + 1, options.optim.epochs, row.get("generator_loss", float("nan")), row["discriminator_loss"]),
        *(scores["discriminator_accuracy"], scores["distance_f"], scores["distance_g"], row["seconds"]),
    )


def adversarial_epoch(
    sides: Adversaries,
    sources: Sources,
    options: ModalityOptions,
    device: torch.device,
    writer: ScalarWriter,
    between_steps: Callable[[], None],
) -> dict[str, float]:
    """The steps of one epoch, or what is left of it.

    Returns:
        Means of `discriminator_loss`, `discriminator_accuracy` (in percent), `generator_loss` and its parts.
    """
    state, optim = sides.generating, options.optim
    epoch, done = state.epoch, state.batch
    turns = draw_turns(list(sources.train), sources.steps, derive_seed(optim.seed, "modalities", epoch))
    seen = Counter(modality for modality, _ in turns[:done])
    streams = {modality: _endless(loader, epoch, seen[modality]) for modality, loader in sources.train.items()}
    sides.model.train()
    sides.discriminator.train()
    state.begin_epoch()
    totals, recent = sides.totals, sides.recent
    bar = tqdm(
        turns[done:],
        initial=done,
        total=sources.steps,
        desc=f"epoch {epoch + 1}/{optim.epochs}",
        unit="step",
        disable=None,
    )
    for step, (modality, fake) in enumerate(bar, start=done + 1):
        whole_step = epoch * sources.steps + step
        losses = adversarial_step(
            sides, modality, next(streams[modality]), fake, step % optim.generator_every == 0, device, optim
        )
        for name, value in losses.items():
            totals[name].append(value)
            recent[name].append(value)
        writer.add_scalar("train/modality", MODALITIES.index(modality), whole_step)
        if step % options.logs.print_freq == 0 or step == sources.steps:
            means = _means(recent)
            recent.clear()
            for name, mean in means.items():
                check_finite(mean, epoch + 1, step)
                writer.add_scalar(f"train/{name}", mean, whole_step)
            bar.set_postfix(discriminator=f"{means['discriminator_loss']:.3f}")
        state.batch = step
        between_steps()
    means = _means(totals)
    totals.clear()
    return means


def draw_turns(available: Sequence[Modality], steps: int, seed: int) -> list[tuple[Modality, int]]:
    """For each step of an epoch its modality, and the place in `MODALITIES` of what it is to be taken for."""
    generator, turns = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        modality = available[int(torch.randint(len(available), (), generator=generator))]
        others = [place for place, name in enumerate(MODALITIES) if name != modality]
        turns.append((modality, others[int(torch.randint(len(others), (), generator=generator))]))
    return turns


def adversarial_step(
    sides: Adversaries,
    modality: Modality,
    views: tuple[Batch, Batch],
    fake: int,
    generate: bool,
    device: torch.device,
    optim: option.AdversarialTraining,
) -> dict[str, Tensor]:
    """One step of the discriminator and, with `generate`, one of the generator.

    Args:
        sides: both, changed in place.
        modality: of both views.
        views: the same items twice.
        fake: place in `MODALITIES` of what the generator wants to be taken for.
        generate: whether the generator learns, too; otherwise no graph of the model is kept.
        device: where the models are.
        optim: precision and clipping.

    Returns:
        `discriminator_loss`, `discriminator_accuracy` in percent and, with `generate`, `generator_loss` and its parts.
    """
    true = MODALITIES.index(modality)
    with autocast(device, optim.amp), torch.set_grad_enabled(generate):
        f1, f2, g1, g2 = (vector.float() for vector in sides.model.forward_views(modality, *views))
    logits = [sides.discriminator(view.detach()) for view in (g1, g2)]
    loss = torch.stack([modality_loss(view, true) for view in logits]).mean()
    sides.discriminating.scaler.scale(loss).backward()
    optimiser_step(sides.discriminating, optim.grad_clip)
    right = (torch.cat(logits).argmax(dim=1) == true).float().mean()
    losses = {"discriminator_loss": loss.detach(), "discriminator_accuracy": 100 * right}
    if generate:
        parts = generator_loss((f1, f2), (g1, g2), (sides.discriminator(g1), sides.discriminator(g2)), fake)
        sides.generating.scaler.scale(parts["loss"]).backward()
        optimiser_step(sides.generating, optim.grad_clip)
        # What flowed into the discriminator on the way must not join its own next step.
        sides.discriminating.optimizer.zero_grad(set_to_none=True)
        losses |= {f"generator_{name}": value.detach() for name, value in parts.items()}
    return losses


@torch.no_grad()
def validate(
    sides: Adversaries, loaders: Mapping[Modality, ViewLoader], device: torch.device, amp: str
) -> dict[str, float]:
    """How well modalities can be told apart, and how far two views of an item are from each other.

    Returns:
        `discriminator_accuracy` in percent, `distance_f` and `distance_g` (mean Euclidean distance of the two views):
        means over the modalities, and the same for every modality with its name at the end.
    """
    sides.model.eval()
    sides.discriminator.eval()
    table: dict[str, float] = {}
    for modality, loader in loaders.items():
        found: dict[str, list[Tensor]] = defaultdict(list)
        for views in loader.views(VALIDATION_EPOCH):
            with autocast(device, amp):
                f1, f2, g1, g2 = (vector.float() for vector in sides.model.forward_views(modality, *views))
            right = sides.discriminator(g1).argmax(dim=1) == MODALITIES.index(modality)
            found["discriminator_accuracy"].append(100 * right.float())
            found["distance_f"].append((f1 - f2).norm(dim=1))
            found["distance_g"].append((g1 - g2).norm(dim=1))
        table |= {f"{name}_{modality}": float(torch.cat(values).mean()) for name, values in found.items()}
    means = {
        name: sum(table[f"{name}_{modality}"] for modality in loaders) / len(loaders)
        for name in ("discriminator_accuracy", "distance_f", "distance_g")
    }
    return means | table


def _endless(loader: ViewLoader, epoch: int, skip: int) -> Iterator[tuple[Batch, Batch]]:
    """The batches of one modality after the first `skip`, anew and otherwise ordered when all were seen."""
    rounds, skip = divmod(skip, len(loader))
    yield from loader.views(epoch, rounds, skip=skip)
    for round_ in count(rounds + 1):
        yield from loader.views(epoch, round_)


def _means(values: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack(list(entries)).mean()) for name, entries in values.items()}
