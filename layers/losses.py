"""Training objectives: pure functions of a score matrix.

Letters: B batch. Row i of the scores is image i, column j is text j; pair (i, i) matches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def triplet_parts(scores: Tensor, margin: float, hardest: bool) -> tuple[Tensor, Tensor]:
    """Two-way hinge loss over all wrong pairs of a batch, or over the hardest one of each query.

    cost of text j for image i = relu(margin + s_ij - s_ii), cost of image i for text j = relu(margin + s_ij - s_jj).
    AMFMN (Yuan et al., 2022), eq. 28 with a fixed margin; VSE++ (Faghri et al., 2018), eq. 6 for `hardest`.

    Args:
        scores: [B, B] similarities, the matches on the diagonal.
        margin: wanted lead of a match, in the units of the similarity.
        hardest: keep only the greatest cost per row (image) and per column (text).

    Returns:
        Sum of the image -> text costs and sum of the text -> image costs, scalars.
    """
    matches = scores.diagonal()
    image_to_text = (margin + scores - matches[:, None]).clamp(min=0)
    text_to_image = (margin + scores - matches[None, :]).clamp(min=0)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    image_to_text = image_to_text.masked_fill(diagonal, 0)
    text_to_image = text_to_image.masked_fill(diagonal, 0)
    if hardest:
        image_to_text, text_to_image = image_to_text.amax(dim=1), text_to_image.amax(dim=0)
    return image_to_text.sum(), text_to_image.sum()


def triplet_criterion(margin: float, hardest: bool) -> Callable[[Tensor], dict[str, Tensor]]:
    """The triplet loss as a criterion for `RetrievalModel.training_loss`.

    Returns:
        A function of scores [B, B] that gives `loss` and its parts `image_to_text`, `text_to_image`.
    """

    def criterion(scores: Tensor) -> dict[str, Tensor]:
        image_to_text, text_to_image = triplet_parts(scores, margin, hardest)
        return {
            "loss": image_to_text + text_to_image,
            "image_to_text": image_to_text,
            "text_to_image": text_to_image,
        }

    return criterion
