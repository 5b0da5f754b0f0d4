"""Features of frozen towers that stand for the images and captions of a list.

Letters: N images, V views of each, M captions, B batch, W numbers of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.feature_store import FeatureTable, SequenceTable


@dataclass(frozen=True)
class ListFeatures:
    """What frozen towers make of a list; None for a tower that learns.

    Attributes:
        images: N V rows, the views of an image one after the other.
        captions: M rows, or sequences of rows.
        views: V.
    """

    images: FeatureTable | None = None
    captions: FeatureTable | SequenceTable | None = None
    views: int = 1

    def of_views(self, images: Tensor, views: Tensor) -> Tensor | None:
        """One view of each image, [B, W], by places of the images [B] and numbers of the views [B]."""
        return None if self.images is None else self.images.rows(images * self.views + views)

    def of_images(self, images: Tensor) -> Tensor | None:
        """All views of some images: [B, W] of one view, else [B, V, W]."""
        if self.images is None:
            return None
        seen = [self.images.rows(images * self.views + view) for view in range(self.views)]
        return seen[0] if self.views == 1 else torch.stack(seen, dim=1)

    def of_captions(self, captions: Tensor) -> Tensor | None:
        """Of some captions [B], [B, W]; of sequences [B, L, W], padded to the longest."""
        return None if self.captions is None else self.captions.rows(captions)


NO_FEATURES = ListFeatures()
