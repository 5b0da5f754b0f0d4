"""From options and checkpoints to models, and to what their training begins with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

import option
from layers import build_model
from layers.backbone import synchronise_norms
from layers.base import RetrievalModel
from layers.registry import registered
from option import Options
from option.optim import Descent, Training
from option.schema import Logs
from runs.checkpoints import FORMAT, fit_weights, load_weights
from runs.folders import run_folder
from runs.provenance import check_data_set, check_model
from runtime.distributed import ALONE, World
from training.epoch import Plan
from training.optimiser import build_optimizer, build_scheduler, build_warmup, moving_average
from training.state import TrainingState
from utils import Gate, InputError, derive_seed, logger
from vocab import Vocabulary

Module = TypeVar("Module", bound=nn.Module)


def refuse_ranks(options: Options, world: World, device: torch.device) -> None:
    """Raise an InputError for what several ranks can't do: batch norms in step on CPUs, a loss that sees one rank."""
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
        check_data_set(begun, last, options.dataset.folder, gate)
        fit_weights(model, begun, last, options, vocabulary, gate)
    elif options.optim.resume is not None:
        load_weights(model, options.optim.resume, options, vocabulary, gate)
    if not world.leads:
        torch.manual_seed(derive_seed(options.optim.seed, "dropout", fold, world.rank))
    if options.optim.sync_batch_norm and world.size > 1:
        model = cast(RetrievalModel, synchronise_norms(model))
    return place(model, device)


def load_model(
    options: Options,
    vocabulary: Vocabulary,
    path: Path,
    device: torch.device,
    gate: Gate | None = None,
    merge: bool = True,
) -> tuple[RetrievalModel, dict[str, Any]]:
    """The model of one checkpoint, ready to encode, and all else that the checkpoint holds.

    With `merge`, adapters are added to the weights beside them, and are gone.

    Raises:
        InputError: see `load_weights` and `check_model`.
    """
    model = build_model(options, vocabulary, load_weights=False)
    content = load_weights(model, path, options, vocabulary, gate)
    if content.get("format") == FORMAT:
        check_model(content, path, option.dump(options), gate)
    logger.info("%s: epoch %s", path, content.get("epoch", "unknown"))
    return place(model.merged() if merge else model, device), content


def place(model: Module, device: torch.device) -> Module:
    """Put a model on a device, its convolutions in the channels-last layout that CPUs and tensor cores prefer."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def plan_of(optim: Training, logs: Logs, select: str, chance: float = 0.0) -> Plan:
    """How the engine is to train; the best epoch has the highest validation score `select`, see `Plan`."""
    return Plan(
        epochs=optim.epochs,
        eval_step=logs.eval_step,
        print_freq=logs.print_freq,
        patience=optim.patience,
        accumulate=optim.accumulate,
        grad_clip=optim.grad_clip,
        amp=optim.amp,
        on_oom=optim.on_oom,
        select=select,
        chance=chance,
        save_minutes=logs.save_minutes,
    )


def start_state(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    optim: Descent,
    device: torch.device,
    objective: nn.Module | None = None,
    ema: float = 0.0,
) -> TrainingState:
    """Optimiser, learning rates, loss scale and moving average of a run before its first epoch.

    Args:
        model: placed on the device already.
        groups: its parameters in groups for the optimiser, each with its learning rate.
        optim: the optimiser and the schedule, and whether losses are scaled.
        device: where the model is.
        objective: on the device already; its parameters learn at the rate of the first group.
        ema: decay of the moving average of the weights; 0: there is none.
    """
    learned = [] if objective is None else list(objective.parameters())
    if learned:
        groups = [*groups, {"params": learned, "lr": groups[0]["lr"]}]
    optimizer = build_optimizer(groups, optim)
    scheduler = build_scheduler(optimizer, optim)
    return TrainingState(
        model,
        optimizer,
        scheduler,
        torch.amp.GradScaler(device.type, enabled=optim.amp == "fp16"),
        objective=objective or nn.Identity(),
        warmup=build_warmup(optimizer, optim.warmup_steps),
        average=moving_average(model, ema) if ema > 0 else None,
    )
