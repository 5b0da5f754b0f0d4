"""The arguments that the commands of `bench` share."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from runtime.arguments import entry_parser


def bench_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The arguments that measure a model, of a command that users type as `prog`."""
    parser = entry_parser(description)
    parser.prog = prog
    parser.add_argument("--amp", nargs="+", choices=("off", "bf16"), default=["off", "bf16"], help="precisions of ours")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of tensor operations")
    parser.add_argument("--rounds", type=positive, default=3, help="measurements of each side, in turn (A B A B)")
    parser.add_argument("--fresh", action="store_true", help="one process at a time, where memory is short")
    parser.add_argument("--alone", action="store_true", help="leave out the published path")
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")
    parser.add_argument(
        "--against",
        metavar="COMMAND",
        help="run this command in turn with the others; the number in its last line is taken as its seconds, else the "
        "time from its start to its end",
    )
    return parser


def add_comparison(parser: argparse.ArgumentParser, batch: str) -> None:
    """The arguments of a comparison of sides; `batch` is what `--batch` says of itself."""
    parser.add_argument("--batch", type=positive, help=batch)
    parser.add_argument("--settings", action="store_true", help="also the published path with our memory settings")
    parser.add_argument("--ladder", action="store_true", help="from the published path to ours, one change at a time")


def add_network(parser: argparse.ArgumentParser, batch: int, rounds: int, counts: str) -> None:
    """The arguments of a network alone; `counts` says what becomes of the rounds."""
    parser.add_argument("--batch", type=positive, default=batch, help="images at a time (%(default)s)")
    parser.add_argument("--size", type=positive, default=224, help="side in pixels (%(default)s)")
    parser.add_argument("--amp", choices=("off", "bf16"), default="bf16", help="precision (%(default)s)")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"whose {counts} counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def none_or_more(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
    return number
