"""The losses by which MCRN brings modalities and views together: pure functions of features.

Letters: B batch, D embedding, K modalities. f and g are a feature before and after the shared pattern transfer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DISTILLATION_TEMPERATURE = 0.2
MMD_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in units of the mean squared distance
MMD_BANDWIDTH_FLOOR = 1e-8
MMD_CEILING = 200.0
MMD_WEIGHT = 0.01
NORM_WEIGHT = 0.01


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student's distribution over its D entries is from the teacher's; the gradient reaches both.

    Mean over all entries of p (log p - log q) with p = softmax(teacher / 0.2), q = softmax(student / 0.2). MCRN (Yuan
    et al., 2022), multi-modal alignment.

    Args:
        student: [B, D].
        teacher: [B, D].
    """
    log_p = F.log_softmax(teacher / DISTILLATION_TEMPERATURE, dim=-1)
    log_q = F.log_softmax(student / DISTILLATION_TEMPERATURE, dim=-1)
    return (log_p.exp() * (log_p - log_q)).mean()


def maximum_mean_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of two sets of features in the space of five Gaussian kernels, summed over all pairs.

    The bandwidths are 1/4 to 4 times the mean squared distance over all ordered pairs of different features, which has
    no gradient here. Deep adaptation networks (Long et al., 2015); MCRN, single-modal alignment.

    Args:
        first: [B, D].
        second: [B, D].

    Returns:
        A scalar in float64: near-equal sets differ less than float32 rounds.
    """
    features = torch.cat([first, second]).double()  # [2B, D]
    squares = features.square().sum(dim=1)
    distances = (squares[:, None] + squares[None] - 2 * features @ features.T).clamp(min=0)  # [2B, 2B]
    count = len(features)
    mean = distances.detach().sum() / (count**2 - count)
    kernels = sum(torch.exp(-distances / (mean * share).clamp(min=MMD_BANDWIDTH_FLOOR)) for share in MMD_BANDWIDTHS)
    signs = torch.cat([features.new_ones(len(first)), -features.new_ones(len(second))])
    return signs @ kernels @ signs


def norm_penalty(features: Tensor) -> Tensor:
    """How far the mean length of features [B, D] is from 1: |mean(|x| - 1)|."""
    return (features.norm(dim=-1) - 1).mean().abs()


def modality_loss(logits: Tensor, modality: int) -> Tensor:
    """Mean cross-entropy of a discriminator's logits [B, K] when all of them should name one of K modalities.

    The discriminator learns with the true modality and detached g, the generator with a false one.
    """
    return F.cross_entropy(logits, torch.full((len(logits),), modality, device=logits.device))


def generator_loss(
    features: tuple[Tensor, Tensor], transferred: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor], fake: int
) -> dict[str, Tensor]:
    """The generator's objective in MCRN's pretraining: two views of one modality.

    0.01 min(MMD(f1, f2), 200) + MSE(g1, g2) + CE(D(g1), fake) + CE(D(g2), fake) + 0.01 [norm(f1) + ... + norm(g2)].

    Args:
        features: f1 and f2, [B, D].
        transferred: g1 and g2, [B, D].
        logits: what the discriminator says of g1 and g2, [B, K].
        fake: the modality that it shall see instead of the true one.

    Returns:
        `loss` and its parts as they enter it: `mmd`, `mse_view`, `adversarial`, `norm`.
    """
    parts = {
        "mmd": MMD_WEIGHT * maximum_mean_discrepancy(*features).clamp(max=MMD_CEILING),
        "mse_view": F.mse_loss(*transferred),
        "adversarial": torch.stack([modality_loss(view, fake) for view in logits]).sum(),
        "norm": NORM_WEIGHT * torch.stack([norm_penalty(view) for view in (*features, *transferred)]).sum(),
    }
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
