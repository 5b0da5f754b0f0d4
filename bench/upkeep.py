"""A large archive of small images that is indexed, killed, pruned, moved and served: python -m bench.upkeep.

The images are drawn, the model has random weights; what counts is how many images each step encodes. The exit status is
1 where a step encodes more than it must, or a request to the running server fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import option
import vocab
from archive.encoder import Encoder
from archive.index_folder import read_manifest
from bench.arguments import positive
from bench.load import ROOT, server
from layers import build_model
from runs.checkpoints import save_checkpoint
from runtime.entry_point import run_entry_point
from utils import InputError, markdown

WORDS = ["a red field", "a blue pond"]
SIDE = 64  # pixels that the model reads
SMALL: dict[str, Any] = {
    "model": {
        "name": "DualEncoder",
        "image": {"architecture": "timm/test_efficientnet", "pretrained": "none", "train": "all"},
        "text": {"encoder": "gru", "word_dim": 16, "hidden_dim": 32},
        "embed_dim": 64,
    },
    "optim": {},
    "k_fold": {"experiment_name": "upkeep"},
}
SECONDS_TO_TAKE_UP = 60
PER_FOLDER = 1000


@dataclass
class Trial:
    """An archive in a folder of its own, and what each step did.

    Attributes:
        folder: of everything.
        images: folder of the images.
        shard: images of a shard.
        rows: of the table.
        faults: what a step did that it must not do.
    """

    folder: Path
    images: Path
    shard: int
    rows: list[list[str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def index(self) -> Path:
        """Folder of the index."""
        return self.folder / "index"

    def count(self) -> int:
        """Images in the index."""
        manifest = read_manifest(self.index) if self.index.is_dir() else None
        return 0 if manifest is None else manifest.count

    def step(self, what: str, expected: int, *more: str, kill_at: int | None = None) -> None:
        """Run `index`, and end it the hard way once so many images are in the index.

        Args:
            what: the step is, for the table.
            expected: images that it must encode, and no more.
            more: arguments.
            kill_at: images; None: it runs to its end.
        """
        arguments = ["index", "--path_opt", str(self.folder / "small.yaml"), "--checkpoint"]
        arguments += [str(self.folder / "small.pth.tar"), "--images", str(self.images), "--out", str(self.index)]
        context = multiprocessing.get_context("spawn")
        encoded = context.Value("q", 0)
        started, before = time.perf_counter(), self.count()
        arguments += ["--shard", str(self.shard), "--device", "cpu", *more]
        process = context.Process(target=_index, args=(arguments, encoded))
        process.start()
        while process.is_alive() and (kill_at is None or self.count() < kill_at):
            process.join(0.05)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        seconds, done = time.perf_counter() - started, int(encoded.value)
        allowed = self.count() - before + self.shard if kill_at is not None else expected
        if done > allowed or (kill_at is None and (done != expected or process.exitcode)):
            self.faults.append(f"{what}: {done} images encoded, expected {expected}")
        self.rows.append([what, f"{seconds:.0f}", f"{done:,}", f"{self.count():,}"])


def _index(arguments: Sequence[str], encoded: Any) -> None:
    """`search.py index`, which counts the images that it encodes."""
    images = Encoder.images

    def counting(self: Encoder, pixels: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        encoded.value += len(names)
        return images(self, pixels, names)

    Encoder.images = counting  # type: ignore[method-assign]
    torch.set_num_threads(1)
    runpy.run_path(str(ROOT / "search.py"))["main"](arguments)


def make_archive(folder: Path, count: int, shard: int) -> Trial:
    """Draw images in folders of a thousand, and write a model with random weights."""
    random, trial = np.random.default_rng(0), Trial(folder, folder / "images", shard)
    for number in range(count):
        path = trial.images / f"{number // PER_FOLDER:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    vocab.build(WORDS, min_count=1).save(folder / "vocab.json")
    dataset = {"data_path": str(folder), "vocab_path": str(folder / "vocab.json"), "image_size": SIDE, "workers": 0}
    (folder / "small.yaml").write_text(json.dumps(SMALL | {"dataset": dataset}))  # which is YAML, too
    options, words = option.load_options(folder / "small.yaml"), vocab.Vocabulary.load(folder / "vocab.json")
    weights = build_model(options, words).state_dict()
    save_checkpoint(folder / "small.pth.tar", {"model": weights, "vocabulary": words.digest}, options)
    return trial


def follow(trial: Trial, count: int) -> None:
    """Take the archive through all that can happen to it."""
    trial.step("indexed, killed half-way", count, kill_at=count // 2)
    trial.step("indexed to the end", count - trial.count())
    trial.step("nothing happened", 0)
    paths = sorted(trial.images.rglob("*.png"))
    tenth = count // 10
    for path in paths[:tenth]:
        path.unlink()
    for path in paths[tenth : 2 * tenth]:
        path.rename(path.with_stem(f"moved_{path.stem}"))
    for path in paths[-tenth // 10 :]:
        Image.new("RGB", (9, 9), (int(path.stem) % 256, int(path.stem) // 256 % 256, 7)).save(path)
    changed = len(paths[-tenth // 10 :])
    trial.step("a tenth missing, a tenth moved, a hundredth changed; pruned", changed, "--prune")
    elsewhere = trial.folder / "elsewhere"
    shutil.copytree(trial.images, elsewhere, copy_function=shutil.copyfile)  # with the times of today
    shutil.rmtree(trial.images)
    trial.images = elsewhere
    trial.step("the folder moved", 0)


def serve(trial: Trial, device: str | None = "cpu") -> None:
    """Prune under a running server; it must take that up, and answer each request meanwhile."""
    given = argparse.Namespace(folder=trial.index, device=device, rate=None)
    for path in sorted(trial.images.rglob("*.png"))[: PER_FOLDER // 10]:
        path.unlink()
    with server(given) as (_, url):
        before = _images(url)
        trial.step("served, and pruned meanwhile", 0, "--prune")
        asked, until = 0, time.monotonic() + SECONDS_TO_TAKE_UP
        while _images(url) != trial.count() and time.monotonic() < until:
            with urllib.request.urlopen(f"{url}/api/search?q=red") as answer:
                json.load(answer)
            asked += 1
        if _images(url) != trial.count():
            trial.faults.append(f"the server still answers from {before} images")
        print(f"The server answered {asked} searches until it had taken that up.")


def _images(url: str) -> int:
    with urllib.request.urlopen(f"{url}/api/about") as answer:
        return int(json.load(answer)["images"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each step did."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.upkeep", description="Index, kill, prune, move and serve an archive of small images."
    )
    parser.add_argument("--images", type=positive, default=20_000, help="how many (default %(default)s)")
    parser.add_argument("--shard", type=positive, default=1000, help="images of a shard (default %(default)s)")
    parser.add_argument("--no-server", action="store_true", help="leave out the page")
    given = parser.parse_args(arguments)
    if given.images < 100:
        raise InputError(f"--images {given.images}: expected 100 or more.")
    with tempfile.TemporaryDirectory() as folder:
        trial = make_archive(Path(folder), given.images, given.shard)
        follow(trial, given.images)
        if not given.no_server:
            serve(trial)
    print(markdown([["step", "s", "encoded", "in the index"], *trial.rows]))
    for fault in trial.faults:
        print(fault)
    if trial.faults:
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
