"""What is searched for in which large image, and what is refused before the work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.polygons import Place, read_places, refuse_outside
from layers.registry import registered
from localization.large_image import open_large
from localization.windows import held_windows
from option import Options
from option.images import ImageRule
from utils import InputError, logger
from vocab import UNKNOWN, Vocabulary, tokenize


@dataclass(frozen=True)
class Task:
    """One image and the queries to it.

    Attributes:
        image: the file.
        numbers: of the queries, for the names of files and messages; from 0.
        queries: sentences.
        places: where each query is true; empty where that is not known.
        annotations: the file of the places.
    """

    image: Path
    numbers: Sequence[int]
    queries: Sequence[str]
    places: Sequence[Place] = ()
    annotations: Path | None = None


def read_tasks(given: argparse.Namespace) -> list[Task]:
    """The one image of `--image`, or all that `--annotations` names; raises as `data.polygons.read_places`."""
    if given.image is not None:
        return [Task(given.image, range(len(given.query)), given.query)]
    places = read_places(given.annotations)
    tasks = []
    for name in dict.fromkeys(place.image for place in places):
        numbers = [number for number, place in enumerate(places) if place.image == name]
        own = [places[number] for number in numbers]
        tasks.append(Task(given.images / name, numbers, [place.caption for place in own], own, given.annotations))
    return tasks


def check_tasks(tasks: Sequence[Task], vocabulary: Vocabulary, sides: Sequence[int], rule: ImageRule) -> None:
    """Find out before the work what it would fail at.

    Raises:
        InputError: a query is blank or has no word of the vocabulary; an image can't be opened, is smaller than a
            window of these `sides`, or lacks annotated points.
    """
    for task in tasks:
        _check_queries(task, vocabulary)
        _check_image(task, sides, rule)


def _check_queries(task: Task, vocabulary: Vocabulary) -> None:
    for number, query in zip(task.numbers, task.queries, strict=True):
        origin = "--query" if task.annotations is None else f"{task.annotations}: {number}.caption"
        words = tokenize(query)
        if not words:
            raise InputError(f"{origin} {query!r}: it has no word; say what to look for.")
        if not any(vocabulary.knows(word) and word != UNKNOWN for word in words):
            raise InputError(
                f"{origin} {query!r}: the model's vocabulary has none of its words; use words of its captions."
            )


def _check_image(task: Task, sides: Sequence[int], rule: ImageRule) -> None:
    with open_large(task.image, rule) as image:
        width, height = image.width, image.height
    if min(width, height) < max(sides):
        fitting = [side for side in sides if side <= min(width, height)] or [min(width, height)]
        raise InputError(
            f"{task.image}: {width} x {height} pixels are less than a window of {max(sides)}; "
            f"try --windows {','.join(map(str, fitting))}"
        )
    if task.annotations is not None:
        refuse_outside(task.annotations, task.places, task.numbers, width, height)


def windows_of(task: Task, windows: NDArray[np.int64], valid: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """The windows [N, 3] of which at least half hold data; how many don't is said.

    Raises:
        InputError: none does.
    """
    held = held_windows(windows, valid)
    if not len(held):
        raise InputError(
            f"{task.image}: no window holds data in half of its pixels (nodata, mask, alpha): try smaller --windows, "
            "or --set dataset.nodata=none"
        )
    if len(held) < len(windows):
        share = 100 * float(np.count_nonzero(valid)) / valid.size if valid is not None else 100.0
        logger.info(
            "%s: %.0f %% of the pixels hold data; %d windows skipped", task.image, share, len(windows) - len(held)
        )
    return held


def refuse_regions(options: Options) -> None:
    """Raise an InputError for a model that reads an image's regions: a window has none."""
    if registered()[options.model.name].model.uses_regions and options.dataset.local_path is not None:
        raise InputError(
            f"{options.model.name} reads regions (dataset.local_path), which windows of a large image don't have. "
            "Take one that was trained global only (--set dataset.local_path=null), or another model."
        )
