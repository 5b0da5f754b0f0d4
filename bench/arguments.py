"""What the commands of `bench` have in common: arguments, rounds, a command to compare with."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch

from bench.machine import copy_rate, gemm_rate
from bench.process import Side, Subject
from bench.table import Rounds
from bench.variants import Variant
from runtime.arguments import entry_parser
from utils import InputError

AGAINST = "against"


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


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def external_seconds(command: str) -> float:
    """Run a command once: the number in the last line that it prints, else the time it took.

    Raises:
        InputError: it can't be started, or ends with an error.
    """
    started = time.perf_counter()
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as fault:
        said = getattr(fault, "stderr", "") or ""
        raise InputError(f"--against {command}: {fault} {said[-500:]}".rstrip()) from fault
    taken = time.perf_counter() - started
    try:
        return float(done.stdout.split("\n")[-1 if not done.stdout.endswith("\n") else -2])
    except (ValueError, IndexError):
        return taken


def measure(
    variants: Sequence[Variant],
    make: Callable[..., Subject],
    arguments: Mapping[str, Sequence[Any]],
    device: torch.device,
    given: argparse.Namespace,
) -> Rounds:
    """Measure all sides in turn; in each round the machine's own rates, too.

    Args:
        variants: the sides.
        make: builds the subject of a side in its process.
        arguments: of `make`, by the name of the side.
        device: whose rates are measured.
        given: `rounds`, `threads`, `against` and `fresh` of the command line.
    """
    torch.set_num_threads(given.threads)
    measured: Rounds = {variant.name: [] for variant in variants}
    with ExitStack() as stack:
        processes: dict[str, Side] = {}
        for _ in range(given.rounds):
            copied = copy_rate(device)
            gemm = {amp: gemm_rate(amp, device) for amp in {variant.amp for variant in variants}}
            for variant in variants:
                if variant.name not in processes:
                    settings = (arguments[variant.name], variant.environment(given.threads), given.threads)
                    processes[variant.name] = stack.enter_context(closing(Side(make, *settings)))
                rates = {"gemm_gflop_per_second": gemm[variant.amp], "copy_gb_per_second": copied}
                measured[variant.name].append(processes[variant.name].run() | rates)
                if given.fresh:
                    processes.pop(variant.name).close()
            if given.against is not None:
                measured.setdefault(AGAINST, []).append({"seconds": external_seconds(given.against)})
    return measured


def reference_of(given: argparse.Namespace, variants: Sequence[Variant]) -> str:
    """The side that all others are compared with: the first, or the external command where it stands for it."""
    return AGAINST if given.against is not None and given.alone else variants[0].name
