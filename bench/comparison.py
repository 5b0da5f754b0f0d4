"""Sides of a comparison measured in turn, and their table."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import torch

from bench import table
from bench.machine import copy_rate, description, gemm_rate
from bench.process import Figures, Side, Subject
from bench.table import Rounds
from bench.variants import Variant, ladder, sides
from runtime.devices import choose_device
from utils import InputError

AGAINST = "against"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and what its table shows besides the seconds.

    Attributes:
        title: of the table.
        make: builds the subject of a side in its process, from the YAML, the overrides, the side, the device's name,
            and what the command adds.
        batch_key: the option that `--batch` sets.
        changes: those of `--ladder`, in order.
        unit: of the seconds.
        parts: figures that are shares of the seconds.
        columns: further figures, the text of each made from the medians.
    """

    title: str
    make: Callable[..., Subject]
    batch_key: str
    changes: Sequence[str]
    unit: str
    parts: Sequence[str]
    columns: Mapping[str, Callable[[Figures], str]]

    def show(self, given: argparse.Namespace, added: Sequence[Any], notes: Callable[[Rounds], list[str]]) -> None:
        """Measure all sides in turn and print their table.

        Args:
            given: the command line, with `batch`, `settings` and `ladder`.
            added: further arguments of `make`.
            notes: what stands below the table.
        """
        overrides = [*given.set, *([f"{self.batch_key}={given.batch}"] if given.batch else [])]
        chosen = sides(given.amp, not given.alone, given.settings)
        variants = ladder(self.changes, given.amp[-1]) if given.ladder else chosen
        arguments = {variant: (given.path_opt, overrides, variant, given.device, *added) for variant in variants}
        device = choose_device(given.device)
        rounds = measure(self.make, arguments, device, given)
        # The external command stands for the published side where that is left out.
        reference = AGAINST if given.against is not None and given.alone else variants[0].name
        ratios = table.ratios(rounds, reference, "seconds")
        machine = description(device, given.threads)
        header = ["side", self.unit, "spread", f"{reference} / side", *(f"{part} %" for part in self.parts)]
        table.show(
            f"{self.title}, {given.path_opt} {' '.join(overrides)}".rstrip(),
            [*header, *self.columns],
            [self._row(side, figures, ratios[side]) for side, figures in rounds.items()],
            [f"{table.machine_line(machine)}; {table.reached(rounds)}.", *notes(rounds)],
            {"machine": machine, "rounds": rounds, "ratios": ratios},
            given.json,
        )

    def _row(self, side: str, rounds: Sequence[Figures], ratios: Sequence[float]) -> list[str]:
        middle = table.medians(rounds)
        return [
            side,
            f"{middle['seconds']:.3g}",
            table.spread(rounds),
            " ".join(f"{ratio:.2f}" for ratio in ratios),
            *(table.column(middle, part, scale=100 / middle["seconds"]) for part in self.parts),
            *(text(middle) for text in self.columns.values()),
        ]


def measure(
    make: Callable[..., Subject],
    arguments: Mapping[Variant, Sequence[Any]],
    device: torch.device,
    given: argparse.Namespace,
) -> Rounds:
    """Measure all sides in turn; in each round the machine's own rates, too.

    Args:
        make: builds the subject of a side in its process.
        arguments: of `make`, for each side.
        device: whose rates are measured.
        given: `rounds`, `threads`, `against` and `fresh` of the command line.
    """
    torch.set_num_threads(given.threads)
    measured: Rounds = {variant.name: [] for variant in arguments}
    with ExitStack() as stack:
        processes: dict[Variant, Side] = {}
        for _ in range(given.rounds):
            copied = copy_rate(device)
            gemm = {amp: gemm_rate(amp, device) for amp in {variant.amp for variant in arguments}}
            for variant, own in arguments.items():
                if variant not in processes:
                    side = Side(make, own, variant.environment(given.threads), given.threads)
                    processes[variant] = stack.enter_context(closing(side))
                rates = {"gemm_gflop_per_second": gemm[variant.amp], "copy_gb_per_second": copied}
                measured[variant.name].append(processes[variant].run() | rates)
                if given.fresh:
                    processes.pop(variant).close()
            if given.against is not None:
                measured.setdefault(AGAINST, []).append({"seconds": external_seconds(given.against)})
    return measured


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
        return float(done.stdout.removesuffix("\n").split("\n")[-1])
    except ValueError:
        return taken
