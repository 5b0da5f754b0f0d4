"""Show where in a large image a sentence is true: python localize.py --image BIG.tif --query "..." ..."""

from __future__ import annotations

from localization.arguments import check_arguments, parse_sides, read_arguments

if __name__ == "__main__":
    read_arguments()  # --help and misspelt flags are answered before PyTorch is loaded

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import option
from layers.base import RetrievalModel
from localization.indicators import opencv
from localization.large_image import LargeImage, open_large
from localization.outputs import indicator_table, summarise, write_maps
from localization.tasks import Task, annotated_tasks, check_image, check_queries, refuse_regions
from localization.windows import encode_queries, mean_map, score_windows, window_grid
from option import Options
from runs.loaders import read_vocabulary, typed_queries_of
from runs.models import load_model
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import logger, write_text_atomic
from vocab import Vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the maps of all queries, or score them by the annotated places."""
    given = read_arguments(arguments)
    sides = parse_sides(given.windows)
    check_arguments(given)
    opencv()  # its absence is told before the work
    options = option.load_options(given.path_opt, given.set)
    refuse_regions(options)
    device = choose_device(given.device)
    vocabulary = read_vocabulary(options)
    if given.annotations is None:
        tasks = [Task(given.image, range(len(given.query)), given.query)]
    else:
        tasks = annotated_tasks(given.annotations, given.images)
    max_pixels = options.dataset.max_pixels
    for task in tasks:
        check_queries(task, vocabulary)
        check_image(task, sides, max_pixels)
    model, _ = load_model(options, vocabulary, given.checkpoint, device)
    entries: list[dict[str, Any]] = []
    for task in tasks:
        with open_large(task.image, max_pixels) as image:
            windows = window_grid(image.height, image.width, sides)
            scores = score_queries(model, options, vocabulary, image, windows, task, device)  # [windows, queries]
            maps = (mean_map(windows, column) for column in scores.T)
            entries += write_maps(given.out, task, image, maps, given.median)
    summary = summarise(entries, sides, given.median)
    if given.annotations is not None:
        print(f"\n{indicator_table(summary)}")
    write_text_atomic(given.out / "localization.json", json.dumps(summary, indent=2) + "\n")
    print(f"\nWritten to {given.out}.")


def score_queries(
    model: RetrievalModel,
    options: Options,
    vocabulary: Vocabulary,
    image: LargeImage,
    windows: NDArray[np.int64],
    task: Task,
    device: torch.device,
) -> NDArray[np.float32]:
    """The score of every window with every query of a task; windows are encoded once for all of them.

    Raises:
        InputError: the image is damaged, or the model's weights have diverged.
    """
    start = time.perf_counter()
    queries = typed_queries_of(options, task.queries, vocabulary)
    scores = score_windows(
        model,
        image,
        windows,
        encode_queries(model, queries, device, options.optim.amp),
        image_size=options.dataset.image_size,
        batch_size=options.dataset.batch_size_val,
        amp=options.optim.amp,
        threads=max(1, options.dataset.workers),
    )
    count, noun = len(task.queries), "query" if len(task.queries) == 1 else "queries"
    seconds = time.perf_counter() - start
    logger.info("%s: %d windows, %d %s, %.1f s", task.image, len(windows), count, noun, seconds)
    return scores


if __name__ == "__main__":
    run_entry_point(main)
