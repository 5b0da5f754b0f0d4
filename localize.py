"""Show where in a large image a sentence is true: python localize.py --image BIG.tif --query "..." ..."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

import option
from data.polygons import Place, read_places, refuse_outside
from layers.base import RetrievalModel
from layers.registry import registered
from localization.drawing import SIDE, draw_map
from localization.indicators import Indicators, attention_centres, indicators, opencv
from localization.large_image import LargeImage, open_large, write_geotiff
from localization.windows import MeanMap, encode_queries, mean_map, score_windows, window_grid
from option import Options
from runs.loaders import read_vocabulary, typed_queries_of
from runs.models import load_model
from runtime.arguments import entry_parser
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import InputError, logger, markdown, write_atomic, write_text_atomic
from vocab import UNKNOWN, Vocabulary, tokenize

WINDOWS = "128,256,512,768"
MEDIAN = 251
LARGEST_MEDIAN = 255  # OpenCV counts the pixels of the filter with 16 bits


@dataclass(frozen=True)
class Task:
    """One image and what is searched in it.

    Attributes:
        numbers: of the queries, for the names of files and messages; from 0.
        places: where each query is true; empty where that is not known.
    """

    image: Path
    numbers: Sequence[int]
    queries: Sequence[str]
    places: Sequence[Place] = ()


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = entry_parser("Show where in a large image a sentence is true (semantic localization).")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model's weights: ours, or published ones")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, help="the image; a TIFF is read in parts")
    source.add_argument("--annotations", type=Path, metavar="ANNO.json", help="sentences and polygons to be scored by")
    parser.add_argument("--query", action="append", default=[], help="what to look for; may be repeated")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the annotated images")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gets maps, drawings, localization.json"
    )
    parser.add_argument("--windows", default=WINDOWS, help=f"sides of the windows in pixels ({WINDOWS})")
    parser.add_argument("--median", type=int, default=MEDIAN, help=f"side of the median filter in pixels ({MEDIAN})")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the maps of all queries, or score them by the annotated places."""
    given = _read_arguments(arguments)
    sides = parse_sides(given.windows)
    _check_arguments(given)
    options = option.load_options(given.path_opt, given.set)
    refuse_regions(options)
    device = choose_device(given.device)
    vocabulary = read_vocabulary(options)
    tasks = _tasks(given)
    for task in tasks:
        check_queries(task, given.annotations, vocabulary)
        check_image(task, given.annotations, sides, options.dataset.max_pixels)
    model, _ = load_model(options, vocabulary, given.checkpoint, device)
    entries: list[dict[str, Any]] = []
    for task in tasks:
        with open_large(task.image, options.dataset.max_pixels) as image:
            maps = localize(model, options, vocabulary, image, task, sides, device)
            entries += _write_maps(given.out, task, image, maps, given.median)
    entries.sort(key=lambda entry: entry["number"])
    result: dict[str, Any] = {"windows": sides, "median": given.median, "queries": entries}
    if given.annotations is not None:
        names = [field.name for field in fields(Indicators)]
        result["mean"] = {name: fmean(entry["indicators"][name] for entry in entries) for name in names}
        print(f"\n{indicator_table(entries, result['mean'])}")
    write_text_atomic(given.out / "localization.json", json.dumps(result, indent=2) + "\n")
    print(f"\nWritten to {given.out}.")


def _check_arguments(given: argparse.Namespace) -> None:
    """Refuse before the work what it would fail at."""
    if not (1 <= given.median <= LARGEST_MEDIAN and given.median % 2):
        raise InputError(f"--median {given.median}: expected an odd number from 1 to {LARGEST_MEDIAN}.")
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out}: this is a file; give a folder.")
    opencv()


def localize(
    model: RetrievalModel,
    options: Options,
    vocabulary: Vocabulary,
    image: LargeImage,
    task: Task,
    sides: Sequence[int],
    device: torch.device,
) -> Iterator[MeanMap]:
    """The map of each query in an image, whose windows are encoded once for all of them.

    Raises:
        InputError: the image is damaged, or the model's weights have diverged.
    """
    start = time.perf_counter()
    windows = window_grid(image.height, image.width, sides)
    scores = score_windows(
        model,
        image,
        windows,
        encode_queries(model, typed_queries_of(options, task.queries, vocabulary), device, options.optim.amp),
        image_size=options.dataset.image_size,
        batch_size=options.dataset.batch_size_val,
        amp=options.optim.amp,
        threads=max(1, options.dataset.workers),
    )
    seconds = time.perf_counter() - start
    logger.info(
        "%s: %d windows, %d %s, %.1f s",
        task.image,
        len(windows),
        len(task.queries),
        "query" if len(task.queries) == 1 else "queries",
        seconds,
    )
    return (mean_map(windows, column) for column in scores.T)


