"""Training a backbone to tell scene classes apart, the start that SWAN was published with.

Letters: B batch, N pictures, S image side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import option
from augmentation import margin_size, normalise
from checkpoints import ending_clearly, refuse_diverged
from data.annotations import check_images, read_annotations
from data.lists import read_names
from data.picture_store import PictureStore
from data.pictures import picture_names
from data.splits import UNNAMED_SCENE, scene_classes, scene_of
from dataloader import Batch, stored_batches
from engine import autocast, fit
from event_log import EventLog
from experiment import PictureLibrary, place, plan_of, start_state
from layers.backbone import SceneClassifier, plain_weights
from locks import run_lock
from option import SceneOptions
from option.pretraining import ScenePictures
from resume import Keeper, begun_run, carry_on, is_finished, is_settled, save_best
from run_record import recorded
from training_state import TrainingState
from unpaired import PictureLoader, Schedule
from utils import InputError, derive_seed, log_to, logger, write_atomic, write_text_atomic

FEWEST_PER_CLASS = 2
BEST = "SceneClassifier_best.pth.tar"
NAME_KEY = "logs.experiment_name"


@dataclass(frozen=True)
class ScenePictureList:
    """Pictures and their classes.

    Attributes:
        folder: where the pictures lie.
        names: N file names in it.
        labels: [N] int64, place of each picture's class in `classes`.
        classes: in alphabetical order.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


def list_pictures(dataset: ScenePictures) -> ScenePictureList:
    """The pictures to train on and their classes; pictures without a class, or excluded, are left out.

    With `data_path` the classes are those of `data.splits.scene_classes`; in a plain folder a picture's class is its
    sub-folder, or else its file name up to the first `_`.

    Raises:
        InputError: there is no picture, fewer than two classes, or a class of one picture.
    """
    if dataset.data_path is not None:
        annotations = read_annotations(dataset.data_path, "train")
        folder = dataset.image_path or dataset.data_path / "images"
        check_images(annotations, folder)
        found = dict(zip(annotations.image_names, scene_classes(annotations), strict=True))
    elif dataset.image_path is not None:
        folder = dataset.image_path
        found = {name: scene_of(name) for name in picture_names(folder)}
    else:
        raise InputError("one of dataset.data_path and dataset.image_path is needed")
    excluded: set[str] = set()
    if dataset.exclude is not None:
        excluded = {PurePosixPath(name).name for name in read_names(dataset.exclude, given_by="dataset.exclude")}
    named = {name: scene for name, scene in found.items() if scene != UNNAMED_SCENE}
    kept = {name: scene for name, scene in named.items() if PurePosixPath(name).name not in excluded}
    if len(kept) < len(found):
        left_out = len(found) - len(named), len(named) - len(kept)
        logger.info("Left out: %d pictures whose name says no class, %d excluded.", *left_out)
    _refuse_few(kept, folder)
    classes = tuple(sorted(set(kept.values())))
    labels = torch.tensor([classes.index(scene) for scene in kept.values()])
    return ScenePictureList(folder, tuple(kept), labels, classes)


def _refuse_few(pictures: dict[str, str], folder: Path) -> None:
    sizes = Counter(pictures.values())
    small = sorted(scene for scene, size in sizes.items() if size < FEWEST_PER_CLASS)
    if len(sizes) < 2 or small:
        found = f"one picture only in: {', '.join(small[:5])}" if small else f"{len(sizes)} classes"
        raise InputError(
            f"{folder}: {len(pictures)} pictures with a class were found, {found}. Needed are two classes or more of "
            "two pictures or more; a picture's class is its sub-folder, or its file name up to the first `_`."
        )


