"""Pack a checkpoint into the folder of a ready model: `python -m runs.ready CHECKPOINT --out FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runs.ready import PARTS, READY
from runtime.entry_point import run_entry_point
from utils import InputError


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, and say what each part takes and loses."""
    parser = argparse.ArgumentParser(
        prog="python -m runs.ready", description="Pack a dual encoder into at most 12 MB (docs/search.md)."
    )
    parser.add_argument("checkpoint", type=Path, help="the best file of a run")
    parser.add_argument("--out", type=Path, default=READY, metavar="FOLDER", help="default: the model of the project")
    parser.add_argument("--rank", type=int, default=128, help="of differences of matrices (default %(default)s)")
    parser.add_argument(
        "--int8",
        nargs="*",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help="heads, image, text: a byte per number, else two (default: all three)",
    )
    given = parser.parse_args(arguments)
    if given.rank < 1:
        raise InputError(f"--rank {given.rank}: expected 1 or more.")
    from runs.ready.packing import pack  # PyTorch takes seconds, --help should not

    print(f"{pack(given.checkpoint, given.out, given.rank, given.int8)}\n")
    print(f"{given.out}: {sum(path.stat().st_size for path in given.out.iterdir()):,} bytes.")


if __name__ == "__main__":
    run_entry_point(main)
