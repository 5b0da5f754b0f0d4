"""Whether a stored state of a training fits a new one: keys, types and shapes, before anything of it is loaded.

torch's optimisers take any shape for their averages and crash in the next step; its schedules take any attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from runtime.untrusted import is_plain_weight

COUNTS = ("last_epoch", "_step_count")
"""What a schedule counts; its other whole numbers come from the options."""


class Progress(BaseModel):
    """How far a stored state has come; see `training.state.TrainingState`. Earlier versions lack some of it."""

    model_config = ConfigDict(strict=True)

    epoch: NonNegativeInt
    validations_since_best: NonNegativeInt
    best: float = float("-inf")
    best_epoch: NonNegativeInt = 0
    batch: NonNegativeInt = 0
    parts: PositiveInt = 1
    history: list[dict[str, float]] = []
    row: dict[str, float] = {}
    ranks: list[dict[str, Any]] = [{}]

    @model_validator(mode="after")
    def _adds_up(self) -> Progress:
        if self.best_epoch > self.epoch or len(self.history) not in (0, self.epoch):
            raise ValueError(f"epoch {self.epoch}, best {self.best_epoch}, {len(self.history)} epochs in the history")
        if self.best_epoch and not self.history:
            raise ValueError("no history")
        return self


def read_progress(state: Mapping[str, Any]) -> Progress:
    """How far a stored state has come.

    Raises:
        ValueError: it does not say so.
    """
    try:
        return Progress.model_validate({key: state[key] for key in Progress.model_fields if key in state})
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'progress'}: {first['msg']}") from fault


def refuse_unfit(stored: Any, own: Any, name: str) -> None:
    """Raise a ValueError with the dotted key for what differs in keys, type or shape from a part of our own.

    What `stored` has beyond that is let through, and it may lack flags, which later versions of torch brought.
    """
    if isinstance(own, Mapping):
        _demand(isinstance(stored, Mapping), name, "no mapping")
        for key, value in own.items():
            if key in stored:
                refuse_unfit(stored[key], value, f"{name}.{key}")
            else:
                _demand(_is_flag(value), f"{name}.{key}", "missing")
    elif isinstance(own, (list, tuple)):
        _demand(isinstance(stored, (list, tuple)) and len(stored) == len(own), name, f"not {len(own)} values")
        for place, value in enumerate(own):
            refuse_unfit(stored[place], value, f"{name}.{place}")
    elif isinstance(own, Tensor):
        _refuse_unfit_tensor(stored, own, name)
    elif _is_flag(own):
        _demand(_is_flag(stored) and not (own is False and stored), name, f"expected {own}")
    elif isinstance(own, (int, float)):
        kinds = int if isinstance(own, int) else (int, float)
        _demand(isinstance(stored, kinds) and not isinstance(stored, bool), name, "not a number of its kind")
    else:
        _demand(type(stored) is type(own), name, f"no {type(own).__name__}")


def refuse_unfit_schedule(stored: Any, own: Mapping[str, Any], name: str) -> None:
    """`refuse_unfit` of a schedule, whose lengths must be those of the options."""
    refuse_unfit(stored, own, name)
    for key, value in own.items():
        if isinstance(value, int) and not _is_flag(value):
            fits = stored[key] >= 0 if key in COUNTS else stored[key] == value
            _demand(fits, f"{name}.{key}", f"{stored[key]}, now {value}")


def refuse_unfit_optimizer(stored: Any, optimizer: Optimizer, name: str) -> None:
    """`refuse_unfit` of an optimiser, with what it keeps of each parameter."""
    own = optimizer.state_dict()
    refuse_unfit(stored, {"state": {}, "param_groups": own["param_groups"]}, name)
    numbers = [group["params"] for group in own["param_groups"]]
    _demand([group["params"] for group in stored["param_groups"]] == numbers, name, "other numbers of parameters")
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    kept = _kept_of_one(optimizer)
    for number, found in stored["state"].items():
        _demand(number in parameters, f"{name}.state", f"no parameter {number!r:.20}")
        wanted = {key: parameters[number] if value.ndim else value for key, value in kept.items()}
        refuse_unfit(found, wanted, f"{name}.state.{number}")


def _kept_of_one(optimizer: Optimizer) -> dict[str, Tensor]:
    """What an optimiser of this kind keeps of a parameter [1]: vectors have the parameter's shape."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    twin = type(optimizer)([parameter])  # type: ignore[call-arg]  # mypy knows the base class alone
    twin.step()
    return {key: value for key, value in twin.state[parameter].items() if isinstance(value, Tensor)}


def _refuse_unfit_tensor(stored: Any, own: Tensor, name: str) -> None:
    _demand(is_plain_weight(stored), name, "no plain tensor")
    _demand(stored.shape == own.shape, name, f"{list(stored.shape)}, expected {list(own.shape)}")
    same = stored.is_floating_point() if own.is_floating_point() else stored.dtype == own.dtype
    _demand(same, name, f"{stored.dtype}, expected {own.dtype}")


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _demand(fits: bool, name: str, fault: str) -> None:
    if not fits:
        raise ValueError(f"{name}: {fault}")
