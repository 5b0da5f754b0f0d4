"""What training minimises: one loss or a weighted sum of several, from the scores of a batch.

Letters: N images, M texts. Row i of the scores is image i, column j is text (or audio) j, see `layers.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from batches.pairs import Pairs
from data.similarity.margin import dynamic_margin
from layers.losses import contrastive_parts, triplet_parts

if TYPE_CHECKING:
    from option.schema import Optim

COLDEST, WARMEST = 0.01, 1.0
"""Where a learned temperature is kept."""


class TripletLoss(nn.Module):
    """`layers.losses.triplet_parts` with a fixed margin."""

    def __init__(self, margin: float, hardest: bool) -> None:
        super().__init__()
        self.margin, self.hardest = margin, hardest

    def forward(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Both directions, summed over the batch, for scores [N, M]."""
        return triplet_parts(scores, self.margin, self.hardest, pairs.matches, pairs.image_rows)


class DynamicMarginLoss(nn.Module):
    """`layers.losses.triplet_parts` with the margin that each pair's prior similarity gives it."""

    def __init__(self, gamma: float, beta: float, hardest: bool) -> None:
        super().__init__()
        self.gamma, self.beta, self.hardest = gamma, beta, hardest

    def forward(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Both directions, summed over the batch, for scores [N, M].

        Raises:
            ValueError: the pairs have no prior similarity.
        """
        if pairs.prior is None:
            raise ValueError("the dynamic margin needs Pairs.prior")
        margin = dynamic_margin(pairs.prior, self.gamma, self.beta)
        return triplet_parts(scores, margin, self.hardest, pairs.matches, pairs.image_rows)


class ContrastiveLoss(nn.Module):
    """`layers.losses.contrastive_parts` with a temperature that is learned."""

    def __init__(self, temperature: float, label_smoothing: float, hard_weight: float) -> None:
        """Start at `temperature`."""
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.label_smoothing, self.hard_weight = label_smoothing, hard_weight

    @property
    def temperature(self) -> Tensor:
        """What the scores are divided by, a scalar.

        The parameter itself is brought back into its range: clamping a copy would leave one outside without gradient.
        """
        with torch.no_grad():
            self.log_temperature.clamp_(math.log(COLDEST), math.log(WARMEST))
        return self.log_temperature.exp()

    def forward(self, scores: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Both directions, summed over the batch, for scores [N, M]."""
        constants = self.temperature, self.label_smoothing, self.hard_weight
        return contrastive_parts(scores, *constants, pairs.matches, pairs.image_rows)


class Objective(nn.Module):
    """A weighted sum of losses; with `batches.pairs` given, the criterion of `RetrievalModel.training_loss`."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        """Join losses, each of them scores and `Pairs` -> both directions, by name."""
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, scores: Tensor, pairs: Pairs) -> dict[str, Tensor]:
        """The sum over a batch.

        Returns:
            `loss`, its parts `image_to_text` and `text_to_image` and, if there are several losses, each by its name:
            all as they enter the sum.
        """
        directions = {}
        for name, loss in self.losses.items():
            directions[name] = self.weights[name] * torch.stack(loss(scores, pairs))
        image_to_text, text_to_image = torch.stack(list(directions.values())).sum(dim=0)
        parts = {"loss": image_to_text + text_to_image, "image_to_text": image_to_text, "text_to_image": text_to_image}
        if len(directions) > 1:
            parts |= {name: both.sum() for name, both in directions.items()}
        return parts

    def figures(self) -> dict[str, Tensor]:
        """What is learned here, to log: `temperature`."""
        if "contrastive" not in self.losses:
            return {}
        return {"temperature": cast(ContrastiveLoss, self.losses["contrastive"]).temperature.detach()}


def build_objective(optim: Optim) -> Objective:
    """The objective that `optim.loss` chooses."""
    hardest, contrastive = optim.max_violation, optim.contrastive
    makers: dict[str, Callable[[], nn.Module]] = {
        "triplet": lambda: TripletLoss(optim.margin, hardest),
        "dynamic": lambda: DynamicMarginLoss(optim.dynamic.gamma, optim.dynamic.beta, hardest),
        "contrastive": lambda: ContrastiveLoss(
            contrastive.temperature, contrastive.label_smoothing, contrastive.hard_weight
        ),
    }
    return Objective(
        {name: makers[name]() for name in optim.loss}, {str(name): weight for name, weight in optim.loss.items()}
    )
