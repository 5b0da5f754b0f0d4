"""Draws the toy data set, `python -m data.toy`: overhead scenes with five true captions each, in the precomp format.

Every different caption is also spoken, in sounds of our own, for models that listen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from data.toy.classes import CLASSES
from data.toy.dataset import make_toy
from utils import InputError


class _Parser(argparse.ArgumentParser):
    """Reports a fault like any other wrong input: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2 for wrong input)."""
    parser = _Parser(prog="python -m data.toy", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/toy_precomp"), metavar="FOLDER")
    parser.add_argument("--images-per-class", type=int, default=40, metavar="N", help="at least 2 (default: 40)")
    parser.add_argument("--size", type=int, default=128, metavar="PIXELS", help="edge of an image (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="root of the randomness (default: 0)")
    parser.add_argument("--test-share", type=float, default=0.2, metavar="SHARE", help="of each class (default: 0.2)")
    parser.add_argument("--force", action="store_true", help="replace a toy data set made with other flags")
    try:
        given = parser.parse_args(arguments)
        options = {name: value for name, value in vars(given).items() if name != "out"}
        made = make_toy(given.out, progress=True, **options)
    except (InputError, OSError) as fault:
        print(f"python -m data.toy: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m data.toy: stopped; the same command makes {given.out} anew", file=sys.stderr)
        return 130
    number = given.images_per_class * len(CLASSES)
    summary = f"{number} images of {len(CLASSES)} classes, {5 * number} captions and their spectrograms"
    print(f"{given.out}: {summary if made else 'already there, nothing done'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
