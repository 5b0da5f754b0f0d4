"""What does not belong together: weights and a model, a checkpoint and a vocabulary, a data set or a fold.

A mismatch is refused, or with `--force` said, noted and let through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from utils import InputError, logger

SHOWN = 3


@dataclass
class Gate:
    """Whether the user insists on what does not belong together.

    Attributes:
        forced: whether the user insists.
        passed: what was let through, a line each.
    """

    forced: bool = False
    passed: list[str] = field(default_factory=list)


def refuse(gate: Gate | None, what: str, advice: str) -> None:
    """Name a mismatch.

    Args:
        gate: whether the user insists; None where nobody can.
        what: the mismatch, in words.
        advice: what to do about it, a sentence.

    Raises:
        InputError: it is not forced.
    """
    if gate is None or not gate.forced:
        stop = "" if "\n" in what else "."
        insist = "" if gate is None else "To go on all the same: --force."
        raise InputError(f"{what}{stop}\n{advice} {insist}".rstrip())
    logger.warning("forced: %s", what)
    gate.passed.append(what.partition("\n")[0].rstrip(":"))


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[int, str]:
    """How weights differ from those of a model in names and shapes.

    Args:
        wanted: the model's own.
        given: what is to go into it.

    Returns:
        How many tensors of the model can't be taken over, and a table with the number and the first names of each
        kind of misfit, "" where there is none.
    """
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    reshaped = [name for name, value in given.items() if name in wanted and value.shape != wanted[name].shape]
    shapes = [
        f"{name}: {list(given[name].shape)} in the checkpoint, {list(wanted[name].shape)} in the model"
        for name in reshaped
    ]
    kinds = {"missing": missing, "unexpected": unknown, "another shape": shapes}
    rows = [f"\n  {kind:<14}{len(names):>5}  {_first(names)}" for kind, names in kinds.items() if names]
    return len(missing) + len(reshaped), "".join(rows)


def _first(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
