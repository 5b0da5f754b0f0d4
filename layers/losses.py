"""Training objectives: pure functions of a score matrix or of embeddings.

Letters: B batch, N images, M texts, D embedding. Row i of the scores is image i, column j is text j. Every text has one
own image; in a batch of pairs, N = M = B, pair (i, i). f and g are a feature before and after MCRN's shared pattern
transfer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DISTILLATION_TEMPERATURE = 0.2
MMD_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in units of the mean squared distance
MMD_BANDWIDTH_FLOOR = 1e-8
MMD_CEILING = 200.0
MMD_WEIGHT = 0.01
NORM_WEIGHT = 0.01


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


def own_pairs(scores: Tensor, image_rows: Tensor | None) -> Tensor:
    """The matches of a batch in which nothing but its own texts belongs to an image: [N, M] bool."""
    rows = torch.arange(len(scores), device=scores.device)
    return rows[:, None] == (rows if image_rows is None else image_rows)


def contrastive_parts(
    scores: Tensor,
    temperature: Tensor | float,
    label_smoothing: float = 0.0,
    hard_weight: float = 0.0,
    matches: Tensor | None = None,
    image_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE: cross-entropy of finding an image's captions in the batch, and a caption's images.

    CLIP (Radford et al., 2021); several matches share the target evenly, as in supervised contrastive learning
    (Khosla et al., 2020, eq. 2). An image with several texts counts once for each.

    Args:
        scores: [N, M] similarities.
        temperature: what the scores are divided by.
        label_smoothing: share of the target spread over all M texts, or N images.
        hard_weight: b in the weight of a negative, n e^(b s/t) / sum of e^(b s/t) over the n negatives of its query
            (as in Radenovic et al., 2023); 0: all weigh 1.
        matches: see `triplet_parts`.
        image_rows: see `triplet_parts`.

    Returns:
        Half the sum over the images and half the sum over the texts, scalars.
    """
    if matches is None:
        matches = own_pairs(scores, image_rows)
    logits = scores / temperature
    queries = (logits, matches) if image_rows is None else (logits[image_rows], matches[image_rows])  # [M, M]
    parts = []
    for rows, targets in (queries, (logits.T, matches.T)):
        if hard_weight > 0:
            rows = _weigh_negatives(rows, targets, hard_weight)
        shares = targets.to(rows.dtype) / targets.sum(dim=1, keepdim=True)
        parts.append(0.5 * F.cross_entropy(rows, shares, label_smoothing=label_smoothing, reduction="sum"))
    return parts[0], parts[1]


def _weigh_negatives(logits: Tensor, matches: Tensor, hard_weight: float) -> Tensor:
    """Add the logarithm of its weight to the logit of each negative; rows are queries."""
    negatives = (hard_weight * logits).masked_fill(matches, -math.inf)
    counts = (~matches).sum(dim=1, keepdim=True).to(logits.dtype)
    log_weights = counts.log() + negatives - negatives.logsumexp(dim=1, keepdim=True)
    return torch.where(matches, logits, logits + log_weights)


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
