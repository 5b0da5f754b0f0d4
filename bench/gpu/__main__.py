"""One part of the check of a GPU, or its report; `bash bench/gpu_check.sh` does all of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench.gpu import machine, scores, training
from bench.gpu.report import SKIPPED, report
from bench.gpu.setting import AMFMN, DUAL, Section, Setting, Skipped
from runtime.arguments import add_device
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import write_text_atomic

Part = Callable[[Setting, Section], None]
PARTS: dict[str, tuple[int, Part]] = {
    "machine": (20, machine.machine),
    "data": (50, machine.data),
    "tests": (55, machine.tests),
    "epoch-amfmn": (70, partial(training.epoch_of, AMFMN)),
    "epoch-dual": (70, partial(training.epoch_of, DUAL)),
    "scores": (60, scores.equality),
    "memory": (30, training.out_of_memory),
    "encoding": (45, scores.encoding),
    "search": (20, scores.search),
    "compile": (60, training.compiled),
}
"""Each part with the seconds that it may take: 480 in all. The last one also has what the others left."""
PATIENCE = 20
"""On the CPU a part may take so many times as long."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what was asked."""
    given = read_arguments(arguments)
    device = choose_device(given.device)
    if given.part == "list":
        times = PATIENCE if device.type == "cpu" else 1
        print("\n".join(f"{name} {times * limit}" for name, (limit, _) in PARTS.items()))
    elif given.part == "report":
        text, last = report(given.work, given.command)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(given.out, text)
        print(f"{last}\n\nReport: {given.out}")
    else:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", 0)  # some functions of torch.cuda want a number
        torch.manual_seed(0)
        run_part(given.part, Setting(device, given.small, given.work))


def run_part(name: str, setting: Setting) -> None:
    """Do a part; one that has nothing to work with says so and ends with the status `SKIPPED`."""
    section = Section(setting.folder / f"{name}.md")
    try:
        PARTS[name][1](setting, section)
    except Skipped as reason:
        section.add(f"Skipped: {reason}.")
        sys.exit(SKIPPED)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("part", choices=["list", *PARTS, "report"], help="list: the parts and their seconds")
    parser.add_argument("--work", type=Path, default=Path("out"), help="folder of the check's files")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the check itself")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check.md"), help="the report")
    parser.add_argument("--command", default="bash bench/gpu_check.sh", help="that the report names")
    add_device(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
