"""Show where in a large image a sentence is true: python localize.py --image BIG.tif --query "..." ..."""

from __future__ import annotations

from localization.arguments import check_arguments, parse_sides, read_arguments

if __name__ == "__main__":
    read_arguments()  # --help and misspelt flags are answered before PyTorch is loaded

import time
from collections.abc import Sequence
from typing import Any

import option
from localization.indicators import opencv
from localization.large_image import open_large
from localization.outputs import (
    Settings,
    indicator_table,
    own_files,
    replacing,
    summarise,
    write_maps,
    write_summary,
)
from localization.tasks import check_tasks, read_tasks, refuse_regions, windows_of
from localization.windows import encode_queries, mean_map, score_windows, window_grid
from runs.loaders import read_vocabulary, typed_queries_of
from runs.models import load_model
from runs.ranges import read_like
from runs.ready.folder import chosen
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import logger


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the maps of all queries, or score them by the annotated places."""
    given = read_arguments(arguments)
    sides = parse_sides(given.windows)
    check_arguments(given)
    own_files(given.out)
    opencv()  # its absence is told before the work
    path_opt, checkpoint = chosen(given.path_opt, given.checkpoint)
    options = option.load_options(path_opt, given.set)
    dataset, amp = options.dataset, options.optim.amp
    refuse_regions(options)
    device = choose_device(given.device)
    vocabulary = read_vocabulary(options)
    tasks = read_tasks(given)
    check_tasks(tasks, vocabulary, sides, dataset.rule)
    model, content = load_model(options, vocabulary, checkpoint, device)
    rule = read_like(dataset.rule, content, [task.image for task in tasks])
    settings = Settings(given.median, given.threshold)
    sizes = {"image_size": dataset.image_size, "batch_size": dataset.batch_size_val, "threads": max(1, dataset.workers)}
    entries: list[dict[str, Any]] = []
    with replacing(given.out) as out:
        for task in tasks:
            with open_large(task.image, rule) as image:
                start = time.perf_counter()
                queries = encode_queries(model, typed_queries_of(options, task.queries, vocabulary), device, amp)
                valid = image.valid()
                windows = windows_of(task, window_grid(image.height, image.width, sides), valid)
                scores = score_windows(model, image, windows, queries, amp=amp, **sizes)  # [windows, queries]
                count = f"{len(queries)} {'query' if len(queries) == 1 else 'queries'}"
                logger.info("%s: %d windows, %s, %.1f s", task.image, len(windows), count, time.perf_counter() - start)
                maps = (mean_map(windows, column, valid) for column in scores.T)
                entries += write_maps(out, task, image, maps, settings)
        summary = summarise(entries, sides, settings)
        if given.annotations is not None:
            print(f"\n{indicator_table(summary)}")
        write_summary(out, summary)
    print(f"\nWritten to {given.out}.")


if __name__ == "__main__":
    run_entry_point(main)
