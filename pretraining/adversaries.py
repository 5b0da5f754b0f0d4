"""The two sides of MCRN's pretraining: what the discriminator and the generator do in a step, an epoch, a validation.

Letters: B batch, D embedding. f is a modality's feature, g what the shared module makes of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from batches.batch import Batch
from layers.losses.modalities import generator_loss, modality_loss
from layers.mcrn import MCRN, MODALITIES, Discriminator, Modality
from option import AdversarialTraining, ModalityOptions
from pretraining.unpaired import ViewLoader
from pretraining.unpaired_sources import Sources
from training.epoch import ScalarWriter, autocast, check_finite
from training.fitting import refuse_unfit
from training.state import TrainingState, optimiser_step
from utils import derive_seed

VALIDATION_EPOCH = -1
"""Names the order and the views that every validation sees."""
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

    def views(
        self, modality: Modality, views: tuple[Batch, Batch], device: torch.device, amp: str
    ) -> tuple[Tensor, ...]:
        """f1, f2, g1, g2 of two views of the same items, each [B, D] in float32."""
        with autocast(device, amp):
            return tuple(vector.float() for vector in self.model.forward_views(modality, *views))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run needs to go on; the key `model` holds the retrieval model's weights."""
        return self.generating.state_dict() | {
            "discriminating": self.discriminating.state_dict(),
            "totals": {name: torch.stack(values) for name, values in self.totals.items()},
            "recent": {name: torch.stack(values) for name, values in self.recent.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it holds anything else.
        """
        for name in ("totals", "recent"):
            for key, values in state.get(name, {}).items():
                refuse_unfit(values, torch.zeros(len(values)), f"{name}.{key}")
        refuse_unfit(state.get("discriminating"), {}, "discriminating")
        self.discriminating.load_state_dict(state["discriminating"])
        device = next(self.model.parameters()).device
        for entries, name in ((self.totals, "totals"), (self.recent, "recent")):
            entries.update({key: list(values.to(device).unbind()) for key, values in state.get(name, {}).items()})
        self.generating.load_state_dict(state)


def adversarial_epoch(
    sides: Adversaries,
    sources: Sources,
    options: ModalityOptions,
    device: torch.device,
    writer: ScalarWriter,
    between_steps: Callable[[], None],
) -> dict[str, float]:
    """The steps of one epoch, as many as all modalities have batches, or what is left of it.

    Returns:
        Means of `discriminator_loss`, `discriminator_accuracy` (in percent), `generator_loss` and its parts.

    Raises:
        InputError: a loss is not finite.
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
    optim: AdversarialTraining,
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
    with torch.set_grad_enabled(generate):
        f1, f2, g1, g2 = sides.views(modality, views, device, optim.amp)
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
            f1, f2, g1, g2 = sides.views(modality, views, device, amp)
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
