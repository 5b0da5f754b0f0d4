"""From a folder of images to a test score, stage by stage: python -m bench.start --path_opt option/RSICD_DUAL.yaml.

Nothing is kept from before: features and checkpoints go into a temporary folder. Stages that are commands of their own
(training, test) are timed as whole processes, their start included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import option
from bench.machine import description
from bench.table import machine_line, show
from data.annotations import Split, read_annotations
from layers import build_model
from option import Options
from runs.features import caption_features, image_features, test_views, train_views
from runs.loaders import read_vocabulary
from runs.models import place
from runtime.arguments import entry_parser
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import InputError

ROOT = Path(__file__).parents[1]
Seconds = dict[str, float]


@contextmanager
def timed(stages: Seconds, name: str) -> Iterator[None]:
    """Add the seconds of the context to a stage."""
    started = time.perf_counter()
    yield
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - started


def make_features(options: Options, device: torch.device, stages: Seconds) -> None:
    """Keep what the frozen towers make of the train and test lists; each kind is a stage.

    Raises:
        InputError: no tower is frozen, or features of images can't be kept.
    """
    with timed(stages, "packages, weights, tokenizer"):
        vocabulary = read_vocabulary(options)
        model = place(build_model(options, vocabulary), device).eval()
    image, text, views = model.frozen_image(), model.frozen_text(), train_views(options)
    if image is None or text is None or views is None:
        raise InputError("bench.start measures frozen towers and views of whole images: see option/RSICD_DUAL.yaml.")
    wanted: tuple[tuple[Split, int], ...] = (("train", views), ("test", test_views(options)))
    for split, count in wanted:
        captioned = read_annotations(options.dataset.folder, split)
        with timed(stages, "features of images"):
            image_features(image, options, captioned, count, device)
        with timed(stages, "features of captions"):
            caption_features(text, options, captioned, vocabulary, device)


def command(program: str, *arguments: str) -> None:
    """Run one of the project's commands.

    Raises:
        InputError: it failed; it has said why.
    """
    done = subprocess.run([sys.executable, str(ROOT / program), *arguments], check=False)
    if done.returncode:
        raise InputError(f"{program} ended with status {done.returncode}, see above.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stages of one fold and print them with the score that came out."""
    parser = entry_parser("From a folder of images to a test score, stage by stage.")
    parser.prog = "python -m bench.start"
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")
    given = parser.parse_args(arguments)
    stages: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        changes = [*given.set, f"dataset.feature_path={folder}/cache", f"logs.ckpt_save_path={folder}/checkpoint"]
        options, device = option.load_options(given.path_opt, changes), choose_device(given.device)
        make_features(options, device, stages)
        shared = ["--path_opt", given.path_opt, "--folds", "0", "--device", str(device), "--set", *changes]
        with timed(stages, f"heads, {options.optim.epochs} epochs"):
            command("train.py", *shared)
        with timed(stages, "test"):
            command("test.py", *shared, "--json", f"{folder}/test.json")
        score = json.loads(Path(folder, "test.json").read_text())["mean"]["mR"]
    report(given, stages, score, device)


def report(given: argparse.Namespace, stages: Seconds, score: float, device: torch.device) -> None:
    """Print the table, and write it where `--json` says."""
    total = sum(stages.values())
    rows = [[name, f"{seconds:.0f}", f"{seconds / total:.0%}"] for name, seconds in stages.items()]
    rows.append(["**all**", f"**{total:.0f}**", ""])
    machine = description(device, torch.get_num_threads())
    show(
        f"{given.path_opt}, fold 0: from images to {score:.2f} mR on test",
        ["stage", "seconds", "share"],
        rows,
        [machine_line(machine)],
        {"stages": stages, "mR": score, "machine": machine},
        given.json,
    )


if __name__ == "__main__":
    run_entry_point(main)
