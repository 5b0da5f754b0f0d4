"""Contrast inside a modality: a match must score above what images have in common with images, texts with texts."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from layers.losses.base import Seen, TemperedLoss
from layers.registry import register_loss
from option.parameters import Parameters


class IntraParameters(Parameters):
    """Block `optim.intra`: contrast inside each modality."""

    temperature: float = Field(default=0.07, ge=0.01, le=1, description="at the start; learned and kept in 0.01 to 1")


@register_loss("intra", IntraParameters)
class IntraModalLoss(TemperedLoss):
    """`intra_parts` with a temperature that is learned."""

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`."""
        return intra_parts(seen.scores, *seen.unit_embeddings(), self.temperature, seen.matches, seen.image_rows)

    def figures(self) -> dict[str, Tensor]:
        """See `Loss.figures`."""
        return {"intra_temperature": self.temperature.detach()}


def intra_parts(
    scores: Tensor, images: Tensor, texts: Tensor, temperature: Tensor, matches: Tensor, image_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """InfoNCE whose match is across the modalities and whose negatives are within: other images, other texts.

    Cost of text k with its image i, as the image's query: -log e^(s_ik/t) / (e^(s_ik/t) + sum over j of e^(v_i v_j/t)),
    j over the images that no text of i or like i's belongs to; as the text's query likewise over the other texts. After
    the intra-modal negatives of CrossCLR (Zolfaghari et al., ICCV 2021).

    Args:
        scores: [N, M] similarities.
        images: [N, D] of unit length.
        texts: [M, D] likewise.
        temperature: what similarities are divided by.
        matches: [N, M] bool, see `Seen.matches`.
        image_rows: [M] row of each text's own image.

    Returns:
        Half the sum over the images' queries and half the sum over the texts', scalars.
    """
    own = scores.gather(0, image_rows[None]).squeeze(0) / temperature  # [M]
    alike_texts = matches[image_rows]  # [M, M] whether text l matches the image of text k
    alike_images = torch.zeros(len(scores), len(scores), dtype=torch.int64, device=scores.device)
    alike_images = alike_images.index_add(1, image_rows, matches.long()) > 0  # [N, N] whether a text of j matches i
    parts = []
    for items, alike in ((images[image_rows] @ images.T, alike_images[image_rows]), (texts @ texts.T, alike_texts)):
        negatives = (items / temperature).masked_fill(alike, float("-inf"))
        costs = torch.logsumexp(torch.cat([own[:, None], negatives], dim=1), dim=1) - own
        parts.append(0.5 * costs.sum())
    return parts[0], parts[1]
