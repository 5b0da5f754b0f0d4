"""Several experiments on one page: `python -m reports.html checkpoint/A checkpoint/B ... --out PAGE.html`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.experiments import read_experiment
from reports.html.comparison import comparison
from runtime.entry_point import run_entry_point
from utils import named_by, write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page of some tested experiments."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.html", description="Put tested experiments on one page to look at."
    )
    parser.add_argument("experiment", type=Path, nargs="+", help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.html", help="the file to write")
    given = parser.parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else arguments
    text = comparison(
        [read_experiment(folder) for folder in given.experiment], shlex.join(["python", "-m", "reports.html", *typed])
    )
    with named_by("--out", given.out):
        write_text_atomic(given.out, text)
    print(f"Written to {given.out}; open it in a browser.")


if __name__ == "__main__":
    run_entry_point(main)
