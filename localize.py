"""Show where in a large image a sentence is true: python localize.py --image BIG.tif --query "..." ..."""

from __future__ import annotations

from localization.arguments import check_arguments, parse_sides, read_arguments

if __name__ == "__main__":
    read_arguments()  # --help and misspelt flags are answered before PyTorch is loaded

import json
import time
from collections.abc import Sequence
from typing import Any

import option
from localization.indicators import opencv
from localization.large_image import open_large
from localization.outputs import indicator_table, summarise, write_maps
from localization.tasks import check_tasks, read_tasks, refuse_regions
from localization.windows import encode_queries, mean_map, score_windows, window_grid
from runs.loaders import read_vocabulary, typed_queries_of
from runs.models import load_model
from runs.ready.folder import chosen
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import logger, write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the maps of all queries, or score them by the annotated places."""
    given = read_arguments(arguments)
    sides = parse_sides(given.windows)
    check_arguments(given)
    opencv()  # its absence is told before the work
    path_opt, checkpoint = chosen(given.path_opt, given.checkpoint)
    options = option.load_options(path_opt, given.set)
    dataset, amp = options.dataset, options.optim.amp
    refuse_regions(options)
    device = choose_device(given.device)
    vocabulary = read_vocabulary(options)
    tasks = read_tasks(given)
    check_tasks(tasks, vocabulary, sides, dataset.max_pixels)
    model, _ = load_model(options, vocabulary, checkpoint, device)
    sizes = {"image_size": dataset.image_size, "batch_size": dataset.batch_size_val, "threads": max(1, dataset.workers)}
    entries: list[dict[str, Any]] = []
    for task in tasks:
        with open_large(task.image, dataset.max_pixels) as image:
            start = time.perf_counter()
            queries = encode_queries(model, typed_queries_of(options, task.queries, vocabulary), device, amp)
            windows = window_grid(image.height, image.width, sides)
            scores = score_windows(model, image, windows, queries, amp=amp, **sizes)  # [windows, queries]
            count = f"{len(queries)} {'query' if len(queries) == 1 else 'queries'}"
            logger.info("%s: %d windows, %s, %.1f s", task.image, len(windows), count, time.perf_counter() - start)
            maps = (mean_map(windows, column) for column in scores.T)
            entries += write_maps(given.out, task, image, maps, given.median)
    summary = summarise(entries, sides, given.median)
    if given.annotations is not None:
        print(f"\n{indicator_table(summary)}")
    write_text_atomic(given.out / "localization.json", json.dumps(summary, indent=2) + "\n")
    print(f"\nWritten to {given.out}.")


if __name__ == "__main__":
    run_entry_point(main)
