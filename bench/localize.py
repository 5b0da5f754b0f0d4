"""Times localization against a plain path that works as the published code does: `python -m bench.localize ...`.

The plain path writes every window to a JPEG file and reads it back, encodes one window at a time, for every query anew,
and averages in a loop over the pixels. It is timed on a sample of windows and rows, and scaled to the whole image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import option
from batches.augmentation import normalise
from batches.batch import Batch
from data.images import load_square, to_square
from engine import embed
from layers.base import RetrievalModel
from localization.arguments import MEDIAN, WINDOWS, parse_sides
from localization.large_image import LargeImage, open_large
from localization.windows import MeanMap, encode_queries, mean_map, score_windows, window_grid
from runs.loaders import read_vocabulary, typed_queries_of
from runs.models import load_model
from runs.record import peak_memory
from runtime.arguments import entry_parser
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import InputError, markdown, write_text_atomic

CPU = torch.device("cpu")
MEAN_TOLERANCE = 1e-5  # of the mean scores, which lie in -1..1
LEVEL_TOLERANCE = 1  # of 255, where a mean score lies on the border of two levels


@dataclass(frozen=True)
class Setting:
    """What both paths work with.

    Attributes:
        queries: [Q, D]; the plain path is given the first.
    """

    model: RetrievalModel
    queries: Tensor
    image_size: int
    batch_size: int
    amp: str
    threads: int

    def scores(self, image: LargeImage, windows: NDArray[np.int64]) -> NDArray[np.float32]:
        """This project's scores [N, Q]."""
        sizes = {"image_size": self.image_size, "batch_size": self.batch_size, "threads": self.threads}
        return score_windows(self.model, image, windows, self.queries, amp=self.amp, **sizes)

    @torch.no_grad()
    def plain_score(self, image: Image.Image, window: Sequence[int], folder: Path, ending: str) -> float:
        """Cut, write to a file of its own, read, encode and score one window; `ending` `.png` loses nothing."""
        side, row, column = window
        path = folder / f"{side}_{row}_{column}{ending}"
        cut = image.crop((column, row, column + side, row + side))
        Image.fromarray(to_square(cut, self.image_size).transpose(1, 2, 0)).save(path)
        pixels = torch.from_numpy(load_square(path, self.image_size))[None].to(self.queries.device)
        batch = Batch(images=normalise(pixels))
        embedding = embed(self.model, self.model.encode_image, [batch], "window", self.queries.device, self.amp)
        return float(self.model.score(embedding, self.queries[:1]))

    def plain_mean(
        self, image: Image.Image, windows: NDArray[np.int64], folder: Path, ending: str
    ) -> NDArray[np.float64]:
        """The plain path's mean score over each pixel [H, W]."""
        total, count = np.zeros((2, image.height, image.width))
        for window in windows.tolist():
            add_window(total, count, window, self.plain_score(image, window, folder, ending))
        average_rows(total, count)
        return total


def add_window(total: NDArray[np.float64], count: NDArray[np.float64], window: Sequence[int], score: float) -> None:
    """Add a window's score to all its pixels."""
    side, row, column = window
    total[row : row + side, column : column + side] += score
    count[row : row + side, column : column + side] += 1


def average_rows(total: NDArray[np.float64], count: NDArray[np.float64]) -> None:
    """Divide sums by numbers, pixel by pixel."""
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            total[row, column] = total[row, column] / count[row, column]


def differences(setting: Setting, image: LargeImage, sides: Sequence[int]) -> dict[str, float]:
    """How far the maps of both paths are apart, in float32: mean scores and levels, without and with JPEG's loss."""
    windows, setting = window_grid(image.height, image.width, sides), replace(setting, amp="off")
    ours = mean_map(windows, setting.scores(image, windows)[:, 0])
    found = {"windows": float(len(windows))}
    for name, ending in (("lossless", ".png"), ("jpeg", ".jpg")):
        with tempfile.TemporaryDirectory() as folder:
            plain = setting.plain_mean(whole_of(image), windows, Path(folder), ending)
        edges = np.arange(image.height + 1), np.arange(image.width + 1)
        levels = MeanMap(*edges, plain).levels(MEDIAN).astype(np.int64)
        found[f"mean_{name}"] = float(np.abs(ours.pixels(ours.values) - plain).max())
        found[f"levels_{name}"] = float(np.abs(ours.levels(MEDIAN) - levels).max())
    return found


def clock() -> NDArray[np.float64]:
    """Now, in seconds: of the wall, and of the CPU in this process, which other work on the machine does not slow."""
    return np.array([time.perf_counter(), time.process_time()])


def time_ours(setting: Setting, image: LargeImage, sides: Sequence[int]) -> dict[str, Any]:
    """Seconds (see `clock`) of this project on the whole image, and peak memory of the process in MiB."""
    before = peak_memory(CPU)
    start = clock()
    windows = window_grid(image.height, image.width, sides)
    scores = setting.scores(image, windows)
    encoded = clock()
    for column in scores.T:
        mean_map(windows, column).levels(MEDIAN)
    maps = (clock() - encoded) / scores.shape[1]
    memory = {"memory_before": before, "memory": peak_memory(CPU)}
    return {"windows": len(windows), "encode": (encoded - start).tolist(), "map": maps.tolist(), **memory}


def seconds_per_item(work: Callable[[Any], object], items: Sequence[Any]) -> NDArray[np.float64]:
    """Mean seconds (see `clock`) of some work on each of some items."""
    start = clock()
    for item in items:
        work(item)
    return (clock() - start) / len(items)


