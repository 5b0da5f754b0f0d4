"""The model registry: a YAML name, the class that answers to it, and the parameters that the class accepts.

A model registers itself where it is defined::

    @register("AMFMN", AmfmnParameters)
    class AMFMN(RetrievalModel): ...

`option` validates the `model` block of a YAML with the registered parameters, `layers.build_model` builds the class
from them. Neither knows any model by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from option.parameters import ModelBlock, ModelParameters, declare

if TYPE_CHECKING:
    from layers.base import RetrievalModel


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
        declare(name, ModelBlock(parameters, model.unread))
        return model

    return add


def registered() -> dict[str, Registration]:
    """Every registered model by its YAML name."""
    return dict(_registrations)
