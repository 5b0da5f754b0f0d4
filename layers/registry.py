"""The model registry: a YAML name, the class that answers to it, and the parameters that the class accepts.

A model registers itself where it is defined::

    @register("AMFMN", AmfmnParameters)
    class AMFMN(RetrievalModel): ...

`option.schema` validates the `model` block of a YAML with the registered parameters, `layers.build_model` builds the
class from them. Neither knows any model by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from layers.base import RetrievalModel


class Parameters(BaseModel):
    """Base of every typed block of a YAML: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def without_effect(self) -> dict[str, str]:
        """Dotted keys, from the root of the YAML, that nothing reads beside the values of this block -> the reason."""
        return {}


class ModelParameters(Parameters):
    """Base of the `model` block of every registered model."""

    name: str


@dataclass(frozen=True)
class Registration:
    """One registered model: its class and the pydantic class of its `model` block."""

    model: type[RetrievalModel]
    parameters: type[ModelParameters]


_registrations: dict[str, Registration] = {}
Model = TypeVar("Model", bound="type[RetrievalModel]")


def register(name: str, parameters: type[ModelParameters]) -> Callable[[Model], Model]:
    """Class decorator: make a model selectable as `model.name: <name>`.

    Raises:
        ValueError: the name is already taken by another class.
    """

    def add(model: Model) -> Model:
        if name in _registrations:
            raise ValueError(f"the model name {name!r} is already registered by {_registrations[name].model.__name__}")
        _registrations[name] = Registration(model, parameters)
        return model

    return add


def registered() -> dict[str, Registration]:
    """Every registered model by its YAML name."""
    return dict(_registrations)
