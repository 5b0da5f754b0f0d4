"""The published objective, as tests hand it to models."""

from __future__ import annotations

from functools import partial

from batches.pairs import Pairs
from layers.base import Criterion
from layers.losses.objective import Objective
from layers.losses.triplet import TripletLoss


def triplet_criterion(margin: float, hardest: bool) -> Criterion:
    """The triplet loss as a criterion for `RetrievalModel.training_loss`; nothing is known of the pairs."""
    return partial(Objective({"triplet": TripletLoss(margin, hardest)}, {"triplet": 1.0}), pairs=Pairs())
