"""Training a backbone before a retrieval model starts from it: what all tasks have in common.

`pretraining.scenes` and `pretraining.views` make the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from batches.augmentation import Augmentation, margin_size
from batches.batch import Batch
from data.annotations import check_images, read_annotations
from data.image_library import ImageLibrary
from data.image_store import ImageStore
from data.images import image_names
from data.lists import read_names
from data.scenes import scene_classes, scene_of
from engine import fit
from layers.backbone import plain_weights
from option import BackboneOptions
from option.pretraining import BackboneImages
from pretraining.run import NAME_KEY, folder_of, locked_run
from pretraining.unpaired import ImageLoader, Schedule
from runs.checkpoints import ending_clearly, refuse_diverged
from runs.fold import written
from runs.images import note_images
from runs.models import plan_of, start_state
from runs.ranges import with_range
from runs.resume import Keeper, carry_on, save_best
from runtime.distributed import ALONE
from training.epoch import Loader
from training.state import TrainingState
from utils import InputError, derive_seed, logger, write_atomic

LoaderKind = TypeVar("LoaderKind", bound=ImageLoader)


@dataclass(frozen=True)
class Task:
    """What a backbone learns.

    Attributes:
        model: its part `backbone` is what is kept.
        loader: images to train on.
        losses_of: see `engine.fit`.
        validate: scores of the model as it is.
        select: the score that the best epoch has the highest of.
        extra: what checkpoints hold besides.
    """

    model: nn.Module
    loader: Loader
    losses_of: Callable[[Batch], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
    select: str
    extra: dict[str, Any]


TaskMaker = Callable[[BackboneOptions, Path, dict[str, Any] | None, torch.device], Task]
"""Finds the images of a run and makes its task. It is given the options, the run's folder, what its last checkpoint
holds (None: nothing was begun) and the device."""
BEST = {"scenes": "SceneClassifier_best.pth.tar", "views": "ViewMatcher_best.pth.tar"}
"""File name of the best epoch's checkpoint, by `optim.task`."""


def find_images(dataset: BackboneImages) -> tuple[Path, dict[str, str]]:
    """The images to train on, by name in their folder, and the scene class of each.

    With `data_path` they are the train images, and classes those of `data.scenes.scene_classes`; in a plain folder an
    image's class is its sub-folder, or else its file name up to the first `_`. Excluded images are left out.

    Raises:
        InputError: a list can't be read, or no folder is given.
    """
    if dataset.data_path is not None:
        annotations = read_annotations(dataset.data_path, "train")
        folder = dataset.image_path or dataset.data_path / "images"
        check_images(annotations, folder)
        found = dict(zip(annotations.image_names, scene_classes(annotations), strict=True))
    elif dataset.image_path is not None:
        folder = dataset.image_path
        found = {name: scene_of(name) for name in image_names(folder)}
    else:
        raise InputError("one of dataset.data_path and dataset.image_path is needed")
    excluded: set[str] = set()
    if dataset.exclude is not None:
        excluded = {PurePosixPath(name).name for name in read_names(dataset.exclude, given_by="dataset.exclude")}
    kept = {name: scene for name, scene in found.items() if PurePosixPath(name).name not in excluded}
    if len(kept) < len(found):
        logger.info("Left out: %d excluded images.", len(found) - len(kept))
    return folder, kept


def split_classes(labels: Sequence[int] | np.ndarray, val_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split images class by class.

    Args:
        labels: [N] the class of each image, two images or more of each.
        val_share: part of each class that becomes val, to the nearest image, but at least one on each side.
        seed: of the choice.

    Returns:
        Places of the train and of the val images, ascending.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    val = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        val.append(members[: min(max(1, round(val_share * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(val))
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), chosen)), torch.from_numpy(chosen)


@dataclass(frozen=True)
class Side:
    """The images to train on, or those that are held out.

    Attributes:
        places: [n] which of all images of the run.
        store: holds them.
        rows: [n] which of the store.
    """

    places: Tensor
    store: ImageStore
    rows: Tensor

    def loader(
        self, kind: type[LoaderKind], options: BackboneOptions, batch_size: int, purpose: str, device: torch.device
    ) -> LoaderKind:
        """A loader of their views; `purpose` seeds order and views."""
        dataset = options.dataset
        return kind(
            Schedule(len(self.rows), batch_size, derive_seed(options.optim.seed, purpose)),
            self.store,
            self.rows,
            image_size=dataset.image_size,
            workers=dataset.workers,
            device=device,
            augmentation=Augmentation.of(dataset),
        )


def open_sides(
    options: BackboneOptions,
    folder: Path,
    images: Path,
    names: Sequence[str],
    labels: Tensor,
    val_size: int,
    device: torch.device,
) -> tuple[Side, Side]:
    """Split images class by class, and open both sides.

    Args:
        options: of the run.
        folder: of the run, for a cache.
        images: folder of the images.
        names: N files in it.
        labels: [N] their classes.
        val_size: side of the held-out images, pixels.
        device: where the batches go.

    Returns:
        The images to train on, of side `margin_size(image_size)`, and those held out.
    """
    dataset = options.dataset
    train, val = split_classes(labels.numpy(), dataset.val_share, derive_seed(options.optim.seed, "split"))
    logger.info("%d images to train on, %d held out", len(train), len(val))
    note_images(folder, {name: images / name for name in names}, (folder / "last.pth").is_file())
    rule = with_range(options, [images / name for name in names]).dataset
    library = ImageLibrary(rule, images, folder / "cache", names, device)

    def opened(places: Tensor, size: int, title: str) -> Side:
        return Side(places, *library.open([names[place] for place in places.tolist()], size, title))

    train_side = opened(train, margin_size(dataset.image_size), "images (train)")
    return train_side, opened(val, val_size, "images (val)")


def pretrain_backbone(options: BackboneOptions, make_task: TaskMaker, device: torch.device, resume: bool) -> Path:
    """Train a backbone.

    Args:
        options: the run.
        make_task: what it learns.
        device: where to train.
        resume: go on with what was begun.

    Returns:
        The file that `model.backbone.pretrained` takes: the weights that were best on the held-out images.

    Raises:
        InputError: data, weights or checkpoint are at fault.
    """
    folder, optim = folder_of(options), options.optim
    result, best = folder / "backbone.pth", folder / BEST[optim.task]

    def train(begun: dict[str, Any] | None) -> None:
        torch.manual_seed(derive_seed(optim.seed, "model"))
        task = make_task(options, folder, begun, device)
        state = start_state(task.model, [{"params": list(task.model.parameters()), "lr": optim.lr}], optim, device)
        if begun is not None:
            carry_on(state, begun, folder, NAME_KEY)
        keep_best = partial(_keep_best, options, task, state, result, best)
        keeper = Keeper(folder, best, options, keep_best, task.extra)
        written_run = written(options, folder, state, len(task.loader), device, ALONE)
        with ending_clearly(folder), written_run as writer:
            keeper.settle(state, begun)
            plan = plan_of(optim, options.logs, select=task.select)
            fit(state, task.loader, task.losses_of, task.validate, plan, device, writer, keeper.save)

    locked_run(options, best, resume, train, optim.patience)
    return result


def _keep_best(options: BackboneOptions, task: Task, state: TrainingState, result: Path, best: Path) -> None:
    content = {"state_dict": plain_weights(task.model.get_submodule("backbone")), "epoch": state.epoch}
    refuse_diverged(result, content)
    write_atomic(result, lambda file: torch.save(content | task.extra, file), durable=True)
    save_best(best, state, options, task.extra)  # last: `is_settled` looks at it
