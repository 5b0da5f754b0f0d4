"""Throughput of encoding, from files against the bare forward pass: python -m bench.encode --images FOLDER.

Each network encodes the same images twice in one run: as features are made (decoded and resized by worker processes
or threads, normalised, encoded with folded batch norms), and as resident tensors, whole and folded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from batches.augmentation import normalise
from bench.arguments import add_network, none_or_more, positive
from bench.machine import description, wait_for
from bench.table import machine_line, show
from data.image_store import ImageStore
from data.images import DEFAULT_RULE, image_names
from dataloader import stored_batches
from layers.backbone import build_backbone
from layers.folding import folded
from layers.towers import TimmTower
from runtime.arguments import add_device
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from training.epoch import autocast
from utils import InputError

NETWORKS = ("timm/tf_efficientnet_lite0", "resnet18", "timm/vit_base_patch32_224")
BARE = ("bare, folded", "bare")
HEAD = ("network", "from files", *BARE, *(f"from files / {bare}" for bare in BARE))
"""Of the table whose rows are `row`."""


def network_of(architecture: str) -> nn.Module:
    """A network without its classifier, with random weights: images [B, 3, S, S] -> [B, W]."""
    if architecture.startswith("timm/vit"):
        tower = TimmTower(architecture, "none", load_weights=False)
        tower.freeze("none")
        return tower.eval()
    return build_backbone(architecture, "none").eval()


@torch.inference_mode()
def images_per_second(network: nn.Module, batches: Iterator[Tensor], device: torch.device, amp: str) -> float:
    """Of one pass over batches of normalised images."""
    started, count = time.perf_counter(), 0
    with autocast(device, amp):
        for images in batches:
            network(images.to(memory_format=torch.channels_last))
            count += len(images)
    wait_for(device)
    return count / (time.perf_counter() - started)


def measure(
    architecture: str, store: ImageStore, batch: int, workers: int, device: torch.device, amp: str, rounds: int
) -> dict[str, float]:
    """Images per second of one network: from files, resident with folded batch norms, and resident as it is.

    Each is the best of some rounds, and all three take turns: a machine that slows down meanwhile slows all of them.
    """
    network = network_of(architecture).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ids = list(torch.arange(len(store.paths)).split(batch))
    sample = normalise(store.batch(ids[0]).to(device))
    quick = folded(network, lambda part: part(sample[:1]))

    def from_files() -> Iterator[Tensor]:
        return (normalise(stored.to(device)) for stored in stored_batches(store, ids, workers))

    def resident() -> Iterator[Tensor]:
        return iter([sample] * len(ids))

    best = {"from files": 0.0, "bare, folded": 0.0, "bare": 0.0}
    for _ in range(rounds):
        for name, part, batches in zip(best, (quick, quick, network), (from_files, resident, resident), strict=True):
            best[name] = max(best[name], images_per_second(part, batches(), device, amp))
    return best


def row(name: str, rates: Mapping[str, float]) -> list[str]:
    """Of a network's figures, see `measure`."""
    shares = (f"{rates['from files'] / rates[bare]:.2f}" for bare in BARE)
    return [name, *(f"{rate:.0f}" for rate in rates.values()), *shares]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each network."""
    given = read_arguments(arguments)
    device = choose_device(given.device)
    names = image_names(given.images)[: given.count]
    if len(names) < given.batch:
        raise InputError(f"--images {given.images}: {len(names)} images; at least --batch {given.batch} are needed.")
    names = names[: len(names) // given.batch * given.batch]
    paths = [given.images / name for name in names]
    store = ImageStore(paths, given.size, "off", None, device, DEFAULT_RULE)
    found = {
        name: measure(name, store, given.batch, given.workers, device, given.amp, given.rounds) for name in NETWORKS
    }
    machine = description(device, torch.get_num_threads())
    show(
        f"Images per second, {len(names)} images of {given.size} pixels, {given.amp}, {given.workers} worker processes",
        HEAD,
        [row(name, rates) for name, rates in found.items()],
        [machine_line(machine)],
        {"networks": found, "machine": machine},
        given.json,
    )


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(prog="python -m bench.encode", description="Throughput of encoding images.")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="images to encode")
    parser.add_argument("--count", type=positive, default=1024, help="the first so many of them (1024)")
    parser.add_argument("--workers", type=none_or_more, default=2, help="processes that decode; 0: the main one (2)")
    add_network(parser, batch=64, rounds=2, counts="best")
    add_device(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_entry_point(main)
