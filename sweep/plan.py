"""What a sweep tries: the YAML with its ranges, as types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from option.parameters import Parameters
from option.read import Tree, read_file
from utils import InputError


class Range(Parameters):
    """Numbers to choose from."""

    low: float = Field(description="the least")
    high: float = Field(description="the greatest")
    log: bool = Field(default=False, description="true: evenly over orders of magnitude")
    integer: bool = Field(default=False, description="true: whole numbers")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 where log is true")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("low and high must be whole numbers where integer is true")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest, as integers where only these count."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


Choices = Range | Annotated[list[str], Field(min_length=1)]
"""A range, or the values themselves as a YAML writes them."""


class Plan(Parameters):
    """A sweep.

    Attributes:
        path_opt: the experiment.
        ranges: dotted key of an option -> what it may be.
        trials: trainings in all.
        fold: that is trained and validated.
        settings: options of all trials, `key=value`.
        seed: of the search.
    """

    path_opt: Path
    ranges: dict[str, Choices] = Field(min_length=1)
    trials: int = Field(default=20, ge=1, le=10_000)
    fold: int = Field(default=0, ge=0)
    settings: list[str] = Field(default_factory=list)
    seed: int = 0


def read_plan(path: Path) -> Plan:
    """Read a YAML with `path_opt`, `trials`, `fold`, `seed`, `set` and `ranges`.

    Raises:
        InputError: it can't be read, or something in it is wrong.
    """
    tree, problems = read_file(path)
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    given = {("settings" if key == "set" else key): value for key, value in tree.items()}
    if isinstance(given.get("ranges"), dict):
        given["ranges"] = dict(_leaves(given["ranges"]))
    try:
        return Plan.model_validate(given)
    except ValidationError as fault:
        faults = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in fault.errors()]
        raise InputError(f"{path}: {'; '.join(faults)} (docs/sweep.md)") from fault


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> a list, or a block with `low`."""
    for key, value in tree.items():
        if isinstance(value, dict) and "low" not in value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
