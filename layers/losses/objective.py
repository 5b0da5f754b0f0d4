"""What training minimises: one registered loss, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from batches.pairs import Pairs
from layers.losses.base import Loss, Seen
from layers.registry import registered_losses

if TYPE_CHECKING:
    from data.annotations import Annotations
    from option.optim import Optim


class Objective(nn.Module):
    """A weighted sum of losses; with `batches.pairs` given, the criterion of `RetrievalModel.training_loss`."""

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        """Join losses by name."""
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(
        self, scores: Tensor, images: Tensor | None = None, texts: Tensor | None = None, *, pairs: Pairs
    ) -> dict[str, Tensor]:
        """The sum over a batch, of which `layers.losses.base.Seen` says what each argument is.

        Returns:
            `loss`, its parts `image_to_text` and `text_to_image` and, if there are several losses, each by its name:
            all as they enter the sum.
        """
        seen, directions = Seen(scores, pairs, images, texts), {}
        for name, loss in self.losses.items():
            directions[name] = self.weights[name] * torch.stack(loss(seen))
        image_to_text, text_to_image = torch.stack(list(directions.values())).sum(dim=0)
        parts = {"loss": image_to_text + text_to_image, "image_to_text": image_to_text, "text_to_image": text_to_image}
        if len(directions) > 1:
            parts |= {name: both.sum() for name, both in directions.items()}
        return parts

    def prepare(self, train: Annotations) -> None:
        """Let each loss read what it needs to know of the training list.

        Raises:
            InputError: what one needs can't be had.
        """
        for loss in self.losses.values():
            cast(Loss, loss).prepare(train)

    def figures(self) -> dict[str, Tensor]:
        """What is learned here, to log, such as `temperature`."""
        found: dict[str, Tensor] = {}
        for loss in self.losses.values():
            found |= cast(Loss, loss).figures()
        return found


def build_objective(optim: Optim) -> Objective:
    """The objective that `optim.loss` chooses."""
    known = registered_losses()
    return Objective({name: known[name].build(optim) for name in optim.loss}, optim.loss)


def uses_prior(optim: Optim) -> bool:
    """Whether one of the losses needs the prior similarity of the pairs."""
    return any(registered_losses()[name].loss.uses_prior for name in optim.loss)
