"""Where a training stands: everything that a run needs to go on, and the step that changes it."""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.fitting import read_progress, refuse_unfit, refuse_unfit_optimizer, refuse_unfit_schedule
from utils import logger

Item = TypeVar("Item")
PLAIN = ("parts", "epoch", "best", "best_epoch", "validations_since_best", "history", "batch", "row")
"""Attributes of a `TrainingState` that a checkpoint holds as they are."""
RANDOM = ("random_cpu", "random_cuda")
"""Keys of `random_states`."""
PARTS = ("model", "average", "objective", "optimizer", "scaler", "scheduler", "warmup")
"""Those that have states of their own."""


class Meter:
    """Running sums of an epoch: losses, items and images of all ranks, and how long the loop waited for batches."""

    def __init__(self) -> None:
        """Start the clock."""
        self.sums: dict[str, Tensor | float] = defaultdict(float)
        self.recent: list[Tensor] = []
        self.items = 0
        self.images = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start of the epoch; the time between a save and its resumption does not count."""
        return time.perf_counter() - self.started

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches, with the wait for each measured."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, losses: dict[str, Tensor], items: int, images: int) -> None:
        """Add the summed losses of a batch; they stay on the device, so that nothing waits for it."""
        self.items += items
        self.images += images
        self.recent.append(losses["loss"].detach())
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value.detach()  # not in place: resumed sums lie on the CPU

    def take_recent(self) -> list[Tensor]:
        """The loss of each batch since this was last asked for."""
        recent, self.recent = self.recent, []
        return recent

    def means(self) -> dict[str, float]:
        """Losses per item (of pairs, per pair) so far, images per second, share of waiting."""
        seconds = self.seconds
        means = {name: float(value) / self.items for name, value in self.sums.items()}
        return means | {"images_per_second": self.images / seconds, "data_wait_share": self.waited / seconds}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        counts = {"items": self.items, "images": self.images}
        return {"sums": dict(self.sums), **counts, "waited": self.waited, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the clock runs on from there.

        Raises:
            ValueError: it holds anything else.
        """
        refuse_unfit(state, {"sums": {}, "items": 0, "waited": 0.0, "seconds": 0.0}, "meter")
        for name, value in state["sums"].items():
            refuse_unfit(value, torch.zeros(()) if isinstance(value, Tensor) else 0.0, f"meter.sums.{name}")
        self.sums = defaultdict(float, state["sums"])
        self.items, self.waited = state["items"], state["waited"]
        earlier = state.get("pictures", self.items)  # an older name; absent where each item had an image of its own
        self.images = state.get("images", earlier)
        self.started = time.perf_counter() - state["seconds"]


