"""Compares data sets: `python -m data.stats data/ucm_precomp data/rsitmd_precomp --out stats.png`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data.stats.caption_similarity import KINDS
from data.stats.figures import SPLITS, Statistics, moments, statistics
from data.stats.plot import draw
from runtime.entry_point import run_entry_point
from utils import InputError, markdown


def table(sets: Sequence[Statistics]) -> str:
    """A Markdown table with a column for each data set."""
    cells = [["", *(each.name for each in sets)]]
    for split in SPLITS:
        if any(split in each.images for each in sets):
            cells.append([f"images, {split}", *(f"{each.images.get(split, 0):,}" for each in sets)])
    cells += [
        ["captions", *(f"{each.captions:,}" for each in sets)],
        ["different captions", *(f"{each.different_captions:,}" for each in sets)],
        ["captions of an image", *(f"{each.captions / sum(each.images.values()):.4g}" for each in sets)],
        ["different captions of an image", *(f"{each.diversity:.2f}" for each in sets)],
        ["words", *(f"{each.words:,}" for each in sets)],
        ["different words", *(f"{each.different_words:,}" for each in sets)],
        ["words of a caption, mean ± sd", *("{:.1f} ± {:.1f}".format(*moments(each.lengths)) for each in sets)],
        ["words of the longest caption", *(f"{len(each.lengths) - 1}" for each in sets)],
        ["scene classes", *(f"{len(each.classes) or '-'}" for each in sets)],
    ]
    for score in sets[0].similarity:
        for kind in KINDS:
            values = [each.similarity[score][kind] for each in sets]
            cells.append([f"{score}, {kind}", *("-" if math.isnan(value) else f"{value:.3f}" for value in values)])
    return markdown(cells)


def class_table(each: Statistics) -> str:
    """A Markdown table of the images of every class by split; "" where no classes are known."""
    if not each.classes:
        return ""
    splits = [split for split in SPLITS if split in each.images]
    rows = [[scene, *(f"{counts.get(split, 0):,}" for split in splits)] for scene, counts in each.classes.items()]
    return markdown([[f"images of {each.name}", *splits], *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the charts."""
    parser = argparse.ArgumentParser(
        prog="python -m data.stats", description="Compare data sets in numbers and charts."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="data sets; the lists are enough")
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw the charts into this file, too (extra plot)")
    parser.add_argument("--pairs", type=int, default=2000, help="captions compared for each mean similarity (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of their choice (0)")
    given = parser.parse_args(arguments)
    if given.pairs < 1 or given.seed < 0:
        raise InputError(f"--pairs must be at least 1, --seed at least 0; found {given.pairs} and {given.seed}")
    sets = [statistics(folder, given.pairs, given.seed) for folder in dict.fromkeys(given.folders)]
    names = [each.name for each in sets]
    sets = [
        replace(each, name=f"{each.name} ({names[:place].count(each.name) + 1})")
        if each.name in names[:place]
        else each
        for place, each in enumerate(sets)
    ]
    notes = [f"Similarity: mean of {given.pairs:,} sampled pairs of captions (seed {given.seed})."]
    if "METEOR" not in sets[0].similarity:
        notes.append("No METEOR: NLTK's wordnet is not installed (python -m nltk.downloader wordnet).")
    if not all(each.classes for each in sets):
        notes.append('Where no classes are known, "other class" is any other image.')
    print("\n\n".join([table(sets), " ".join(notes), *filter(None, map(class_table, sets))]))
    if given.out is not None:
        draw(sets, given.out)
        print(f"\n{given.out}")


if __name__ == "__main__":
    run_entry_point(main)
