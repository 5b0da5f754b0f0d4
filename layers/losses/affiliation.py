"""The affiliation loss: an image belongs to the captions of its scene, a caption to the images of its scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data.scenes import UNNAMED_SCENE, scene_classes
from layers.losses.base import Seen, TemperedLoss
from layers.registry import register_loss
from option.parameters import Parameters
from utils import InputError

if TYPE_CHECKING:
    from data.annotations import Annotations

NO_GROUP = -1


class AffiliationParameters(Parameters):
    """Block `optim.affiliation`: how sharply an item is told from other scenes."""

    temperature: float = Field(default=0.07, ge=0.01, le=1, description="at the start; learned and kept in 0.01 to 1")


@register_loss("affiliation", AffiliationParameters)
class AffiliationLoss(TemperedLoss):
    """`affiliation_parts` over the scene classes of the training list (`data.scenes`), which may be any clusters."""

    groups: Tensor | None = None

    def prepare(self, train: Annotations) -> None:
        """Number the scenes of the images.

        Raises:
            InputError: they are not of two scenes at least.
        """
        scenes = scene_classes(train)
        named = sorted(set(scenes) - {UNNAMED_SCENE})
        if len(named) < 2:
            raise InputError(
                f"optim.loss: affiliation tells scenes apart, and the images of {train.names_file} are of "
                f"{len(named)} named scene{'' if len(named) == 1 else 's'}. Name them, or clusters of your own, in "
                f"{train.folder / 'scenes.txt'} (data/README.md)."
            )
        number = {name: place for place, name in enumerate(named)}
        self.groups = torch.tensor([number.get(scene, NO_GROUP) for scene in scenes])

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`.

        Raises:
            ValueError: `prepare` was not called.
        """
        if self.groups is None:
            raise ValueError("the affiliation loss needs `prepare`")
        groups = self.groups[seen.sample.images].to(seen.scores.device, non_blocking=True)
        return affiliation_parts(*seen.unit_embeddings(), groups, seen.image_rows, self.temperature)

    def figures(self) -> dict[str, Tensor]:
        """See `Loss.figures`."""
        return {"affiliation_temperature": self.temperature.detach()}


def affiliation_parts(
    images: Tensor, texts: Tensor, groups: Tensor, image_rows: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding an item's group by the centres of the other modality, over the groups of the batch.

    PIR (Pan et al., ACM MM 2023), cluster-wise affiliation loss. A centre is the mean of the unit embeddings of a
    group's images, or texts, at its own length. An image with several texts looks for its group once for each.
    Differs from the released code: there a centre stands once for each of its members, among which the target is one,
    so that n members cost log n at best; here it stands once.

    Args:
        images: [N, D] of unit length.
        texts: [M, D] likewise.
        groups: [N] int64 of the images and their texts; an item of a negative one takes no part.
        image_rows: [M] row of each text's own image.
        temperature: what similarities are divided by.

    Returns:
        Half the sum over the images' queries and half the sum over the texts', scalars.
    """
    present = groups[groups >= 0].unique()  # [G]
    if len(present) == 0:
        return 0 * images.sum(), 0 * texts.sum()
    text_groups = groups[image_rows]
    taking_part = text_groups >= 0
    own = torch.searchsorted(present, text_groups[taking_part])
    parts = []
    for queries, others, theirs in ((images[image_rows], texts, text_groups), (texts, images, groups)):
        members = (theirs[:, None] == present).to(others.dtype)  # [N or M, G]
        centres = members.T @ others / members.sum(dim=0)[:, None]  # [G, D]
        logits = queries[taking_part] @ centres.T / temperature
        parts.append(0.5 * F.cross_entropy(logits, own, reduction="sum"))
    return parts[0], parts[1]
