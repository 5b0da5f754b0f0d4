"""Two views of a picture as a backbone's task: no captions, no classes.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020. The loss is
the symmetric one of CLIP: negatives of a view are the second views of the other pictures, not their first ones, too.
Letters: B batch, N pictures, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from augmentation import margin_size
from backbone_pretraining import Task, find_pictures, open_sides
from dataloader import Batch
from engine import autocast
from experiment import place
from layers.backbone import ViewMatcher
from layers.losses import contrastive_parts
from metrics import rank
from option import BackboneOptions
from option.pretraining import BackbonePictures
from unpaired import Schedule, TwoViewLoader
from utils import InputError, derive_seed

FEWEST = 4
VALIDATION_EPOCH = -1
"""Names the views that every validation sees."""


def list_names(dataset: BackbonePictures) -> tuple[Path, tuple[str, ...]]:
    """Folder and names of `backbone_pretraining.find_pictures`.

    Raises:
        InputError: there are too few to train on and to hold out two each.
    """
    folder, found = find_pictures(dataset)
    if len(found) < FEWEST:
        raise InputError(f"{folder}: {len(found)} pictures were found; {FEWEST} or more are needed.")
    return folder, tuple(found)


@torch.no_grad()
def first_found(model: ViewMatcher, loader: TwoViewLoader, device: torch.device, amp: str) -> dict[str, float]:
    """Share of the loader's pictures whose second view is the nearest of all second views to the first, in percent."""
    model.eval()
    with autocast(device, amp):
        pairs = [
            (model(batch.need("images")).float(), model(batch.need("second_view")).float())
            for batch in loader.epoch(VALIDATION_EPOCH)
        ]
    first, second = (torch.cat(side) for side in zip(*pairs, strict=True))
    places = rank(first @ second.T, torch.arange(len(first), device=first.device)).image_to_text
    return {"first_found": 100 * float((places == 0).double().mean())}


class ViewTask:
    """Makes the task, see `backbone_pretraining.TaskMaker`."""

    best = "ViewMatcher_best.pth.tar"

    def __call__(self, options: BackboneOptions, folder: Path, weights: str, device: torch.device) -> Task:
        """See `backbone_pretraining.TaskMaker`.

        Raises:
            InputError: pictures or weights are at fault.
        """
        dataset, optim = options.dataset, options.optim
        images, names = list_names(dataset)
        model = place(ViewMatcher(options.backbone.architecture, weights), device)
        margin = margin_size(dataset.image_size)
        sides = open_sides(options, folder, images, names, torch.zeros(len(names)), margin, device)
        loader, val_loader = (
            TwoViewLoader(
                store,
                rows,
                Schedule(len(rows), size, derive_seed(optim.seed, purpose)),
                image_size=dataset.image_size,
                workers=dataset.workers,
                device=device,
                augmentation=dataset.views,
            )
            for store, rows, size, purpose in (
                (sides.store, sides.rows, dataset.batch_size, "order"),
                (sides.val_store, sides.val_rows, dataset.batch_size_val, "validation"),
            )
        )

        def losses_of(batch: Batch) -> dict[str, Tensor]:
            first, second = model(batch.need("images")), model(batch.need("second_view"))
            forth, back = contrastive_parts(first.float() @ second.float().T, optim.temperature)
            return {"loss": forth + back}

        return Task(
            model,
            loader,
            losses_of,
            lambda: first_found(model, val_loader, device, optim.amp),
            select="first_found",
            extra={},
        )