def parse_sides(text: str) -> list[int]:
    """Sides of windows from `128,256`, each once, in rising order.

    Raises:
        InputError: not numbers of at least 2.
    """
    try:
        sides = sorted({int(part) for part in text.split(",")})
    except ValueError as fault:
        raise InputError(f"--windows {text}: expected numbers with commas between them, e.g. {WINDOWS}.") from fault
    if sides[0] < 2:
        raise InputError(f"--windows {text}: a window has at least 2 pixels a side.")
    return sides


def refuse_regions(options: Options) -> None:
    """Raise an InputError for a model that reads an image's regions: a window has none."""
    if registered()[options.model.name].model.uses_regions and options.dataset.local_path is not None:
        raise InputError(
            f"{options.model.name} reads regions (dataset.local_path), which windows of a large image don't have. "
            "Take one that was trained global only (--set dataset.local_path=null), or another model."
        )


def check_queries(task: Task, annotations: Path | None, vocabulary: Vocabulary) -> None:
    """Raise an InputError for a query that is blank or has no word of the vocabulary."""
    for number, query in zip(task.numbers, task.queries, strict=True):
        place = f"--query {query!r}" if annotations is None else f"{annotations}: {number}.caption {query!r}"
        words = tokenize(query)
        if not words:
            raise InputError(f"{place}: it has no word; say what to look for.")
        if not any(vocabulary.knows(word) and word != UNKNOWN for word in words):
            raise InputError(f"{place}: the model's vocabulary has none of its words; use words of its captions.")


def check_image(task: Task, annotations: Path | None, sides: Sequence[int], max_pixels: int) -> None:
    """Raise an InputError for an image that can't be opened, is smaller than a window, or lacks annotated points."""
    with open_large(task.image, max_pixels) as image:
        width, height = image.width, image.height
    if min(width, height) < max(sides):
        fitting = [side for side in sides if side <= min(width, height)] or [min(width, height)]
        raise InputError(
            f"{task.image}: {width} x {height} pixels are less than a window of {max(sides)}; "
            f"try --windows {','.join(map(str, fitting))}"
        )
    if annotations is not None:
        refuse_outside(annotations, task.places, task.numbers, width, height)


def indicator_table(entries: Sequence[dict[str, Any]], mean: dict[str, float]) -> str:
    """A Markdown table of the four indicators of each entry, and their means."""
    cells = [["entry", *(name.capitalize() for name in mean), "image", "caption"]]
    for entry in entries:
        values = [f"{value:.4f}" for value in entry["indicators"].values()]
        cells.append([str(entry["number"]), *values, Path(entry["image"]).name, entry["query"][:60]])
    return markdown([*cells, ["mean", *(f"{value:.4f}" for value in mean.values()), "", ""]])


def _tasks(given: argparse.Namespace) -> list[Task]:
    """What is asked for, by image."""
    if given.image is not None:
        if not given.query or given.images is not None:
            raise InputError("--image takes one or more --query; --images belongs to --annotations.")
        return [Task(given.image, range(len(given.query)), given.query)]
    if given.query or given.images is None:
        raise InputError("--annotations takes --images FOLDER and no --query: its captions are the queries.")
    places = read_places(given.annotations)
    tasks = []
    for name in dict.fromkeys(place.image for place in places):
        numbers = [number for number, place in enumerate(places) if place.image == name]
        own = [places[number] for number in numbers]
        tasks.append(Task(given.images / name, numbers, [place.caption for place in own], own))
    return tasks


def _write_maps(
    out: Path, task: Task, image: LargeImage, maps: Iterable[MeanMap], median: int
) -> Iterator[dict[str, Any]]:
    """Write the files of each query of an image; gives what is to be said of each as plain values."""
    overview = image.overview(SIDE)
    for index, (number, query, mean) in enumerate(zip(task.numbers, task.queries, maps, strict=True)):
        name = f"{number:03d}_{re.sub(r'[^a-z0-9]+', '_', query.lower())[:40].strip('_')}"
        levels = mean.levels(median)
        centres = attention_centres(levels)
        polygons = task.places[index].polygons if task.places else ()
        drawing = draw_map(overview, levels, query, centres, polygons)
        write_atomic(out / f"{name}.png", partial(drawing.save, format="PNG"))
        entry = {"number": number, "image": str(task.image), "query": query}
        entry |= {"lowest": float(mean.values.min()), "highest": float(mean.values.max())}
        entry["attention_centres"] = centres.round(1).tolist()
        if task.places:
            entry["indicators"] = asdict(indicators(levels, centres, polygons))
        else:
            write_atomic(out / f"{name}.npy", partial(_save, levels=levels))
            if image.georeference is not None:
                write_geotiff(out / f"{name}.tif", levels, image.georeference, query)
            print(f"{name}: attention centres at (x, y) {centres.round().astype(int).tolist()}")
        yield entry


def _save(file: BinaryIO, levels: NDArray[np.uint8]) -> None:
    np.save(file, levels)


if __name__ == "__main__":
    run_entry_point(main)
