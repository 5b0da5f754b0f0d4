"""The triplet loss: a match must lead each wrong pair by a margin."""

from __future__ import annotations

import torch
from torch import Tensor

from layers.losses.base import Loss, Seen, own_pairs
from layers.registry import register_loss


@register_loss("triplet", reads=("margin", "max_violation"))
class TripletLoss(Loss):
    """`triplet_parts` with a fixed margin."""

    def __init__(self, margin: float, max_violation: bool) -> None:
        super().__init__()
        self.margin, self.hardest = margin, max_violation

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`."""
        return triplet_parts(seen.scores, self.margin, self.hardest, seen.pairs.matches, seen.pairs.image_rows)


def triplet_parts(
    scores: Tensor,
    margin: float | Tensor,
    hardest: bool,
    matches: Tensor | None = None,
    image_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Two-way hinge loss over all wrong pairs of a batch, or over the hardest one of each query.

    cost of text j for image i = relu(margin + s_ij - s_ii), cost of image i for text j = relu(margin + s_ij - s_jj).
    AMFMN (Yuan et al., 2022), eq. 28 with a fixed margin; VSE++ (Faghri et al., 2018), eq. 6 for `hardest`.
    Where images have several texts, each text k with its image i is a query of its own in both directions, with s_ik in
    place of s_ii; unless only the hardest counts, all texts of a wrong image together weigh as much as one, their mean.

    Args:
        scores: [N, M] similarities.
        margin: wanted lead of a match, in the units of the similarity; of all pairs, or of each [N, M].
        hardest: keep only the greatest cost per query.
        matches: [N, M] bool, the pairs that are no negatives, own pairs among them; None: own pairs alone.
        image_rows: [M] int64 own image of each text; None: text i belongs to image i.

    Returns:
        Sum of the image -> text costs and sum of the text -> image costs, scalars.
    """
    if matches is None:
        matches = own_pairs(scores, image_rows)
    lead = margin + scores
    query_lead, query_matches, own = lead, matches, scores.diagonal()
    if image_rows is not None:
        query_lead, query_matches = lead[image_rows], matches[image_rows]  # [M, M]
        own = scores.gather(0, image_rows[None]).squeeze(0)  # [M]
    image_to_text = (query_lead - own[:, None]).clamp(min=0).masked_fill(query_matches, 0)
    text_to_image = (lead - own[None, :]).clamp(min=0).masked_fill(matches, 0)
    if hardest:
        return image_to_text.amax(dim=1).sum(), text_to_image.amax(dim=0).sum()
    if image_rows is not None:
        texts = scores.new_zeros(len(scores)).index_add(0, image_rows, torch.ones_like(own))  # [N], of each image
        image_to_text = image_to_text / texts[image_rows]
    return image_to_text.sum(), text_to_image.sum()
