"""Where a training stands: everything that a run needs to go on, and the step that changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


@dataclass
class TrainingState:
    """Everything that a run needs to go on: `state_dict` and `load_state_dict` make it a checkpoint and back.

    Attributes:
        scheduler: stepped after each epoch.
        objective: what else is learned besides the model.
        warmup: stepped after each step of the optimiser.
        average: moving average of the model's weights and running statistics.
        parts: into how many a batch is cut to fit into memory, see `out_of_memory`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    objective: nn.Module = field(default_factory=nn.Identity)
    warmup: torch.optim.lr_scheduler.LRScheduler | None = None
    average: AveragedModel | None = None
    parts: int = 1
    epoch: int = 0
    best: float = float("-inf")
    validations_since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def scored(self) -> nn.Module:
        """What is validated and kept as the best: the moving average where there is one, else the model."""
        return self.model if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, with the states of all random generators."""
        optional = {name: getattr(self, name) for name in ("warmup", "average") if getattr(self, name) is not None}
        return {
            **{name: part.state_dict() for name, part in optional.items()},
            "objective": self.objective.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
            "epoch": self.epoch,
            "best": self.best,
            "validations_since_best": self.validations_since_best,
            "history": self.history,
            "random_cpu": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of a run with other parts.
            RuntimeError: it is of another model or objective.
        """
        for part in ("warmup", "average"):
            if (getattr(self, part) is None) != (part not in state):
                raise ValueError(f"only one of both runs has a part {part!r}")
            if part in state:
                getattr(self, part).load_state_dict(state[part])
        for part in ("model", "optimizer", "scheduler", "scaler"):
            getattr(self, part).load_state_dict(state[part])
        self.objective.load_state_dict(state.get("objective", {}))  # absent in runs begun before there was a choice
        self.parts = state.get("parts", 1)  # absent in runs begun before batches could be cut
        for value in ("epoch", "best", "validations_since_best", "history"):
            setattr(self, value, state[value])
        torch.set_rng_state(state["random_cpu"].cpu())
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([random.cpu() for random in state["random_cuda"]])


def optimiser_step(state: TrainingState, grad_clip: float) -> None:
    """Clip the summed gradients, step, and clear them; the warm-up and the moving average follow.

    Differs from the released code: it clips before backward, which acts on nothing; here the clipping follows backward.
    """
    if grad_clip > 0:
        state.scaler.unscale_(state.optimizer)
        trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, grad_clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.warmup is not None:
        state.warmup.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
