"""The base of every typed block of a YAML, and the blocks of the models and losses that there are.

A model or a loss declares its block when it registers (`layers.registry`); options are read by what was declared. So
neither of the two rooms imports the other.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

# The most of what sizes something: far above any use, and far below what would never end or overflow.
MOST_WIDTH = 2**16
"""Numbers in a layer or a vector."""
MOST_LAYERS = 1000
MOST_TOKENS = 2**16
MOST_EPOCHS = 1_000_000
MOST_STEPS = 10**9
MOST_ITEMS = 2**16
"""Of a batch."""
LARGEST_SEED = 2**31 - 1
"""numpy takes seeds below 2**32, and a fold adds its number to the seed."""


def not_blank(value: Any) -> Any:
    """Refuse an empty path, which would silently mean the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("a path must not be empty")
    return value


GivenPath = Annotated[Path, BeforeValidator(not_blank)]


class Parameters(BaseModel):
    """Base of every typed block of a YAML: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _from_home(cls, value: Any) -> Any:
        """Expand `~` at the start of a path, which no shell does inside of a YAML or behind `--set`."""
        if isinstance(value, Path):
            return Path(os.path.expanduser(value))
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value

    @classmethod
    def whole(cls) -> type[Parameters]:
        """The block with what plug-ins add to it."""
        return cls

    def without_effect(self) -> dict[str, str]:
        """Dotted keys, from the root of the YAML, that nothing reads beside the values of this block -> the reason."""
        return {}


class ModelParameters(Parameters):
    """Base of the `model` block of every registered model.

    Attributes:
        image_step: sides of images must be multiples of it, pixels.
    """

    image_step: ClassVar[int] = 1
    name: str


@dataclass(frozen=True)
class ModelBlock:
    """What options know of a registered model.

    Attributes:
        parameters: the type of its `model` block.
        unread: given all options, the dotted keys that the model does not read -> the reason.
    """

    parameters: type[ModelParameters]
    unread: Callable[[Any], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class LossBlock:
    """What options know of a registered loss.

    Attributes:
        parameters: the type of its block `optim.<name>`; None: it has none.
        reads: further keys of `optim` that it reads.
    """

    parameters: type[Parameters] | None
    reads: tuple[str, ...]


PLUG_INS = __name__.replace("option.parameters", "layers")  # inside of a package, where rooms may lie, too
"""The room of the models and losses: options know its name, nothing in it."""
_blocks: dict[str, ModelBlock] = {}
_losses: dict[str, LossBlock] = {}


def declare(name: str, block: ModelBlock) -> None:
    """Make a model's block known under its YAML name."""
    _blocks[name] = block


def model_blocks() -> Mapping[str, ModelBlock]:
    """Every model's block by its YAML name; each model declares its own when it is imported."""
    importlib.import_module(PLUG_INS)
    return dict(_blocks)


def declare_loss(name: str, block: LossBlock) -> None:
    """Make a loss's block known under its YAML name."""
    _losses[name] = block


def loss_blocks() -> Mapping[str, LossBlock]:
    """Every loss's block by its YAML name, in alphabetical order."""
    importlib.import_module(PLUG_INS)
    return dict(sorted(_losses.items()))