def split_classes(labels: Sequence[int] | np.ndarray, val_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split pictures class by class.

    Args:
        labels: [N] the class of each picture, two pictures or more of each.
        val_share: part of each class that becomes val, to the nearest picture, but at least one on each side.
        seed: of the choice.

    Returns:
        Places of the train and of the val pictures, ascending.
    """
    labels = np.asarray(labels)
    generator = np.random.default_rng(seed)
    val = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        val.append(members[: min(max(1, round(val_share * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(val))
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), chosen)), torch.from_numpy(chosen)


@torch.no_grad()
def accuracy(
    model: SceneClassifier,
    store: PictureStore,
    rows: Tensor,
    labels: Tensor,
    options: SceneOptions,
    device: torch.device,
) -> dict[str, float]:
    """Share of pictures whose class has the highest logit, in percent.

    Args:
        model: the classifier.
        store: pictures at the side S.
        rows: [N] which of them.
        labels: [N] their classes.
        options: batch size, workers and precision.
        device: where the model is.
    """
    model.eval()
    pictures = stored_batches(store, rows.split(options.dataset.batch_size_val), options.dataset.workers)
    with autocast(device, options.optim.amp):
        guesses = torch.cat([model(normalise(batch.to(device))).argmax(dim=1).cpu() for batch in pictures])
    return {"accuracy": 100 * float((guesses == labels).double().mean())}


def pretrain_scenes(options: SceneOptions, device: torch.device, resume: bool) -> Path:
    """Train a backbone on scene classes.

    Args:
        options: the run.
        device: where to train.
        resume: go on with what was begun.

    Returns:
        The file that `model.backbone.pretrained` takes: the weights that were best on the held-out pictures.

    Raises:
        InputError: data, weights or checkpoint are at fault.
    """
    folder = Path(options.logs.ckpt_save_path) / options.logs.experiment_name
    result = folder / "backbone.pth"
    with run_lock(folder, NAME_KEY):
        begun = begun_run(folder, options, resume, NAME_KEY)
        finished = begun is not None and is_finished(begun, options.optim.epochs, options.optim.patience)
        if begun is not None and finished and is_settled(begun, folder, folder / BEST):
            logger.info("%s is finished (%d epochs) and left as it is.", folder, begun["epoch"])
            return result
        with log_to(folder / "train.log"):
            pictures = list_pictures(options.dataset)
            if begun is not None and tuple(begun["classes"]) != pictures.classes:
                raise InputError(
                    f"{folder}/last.pth knows {len(begun['classes'])} classes, not the {len(pictures.classes)} that "
                    f"are found now: restore the pictures, or choose another {NAME_KEY}."
                )
            state, model = _start(options, len(pictures.classes), device, begun)
            write_text_atomic(folder / "options.yaml", option.to_yaml(options))
            _run(options, pictures, state, model, device, folder, result, begun)
    return result


def _start(
    options: SceneOptions, classes: int, device: torch.device, begun: dict[str, Any] | None
) -> tuple[TrainingState, SceneClassifier]:
    """Classifier and optimiser, as at the start of a run or as a checkpoint holds them."""
    torch.manual_seed(derive_seed(options.optim.seed, "model"))
    backbone = options.backbone
    weights = backbone.pretrained if begun is None else "none"
    model = place(SceneClassifier(backbone.architecture, weights, classes), device)
    groups = [{"params": list(model.parameters()), "lr": options.optim.lr}]
    state = start_state(model, groups, options.optim, device)
    if begun is not None:
        folder = Path(options.logs.ckpt_save_path) / options.logs.experiment_name
        carry_on(state, begun, folder, NAME_KEY)
    return state, model


def _run(
    options: SceneOptions,
    pictures: ScenePictureList,
    state: TrainingState,
    model: SceneClassifier,
    device: torch.device,
    folder: Path,
    result: Path,
    begun: dict[str, Any] | None,
) -> None:
    """Fit, keeping the run and its backbone after every epoch."""
    dataset, optim = options.dataset, options.optim
    train, val = split_classes(pictures.labels.numpy(), dataset.val_share, derive_seed(optim.seed, "split"))
    logger.info("%d classes: %d pictures to train on, %d held out", len(pictures.classes), len(train), len(val))
    library = PictureLibrary(dataset, pictures.folder, folder / "cache", pictures.names, device)
    names = [[pictures.names[place] for place in side.tolist()] for side in (train, val)]
    store, rows = library.open(names[0], margin_size(dataset.image_size), "pictures (train)")
    val_store, val_rows = library.open(names[1], dataset.image_size, "pictures (val)")
    labels = pictures.labels[train].to(device)
    loader = PictureLoader(
        store,
        rows,
        Schedule(len(rows), dataset.batch_size, derive_seed(optim.seed, "order")),
        image_size=dataset.image_size,
        workers=dataset.workers,
        device=device,
    )

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        wanted = labels[batch.need("image_ids")]
        return {
            "loss": F.cross_entropy(
                model(batch.need("images")), wanted, reduction="sum", label_smoothing=optim.label_smoothing
            )
        }

    extra = {"classes": list(pictures.classes)}

    def keep_best() -> None:
        content = {"state_dict": plain_weights(model.backbone), "epoch": state.epoch}
        refuse_diverged(result, content)
        write_atomic(result, lambda file: torch.save(content | extra, file), durable=True)
        save_best(folder / BEST, state, options, extra)  # last: `is_settled` looks at it

    keeper = Keeper(folder, folder / BEST, options, keep_best, extra)
    events = EventLog(folder, state.epoch * len(loader) + state.batch + 1)
    with ending_clearly(folder), recorded(folder, device), events as writer:
        keeper.settle(state, begun)
        fit(
            state,
            loader,
            losses_of,
            lambda: accuracy(model, val_store, val_rows, pictures.labels[val], options, device),
            plan_of(optim, options.logs, select="accuracy"),
            device,
            writer,
            keeper.save,
        )
