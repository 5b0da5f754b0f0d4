"""Draws the charts of `python -m data.stats`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.stats.caption_similarity import KINDS
from data.stats.figures import SPLITS, Statistics
from utils import import_extra, write_atomic

SPLIT_COLOURS = {"train": "#4477aa", "val": "#ccbb44", "test": "#ee6677"}
SET_COLOURS = ("#332288", "#44aa99", "#cc6677", "#997700", "#4477aa", "#117733", "#aa4499", "#882255")
PER_ROW = 3  # class charts side by side
BAR_HEIGHT = 0.19  # inches for a class
LABELLED = 4  # sets whose bars have room for their numbers
LETTERS = 18  # of a name; longer ones would leave no room for the bars


def draw(sets: Sequence[Statistics], out: Path) -> None:
    """Draw sizes, lengths, diversity and similarity of all data sets, and the classes of each, into one PNG.

    Raises:
        InputError: matplotlib (extra `plot`) is missing.
    """
    figures = import_extra("matplotlib.figure", "drawing needs matplotlib", "plot")
    classed = [each for each in sets if each.classes]
    rows = [classed[start : start + PER_ROW] for start in range(0, len(classed), PER_ROW)]
    heights = [3.4, *(0.9 + BAR_HEIGHT * max(len(each.classes) for each in row) for row in rows)]
    figure = figures.Figure(figsize=(13, sum(heights)), layout="constrained")
    bands = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    sizes, lengths, diversity, similarity = bands[0].subplots(1, 4, width_ratios=(1, 1.2, 1, 1.4))
    _draw_images(sizes, sets)
    _draw_lengths(lengths, sets)
    _draw_diversity(diversity, sets)
    _draw_similarity(similarity, sets)
    for band, row in zip(bands[1:], rows, strict=True):
        for axes, each in zip(band.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            _draw_classes(axes, each)
    write_atomic(out, lambda file: figure.savefig(file, format="png", dpi=110))


def _draw_images(axes: Any, sets: Sequence[Statistics]) -> None:
    """Images of each set, a bar in the colours of its splits."""
    _stack(axes, [_short(each.name) for each in sets], [each.images for each in sets])
    axes.set(title="images")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(SPLITS), frameon=False)


def _draw_lengths(axes: Any, sets: Sequence[Statistics]) -> None:
    """Distribution of the number of words of a caption, a line per set."""
    for place, each in enumerate(sets):
        axes.plot(100 * each.lengths / each.captions, color=_colour(place), label=_short(each.name))
    axes.set(title="words of a caption", xlabel="words", ylabel="captions, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_diversity(axes: Any, sets: Sequence[Statistics]) -> None:
    """Different captions of an image, within the bar of all its captions."""
    places = range(len(sets))
    axes.barh(places, [each.captions / sum(each.images.values()) for each in sets], color="#dddddd")
    bars = axes.barh(places, [each.diversity for each in sets], color=[_colour(place) for place in places])
    axes.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axes.set_yticks(places, [_short(each.name) for each in sets])
    axes.set(title="captions of an image", xlabel="different ones (grey: all)")
    axes.invert_yaxis()


def _draw_similarity(axes: Any, sets: Sequence[Statistics]) -> None:
    """Mean similarity by kind of pair, a bar per set; METEOR as a line where it is known."""
    width = 0.8 / len(sets)
    for place, each in enumerate(sets):
        centres = np.arange(len(KINDS)) + (place + 0.5) * width - 0.4
        bars = axes.bar(centres, [each.similarity["BLEU"][kind] for kind in KINDS], width, color=_colour(place))
        if len(sets) <= LABELLED:
            labels = ["" if math.isnan(bar) else f"{bar:.2f}".lstrip("0") for bar in bars.datavalues]
            axes.bar_label(bars, labels, fontsize="x-small")
        if "METEOR" in each.similarity:
            axes.plot(centres, [each.similarity["METEOR"][kind] for kind in KINDS], "k_", markersize=14)
    axes.set_xticks(range(len(KINDS)), KINDS)
    also = " (line: METEOR)" if "METEOR" in sets[0].similarity else ""
    axes.set(title="similarity of two captions", ylabel=f"BLEU-4{also}", ylim=(0, 1))


def _draw_classes(axes: Any, each: Statistics) -> None:
    """Images of every class."""
    _stack(axes, [_short(scene) for scene in each.classes], list(each.classes.values()))
    axes.set(title=f"{_short(each.name)}: {len(each.classes)} classes", xlabel="images")
    axes.tick_params(axis="y", labelsize="small")
    axes.margins(y=0.01)


def _stack(axes: Any, labels: Sequence[str], counts: Sequence[Mapping[str, int]]) -> None:
    """Horizontal bars, the first on top, in the colours of the splits."""
    left = np.zeros(len(counts))
    for split in SPLITS:
        values = np.array([count.get(split, 0) for count in counts])
        if values.any():
            axes.barh(range(len(counts)), values, left=left, color=SPLIT_COLOURS[split], label=split)
            left += values
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")


def _colour(place: int) -> str:
    return SET_COLOURS[place % len(SET_COLOURS)]


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 3]}..."
