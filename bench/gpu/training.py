"""Parts that train: an epoch with images on the device, steps with and without `optim.compile`, too little memory."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import cast

import torch
from torch import Tensor

from batches.batch import Batch
from bench.gpu.setting import AMFMN, DUAL, Section, Setting, Skipped
from bench.machine import gemm_rate, reset_peak_memory, wait_for
from bench.train import TrainingSteps
from dataloader import TrainLoader
from runs.record import peak_memory
from training.epoch import Loader, Plan, autocast, train_epoch
from training.learner import compile_encoders
from training.memory import parts_of
from utils import RunFault

LossesOf = Callable[[Batch], dict[str, Tensor]]
SIMULATED = "CUDA out of memory (simulated)"
IMAGES = 1024
"""Of the train list: four whole batches of the dual encoder, so that compiled code meets one shape of images."""


class Limited:
    """A loader whose epoch is broken off after some seconds."""

    def __init__(self, loader: Loader, seconds: float) -> None:
        self.loader, self.seconds = loader, seconds

    def __len__(self) -> int:
        """Batches of the whole epoch."""
        return len(self.loader)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """See `training.epoch.Loader.epoch`."""
        end = time.perf_counter() + self.seconds
        for batch in self.loader.epoch(number, skip):
            yield batch
            if time.perf_counter() > end:
                return


class Fixed:
    """A loader of the same batches in each epoch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        """How many."""
        return len(self.batches)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """See `training.epoch.Loader.epoch`."""
        return iter(self.batches[skip:])


class Silent:
    """A log that nobody reads."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record nothing."""

    def flush(self) -> None:
        """Do nothing."""


def epoch_of(model: str, setting: Setting, section: Section) -> None:
    """One epoch of a model; its weights are kept for the comparison of scores.

    Raises:
        InputError: the loss is not finite.
    """
    started = time.perf_counter()
    trainer = setting.steps(model)
    prepared = time.perf_counter() - started
    if model == DUAL:
        section.add(towers(setting))
    gemm = gemm_rate("bf16", setting.device)
    reset_peak_memory(setting.device)
    loader = Limited(cast(TrainLoader, trainer.loader), setting.sizes.epoch_seconds)
    started = time.perf_counter()
    figures = train_epoch(
        trainer.state, loader, trainer.losses_of, Plan(epochs=1, amp="bf16"), setting.device, Silent()
    )
    wait_for(setting.device)
    seconds, pairs, done = time.perf_counter() - started, trainer.state.meter.items, trainer.state.batch
    rate = trainer.operations * done / seconds / 1e9
    section.table(
        ["batches", "pairs", "s", "pairs/s", "waiting for data", "peak MiB", "GFLOP/s", "share of GEMM", "mean loss"]
    ).row(
        f"{done} of {len(loader)}",
        f"{pairs:.0f}",
        f"{seconds:.3g}",
        f"{pairs / seconds:.1f}",
        f"{figures['data_wait_share']:.1%}",
        f"{peak_memory(setting.device):.0f}",
        f"{rate:.1f}",
        f"{rate / gemm:.1%}",
        f"{figures['loss']:.4f}",
    )
    section.add(
        f"Before it: images decoded, model built and a first step in {prepared:.1f} s. GEMM in bf16: {gemm:.0f} "
        "GFLOP/s. GFLOP: of matrix products and convolutions, counted in one step. The peak includes the images."
    )
    torch.save(trainer.state.model.state_dict(), setting.weights(model))


def towers(setting: Setting) -> str:
    """What the dual encoder's towers start from."""
    chosen = dict(value.split("=", 1) for value in setting.overrides(DUAL))
    image, text = chosen["model.image.pretrained"], chosen["model.text.encoder"]
    start = "random weights" if image == "none" else "the weights of its package"
    words = "a GRU with random weights" if text == "gru" else "MiniLM with the weights of its package"
    return f"Both towers learn. Image tower: {start}. Text tower: {words}."


