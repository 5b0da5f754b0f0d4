"""Groups of parameters, warm-up, weight decay and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from layers import build_model
from layers.backbone import backbone_parameters
from layers.losses.objective import build_objective
from layers.registry import registered
from option import Options
from option.optim import Optim
from runs.models import start_state
from runs.resume import Keeper, save_best
from runtime.weights import read_checkpoint
from training.optimiser import moving_average, slow_backbones
from training.state import optimiser_step
from vocab import Vocabulary

CPU = torch.device("cpu")


class Small(nn.Module):
    """A matrix, two vectors and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)


def groups_of(model: nn.Module, rate: float = 0.1) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "lr": rate}]


@pytest.mark.parametrize(
    "name", sorted(name for name, entry in registered().items() if "backbone" in entry.parameters.model_fields)
)
def test_backbones_learn_slower(name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary) -> None:
    options = tiny_options(name, {"is_finetune": True} if name == "SWAN" else {})
    model = build_model(options, vocabulary)
    plain = model.parameter_groups(options)
    rates = {id(p): group["lr"] for group in plain for p in group["params"]}
    slowed = slow_backbones(model, plain, 0.1)
    inside = {id(p) for p in backbone_parameters(model)}
    assert inside
    found = {id(p): group["lr"] for group in slowed for p in group["params"]}
    assert found == {key: rate * (0.1 if key in inside else 1) for key, rate in rates.items()}
    assert sum(len(group["params"]) for group in slowed) == len(found)
    assert slowed[0]["lr"] == plain[0]["lr"]
    assert slow_backbones(model, plain, 1.0) == plain


def test_a_frozen_backbone_makes_no_group(tiny_options: Callable[..., Options], vocabulary: Vocabulary) -> None:
    options = tiny_options("SWAN")
    model = build_model(options, vocabulary)
    assert len(slow_backbones(model, model.parameter_groups(options), 0.1)) == 1


def test_only_matrices_decay() -> None:
    model = Small()
    optim = Optim.whole().model_validate({"optimizer": "adamw", "weight_decay": 0.5, "lr": 0.1})
    state = start_state(model, groups_of(model), optim, CPU)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] * (0.95 if name == "linear.weight" else 1))


def test_the_temperature_is_learned_and_does_not_decay() -> None:
    model = Small()
    optim = Optim.whole().model_validate({"loss": "contrastive", "optimizer": "adamw", "weight_decay": 0.5, "lr": 0.1})
    objective = build_objective(optim)
    state = start_state(model, groups_of(model), optim, CPU, objective)
    (parameter,) = objective.parameters()
    before = parameter.item()
    parameter.grad = torch.tensor(1.0)
    state.optimizer.step()
    assert parameter.item() == pytest.approx(before - 0.1)  # the first step of Adam is of the length of the rate


def test_adam_is_the_default_and_decays_with_the_gradient() -> None:
    model = Small()
    assert type(start_state(model, groups_of(model), Optim(), CPU).optimizer) is torch.optim.Adam
    optim = Optim(weight_decay=0.5)
    state = start_state(model, groups_of(model), optim, CPU)
    before = model.linear.weight.detach().clone()
    model.linear.weight.grad = torch.zeros(2, 3)
    state.optimizer.step()
    torch.testing.assert_close(model.linear.weight, before - 0.1 * before.sign())


def rates(optim: Optim, steps_per_epoch: int, epochs: int) -> list[float]:
    """The learning rate of every step."""
    model = Small()
    state = start_state(model, groups_of(model, optim.lr), optim, CPU)
    seen = []
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            seen.append(state.optimizer.param_groups[0]["lr"])
            optimiser_step(state, 0)
        state.scheduler.step()
    return seen


def test_the_warm_up_rises_to_a_schedule_that_falls() -> None:
    steps = rates(Optim(lr=1.0, warmup_steps=3, lr_update_epoch=1, lr_decay_param=0.5), 2, 3)
    assert steps == pytest.approx([0.25, 0.5, 0.375, 0.5, 0.25, 0.25])
    cosine = rates(Optim(lr=1.0, warmup_steps=3, schedule="cosine", epochs=2), 2, 2)
    assert cosine == pytest.approx([0.25, 0.5, 0.375, 0.5])


def test_the_moving_average_step_by_step() -> None:
    model = Small()
    average = moving_average(model, 0.15)
    follower = cast(Small, average.module)
    expected = 0.0
    # The first step is taken over; then d = 2/11 is bounded by 0.15.
    for step, value in enumerate((1.0, 5.0, 3.0)):
        for tensor in (model.linear.weight, model.norm.running_mean):
            assert isinstance(tensor, torch.Tensor)
            nn.init.constant_(tensor, value)
        assert model.norm.num_batches_tracked is not None
        model.norm.num_batches_tracked += 1
        average.update_parameters(model)
        expected = value if step == 0 else 0.15 * expected + 0.85 * value
        torch.testing.assert_close(follower.linear.weight, torch.full((2, 3), expected))
        torch.testing.assert_close(follower.norm.running_mean, torch.full((2,), expected))
        assert follower.norm.num_batches_tracked == step + 1


def test_the_moving_average_soon_forgets_the_start() -> None:
    model = Small()
    average = moving_average(model, 0.999)
    follower = cast(Small, average.module)
    nn.init.zeros_(model.linear.weight)
    average.update_parameters(model)
    nn.init.ones_(model.linear.weight)
    average.update_parameters(model)
    # After one step d = 2/11.
    torch.testing.assert_close(follower.linear.weight, torch.full((2, 3), 9 / 11))


def test_the_average_is_what_is_kept_as_the_best(tiny_options: Callable[..., Options], tmp_path: Path) -> None:
    model = Small()
    state = start_state(model, groups_of(model), Optim(), CPU, ema=0.5)
    nn.init.constant_(cast(Small, state.scored).linear.weight, 7.0)
    state.history.append({"epoch": 1.0})
    options = tiny_options("AMFMN")
    best = tmp_path / "best.pth"
    Keeper(tmp_path, best, options, lambda: save_best(best, state, options, {})).save(state, True)
    weights = [read_checkpoint(tmp_path / name)["model"]["linear.weight"] for name in ("best.pth", "last.pth")]
    assert torch.equal(weights[0], torch.full((2, 3), 7.0))
    assert torch.equal(weights[1], model.linear.weight)


def test_a_state_of_other_parts_is_refused() -> None:
    model = Small()
    plain = start_state(model, groups_of(model), Optim(), CPU)
    averaged = start_state(model, groups_of(model), Optim(), CPU, ema=0.9)
    for one, other in ((plain, averaged), (averaged, plain)):
        with pytest.raises(ValueError, match="'average'"):
            one.load_state_dict(other.state_dict())
    assert plain.scored is model
    assert averaged.scored is not model