@dataclass
class TrainingState:
    """Everything that a run needs to go on: `state_dict` and `load_state_dict` make it a checkpoint and back.

    Attributes:
        scheduler: stepped after each epoch.
        objective: what else is learned besides the model.
        warmup: stepped after each step of the optimiser.
        average: moving average of the model's weights and running statistics.
        parts: into how many a batch is cut to fit into memory, see `training.memory`.
        epoch: whole epochs that are done.
        best: the highest validation score so far, reached after `best_epoch` epochs.
        history: a row of figures for each of the epochs.
        batch: batches of the present epoch that are done; the optimiser has stepped after the last of them.
        row: what is known already of the present epoch's row.
        meter: the sums of the present epoch.
        ranks: random states of each of several ranks, which a checkpoint holds; see `own_random_states`.
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
    best_epoch: int = 0
    validations_since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    batch: int = 0
    row: dict[str, float] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    ranks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def scored(self) -> nn.Module:
        """What is validated and kept as the best: the moving average where there is one, else the model."""
        return self.model if self.average is None else self.average.module

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def at_best(self) -> bool:
        """Whether these are the weights of the best epoch so far."""
        return self.batch == 0 and 0 < self.epoch == self.best_epoch

    def begin_epoch(self) -> None:
        """Start the row and the sums of an epoch, unless it is resumed in its middle."""
        if self.batch == 0:
            self.row = {"epoch": float(self.epoch + 1), "lr": self.optimizer.param_groups[0]["lr"]}
            self.meter = Meter()

    def step_schedule(self) -> None:
        """Bring the learning rates to those of the next epoch."""
        with warnings.catch_warnings():
            # All of the epoch's steps may have been done before it was resumed.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def end_epoch(self, figures: dict[str, float]) -> dict[str, float]:
        """Count the epoch; returns its row: what was known at its start, these figures, its seconds."""
        self.step_schedule()
        self.epoch += 1
        self.batch = 0
        self.history.append(self.row | figures | {"seconds": self.meter.seconds})
        return self.history[-1]

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
            "meter": self.meter.state_dict(),
            **{name: getattr(self, name) for name in PLAIN},
            **random_states(self.device),
            **({"ranks": self.ranks} if self.ranks else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it is of a run with other parts, or what they hold does not fit; nothing was changed.
            RuntimeError: it is of another model or objective.
        """
        for part in ("warmup", "average"):
            if (getattr(self, part) is None) != (part not in state):
                raise ValueError(f"only one of both runs has a part {part!r}")
        objective = state.get("objective", {})  # absent in runs begun before there was a choice
        state = state | {"objective": objective}
        self._refuse_unfit(state)
        for part in ("model", "average", "objective", "optimizer", "scaler"):
            if part in state:
                getattr(self, part).load_state_dict(state[part])
        for part in ("scheduler", "warmup"):
            if part in state:
                known = getattr(self, part).state_dict().keys()  # another key could take the place of a method
                getattr(self, part).load_state_dict({key: state[part][key] for key in known & state[part].keys()})
        for value in PLAIN:
            # Runs that an earlier version began lack some of them.
            setattr(self, value, state.get(value, getattr(self, value)))
        if "meter" in state:
            self.meter.load_state_dict(state["meter"])
        set_random_states(state, self.device)

    def _refuse_unfit(self, state: dict[str, Any]) -> None:
        """Raise a ValueError that names what differs in keys, type or shape."""
        read_progress(state)
        own = {part: getattr(self, part) for part in PARTS if getattr(self, part) is not None}
        refuse_unfit({key: state.get(key) for key in own}, {key: {} for key in own}, "state")
        for part in own.keys() - {"optimizer", "scheduler", "warmup"}:
            values = own[part].state_dict()  # what is missing a model may know to fill in
            refuse_unfit(state[part], {key: values[key] for key in values.keys() & state[part].keys()}, part)
        for part in own.keys() & {"scheduler", "warmup"}:
            refuse_unfit_schedule(state[part], own[part].state_dict(), part)
        refuse_unfit_optimizer(state["optimizer"], self.optimizer, "optimizer")
        if "meter" in state:
            Meter().load_state_dict(state["meter"])


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of this process's random generators, as a checkpoint holds them.

    Of GPUs that of the run's own alone: it draws on no other, and a look at another would take memory there.
    """
    states = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"random_cpu": torch.get_rng_state(), "random_cuda": states}


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Take over what `random_states` gave, on whichever GPU the run goes on.

    Checkpoints of earlier versions hold the states of all GPUs and do not say which one was the run's: where they
    differ, none is taken, with a warning.
    """
    torch.set_rng_state(states["random_cpu"].cpu())
    if device.type != "cuda":
        return
    stored = [random.cpu() for random in states["random_cuda"]]
    if stored and all(torch.equal(random, stored[0]) for random in stored):
        torch.cuda.set_rng_state(stored[0], device)
        return
    found = f"the random states of {len(stored)} GPUs, not which one was the run's" if stored else "none of a GPU"
    logger.warning(
        "The checkpoint holds %s: on %s dropout is drawn otherwise than it would have been. Weights, order and "
        "augmentation go on as they were.",
        found,
        device,
    )


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
