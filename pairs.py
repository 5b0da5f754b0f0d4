"""What is known of the pairs of each training batch: true matches off the diagonal, prior similarity.

Letters: B batch, M captions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

import vocab
from data.annotations import Annotations
from data.prior import PriorSimilarity
from dataloader import Batch
from layers.objective import Pairs

Mask = Literal["none", "image", "caption"]


class PairSource:
    """Looks the pairs of a batch up by its image and caption ids."""

    def __init__(self, annotations: Annotations, mask: Mask, prior: PriorSimilarity | None) -> None:
        """Number the captions, equal ones alike.

        Args:
            annotations: the list that the ids of the batches count.
            mask: which pairs are no negatives; `image`: those of one picture, `caption`: those of word-for-word equal
                captions (case and punctuation aside), too.
            prior: of the same list, for losses that need it.
        """
        self.mask = mask
        self.prior = prior
        numbers: dict[tuple[str, ...], int] = {}
        keys = [tuple(vocab.tokenize(caption)) for caption in annotations.captions] if mask == "caption" else []
        self.wording = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])  # [M]

    def of(self, batch: Batch) -> Pairs:
        """The pairs of a batch, on its device."""
        image_ids, caption_ids = batch.need("image_ids"), batch.need("caption_ids")
        matches = None
        if self.mask != "none":
            matches = _equal(image_ids)
        if self.mask == "caption":
            matches = _equal(image_ids) | _equal(self.wording.to(caption_ids.device)[caption_ids])
        if self.prior is None:
            return Pairs(matches)
        found = self.prior.between(image_ids.cpu().numpy(), caption_ids.cpu().numpy())
        return Pairs(matches, torch.from_numpy(found.astype(np.float32)).to(image_ids.device))


def _equal(ids: Tensor) -> Tensor:
    """[B] -> [B, B] bool."""
    return ids[:, None] == ids[None]
