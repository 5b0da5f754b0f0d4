"""A training step of an image tower, as it is and without its shortcuts: python -m bench.tune.

The last blocks learn from kept maps, forward and backward, without text and optimiser; all ways in turn, in one run.
`layers.depthwise` and `FoldedNorms` of `layers.folding` say why they differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.arguments import add_network, positive
from bench.machine import description
from bench.table import machine_line, show
from layers import depthwise
from layers.towers import TimmTower
from runtime.entry_point import run_entry_point
from training.epoch import autocast
from utils import InputError

CPU = torch.device("cpu")
SLOWEST = "depthwise convolutions as autocast says"
WAYS: dict[str, tuple[bool, str | None]] = {
    "as it is": (True, None),
    "norms not folded": (False, None),
    "wide kernels not by columns, either": (False, "is_wide"),
    SLOWEST: (False, "learns_depthwise"),
}
"""Ways of computing -> whether norms are folded, and the shortcut of `layers.depthwise` that is not taken."""


def step_seconds(tower: TimmTower, maps: Tensor, amp: str) -> float:
    """Of one forward and backward pass over maps [B, C, H, W]."""
    started = time.perf_counter()
    with autocast(CPU, amp):
        features = tower.finish(maps)
    features.float().square().mean().backward()
    return time.perf_counter() - started


def measure(architecture: str, last: int, images: int, size: int, amp: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, after one that does not count.

    Raises:
        InputError: the network has no more blocks than are to learn, or gives no maps.
    """
    tower = TimmTower(architecture, "none", load_weights=True)
    if last >= len(tower.blocks):
        raise InputError(f"--last {last}: {architecture} has {len(tower.blocks)} blocks, of which some are to stay.")
    tower.freeze(last)
    tower.train()
    with torch.no_grad(), autocast(CPU, amp):
        maps = cast(nn.Module, tower.frozen_part())(torch.rand(images, 3, size, size))
    if maps.dim() != 4:
        raise InputError(f"--architecture {architecture}: its blocks give no maps; expected an EfficientNet.")
    maps = maps.contiguous(memory_format=torch.channels_last)
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1):
        for name, (folds, shortcut) in WAYS.items():
            without = patch.object(depthwise, shortcut, lambda *ignored: False) if shortcut else nullcontext()
            with patch.object(tower, "folds_norms", folds), without:
                found[name].append(step_seconds(tower, maps, amp))
    return {name: seconds[1:] for name, seconds in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians and their ratio."""
    given = read_arguments(arguments)
    torch.set_num_threads(given.threads)
    found = measure(given.architecture, given.last, given.batch, given.size, given.amp, given.rounds)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    slowest = medians[SLOWEST]
    machine = description(CPU, torch.get_num_threads())
    show(
        f"A step of the last {given.last} blocks of {given.architecture}, {given.batch} images of {given.size} pixels, "
        f"{given.amp}",
        ["way", "seconds", "times as fast"],
        [[name, f"{seconds:.2f}", f"{slowest / seconds:.2f}"] for name, seconds in medians.items()],
        [machine_line(machine)],
        {"seconds": found, "machine": machine},
        given.json,
    )


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description="Convolutions that learn.")
    parser.add_argument("--architecture", default="timm/tf_efficientnet_lite0", help="an EfficientNet of timm's")
    parser.add_argument("--last", type=positive, default=8, help="blocks that learn (8)")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of tensor operations")
    add_network(parser, batch=128, rounds=5, counts="median")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
