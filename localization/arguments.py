"""The command line of `localize.py`. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.arguments import add_model
from utils import InputError

WINDOWS = "128,256,512,768"
MEDIAN = 251
THRESHOLD = 0.75
LARGEST_MEDIAN = 255  # OpenCV counts the pixels of the filter with 16 bits


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; `check_arguments` tells whether they go together."""
    parser = argparse.ArgumentParser(description="Show where in a large image a sentence is true.")
    add_model(parser)
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
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"level in 0..1 from which on areas are outlined ({THRESHOLD})",
    )
    return parser.parse_args(arguments)


def check_arguments(given: argparse.Namespace) -> None:
    """Raise an InputError for arguments that the work would fail at or that exclude each other."""
    if not (1 <= given.median <= LARGEST_MEDIAN and given.median % 2):
        raise InputError(f"--median {given.median}: expected an odd number from 1 to {LARGEST_MEDIAN}.")
    if not 0 < given.threshold <= 1:
        raise InputError(f"--threshold {given.threshold}: expected a number above 0, at most 1.")
    if given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out}: this is a file; give a folder.")
    if given.image is not None and (not given.query or given.images is not None):
        raise InputError("--image takes one or more --query; --images belongs to --annotations.")
    if given.annotations is not None and (given.query or given.images is None):
        raise InputError("--annotations takes --images FOLDER and no --query: its captions are the queries.")


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
