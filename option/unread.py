"""Keys that nothing reads beside the other values: of data, learning rates, losses and the model's own block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from pydantic.fields import FieldInfo

from option.parameters import Parameters, model_blocks
from option.pretraining import PretrainingOptions
from option.schema import Options

READ_BY = {
    "optim.dynamic": ("dynamic",),
    "optim.contrastive": ("contrastive",),
    "optim.margin": ("triplet",),
    "optim.max_violation": ("triplet", "dynamic"),
}
"""Keys of the losses, or blocks of them -> the losses that read them."""


def unread(options: Options | PretrainingOptions, known: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str]]:
    """Keys that hold something else than their default and have no effect, each with the reason.

    Args:
        options: as they were read.
        known: every key that could be given.
    """
    for key, reason in _candidates(options, known):
        if key in known and reduce(getattr, key.split("."), options) != known[key].default:
            yield key, reason


def _candidates(options: Options | PretrainingOptions, known: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str]]:
    """Keys whose values have no effect, whatever they are."""
    if isinstance(options, Options):
        yield from _of_retrieval(options, known)
    for block in blocks_of(options):
        yield from block.without_effect().items()


def _of_retrieval(options: Options, known: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str]]:
    yield from model_blocks()[options.model.name].unread(options)
    yield from _of_losses(options, known)


def _of_losses(options: Options, known: Mapping[str, FieldInfo]) -> Iterator[tuple[str, str]]:
    for place, losses in READ_BY.items():
        if not options.optim.loss.keys() & set(losses):
            for key in known:
                if key == place or key.startswith(f"{place}."):
                    yield key, f"optim.loss has no {' and no '.join(losses)}"


def blocks_of(block: Parameters) -> Iterator[Parameters]:
    """A block and all blocks in it."""
    yield block
    inner: list[Any] = [value for _, value in block]
    for value in inner:
        if isinstance(value, Parameters):
            yield from blocks_of(value)
