"""The registries of models and of losses: a YAML name, the class that answers to it, and the parameters it accepts.

A model registers itself where it is defined::

    @register("AMFMN", AmfmnParameters)
    class AMFMN(RetrievalModel): ...

`option` validates the `model` block of a YAML with the registered parameters, `layers.build_model` builds the class
from them. Neither knows any model by name. A loss does the same::

    @register_loss("sigmoid", SigmoidParameters)
    class SigmoidLoss(Loss): ...

It is chosen by `optim.loss: sigmoid`, its parameters are the block `optim.sigmoid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from option.parameters import LossBlock, ModelBlock, ModelParameters, Parameters, declare, declare_loss

if TYPE_CHECKING:
    from layers.base import RetrievalModel
    from layers.losses.base import Loss
    from option.optim import Optim


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


@dataclass(frozen=True)
class LossRegistration:
    """One registered loss: name, class, the pydantic class of its block (None: it has none), and what else it reads."""

    name: str
    loss: type[Loss]
    parameters: type[Parameters] | None
    reads: tuple[str, ...]

    def build(self, optim: Optim) -> Loss:
        """The loss with the values of its own block and of the other keys that it reads."""
        own = {} if self.parameters is None else dict(getattr(optim, self.name))
        return self.loss(**own, **{key: getattr(optim, key) for key in self.reads})


_losses: dict[str, LossRegistration] = {}
LossClass = TypeVar("LossClass", bound="type[Loss]")


def register_loss(
    name: str, parameters: type[Parameters] | None = None, reads: Sequence[str] = ()
) -> Callable[[LossClass], LossClass]:
    """Class decorator: make a loss selectable as `optim.loss: <name>`.

    Args:
        name: by which the YAML knows it.
        parameters: of its block `optim.<name>`; None: it has none.
        reads: further keys of `optim` that it reads. The constructor takes both by these names.

    Raises:
        ValueError: the name is already taken.
    """

    def add(loss: LossClass) -> LossClass:
        if name in _losses:
            raise ValueError(f"the loss name {name!r} is already registered by {_losses[name].loss.__name__}")
        _losses[name] = LossRegistration(name, loss, parameters, tuple(reads))
        declare_loss(name, LossBlock(parameters, tuple(reads)))
        return loss

    return add


def registered_losses() -> dict[str, LossRegistration]:
    """Every registered loss by its YAML name."""
    return dict(_losses)
