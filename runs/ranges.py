"""The range of images with more than 8 bits (`dataset.range: auto`): found once, then kept with what was made of them.

A training measures it and writes it into its options, so into every checkpoint. Whoever uses the checkpoint reads
images in the same range; a checkpoint that knows none, of 8-bit images, takes that of the images it meets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from data.rasters.survey import settled, survey
from option.images import ImageRule
from option.parameters import Parameters
from runs.ready import PACKED
from runtime.weights import read_checkpoint
from utils import InputError

Content = Mapping[str, Any] | Path | None
Tree = TypeVar("Tree", bound=Parameters)


def range_of(content: Mapping[str, Any]) -> tuple[float, float] | None:
    """The range that a checkpoint's options give as numbers; None where they give none."""
    try:
        found = ImageRule(range=content["options"]["dataset"]["range"]).range
    except (KeyError, TypeError, ValidationError):  # of an earlier version, or not of ours
        return None
    return None if isinstance(found, str) else found


def read_like(rule: ImageRule, content: Content, paths: Sequence[Path]) -> ImageRule:
    """A rule whose range is that of a checkpoint, or measured on images, where it is `auto`; see `settled`.

    Args:
        rule: as the options give it.
        content: the checkpoint, or its file, which is opened only where some images have more than 8 bits.
        paths: the images that are to be read.
    """
    if rule.range != "auto":
        return settled(rule, paths)
    if isinstance(content, Path):
        content = read_checkpoint(content) if content.suffix != PACKED and survey(paths, rule) is not None else None
    known = None if content is None else range_of(content)
    return settled(rule if known is None else rule.model_copy(update={"range": known}), paths)


def with_range(options: Tree, paths: Sequence[Path], content: Content = None) -> Tree:
    """Options of which `dataset.range` is as `read_like` finds it."""
    dataset = options.dataset  # type: ignore[attr-defined]
    found = read_like(dataset.rule, content, paths).range
    if found == dataset.range:
        return options
    return options.model_copy(update={"dataset": dataset.model_copy(update={"range": found})})


def with_range_of_run(options: Tree, paths: Sequence[Path], begun: Mapping[str, Any] | None, folder: Path) -> Tree:
    """`with_range` for a run that may have begun; `begun` is its last checkpoint.

    Raises:
        InputError: an earlier version began it, which read images with more than 8 bits otherwise.
    """
    found = with_range(options, paths, begun)
    if begun is not None and "range" not in begun["options"]["dataset"] and found.dataset.range != "auto":  # type: ignore[attr-defined]
        raise InputError(
            f"{folder} was begun by an earlier version, which read images with more than 8 bits otherwise "
            "(docs/images.md): train under another name."
        )
    return found


def begun_with(options: Tree, content: Mapping[str, Any]) -> Tree:
    """Options as a run was begun with that found its range out: `auto` is the same as what it found."""
    known, dataset = range_of(content), options.dataset  # type: ignore[attr-defined]
    if known is None or dataset.range != "auto":
        return options
    return options.model_copy(update={"dataset": dataset.model_copy(update={"range": known})})
