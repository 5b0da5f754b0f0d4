"""Soft targets: how near each image is to each caption, as a frozen teacher sees them, whose embeddings are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data.embeddings import read_embeddings
from layers.base import l2norm
from layers.losses.base import Loss, Seen
from layers.registry import register_loss
from option.parameters import GivenPath, Parameters
from utils import InputError

if TYPE_CHECKING:
    from data.annotations import Annotations


class SoftTargetsParameters(Parameters):
    """Block `optim.soft_targets`: the teacher, and how sharp both distributions are."""

    teacher_path: GivenPath | None = Field(
        default=None, description="embeddings of the training list, made by `python -m reports.teacher`"
    )
    teacher_temperature: float = Field(
        default=0.05, ge=0.001, le=1, description="what the teacher's cosines are divided by; the lower, the harder"
    )
    temperature: float = Field(default=0.05, ge=0.001, le=1, description="what the model's scores are divided by")


@register_loss("soft_targets", SoftTargetsParameters)
class SoftTargetsLoss(Loss):
    """`soft_target_parts` with the cosines of a teacher's stored embeddings."""

    teacher: tuple[Tensor, Tensor] | None = None
    """Of the training list: images [N', E] and captions [M', E] of unit length."""

    def __init__(self, teacher_path: Path | None, teacher_temperature: float, temperature: float) -> None:
        """Name the file, which `prepare` reads."""
        super().__init__()
        self.path, self.teacher_temperature, self.temperature = teacher_path, teacher_temperature, temperature

    def prepare(self, train: Annotations) -> None:
        """Read the teacher's embeddings of the images and captions of the list.

        Raises:
            InputError: there is no file, or it lacks some of them.
        """
        if self.path is None:
            raise InputError(
                "optim.soft_targets.teacher_path: needed for optim.loss soft_targets: a file of embeddings, made by "
                "python -m reports.teacher"
            )
        images, captions = read_embeddings(self.path, train)
        self.teacher = l2norm(images), l2norm(captions)

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """See `Loss.forward`.

        Raises:
            ValueError: `prepare` was not called.
        """
        if self.teacher is None:
            raise ValueError("soft targets need `prepare`")
        sample, device = seen.sample, seen.scores.device
        images, captions = self.teacher[0][sample.images], self.teacher[1][sample.captions]
        cosines = (images @ captions.T).to(device, non_blocking=True)
        return soft_target_parts(seen.scores, cosines, self.temperature, self.teacher_temperature, seen.image_rows)


def soft_target_parts(
    scores: Tensor, cosines: Tensor, temperature: float, teacher_temperature: float, image_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """How far the model's distribution over a query's items is from the teacher's: sum of p (log p - log q).

    p = softmax(cosines / teacher_temperature), q = softmax(scores / temperature), over the texts of an image's query
    and the images of a text's. Distillation (Hinton et al., 2015) of the contrastive relation, as in CLIP-KD (Yang et
    al., CVPR 2024); it is 0 where both agree. An image with several texts counts once for each.

    Args:
        scores: [N, M] of the model.
        cosines: [N, M] of the teacher, without gradient.
        temperature: what the scores are divided by.
        teacher_temperature: what the cosines are divided by.
        image_rows: [M] row of each text's own image.

    Returns:
        Half the sum over the images' queries and half the sum over the texts', scalars.
    """
    parts = []
    for student, teacher in ((scores[image_rows], cosines[image_rows]), (scores.T, cosines.T)):
        log_q = F.log_softmax(student / temperature, dim=1)
        log_p = F.log_softmax(teacher.to(log_q.dtype) / teacher_temperature, dim=1)
        parts.append(0.5 * F.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return parts[0], parts[1]
