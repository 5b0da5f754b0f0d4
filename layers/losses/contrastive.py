"""InfoNCE: each image finds its captions among those of the batch, and each caption its images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from layers.losses.base import Seen, TemperedLoss, own_pairs
from layers.registry import register_loss
from option.parameters import Parameters


class ContrastiveParameters(Parameters):
    """Block `optim.contrastive`: the constants of InfoNCE."""

    temperature: float = Field(
        default=0.07, ge=0.01, le=1, description="at the start; it is learned and kept in 0.01 to 1"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over the batch")
    hard_weight: float = Field(
        default=0.0, ge=0, le=10, description="how much more the harder negatives count; 0: all alike"
    )


@register_loss("contrastive", ContrastiveParameters)
class ContrastiveLoss(TemperedLoss):
    """`contrastive_parts` with a temperature that is learned."""

    def __init__(self, temperature: float, label_smoothing: float, hard_weight: float) -> None:
        """Start at `temperature`."""
        super().__init__(temperature)
        self.label_smoothing, self.hard_weight = label_smoothing, hard_weight

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`."""
        constants = self.temperature, self.label_smoothing, self.hard_weight
        return contrastive_parts(seen.scores, *constants, seen.pairs.matches, seen.pairs.image_rows)

    def figures(self) -> dict[str, Tensor]:
        """See `Loss.figures`."""
        return {"temperature": self.temperature.detach()}


def contrastive_parts(
    scores: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.0,
    hard_weight: float = 0.0,
    matches: Tensor | None = None,
    image_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE: cross-entropy of finding an image's captions in the batch, and a caption's images.

    CLIP (Radford et al., 2021); several matches share the target evenly, as in supervised contrastive learning
    (Khosla et al., 2020, eq. 2). An image with several texts counts once for each.

    Args:
        scores: [N, M] similarities.
        temperature: what the scores are divided by.
        label_smoothing: share of the target spread over all M texts, or N images.
        hard_weight: b in the weight of a negative, n e^(b s/t) / sum of e^(b s/t) over the n negatives of its query
            (as in Radenovic et al., 2023); 0: all weigh 1.
        matches: see `triplet_parts`.
        image_rows: see `triplet_parts`.

    Returns:
        Half the sum over the images and half the sum over the texts, scalars.
    """
    if matches is None:
        matches = own_pairs(scores, image_rows)
    logits = scores / temperature
    queries = (logits, matches) if image_rows is None else (logits[image_rows], matches[image_rows])  # [M, M]
    parts = []
    for rows, targets in (queries, (logits.T, matches.T)):
        if hard_weight > 0:
            rows = _weigh_negatives(rows, targets, hard_weight)
        shares = targets.to(rows.dtype) / targets.sum(dim=1, keepdim=True)
        parts.append(0.5 * F.cross_entropy(rows, shares, label_smoothing=label_smoothing, reduction="sum"))
    return parts[0], parts[1]


def _weigh_negatives(logits: Tensor, matches: Tensor, hard_weight: float) -> Tensor:
    """Add the logarithm of its weight to the logit of each negative; rows are queries."""
    negatives = (hard_weight * logits).masked_fill(matches, -math.inf)
    counts = (~matches).sum(dim=1, keepdim=True).to(logits.dtype)
    log_weights = counts.log() + negatives - negatives.logsumexp(dim=1, keepdim=True)
    return torch.where(matches, logits, logits + log_weights)
