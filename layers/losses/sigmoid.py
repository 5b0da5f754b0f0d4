"""The pairwise sigmoid loss: whether an image and a text belong together is asked of each pair by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.losses.base import Seen, TemperedLoss
from layers.registry import register_loss
from option.parameters import Parameters


class SigmoidParameters(Parameters):
    """Block `optim.sigmoid`: where the loss of SigLIP starts."""

    temperature: float = Field(default=0.1, ge=0.01, le=1, description="at the start; learned and kept in 0.01 to 1")
    bias: float = Field(
        default=-10.0, ge=-100, le=100, description="added to all logits, at the start; learned: most pairs are wrong"
    )


@register_loss("sigmoid", SigmoidParameters)
class SigmoidLoss(TemperedLoss):
    """`sigmoid_parts` with a temperature and a bias that are learned."""

    def __init__(self, temperature: float, bias: float) -> None:
        """Start at `temperature` and `bias`."""
        super().__init__(temperature)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`."""
        return sigmoid_parts(seen.scores, self.temperature, self.bias, seen.matches)

    def figures(self) -> dict[str, Tensor]:
        """See `Loss.figures`."""
        return {"sigmoid_temperature": self.temperature.detach(), "sigmoid_bias": self.bias.detach()}


def sigmoid_parts(scores: Tensor, temperature: Tensor, bias: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over all pairs of -log sigmoid(z (s / temperature + bias)), z = 1 for a match and -1 for any other.

    SigLIP (Zhai et al., ICCV 2023), eq. 1, whose t is 1 / temperature here. No query has a softmax of its own, so both
    directions are the same and count half.

    Args:
        scores: [N, M] similarities.
        temperature: what the scores are divided by.
        bias: added to all logits.
        matches: [N, M] bool, see `Seen.matches`.
    """
    signs = 2 * matches.to(scores.dtype) - 1
    half = -0.5 * F.logsigmoid(signs * (scores / temperature + bias)).sum()
    return half, half
