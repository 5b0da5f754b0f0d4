"""The small trainings of the storm, and what of each must not depend on how often it was killed."""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vocab
from data.toy.dataset import make_toy
from layers.registry import registered
from option import is_pretraining, load_options
from option.fields import leaves
from option.parameters import ModelParameters
from runtime.entry_point import run_entry_point
from runtime.weights import read_checkpoint
from utils import logger

SMALL = {
    "seq2vec.word_dim": 16,
    "seq2vec.hidden_dim": 32,
    "word_dim": 16,
    "embed.embed_dim": 64,
    "fusion.mca_HIDDEN_SIZE": 64,
    "fusion.mca_HIDDEN_SIZE_HEAD": 8,
    "discriminator.in_size": 64,
    "discriminator.mid_size": 16,
    "architecture": "tests/clip_tiny.json",
    "backbone.pretrained": "none",
    "image.architecture": "timm/test_efficientnet",
    "image.pretrained": "none",
    "text.encoder": "gru",
    "text.word_dim": 16,
    "text.hidden_dim": 32,
}
"""Of the keys of `model` those that make it small, as far as a model has them."""
TIMED = {"seconds", "images_per_second", "data_wait_share"}


@dataclass(frozen=True)
class Training:
    """One small training.

    Attributes:
        program: `train` or `pretrain`.
        path_opt: its YAML.
        overrides: what makes it small.
        place: the run's folder in `logs.ckpt_save_path`.
    """

    program: str
    path_opt: str
    overrides: tuple[str, ...]
    place: str

    def start(self, checkpoints: Path, log: Path, largest_file: int | None = None) -> int:
        """Train in a forked process, which costs no new interpreter; returns its number.

        Args:
            checkpoints: `logs.ckpt_save_path`.
            log: gets what it prints.
            largest_file: bytes that it may write into one file, which stands in for a full disk.
        """
        arguments = ["--path_opt", self.path_opt, "--device", "cpu", "--set", *self.overrides]
        child = os.fork()
        if child:
            return child
        status = 1
        with suppress(BaseException):
            handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            main = importlib.import_module(self.program).main
            try:
                run_entry_point(lambda: main([*arguments, f"logs.ckpt_save_path={checkpoints}"]))
            except SystemExit as end:
                status = int(end.code or 0)
        os._exit(status)


def trainings(data: Path) -> dict[str, Training]:
    """A training of every registered model that has a YAML, scene classes and modalities, on a toy set."""
    # Saved after every step, so that many kills fall into the writing.
    common = (
        f"dataset.data_path={data}",
        *("dataset.image_size=64", "dataset.workers=0", "dataset.batch_size=32"),
        *("optim.epochs=2", "logs.print_freq=1", "logs.save_minutes=1e-9"),
    )
    words, audio = f"dataset.vocab_path={data / 'vocab.json'}", f"dataset.audio_path={data / 'audios'}"
    one_fold = ("k_fold.nums=1", "k_fold.strategy=random", "k_fold.experiment_name=storm")
    named = "logs.experiment_name=storm"
    found = {}
    for name, entry in registered().items():
        path = _example(name)
        if path is None:
            logger.warning("%s is left out: no YAML of option/ trains it on the toy set or on UCM.", name)
            continue
        inputs = [f"dataset.feature_path={data / 'features'}", *([audio] if entry.model.uses_audio else [])]
        inputs += ["dataset.local_path=null"] if entry.model.uses_regions else []
        overrides = (*common, words, *inputs, *_sizes(entry.parameters), *one_fold)
        found[name] = Training("train", str(path), overrides, "storm/0")
    scenes = (*common, "backbone.architecture=resnet18", "backbone.pretrained=none", named)
    found["scenes"] = Training("pretrain", "option/AID_RESNET50.yaml", scenes, "storm")
    modalities = (*common, words, audio, *_sizes(registered()["MCRN"].parameters), named, "dataset.batch_size=12")
    found["modalities"] = Training("pretrain", "option/TOY_MCRN_PRETRAIN.yaml", modalities, "storm")
    return found


def _example(model: str) -> Path | None:
    """A YAML that trains a model of this name, on the toy set where there is one."""
    paths = [path for kind in ("TOY", "UCM") for path in sorted(Path("option").glob(f"{kind}_*.yaml"))]
    return next((path for path in paths if not is_pretraining(path) and load_options(path).model.name == model), None)


def _sizes(parameters: type[ModelParameters]) -> Iterator[str]:
    known = leaves(parameters, "model")
    return (f"model.{key}={value}" for key, value in SMALL.items() if f"model.{key}" in known)


def make_data(folder: Path) -> Path:
    """A toy set of 48 images with its vocabulary."""
    make_toy(folder, images_per_class=3, size=64)
    vocab.build((folder / "train_caps.txt").read_text().splitlines(), min_count=1).save(folder / "vocab.json")
    return folder


def ending(run: Path) -> dict[str, str]:
    """What must not depend on how often a run was killed, as digests: weights, state, best weights, history, curves."""
    last = read_checkpoint(run / "last.pth")
    history, weights = [_untimed(row) for row in last.pop("history")], last.pop("model")
    if "discriminating" in last:  # the other side of a pretraining without pairs, with a meter of its own
        last["discriminating"] = _without(last["discriminating"], {"meter"})
    state = _without(last, {"meter", "options"})
    found = {"weights": _digest(weights), "state": _digest(state), "history": _digest(history)}
    for file in sorted([*run.glob("*_best.pth.tar"), *run.glob("backbone.pth"), *run.glob("pretrained.pth.tar")]):
        kept = _without(torch.load(file, weights_only=True), {"options"})
        found[file.name] = _digest(kept | {"scores": _untimed(kept.get("scores", {}))})
    with (run / "history.csv").open(newline="") as table:
        found["history.csv"] = _digest([_untimed(row) for row in csv.DictReader(table)])
    return found | {"curves": _digest(curves(run))}


def _without(entries: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


def _untimed(figures: dict[str, Any]) -> dict[str, Any]:
    return _without(figures, TIMED)


def curves(run: Path) -> list[tuple[str, int, float]]:
    """Every point that TensorBoard shows of a run, less those that are about time."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.split("/")[-1] not in TIMED]
    # A validation that was logged but not saved is logged again, with the same value.
    return sorted({(tag, event.step, event.value) for tag in tags for event in events.Scalars(tag)})


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A tree with a digest of each tensor, and the entries of each dictionary in order."""
    if isinstance(value, torch.Tensor):
        content = value.contiguous().flatten().view(torch.uint8).numpy().data
        return value.dtype, tuple(value.shape), hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        return [(str(key), _plain(value[key])) for key in sorted(value, key=str)]
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
