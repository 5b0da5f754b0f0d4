"""Embeddings of a training list by a frozen teacher: `python -m reports.teacher --path_opt X.yaml --out teacher.h5`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import h5py
import torch
from torch import Tensor

import option
from data.annotations import Annotations, Split, read_annotations
from data.embeddings import EMBEDDINGS, FORMAT
from engine import encode
from layers import build_model
from layers.base import RetrievalModel, l2norm
from option import Options
from reports.export import write_archive
from runs.features import list_features, test_views
from runs.loaders import evaluation_loader, read_vocabulary
from runs.media import Media
from runs.models import load_model, place
from runs.sets import with_joined
from runtime.arguments import add_experiment
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import named_by
from vocab import Vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Encode a list once and write what `optim.soft_targets.teacher_path` reads."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.teacher", description="Store a teacher's embeddings of a list (docs/objectives.md)."
    )
    add_experiment(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the teacher's weights, of several the mean of their cosines; default: those that its YAML names",
    )
    parser.add_argument("--data_path", type=Path, help="folder of the lists; default: dataset.data_path")
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.h5", help="file to write")
    given = parser.parse_args(arguments)
    moved = [] if given.data_path is None else [f"dataset.data_path={given.data_path}"]
    options = with_joined(option.load_options(given.path_opt, [*given.set, *moved]))
    device, vocabulary = choose_device(given.device), read_vocabulary(options)
    annotations = read_annotations(options.dataset.folder, given.split)
    models = [open_teacher(options, vocabulary, path, device) for path in given.checkpoint or [None]]
    with named_by("--out", given.out):
        write_teacher(given.out, models, options, annotations, vocabulary, device)
    print(f"{len(annotations.image_names)} images and {len(annotations.captions)} captions in {given.out}.")


def open_teacher(
    options: Options, vocabulary: Vocabulary, checkpoint: Path | None, device: torch.device
) -> RetrievalModel:
    """The model of a checkpoint; without one as its options start it.

    Raises:
        InputError: its weights can't be had or don't fit.
    """
    if checkpoint is None:
        return place(build_model(options, vocabulary), device)
    return load_model(options, vocabulary, checkpoint, device)[0]


def write_teacher(
    path: Path,
    models: Sequence[RetrievalModel],
    options: Options,
    annotations: Annotations,
    vocabulary: Vocabulary,
    device: torch.device,
) -> None:
    """Encode each image and each different caption of a list once by each model, and store them.

    Of K models unit embeddings stand side by side, so that the cosine of an image and a caption is the mean of theirs.

    Raises:
        InputError: an image can't be read.
        OSError: the file can't be written.
    """
    media = Media.of(options, [annotations], device)
    loader = evaluation_loader(options, annotations, vocabulary, media, device, load=False)
    views, amp = test_views(options), options.optim.amp
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for model in models:
        seen = loader.reading(list_features(model, options, annotations, vocabulary, views, device))
        images, texts = encode(model, seen, device, amp, options.dataset.test_views)
        parts[0].append(l2norm(images).cpu())
        parts[1].append(l2norm(texts).cpu()[loader.caption_row])

    def fill(archive: h5py.File) -> None:
        for name, rows in zip(EMBEDDINGS, parts, strict=True):
            archive[f"teacher/{name}"] = torch.cat(rows, dim=1).numpy()

    write_archive(path, FORMAT, annotations, options, fill)


if __name__ == "__main__":
    run_entry_point(main)
