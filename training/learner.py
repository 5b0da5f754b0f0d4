"""What is trained: a model, its objective and what is known of the pairs, as one module.

Letters: D embedding, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from batches.batch import Batch
from batches.pairs import PairSource
from batches.sampling import Sample
from layers.base import Encodings, RetrievalModel
from layers.losses.objective import Objective
from runtime.distributed import ALONE, World


class Losses(nn.Module):
    """What is trained, as one module whose forward pass gives the losses of a batch."""

    def __init__(
        self,
        model: RetrievalModel,
        objective: Objective,
        source: PairSource,
        world: World = ALONE,
        begin: Callable[[Batch], Batch] | None = None,
    ) -> None:
        """Join what is trained with what it needs.

        Args:
            model: any registered one.
            objective: the loss.
            source: what is known of the pairs.
            world: the ranks whose batches are one to the loss.
            begin: what is done with a batch before the model sees it; None: nothing.
        """
        super().__init__()
        self.begin = begin
        self.model = model
        self.objective = objective
        self.source = source
        self.world = world

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the batches of all ranks, summed over their items: key `loss`, and what else is to be logged.

        Besides the parts of the loss: `temperature` where one is learned, and with `optim.mask` the `masked_share` of
        the wrong pairs; both times the items, of which the log shows the mean.
        """
        pairs = self.source.of(batch)
        criterion = partial(self.objective, pairs=pairs)
        batch = batch if self.begin is None else self.begin(batch)
        if self.world.size == 1:
            losses = self.model.training_loss(batch, criterion)
        else:
            losses = self.model.loss_of(gathered(self.model.encodings(batch), batch, self.world), criterion)
        losses = _weighted(losses, self.model.batch_means, batch.share)
        figures = self.objective.figures()
        if pairs.matches is not None:
            figures["masked_share"] = pairs.masked_share()
        return losses | {name: batch.items * value for name, value in figures.items()}


def _weighted(losses: dict[str, Tensor], means: Sequence[str], share: float | None) -> dict[str, Tensor]:
    """Losses of a part of a batch whose sum over all parts is that of the batch: a mean counts by the part's share."""
    if share is None:
        return losses
    lower = {name: share * losses[name] for name in means if name in losses}
    less = sum(losses[name] - value for name, value in lower.items())
    return losses | lower | {"loss": losses["loss"] - less}


def gathered(encodings: Encodings, batch: Batch, world: World) -> Encodings:
    """The encodings of the batches of all ranks, with their gradient."""
    whole = cast(Sample, batch.whole)
    shares = whole.shares(world.size)
    counts = {"images": [len(share.images) for share in shares], "texts": [len(share.captions) for share in shares]}
    counts |= {"audio": counts["texts"], "second_view": counts["images"]}
    rows = {name: value for name in counts if (value := getattr(encodings, name)) is not None}
    joined = {name: world.gather(value, counts[name]) for name, value in rows.items()}
    image_rows = None if whole.rows is None else whole.rows.to(encodings.images.device, non_blocking=True)
    return Encodings(**joined, image_rows=image_rows)


def compile_encoders(model: nn.Module, backend: str = "inductor") -> None:
    """Let torch.compile translate each part of a model when it is first called; captions differ in length."""
    for part in model.children():
        part.compile(backend=backend)
