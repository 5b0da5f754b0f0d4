"""The page of all options, `python -m option --out docs/options.md`, or one experiment with all that it extends."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from option.load import load_options
from option.reference import page
from option.schema import to_yaml
from runtime.entry_point import run_entry_point
from utils import write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page or the experiment, or write it."""
    parser = argparse.ArgumentParser(
        prog="python -m option", description="Every option, as a Markdown page; or those that an experiment gives."
    )
    parser.add_argument("--path_opt", type=Path, metavar="FILE", help="this experiment, with all that it extends")
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="other values")
    parser.add_argument("--out", type=Path, help="write it here instead of printing it")
    given = parser.parse_args(arguments)
    text = page() if given.path_opt is None else to_yaml(load_options(given.path_opt, given.set), given=True)
    if given.out is None:
        print(text, end="")
    else:
        write_text_atomic(given.out, text)


if __name__ == "__main__":
    run_entry_point(main)
