"""Two views of an image as a backbone's task: no captions, no classes.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020. The loss is
the symmetric one of CLIP: negatives of a view are the second views of the other images, not their first ones, too.
Letters: B batch, N images, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches.augmentation import margin_size
from batches.batch import Batch
from engine import embed
from layers.backbone import backbone_width, build_backbone
from layers.losses.contrastive import contrastive_parts
from metrics.ranks import rank_blocks
from option import BackboneOptions
from option.pretraining import BackboneImages
from pretraining.backbone import Task, find_images, open_sides, split_classes
from pretraining.unpaired import TwoViewLoader
from runs.models import place
from utils import InputError

VIEW_DIM = 128
FEWEST = 2
"""Images on either side: a single one is always found."""
ROWS = 1024
"""Images whose scores are held at once."""
VALIDATION_EPOCH = -1
"""Names the views that every validation sees."""


class ViewMatcher(nn.Module):
    """A backbone and an MLP, in whose space two views of an image meet: the MLP of SimCLR (Chen et al., 2020)."""

    def __init__(self, architecture: str, pretrained: str, load_weights: bool = True) -> None:
        super().__init__()
        self.backbone = build_backbone(architecture, pretrained, load_weights)
        width = backbone_width(self.backbone)
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, VIEW_DIM))

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images: [B, 3, S, S] -> [B, D] of unit length."""
        return F.normalize(self.project(self.backbone(images)), dim=1)


def list_names(dataset: BackboneImages) -> tuple[Path, tuple[str, ...]]:
    """Folder and names of `pretraining.backbone.find_images`.

    Raises:
        InputError: there are too few to train on, or too few to hold out.
    """
    folder, found = find_images(dataset)
    sides = split_classes(np.zeros(len(found), dtype=np.int64), dataset.val_share, seed=0) if found else ((), ())
    train, val = map(len, sides)
    if min(train, val) < FEWEST:
        raise InputError(
            f"{folder}: {len(found)} images were found, of which {train} would be trained on and {val} held out "
            f"(dataset.val_share {dataset.val_share:g}); {FEWEST} or more are needed for either."
        )
    return folder, tuple(found)


def first_found(model: ViewMatcher, loader: TwoViewLoader, device: torch.device, amp: str) -> dict[str, float]:
    """Share of the loader's images whose second view is the nearest of all second views to the first, in percent.

    Raises:
        InputError: an embedding is not finite.
    """

    def both(batch: Batch) -> Tensor:
        return torch.cat([model(batch.need("images")), model(batch.need("second_view"))], dim=1)  # [B, 2D]

    first, second = embed(model, both, loader.epoch(VALIDATION_EPOCH), "image", device, amp).chunk(2, dim=1)
    own = torch.arange(len(first), device=first.device)
    places = rank_blocks(lambda: (rows @ second.T for rows in first.split(ROWS)), own).image_to_text
    return {"first_found": 100 * float((places == 0).double().mean())}


def view_task(options: BackboneOptions, folder: Path, begun: dict[str, Any] | None, device: torch.device) -> Task:
    """Make the task, see `pretraining.backbone.TaskMaker`.

    Raises:
        InputError: images or weights are at fault.
    """
    dataset, optim = options.dataset, options.optim
    images, names = list_names(dataset)
    start = options.backbone
    model = place(ViewMatcher(start.architecture, start.pretrained, begun is None), device)
    margin = margin_size(dataset.image_size)
    train, val = open_sides(options, folder, images, names, torch.zeros(len(names), dtype=torch.int64), margin, device)
    val_loader = val.loader(TwoViewLoader, options, dataset.batch_size_val, "validation", device)

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        first, second = model(batch.need("images")), model(batch.need("second_view"))
        with torch.autocast(device.type, enabled=False):  # rounded scores over a small temperature are far off
            forth, back = contrastive_parts(first.float() @ second.float().T, optim.temperature)
        return {"loss": forth + back}

    return Task(
        model,
        train.loader(TwoViewLoader, options, dataset.batch_size, "order", device),
        losses_of,
        lambda: first_found(model, val_loader, device, optim.amp),
        select="first_found",
        extra={},
    )
