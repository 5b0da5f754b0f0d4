"""What is known of the pairs of each training batch: true matches off the diagonal, prior similarity.

Letters: N images and M captions of a batch, C captions of the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import vocab
from batches.batch import Batch
from batches.sampling import Sample
from data.annotations import Annotations
from data.similarity.prior import PriorSimilarity

Mask = Literal["none", "image", "caption"]


@dataclass(frozen=True)
class Pairs:
    """What is known of the pairs of a batch beforehand.

    Attributes:
        matches: [N, M] bool, the pairs that are no negatives, own pairs among them; None: own pairs alone.
        prior: [N, M] similarity in [0, 1] of each caption to the captions of each image, see `data.similarity.prior`.
        image_rows: [M] int64 own image of each caption; None: caption i belongs to image i.
        sample: which images and captions of the list they are; on the CPU.
    """

    matches: Tensor | None = None
    prior: Tensor | None = None
    image_rows: Tensor | None = None
    sample: Sample | None = None

    def masked_share(self) -> Tensor:
        """Share of the pairs, own pairs aside, that are no negatives, a scalar.

        Raises:
            ValueError: nothing is masked.
        """
        if self.matches is None:
            raise ValueError("these pairs carry no matches")
        images, texts = self.matches.shape
        return (self.matches.sum() - texts) / max(1, images * texts - texts)


class PairSource:
    """Looks the pairs of a batch up by its image and caption ids."""

    def __init__(self, annotations: Annotations, mask: Mask, prior: PriorSimilarity | None) -> None:
        """Number the captions, equal ones alike.

        Args:
            annotations: the list that the ids of the batches count.
            mask: which pairs are no negatives; `image`: those of one image, `caption`: those of word-for-word equal
                captions (case and punctuation aside), too.
            prior: of the same list, for losses that need it.
        """
        self.mask = mask
        self.prior = prior
        numbers: dict[tuple[str, ...], int] = {}
        keys = [tuple(vocab.tokenize(caption)) for caption in annotations.captions] if mask == "caption" else []
        self.wording = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])  # [C]

    def of(self, batch: Batch) -> Pairs:
        """The pairs of a batch, on its device; of several ranks those of the batches of all of them.

        What is known lies on the CPU, so that nothing waits for the device.
        """
        image_ids, caption_ids = batch.need("image_ids"), batch.need("caption_ids")
        sample = batch.whole or Sample(image_ids.cpu(), caption_ids.cpu())
        found = None if self.prior is None else self.prior.between(sample.images.numpy(), sample.captions.numpy())
        known = {
            "matches": self._matches(sample),
            "prior": None if found is None else torch.from_numpy(found.astype(np.float32)),
            "image_rows": sample.rows,
        }
        device = image_ids.device
        moved = {name: None if value is None else value.to(device) for name, value in known.items()}
        return Pairs(**moved, sample=sample)

    def _matches(self, sample: Sample) -> Tensor | None:
        """The pairs that are no negatives, [N, M] bool, None: own pairs alone."""
        if self.mask == "none":
            return None
        own = slice(None) if sample.rows is None else sample.rows
        matches = sample.images[:, None] == sample.images[own]
        if self.mask == "image":
            return matches
        wording = self.wording[sample.captions]
        if sample.rows is None:
            return matches | (wording[:, None] == wording)
        # A caption matches an image that has an equal one.
        same = torch.zeros(matches.shape, dtype=torch.int64)
        return matches | (same.index_add_(0, sample.rows, (wording[:, None] == wording).long()) > 0)
