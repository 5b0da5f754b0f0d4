"""Keys that nothing reads beside the other values: of data, learning rates, losses and the model's own block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from pydantic.fields import FieldInfo

from layers.base import RetrievalModel
from layers.registry import Parameters, registered
from option.pretraining import PretrainingOptions
from option.schema import Options

AUDIO_KEYS = ("dataset.audio_path", "optim.methods", "optim.lr_finetune")
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
    name, model = options.model.name, registered()[options.model.name].model
    if not model.uses_regions:
        yield "dataset.local_path", f"{name} has no regions"
    if options.dataset.keywords_path is not None and model.query_mode(options.model) == "none":
        has_keywords = "model.keywords.mode" in known
        yield "dataset.keywords_path", "model.keywords.mode is none" if has_keywords else f"{name} has no keywords"
    if model.parameter_groups is not RetrievalModel.parameter_groups:
        yield "optim.lr", f"{name} learns at optim.lr_finetune"
    for key in () if model.uses_audio else AUDIO_KEYS:
        yield key, f"{name} has no audio"
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
