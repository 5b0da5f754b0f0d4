"""The scene classes as a backbone's task, the start that SWAN was published with.

Letters: B batch, N images, S image side.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches.augmentation import normalise
from batches.batch import Batch
from data.scenes import UNNAMED_SCENE
from dataloader import stored_batches
from layers.backbone import backbone_width, build_backbone
from option import BackboneOptions
from option.pretraining import BackboneImages
from pretraining.backbone import Side, Task, find_images, open_sides
from pretraining.unpaired import ImageLoader
from runs.models import place
from training.epoch import autocast
from utils import InputError, logger

FEWEST_PER_CLASS = 2


class SceneClassifier(nn.Module):
    """A backbone that tells scene classes apart, by a new classifier on what `build_backbone` builds."""

    def __init__(self, architecture: str, pretrained: str, classes: int, load_weights: bool = True) -> None:
        super().__init__()
        self.backbone = build_backbone(architecture, pretrained, load_weights)
        self.classifier = nn.Linear(backbone_width(self.backbone), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: normalised images [B, 3, S, S] -> [B, classes]."""
        return cast(Tensor, self.classifier(self.backbone(images)))


@dataclass(frozen=True)
class SceneImageList:
    """Images and their classes.

    Attributes:
        folder: where the images lie.
        names: N file names in it.
        labels: [N] int64, place of each image's class in `classes`.
        classes: in alphabetical order.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


def list_images(dataset: BackboneImages) -> SceneImageList:
    """Those of `pretraining.backbone.find_images` whose class is known.

    Raises:
        InputError: there is no image, fewer than two classes, or a class of one image.
    """
    folder, found = find_images(dataset)
    named = {name: scene for name, scene in found.items() if scene != UNNAMED_SCENE}
    if len(named) < len(found):
        logger.info("Left out: %d images whose name says no class.", len(found) - len(named))
    _refuse_few(named, folder)
    classes = tuple(sorted(set(named.values())))
    labels = torch.tensor([classes.index(scene) for scene in named.values()])
    return SceneImageList(folder, tuple(named), labels, classes)


def _refuse_few(images: dict[str, str], folder: Path) -> None:
    sizes = Counter(images.values())
    small = sorted(scene for scene, size in sizes.items() if size < FEWEST_PER_CLASS)
    if len(sizes) < 2 or small:
        found = f"one image only in: {', '.join(small[:5])}" if small else f"{len(sizes)} classes"
        raise InputError(
            f"{folder}: {len(images)} images with a class were found, {found}. Needed are two classes or more of "
            "two images or more; an image's class is its sub-folder, or its file name up to the first `_`."
        )


@torch.no_grad()
def accuracy(
    model: SceneClassifier, images: Side, labels: Tensor, options: BackboneOptions, device: torch.device
) -> dict[str, float]:
    """Share of images whose class has the highest logit, in percent.

    Args:
        model: the classifier.
        images: N of them, of the side S.
        labels: [N] their classes.
        options: batch size, workers and precision.
        device: where the model is.
    """
    model.eval()
    batches = stored_batches(images.store, images.rows.split(options.dataset.batch_size_val), options.dataset.workers)
    with autocast(device, options.optim.amp):
        guesses = torch.cat([model(normalise(batch.to(device))).argmax(dim=1).cpu() for batch in batches])
    return {"accuracy": 100 * float((guesses == labels).double().mean())}


def scene_task(options: BackboneOptions, folder: Path, begun: dict[str, Any] | None, device: torch.device) -> Task:
    """Make the task, see `pretraining.backbone.TaskMaker`.

    Raises:
        InputError: images or weights are at fault, or the classes are others than when the run was begun.
    """
    dataset, optim = options.dataset, options.optim
    images = list_images(dataset)
    if begun is not None:
        _refuse_other_classes(begun, images.classes, folder)
    start, classes = options.backbone, len(images.classes)
    model = place(SceneClassifier(start.architecture, start.pretrained, classes, begun is None), device)
    logger.info("%d classes", len(images.classes))
    train, val = open_sides(options, folder, images.folder, images.names, images.labels, dataset.image_size, device)
    labels, val_labels = images.labels[train.places].to(device), images.labels[val.places]

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        logits, wanted = model(batch.need("images")), labels[batch.need("image_ids")]
        return {"loss": F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=optim.label_smoothing)}

    return Task(
        model,
        train.loader(ImageLoader, options, dataset.batch_size, "order", device),
        losses_of,
        lambda: accuracy(model, val, val_labels, options, device),
        select="accuracy",
        extra={"classes": list(images.classes)},
    )


def _refuse_other_classes(begun: dict[str, Any], classes: tuple[str, ...], folder: Path) -> None:
    known = begun.get("classes")
    if not isinstance(known, list) or tuple(known) != classes:
        count = len(known) if isinstance(known, list) else "no"
        raise InputError(
            f"{folder}/last.pth knows {count} classes, not the {len(classes)} that are found now: restore the images, "
            "or choose another logs.experiment_name."
        )
