"""The triplet loss with a dynamic margin: the more a caption resembles an image's own, the less it must fall behind."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from data.similarity.margin import BETA, GAMMA, dynamic_margin
from layers.losses.base import Loss, Seen
from layers.losses.triplet import triplet_parts
from layers.registry import register_loss
from option.parameters import Parameters


class DynamicParameters(Parameters):
    """Block `optim.dynamic`: the dynamic margin, gamma (e^beta - e^(beta S)) / (e^beta - 1) at prior similarity S."""

    gamma: float = Field(
        default=GAMMA, ge=0, le=2, description="margin of captions that share nothing with the image's [cosine]"
    )
    beta: float = Field(default=BETA, gt=0, le=50, description="the greater, the longer the margin stays near gamma")


@register_loss("dynamic", DynamicParameters, reads=("max_violation",))
class DynamicMarginLoss(Loss):
    """`triplet_parts` with the margin that each pair's prior similarity gives it."""

    uses_prior: ClassVar[bool] = True

    def __init__(self, gamma: float, beta: float, max_violation: bool) -> None:
        super().__init__()
        self.gamma, self.beta, self.hardest = gamma, beta, max_violation

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`.

        Raises:
            ValueError: the pairs have no prior similarity.
        """
        pairs = seen.pairs
        if pairs.prior is None:
            raise ValueError("the dynamic margin needs Pairs.prior")
        margin = dynamic_margin(pairs.prior, self.gamma, self.beta)
        return triplet_parts(seen.scores, margin, self.hardest, pairs.matches, pairs.image_rows)
