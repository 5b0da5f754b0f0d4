"""What margin a pair deserves by its prior similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GAMMA, BETA = 0.6, 5.0
"""What AMFMN's paper takes."""


def dynamic_margin(prior: Tensor, gamma: float, beta: float) -> Tensor:
    """Margin of each pair from its prior similarity: gamma (e^beta - e^(beta S)) / (e^beta - 1). AMFMN, eq. 29-30.

    Args:
        prior: S, any shape, in [0, 1]; see `data.similarity.prior`.
        gamma: margin at S = 0; at S = 1 it is 0.
        beta: above 0; the greater, the longer the margin stays near gamma.
    """
    return gamma * (1 - torch.expm1(beta * prior) / math.expm1(beta))
