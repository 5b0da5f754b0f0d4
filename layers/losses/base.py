"""What every loss of `optim.loss` is: both directions of a batch, from its scores and its embeddings.

Letters: N images, M texts, D embedding. Row i of the scores is image i, column j is text (or audio) j. Every text has
one own image; in a batch of pairs N = M, and pair (i, i) belongs together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from batches.pairs import Pairs
from batches.sampling import Sample
from layers.base import l2norm
from utils import InputError

if TYPE_CHECKING:
    from data.annotations import Annotations

COLDEST, WARMEST = 0.01, 1.0
"""Where a learned temperature is kept."""


@dataclass(frozen=True)
class Seen:
    """What a loss sees of a batch; of several ranks of the batches of all of them.

    Attributes:
        scores: [N, M] similarities.
        pairs: what is known of the pairs beforehand.
        images: [N, D] embeddings, not normalised; None where a model hands over its scores alone.
        texts: [M, D] likewise.
    """

    scores: Tensor
    pairs: Pairs
    images: Tensor | None = None
    texts: Tensor | None = None

    @property
    def matches(self) -> Tensor:
        """The pairs that are no negatives, own pairs among them, [N, M] bool."""
        return own_pairs(self.scores, self.pairs.image_rows) if self.pairs.matches is None else self.pairs.matches

    @property
    def image_rows(self) -> Tensor:
        """Row of each text's own image, [M] int64."""
        rows = self.pairs.image_rows
        return torch.arange(len(self.scores), device=self.scores.device) if rows is None else rows

    def unit_embeddings(self) -> tuple[Tensor, Tensor]:
        """Embeddings of images [N, D] and texts [M, D], of unit length, in the precision of the scores.

        Raises:
            InputError: the model hands over none.
        """
        if self.images is None or self.texts is None:
            raise InputError("optim.loss: one of these losses compares embeddings, and this model hands over none.")
        with torch.autocast(self.images.device.type, enabled=False):
            return l2norm(self.images.to(self.scores.dtype)), l2norm(self.texts.to(self.scores.dtype))

    @property
    def sample(self) -> Sample:
        """Places of the images and captions in the training list, on the CPU.

        Raises:
            ValueError: they are not known.
        """
        if self.pairs.sample is None:
            raise ValueError("this loss needs Pairs.sample")
        return self.pairs.sample


class Loss(nn.Module):
    """One loss of `optim.loss`.

    Its constructor takes the values of its block `optim.<name>` and of the keys that it is registered to read, by their
    names in the YAML.
    """

    uses_prior: ClassVar[bool] = False
    """Whether it needs `Pairs.prior`."""

    def prepare(self, train: Annotations) -> None:
        """Read what it needs to know of the training list before the first step; mostly nothing.

        Raises:
            InputError: what it needs can't be had.
        """

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What images cost that look for texts, and texts that look for images: sums over the batch, scalars."""
        raise NotImplementedError

    def figures(self) -> dict[str, Tensor]:
        """What is learned here, to log; mostly nothing."""
        return {}


class TemperedLoss(Loss):
    """A loss with a temperature that is learned."""

    def __init__(self, temperature: float) -> None:
        """Start at `temperature`."""
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """What the scores are divided by, a scalar.

        The parameter itself is brought back into its range: clamping a copy would leave one outside without gradient.
        """
        with torch.no_grad():
            self.log_temperature.clamp_(math.log(COLDEST), math.log(WARMEST))
        return self.log_temperature.exp()


def own_pairs(scores: Tensor, image_rows: Tensor | None) -> Tensor:
    """The matches of a batch in which nothing but its own texts belongs to an image: [N, M] bool."""
    rows = torch.arange(len(scores), device=scores.device)
    return rows[:, None] == (rows if image_rows is None else image_rows)
