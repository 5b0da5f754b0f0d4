"""Search the values of options on val: `python -m sweep PLAN.yaml --out FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.entry_point import run_entry_point


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials, and print their table."""
    parser = argparse.ArgumentParser(
        prog="python -m sweep", description="Search the values of options by trainings, scored on val (docs/sweep.md)."
    )
    parser.add_argument("plan", type=Path, metavar="PLAN.yaml", help="the experiment and the ranges")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of all trials; the same one goes on")
    given = parser.parse_args(arguments)
    from sweep.plan import read_plan  # what follows takes seconds to import; --help should not
    from sweep.trials import search

    print(search(read_plan(given.plan), given.out))


if __name__ == "__main__":
    run_entry_point(main)
