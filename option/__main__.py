"""Print or write the page of all options: `python -m option --out docs/options.md`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from option.reference import page
from runtime.entry_point import run_entry_point
from utils import write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(prog="python -m option", description="Every option, as a Markdown page.")
    parser.add_argument("--out", type=Path, help="write it here instead of printing it")
    given = parser.parse_args(arguments)
    if given.out is None:
        print(page(), end="")
    else:
        write_text_atomic(given.out, page())


if __name__ == "__main__":
    run_entry_point(main)
