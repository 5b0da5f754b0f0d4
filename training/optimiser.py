"""Optimisers, learning rates and the moving average of the weights, from torch.optim and the block `optim`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from layers.backbone import backbone_parameters
from option.optim import Descent

Group = dict[str, Any]


def slow_backbones(model: nn.Module, groups: Sequence[Group], factor: float) -> list[Group]:
    """Give what lies inside the backbones its own groups.

    Args:
        model: all of it.
        groups: its parameters (`params`, `lr`).
        factor: on the learning rate of the new groups, which come last; 1 leaves all as it is.
    """
    if factor == 1:
        return list(groups)
    inside = set(map(id, backbone_parameters(model)))
    outer = [group | {"params": [p for p in group["params"] if id(p) not in inside]} for group in groups]
    inner = [
        group | {"params": [p for p in group["params"] if id(p) in inside], "lr": factor * group["lr"]}
        for group in groups
    ]
    return [group for group in outer + inner if group["params"]]


def build_optimizer(groups: Sequence[Group], optim: Descent) -> torch.optim.Optimizer:
    """The optimiser of `optim.optimizer`; biases, norms and other vectors have no weight decay."""
    kind = torch.optim.AdamW if optim.optimizer == "adamw" else torch.optim.Adam
    if optim.weight_decay > 0:
        plain = [group | {"params": [p for p in group["params"] if p.ndim >= 2]} for group in groups]
        spared = [group | {"params": [p for p in group["params"] if p.ndim < 2], "weight_decay": 0} for group in groups]
        groups = [group for group in plain + spared if group["params"]]
    return kind(list(groups), weight_decay=optim.weight_decay, fused=True)


def build_scheduler(optimizer: torch.optim.Optimizer, optim: Descent) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of `optim.schedule`, to be stepped after each epoch."""
    if optim.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, optim.schedule_epochs or optim.epochs)
    # Differs from the released code: the rate falls before epochs 20, 40, ... (counted from 0), as the papers say;
    # the released schedule is one epoch early.
    return torch.optim.lr_scheduler.StepLR(optimizer, optim.lr_update_epoch, optim.lr_decay_param)


def build_warmup(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    """A linear rise of all learning rates to what the schedule says, to be stepped after each step; None for 0 steps.

    It multiplies the rates that `build_scheduler`, called before, has set.
    """
    if steps == 0:
        return None
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model whose weights and running statistics follow it: a <- d a + (1 - d) w after each step.

    d = min(decay, (1 + n) / (10 + n)) after n steps, so that the random start is soon forgotten.
    """
    return AveragedModel(model, avg_fn=partial(_follow, decay=decay), use_buffers=True)


def _follow(average: Tensor, value: Tensor, steps: Tensor | int, decay: float) -> Tensor:
    """One value of the average; counters are taken over as they are."""
    if not value.is_floating_point():
        return value
    steps = torch.as_tensor(steps, device=value.device)
    kept = ((1 + steps) / (10 + steps)).clamp(max=decay)
    return value.lerp(average, kept.to(value.dtype))
