"""A tensor in few bytes: in half precision or int8, whole or as its difference to a tensor that is at hand.

Letters: m rows, n columns, k rows that changed, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STILL = 0.01
"""A row of a table of embeddings that moved by less than this share of its length counts as unchanged: weight decay
moves the rows of all words, gradients only those of words that occur."""

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class Coding:
    """How tensors are stored.

    Attributes:
        rank: r of the two factors that a difference of matrices becomes.
        int8: numbers of more than a vector as int8 with a scale for each row or output channel; else half precision.
    """

    rank: int
    int8: bool


def encode(wanted: Tensor, start: Tensor | None, coding: Coding, table: bool = False) -> Parts:
    """A tensor as parts that `decode` puts together again.

    Args:
        wanted: of any shape.
        start: of the same shape, at hand wherever the parts are decoded; None: `wanted` is stored whole.
        coding: how.
        table: whether its rows are embeddings, of which those that hardly changed are left out.

    Returns:
        No parts where both are equal; else `half`, or `int8` and `scale`; of a matrix's difference `left.` and
        `right.` before these, where the factors [k, r] and [r, n] take less room; `rows` [k] of a table; `exact`
        of what are no real numbers.
    """
    if start is not None and wanted.equal(start):
        return {}
    if not wanted.is_floating_point():
        return {"exact": wanted.contiguous()}
    if start is None:
        return _numbers(wanted, coding)
    change, parts = wanted - start, {}
    if table:
        rows = (change.norm(dim=1) > STILL * start.norm(dim=1)).nonzero()[:, 0]
        if not len(rows):
            return {}
        change, parts = change[rows], {"rows": rows.int()}
    if change.dim() == 2 and coding.rank * sum(change.shape) < change.numel():
        left, right = factors(change, coding.rank)
        # A scale for each column of the left factor: each component has its own length.
        parts |= {f"left.{name}": part for name, part in _numbers(left.T.contiguous(), coding).items()}
        return parts | {f"right.{name}": part for name, part in _numbers(right, coding).items()}
    return parts | _numbers(change, coding)


def decode(parts: Mapping[str, Tensor], start: Tensor | None) -> Tensor:
    """Put a tensor together.

    Args:
        parts: what `encode` gave.
        start: what it was given.

    Raises:
        KeyError: a part is missing.
        ValueError: the parts do not fit together, or not `start`.
        RuntimeError: likewise.
        IndexError: likewise.
    """
    if "exact" in parts:
        return parts["exact"]
    if start is None:
        return _read(parts, "")
    rows = parts.get("rows")
    shape = start.shape if rows is None else (len(rows), *start.shape[1:])
    if "left.half" in parts or "left.int8" in parts:
        left, right = _read(parts, "left."), _read(parts, "right.")
        _expect((*left.shape[1:], *right.shape[1:]), shape)  # before the product, which could take any memory
        change = left.T @ right
    else:
        change = _read(parts, "")
        _expect(change.shape, shape)
    return start + change if rows is None else start.index_add(0, rows.long(), change)


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of [m, r] and [r, n] to a matrix [m, n], its singular values shared out between both."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).float(), (root[:, None] * right[:rank]).float()


def _numbers(tensor: Tensor, coding: Coding) -> Parts:
    tensor = tensor.contiguous()
    if not coding.int8 or tensor.dim() < 2:
        return {"half": tensor.half()}
    rows = tensor.flatten(1)
    scale = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    quantised = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {"int8": quantised.view(tensor.shape), "scale": scale}


def _read(parts: Mapping[str, Tensor], prefix: str) -> Tensor:
    if f"{prefix}int8" not in parts:
        return parts[f"{prefix}half"].float()
    numbers, scale = parts[f"{prefix}int8"].float(), parts[f"{prefix}scale"]
    _expect(scale.shape, numbers.shape[:1])
    return numbers * scale.view(-1, *[1] * (numbers.dim() - 1))


def _expect(found: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(found) != tuple(wanted):
        raise ValueError(f"numbers of shape {list(found)}, expected {list(wanted)}")
