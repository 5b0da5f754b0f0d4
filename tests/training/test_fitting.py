"""States by hand: whatever does not fit is named before anything is loaded, and never crashes a later step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from runs.resume import carry_on
from training.fitting import read_progress
from training.optimiser import build_warmup
from training.state import TrainingState, optimiser_step
from utils import InputError

State = dict[str, Any]


def make_state(kind: type[torch.optim.Optimizer] = torch.optim.Adam) -> TrainingState:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1, fused=True)  # type: ignore[call-arg]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    warmup, average = build_warmup(optimizer, 4), AveragedModel(model)
    return TrainingState(model, optimizer, scheduler, scaler, warmup=warmup, average=average)


def train(state: TrainingState) -> None:
    state.begin_epoch()
    losses = {"loss": state.model(torch.ones(4, 3)).square().sum()}
    losses["loss"].backward()
    state.meter.add(losses, 4, 4)
    optimiser_step(state, 0)
    state.end_epoch(state.meter.means())


@pytest.fixture
def begun() -> State:
    """What a run stores after its first epoch."""
    state = make_state()
    train(state)
    return copy.deepcopy(state.state_dict())


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_sound_state_goes_on(kind: type[torch.optim.Optimizer]) -> None:
    whole, parts = make_state(kind), make_state(kind)
    train(whole)
    carry_on(parts, copy.deepcopy(whole.state_dict()), Path("run"), "the key")
    train(whole)
    train(parts)
    assert torch.equal(whole.model.weight, parts.model.weight)  # type: ignore[arg-type]
    assert parts.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_flags_of_another_torch_may_be_missing_or_more(begun: State) -> None:
    del begun["optimizer"]["param_groups"][0]["maximize"]
    begun["optimizer"]["param_groups"][0]["coming"] = True
    begun["scheduler"]["verbose"] = False
    begun["scheduler"].pop("_is_initial", None)
    carry_on(make_state(), begun, Path("run"), "the key")


def put(*keys: Any, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def drop(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


MOMENTS = ("optimizer", "state", 0)
GROUP = ("optimizer", "param_groups", 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put(*MOMENTS, "exp_avg", value=torch.zeros(1)), r"optimizer.state.0.exp_avg: \[1\], expected \[2, 3\]"),
        (put(*MOMENTS, "exp_avg_sq", value=torch.zeros(9, 9)), "optimizer.state.0.exp_avg_sq: "),
        (put(*MOMENTS, "exp_avg", value=torch.zeros(1).expand(2, 3)), "exp_avg: no plain tensor"),
        (put(*MOMENTS, "exp_avg", value=torch.zeros(2, 3).long()), "exp_avg: torch.int64"),
        (put(*MOMENTS, "step", value=torch.zeros(5)), "optimizer.state.0.step: "),
        (put(*MOMENTS, "step", value="one"), "optimizer.state.0.step: "),
        (drop(*MOMENTS, "exp_avg"), "optimizer.state.0.exp_avg: missing"),
        (put("optimizer", "state", 7, value={}), "optimizer.state: no parameter 7"),
        (put("optimizer", "state", value=[]), "optimizer.state: no mapping"),
        (put(*GROUP, "params", value=[1, 0]), "optimizer: other numbers of parameters"),
        (put(*GROUP, "betas", value=0.9), "betas: not 2 values"),
        (put(*GROUP, "lr", value="fast"), "lr: not a number"),
        (put(*GROUP, "amsgrad", value=True), "amsgrad: expected False"),
        (drop(*GROUP, "eps"), "eps: missing"),
        (drop("optimizer", "param_groups"), "optimizer.param_groups: missing"),
        (put("scheduler", "step_size", value=0), "scheduler.step_size: 0, now 5"),
        (put("scheduler", "last_epoch", value="two"), "scheduler.last_epoch: not a number"),
        (put("scheduler", "last_epoch", value=-3), "scheduler.last_epoch: -3"),
        (put("scheduler", "base_lrs", value=[]), "scheduler.base_lrs: not 1 values"),
        (put("warmup", "total_iters", value=0), "warmup.total_iters: 0, now 4"),
        (put("scheduler", value=None), "scheduler: no mapping"),
        (drop("scaler"), "scaler"),
        (put("meter", "items", value="many"), "meter.items: not a number"),
        (put("meter", "sums", value={"loss": torch.zeros(3)}), "meter.sums.loss: "),
        (put("meter", "sums", value={"loss": "low"}), "meter.sums.loss: "),
        (put("meter", value=3), "meter: no mapping"),
        (put("average", "n_averaged", value=torch.zeros(2)), "average.n_averaged: "),
        (put("model", "bias", value=torch.zeros(4)), "model.bias: "),
        (put("objective", value={"temperature": torch.zeros(1)}), "loading state_dict for Identity"),
        (put("random_cpu", value=torch.zeros(3)), "."),
        (put("epoch", value=-1), "epoch: "),
        (put("history", value=[{"loss": "low"}]), "history.0.loss: "),
        (put("history", value=[]), "no history"),
        (put("parts", value=0), "parts: "),
    ],
)
def test_what_does_not_fit_is_named(begun: State, change: Callable[[State], None], named: str) -> None:
    begun["best_epoch"] = 1
    change(begun)
    state = make_state()
    before = copy.deepcopy(state.model.state_dict())
    with pytest.raises(InputError, match=rf"begun with another network.*{named}"):
        carry_on(state, begun, Path("run"), "the key")
    if named not in ("loading state_dict for Identity", "."):  # torch's own checks come later
        assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_a_key_can_not_take_the_place_of_a_method(begun: State) -> None:
    begun["scheduler"]["step"] = begun["warmup"]["get_lr"] = 3
    state = make_state()
    carry_on(state, begun, Path("run"), "the key")
    train(state)
    assert state.epoch == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epoch": True}, "epoch: "),
        ({"epoch": 1.5}, "epoch: "),
        ({"best": "high"}, "best: "),
        ({"best_epoch": 2}, "progress: "),
        ({"batch": -1}, "batch: "),
        ({"history": [{}, {}]}, "progress: "),
        ({"history": {"loss": 1}}, "history: "),
        ({"ranks": 4}, "ranks: "),
        ({"row": {"lr": [1]}}, "row.lr: "),
    ],
)
def test_progress(change: State, named: str) -> None:
    sound = {"epoch": 1, "validations_since_best": 0, "history": [{"loss": 1.0}], "more": object()}
    assert read_progress(sound).parts == 1
    with pytest.raises(ValueError, match=named):
        read_progress(sound | change)
