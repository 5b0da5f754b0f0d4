"""One pass over the training items: how long and how to train, and the loop over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from batches.batch import Batch
from training.memory import backward_in_memory
from training.state import TrainingState, optimiser_step
from utils import InputError

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Loader(Protocol):
    """Batches that follow from the number of the epoch alone."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch without the first `skip`, on the device."""


class ScalarWriter(Protocol):
    """The part of TensorBoard's SummaryWriter that training uses."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one number."""

    def flush(self) -> None:
        """Write out what was recorded."""


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Attributes:
        epochs: passes over the training items.
        eval_step: epochs between two validations.
        print_freq: steps between two log entries.
        patience: validations without a better score before training stops; 0 never stops it.
        accumulate: batches whose gradients are summed before the optimiser steps.
        grad_clip: greatest norm of the whole gradient; 0 leaves it alone.
        amp: `off`, `bf16` or `fp16`.
        on_oom: what happens to a step that does not fit into memory, `stop` or `halve`.
        select: the validation score that the best epoch has the highest of.
        chance: of `select`, what a random order would give; 0: not known.
        save_minutes: from one save inside an epoch to the next; 0: none but after a signal.
    """

    epochs: int
    eval_step: int = 1
    print_freq: int = 10
    patience: int = 0
    accumulate: int = 1
    grad_clip: float = 0.0
    amp: str = "off"
    on_oom: str = "stop"
    select: str = "mR"
    chance: float = 0.0
    save_minutes: float = 0.0


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """Mixed precision for encoders: `off`, `bf16` or `fp16`. Scores are float32 in any case."""
    return torch.autocast(device.type, dtype=AMP_TYPES.get(amp), enabled=amp != "off")


def passes(batch: int, accumulate: int, every: int) -> bool:
    """Whether a step of the optimiser reaches a multiple of `every` batches, or passes one.

    It has `accumulate` batches, the last of an epoch may have fewer; `batch` is its last one, counted from 1.
    """
    before = (batch - 1) // accumulate * accumulate
    return batch // every > before // every


def train_epoch(
    state: TrainingState,
    loader: Loader,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    plan: Plan,
    device: torch.device,
    writer: ScalarWriter,
    between_steps: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """One pass over the training items, or what is left of it.

    Args:
        state: see `fit`, as all of them.
        loader: what to train on.
        losses_of: losses of a batch.
        plan: how to train.
        device: where the model is.
        writer: gets the losses.
        between_steps: called after each step of the optimiser, when the state can be saved.

    Returns:
        Mean loss per item and its parts, images per second, and the share of time spent waiting for data.

    Raises:
        InputError: the loss is not finite.
        RunFault: a step does not fit into memory.
    """
    state.model.train()
    state.begin_epoch()
    steps, done, meter = len(loader), state.batch, state.meter
    check_begun(done, steps, meter.items)
    batches, title = loader.epoch(state.epoch, skip=done), f"epoch {state.epoch + 1}/{plan.epochs}"
    bar = tqdm(batches, initial=done, total=steps, desc=title, unit="batch", disable=None)
    state.optimizer.zero_grad(set_to_none=True)

    def backward(batch: Batch) -> dict[str, Tensor]:
        with autocast(device, plan.amp):
            losses = losses_of(batch)
        state.scaler.scale(losses["loss"]).backward()
        return losses

    for step, batch in enumerate(meter.timed(bar), start=done + 1):
        losses = backward_in_memory(state, batch, backward, plan.on_oom)
        meter.add(losses, batch.items, batch.image_count)
        if step % plan.print_freq == 0 or step == steps:
            bar.set_postfix(loss=f"{note_means(state, step, steps, writer):.3f}")
        if step % plan.accumulate == 0 or step == steps:
            optimiser_step(state, plan.grad_clip)
            state.batch = step
            between_steps()
    return meter.means()


def check_begun(done: int, steps: int, items: int) -> None:
    """Raise an InputError if an epoch of `steps` batches can't go on after `done` of them with `items` items."""
    if done and not (done <= steps and items):
        raise InputError(
            f"the checkpoint says that {done} batches of an epoch of {steps} are done, with {items} items: it is "
            "damaged, or the train list is another than then. Train under another name."
        )


def note_means(state: TrainingState, step: int, steps: int, writer: ScalarWriter) -> float:
    """Hand the means of the epoch so far, and the learning rate, to the log after a step of `steps`.

    Returns:
        The mean loss.

    Raises:
        InputError: it is not finite.
    """
    means, place = state.meter.means(), state.epoch * steps + step
    check_finite(means["loss"], state.epoch + 1, step, state.meter.take_recent())
    for name, value in means.items():
        writer.add_scalar(f"train/{name}", value, place)
    writer.add_scalar("train/lr", state.optimizer.param_groups[0]["lr"], place)
    return means["loss"]


def check_finite(loss: float, epoch: int, step: int, recent: Sequence[Tensor] = ()) -> None:
    """Stop a training whose loss is infinite or no number.

    Args:
        loss: mean so far.
        epoch: from 1.
        step: the last one of the epoch that counts, from 1.
        recent: losses of the last batches up to this step, to find the first that is at fault.

    Raises:
        InputError: it is; the message says what helps.
    """
    if not math.isfinite(loss):
        first = next((place for place, value in enumerate(recent) if not value.isfinite()), None)
        where = f"by step {step}" if first is None else f"at step {step - len(recent) + 1 + first}"
        raise InputError(
            f"the loss became {loss} in epoch {epoch} {where}. Try a lower optim.lr, optim.grad_clip=2, or "
            "optim.amp=off, under another name; optim.resume=.../last.pth starts that from here."
        )
