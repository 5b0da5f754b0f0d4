"""The base of every typed block of a YAML, and the `model` blocks that there are.

A model declares its block when it registers (`layers.registry`); options are read by what was declared. So neither of
the two rooms imports the other.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

# The most of what sizes something: far above any use, and far below what would never end or overflow.
MOST_WIDTH = 2**16
"""Numbers in a layer or a vector."""
MOST_LAYERS = 1000
MOST_EPOCHS = 1_000_000
MOST_STEPS = 10**9


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


MODELS = "layers"
"""The room of the models, which are plug-ins: options know its name, nothing in it."""
_blocks: dict[str, ModelBlock] = {}


def declare(name: str, block: ModelBlock) -> None:
    """Make a model's block known under its YAML name."""
    _blocks[name] = block


def model_blocks() -> Mapping[str, ModelBlock]:
    """Every model's block by its YAML name; each model declares its own when it is imported."""
    importlib.import_module(MODELS)
    return dict(_blocks)