def time_plain(setting: Setting, image: LargeImage, sides: Sequence[int], sample: int, rows: int) -> dict[str, Any]:
    """Seconds (see `clock`) of the plain path for one query, scaled from a sample of windows and rows."""
    windows = window_grid(image.height, image.width, sides)
    chosen = windows[np.linspace(0, len(windows) - 1, min(sample, len(windows))).astype(int)].tolist()
    held, rows = whole_of(image), min(rows, image.height)
    with tempfile.TemporaryDirectory() as folder:
        score = partial(setting.plain_score, held, folder=Path(folder), ending=".jpg")
        score(chosen[0])
        encode = len(windows) * seconds_per_item(score, chosen)
    total, count = np.zeros((2, image.height, image.width))
    add = len(windows) * seconds_per_item(partial(add_window, total, count, score=0.5), chosen)
    ones = np.ones((1, image.width))
    average = image.height * seconds_per_item(lambda row: average_rows(total[row : row + 1], ones), range(rows))
    return {"sample": len(chosen), "rows": rows, "encode": encode.tolist(), "map": (add + average).tolist()}


def whole_of(image: LargeImage) -> Image.Image:
    """The image in memory, where the plain path cuts its windows."""
    return image.read(0, 0, image.height, image.width).image


def table(ours: dict[str, Any], plain: dict[str, Any], queries: int) -> str:
    """Seconds of both paths and how many times faster this project is."""
    cells = [["", "wall s", "plain", "times", "CPU s", "plain", "times"]]
    for name, windows, maps in (
        ("windows read, encoded, scored", (1, 1), 0),
        ("map", (0, 0), 1),
        ("all, 1 query", (1, 1), 1),
        (f"all, {queries} queries", (1, queries), queries),
    ):
        mine, other = (
            count * np.array(path["encode"]) + maps * np.array(path["map"])
            for count, path in zip(windows, (ours, plain), strict=True)
        )
        row = [f"{value:,.1f}" for pair in zip(mine, other, other / mine, strict=True) for value in pair]
        cells.append([name, *row])
    return markdown(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both paths' seconds and how far their maps are apart."""
    parser = entry_parser("Time localization against a plain path that works as the published code does.")
    parser.prog = "python -m bench.localize"
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True, help="the image")
    parser.add_argument("--query", action="append", required=True, help="may be repeated")
    parser.add_argument("--windows", default=WINDOWS, help=f"sides of the windows in pixels ({WINDOWS})")
    parser.add_argument("--part", type=int, default=1024, help="side of the part on which the maps are compared (1024)")
    parser.add_argument("--sample", type=int, default=200, help="windows that the plain path is timed on (200)")
    parser.add_argument("--rows", type=int, default=100, help="rows that the plain path is timed on (100)")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args(arguments)
    result = measure(given)
    queries = len(given.query)
    print(f"\n{table(result['ours'], result['plain'], queries)}\n")
    apart, ours, plain = result["differences"], result["ours"], result["plain"]
    print(
        f"{given.image}: {ours['windows']} windows; the plain path timed on {plain['sample']} windows and "
        f"{plain['rows']} rows. Peak memory {ours['memory']:.0f} MiB ({ours['memory_before']:.0f} before the "
        f"image).\nOn {result['part']} x {result['part']} pixels the mean scores differ by at most "
        f"{apart['mean_lossless']:.1e} (levels: {apart['levels_lossless']:.0f} of 255), with the loss of JPEG by "
        f"{apart['mean_jpeg']:.1e} ({apart['levels_jpeg']:.0f} of 255)."
    )
    if given.json is not None:
        write_text_atomic(given.json, json.dumps(result, indent=2) + "\n")
    if apart["mean_lossless"] > MEAN_TOLERANCE or apart["levels_lossless"] > LEVEL_TOLERANCE:
        raise InputError(f"the maps differ by more than {MEAN_TOLERANCE} in the mean or {LEVEL_TOLERANCE} level.")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both paths on one machine, this project's first, so that its peak memory is its own."""
    options = option.load_options(given.path_opt, given.set)
    sides, device = parse_sides(given.windows), choose_device(given.device)
    vocabulary = read_vocabulary(options)
    model, _ = load_model(options, vocabulary, given.checkpoint, device)
    typed = typed_queries_of(options, given.query, vocabulary)
    queries = encode_queries(model, typed, device, options.optim.amp)
    dataset = options.dataset
    setting = Setting(
        model, queries, dataset.image_size, dataset.batch_size_val, options.optim.amp, max(1, dataset.workers)
    )
    with open_large(given.image, dataset.rule) as image, tempfile.TemporaryDirectory() as folder:
        side = min(given.part, image.height, image.width)
        fitting = [window for window in sides if window <= side]
        if not fitting or max(sides) > min(image.height, image.width):
            raise InputError(f"{given.image} and --part must not be smaller than a window.")
        ours = time_ours(setting, image, sides)
        plain = time_plain(setting, image, sides, given.sample, given.rows)
        part = Path(folder) / "part.png"
        image.read(0, 0, side, side).image.save(part)
        with open_large(part, dataset.rule) as cut:
            apart = differences(setting, cut, fitting)
    return {"ours": ours, "plain": plain, "part": side, "differences": apart}


if __name__ == "__main__":
    run_entry_point(main)
