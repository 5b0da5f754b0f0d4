"""Shows the prior similarity of a data set: `python -m data.similarity data/rsitmd_precomp --out similarity.png`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from data.annotations import Split, read_annotations
from data.similarity.margin import BETA, GAMMA
from data.similarity.prior import PriorSimilarity
from data.similarity.summary import draw, show, summarise, table
from runtime.entry_point import run_entry_point
from utils import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures of a list; show an image, draw, and write the matrix, if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m data.similarity", description="Prior similarity of captions and images, for the dynamic margin."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="data set; the lists are enough")
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--show", metavar="IMAGE", help="only an image's most similar captions, by its file name")
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw the distribution into this file (extra plot)")
    parser.add_argument("--matrix", type=Path, metavar="NPY", help="write S [captions, images] float16 into this file")
    parser.add_argument("--gamma", type=float, default=GAMMA, help="optim.dynamic.gamma (%(default)s)")
    parser.add_argument("--beta", type=float, default=BETA, help="optim.dynamic.beta (%(default)s)")
    given = parser.parse_args(arguments)
    if given.gamma < 0 or given.beta <= 0:
        raise InputError(f"--gamma must be at least 0, --beta above 0; found {given.gamma} and {given.beta}")
    annotations = read_annotations(given.folder, given.split)
    prior = PriorSimilarity.build(annotations)
    if given.show is not None:
        if given.show not in annotations.image_names:
            raise InputError(f"--show {given.show}: no such image in {annotations.names_file}")
        print(show(annotations, prior, annotations.image_names.index(given.show), given.gamma, given.beta))
        return
    summary = summarise(prior, given.gamma, given.beta, given.matrix)
    print(table(summary))
    if given.out is not None:
        draw(summary, given.gamma, given.beta, given.out)
        print(f"\n{given.out}")


if __name__ == "__main__":
    run_entry_point(main)