def compiled(setting: Setting, section: Section) -> None:
    """Steps of both models without and with `optim.compile`."""
    table = section.table(["model", "optim.compile", "ms/step", "off / on", "first steps, s"])
    for model in (DUAL, AMFMN):
        try:
            trainer = setting.steps(model, IMAGES)
        except Skipped as reason:
            table.row(model, "", "", "", f"skipped: {reason}")
            continue
        plain = trainer.run()["seconds"]
        table.row(model, "off", f"{1e3 * plain:.2f}", "", "")
        compile_encoders(trainer.state.model, setting.sizes.backend)
        started = time.perf_counter()
        trainer.run()
        first = time.perf_counter() - started
        quick = trainer.run()["seconds"]
        table.row(model, "on", f"{1e3 * quick:.2f}", f"{plain / quick:.2f}", f"{first:.1f}")
    section.add(f"Median of {setting.sizes.steps} steps, data included. Backend: {setting.sizes.backend}.")


def out_of_memory(setting: Setting, section: Section) -> None:
    """A batch that does not fit: halved with `optim.on_oom=halve`, and with `stop` a message that names one that fits.

    Raises:
        RunFault: it was not.
    """
    trainer = setting.steps(AMFMN, IMAGES)
    batches = list(itertools.islice(trainer.batches, 2))
    with scarce(trainer, batches[0], section) as losses_of:
        figures = _train(trainer, batches, losses_of, "halve")
        parts = trainer.state.parts
        section.add(
            f"`optim.on_oom=halve`: batches of {len(batches[0])} were worked off in {parts} parts, mean loss "
            f"{figures['loss']:.4f}."
        )
        if parts < 2:
            raise RunFault("the whole batch fitted: nothing was halved")
        trainer.state.parts = 1
        try:
            _train(trainer, batches, losses_of, "stop")
        except RunFault as fault:
            message = str(fault)
        else:
            raise RunFault("optim.on_oom=stop: the whole batch fitted")
    section.add(f"`optim.on_oom=stop` ended with:\n\n```\n{message}\n```")
    fitting = re.search(r"A batch of (\d+) fits", message)
    if fitting is None or not 2 <= int(fitting.group(1)) < len(batches[0]):
        raise RunFault("the message names no smaller batch that fits")


def _train(trainer: TrainingSteps, batches: Sequence[Batch], losses_of: LossesOf, on_oom: str) -> dict[str, float]:
    """Means of an epoch of these batches."""
    trainer.state.batch = 0
    plan = Plan(epochs=1, amp="bf16", on_oom=on_oom, print_freq=1)
    return train_epoch(trainer.state, Fixed(batches), losses_of, plan, trainer.device, Silent())


@contextmanager
def scarce(trainer: TrainingSteps, batch: Batch, section: Section) -> Iterator[LossesOf]:
    """Losses that have memory for more than half a batch, but not for a whole one.

    On a GPU PyTorch's share of its memory is limited, so that the fault is real; on the CPU it is raised by us.
    """
    if trainer.device.type != "cuda":
        section.add("Simulated: on the CPU the fault is raised for batches above half the size.")
        yield _refusing(trainer.losses_of, len(batch) // 2)
        return
    half, whole = (_reserved(trainer, part) for part in (parts_of(batch, 2)[0], batch))
    limit = mean([half, whole])
    total = torch.cuda.get_device_properties(trainer.device).total_memory
    section.add(
        f"A step of {len(batch)} pairs takes {whole / 2**20:.0f} MiB of the GPU, of half as many {half / 2**20:.0f} "
        f"MiB; PyTorch's memory was limited to {limit / 2**20:.0f} MiB."
    )
    torch.cuda.set_per_process_memory_fraction(limit / total, trainer.device)
    try:
        yield trainer.losses_of
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, trainer.device)


def _refusing(losses_of: LossesOf, most: int) -> LossesOf:
    """The same losses, with room for `most` items only."""

    def refuse(batch: Batch) -> dict[str, Tensor]:
        if len(batch) > most:
            raise torch.cuda.OutOfMemoryError(SIMULATED)
        return losses_of(batch)

    return refuse


def _reserved(trainer: TrainingSteps, batch: Batch) -> int:
    """Bytes that PyTorch takes of the GPU for losses and gradients of a batch, beside all that it holds."""
    trainer.state.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(trainer.device)
    with autocast(trainer.device, "bf16"):
        losses = trainer.losses_of(batch)
    losses["loss"].backward()
    trainer.state.optimizer.zero_grad(set_to_none=True)
    del losses
    torch.cuda.empty_cache()
    return torch.cuda.max_memory_reserved(trainer.device)
