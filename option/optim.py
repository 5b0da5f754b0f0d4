"""Block `optim` of an experiment, and what it has in common with that of a pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, create_model

from option.parameters import LARGEST_SEED, MOST_EPOCHS, MOST_ITEMS, MOST_STEPS, Parameters, loss_blocks, not_blank


class Descent(Parameters):
    """What the `optim` block of every entry point says about optimisers and their schedules."""

    epochs: int = Field(default=70, ge=1, le=MOST_EPOCHS, description="passes over the training items [epochs]")
    optimizer: Literal["adam", "adamw"] = Field(
        default="adam", description="torch.optim's; adamw keeps the weight decay out of the gradient"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="of matrices and kernels, not of biases, norms and other vectors; 0: off"
    )
    lr: float = Field(default=2e-4, gt=0, description="learning rate at the start")
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=MOST_STEPS,
        description="optimiser steps over which learning rates rise from 0 to the schedule [steps]",
    )
    lr_decay_param: float = Field(
        default=0.7, gt=0, le=1, description="factor on the learning rate at each decay (schedule step)"
    )
    lr_update_epoch: int = Field(
        default=20, ge=1, le=MOST_EPOCHS, description="epochs from one decay to the next (schedule step) [epochs]"
    )
    schedule: Literal["step", "cosine"] = Field(
        default="step", description="step: lr_decay_param every lr_update_epoch; cosine: to 0 over schedule_epochs"
    )
    schedule_epochs: int | None = Field(
        default=None,
        ge=1,
        le=MOST_EPOCHS,
        description="schedule cosine: epochs from the start to 0; null: as many as epochs [epochs]",
    )
    grad_clip: float = Field(default=0.0, ge=0, description="largest norm of the gradient, clipped above it; 0: off")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="root of all randomness but the splits")
    amp: Literal["off", "bf16", "fp16"] = Field(
        default="off", description="mixed precision of training and evaluation; off: float32"
    )


class Training(Descent):
    """What the `optim` block says where one loss is brought down and a validation score chooses the best epoch."""

    accumulate: int = Field(
        default=1,
        ge=1,
        le=MOST_ITEMS,
        description="batches whose gradients are summed for one optimiser step [batches]",
    )
    on_oom: Literal["stop", "halve"] = Field(
        default="stop",
        description="when memory runs out in a step; stop: say what would fit; halve: batches in 2, 4, ... parts with "
        "negatives of their own",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=MOST_EPOCHS,
        description="validations without a better score before stopping; 0: never [validations]",
    )


def _path_or_false(value: Any) -> Any:
    """Read the published `resume: False` as no path."""
    word = str(value).lower()
    if word in ("false", "off", "no", "0"):
        return None
    if word in ("true", "on", "yes", "1"):
        raise ValueError("allowed: false, or the path of a checkpoint")
    return value


def _weight_of_one(value: Any) -> Any:
    """Read the name of a loss as that loss alone."""
    return {value: 1.0} if isinstance(value, str) else value


class Optim(Training):
    """Block `optim`: the loss, the optimiser and its schedule; `whole` adds the blocks of all registered losses."""

    loss: Mapping[str, float] = Field(default={"triplet": 1.0})
    mask: Literal["none", "image", "caption"] = Field(
        default="none",
        description="pairs of a batch that are no negatives; image: of one image; caption: of equal captions, too",
    )
    lr_backbone: float = Field(
        default=1.0, gt=0, le=1, description="factor on the learning rate of the backbones of images and sounds"
    )
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights that is scored; 0: off"
    )
    max_violation: bool = Field(
        default=False,
        description="negatives that count; true: the hardest of each query; false: the sum over all of them",
    )
    methods: Literal["all", "tpt"] = Field(
        default="all", description="MCRN's fine-tuning; tpt: triplets alone; all: views and modalities aligned, too"
    )
    lr_finetune: float = Field(
        default=3e-4,
        gt=0,
        description="MCRN's fine-tuning: learning rate of the shared module; encoders take 0.3 of it",
    )
    margin: float = Field(
        default=0.2,
        ge=0,
        le=2,
        description="by how much a match must score above a wrong pair to cost nothing [cosine]",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="several GPUs (torchrun): batch norms take their statistics over the batches of all",
    )
    compile: bool = Field(
        default=False, description="torch.compile of the encoders in training: slow first steps, then maybe faster"
    )
    resume: Annotated[Path | None, BeforeValidator(not_blank), BeforeValidator(_path_or_false)] = Field(
        default=None,
        description="checkpoint whose weights to start from, or false; an interrupted run goes on by itself",
    )

    @classmethod
    def whole(cls) -> type[Optim]:
        """See `Parameters.whole`: the names of all losses, and their blocks."""
        return _optim_with_losses()


@cache
def _optim_with_losses() -> type[Optim]:
    blocks = loss_blocks()
    weights: Any = dict[Literal[tuple(blocks)], PositiveFloat]  # type: ignore[misc]  # names that plug in
    fields: dict[str, Any] = {
        "loss": (
            Annotated[weights, BeforeValidator(_weight_of_one)],
            Field(
                default={"triplet": 1.0},
                min_length=1,
                description="one loss, or the weights of several that are summed",
            ),
        )
    }
    for name, block in blocks.items():
        if block.parameters is not None:
            fields[name] = (block.parameters, Field(default_factory=block.parameters))
    if taken := fields.keys() & Optim.model_fields.keys() - {"loss"}:
        raise ValueError(f"a loss has the name of another key of optim: {', '.join(sorted(taken))}")
    return create_model("Optim", __base__=Optim, **fields)
