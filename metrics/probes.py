"""Classes told from embeddings that no class has trained: nearest neighbours, a linear probe, confusions."""

# Letters: T known items, N items in question, C classes, D embedding.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the probe's weights; the one that does best on `HELD_OUT` of the known items is taken."""
HELD_OUT = 5  # every fifth
MOST_STEPS = 100
BLOCK = 4096  # items compared at a time


@torch.no_grad()
def nearest_classes(known: Tensor, classes: Tensor, items: Tensor, count: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class that most of an item's nearest known items have, each vote weighed by its cosine, from 0 on.

    Args:
        known: [T, D] embeddings, of any length but 0.
        classes: [T] int64 in 0..C-1.
        items: [N, D].
        count: C.
        neighbours: how many vote; all, where there are fewer.

    Returns:
        [N] int64; of classes with equal votes the first.
    """
    known = F.normalize(known)
    found = []
    for block in F.normalize(items).split(BLOCK):
        best = (block @ known.T).topk(min(neighbours, len(known)), dim=1)
        votes = block.new_zeros(len(block), count)
        found.append(votes.scatter_add_(1, classes[best.indices], best.values.clamp(min=0)).argmax(dim=1))
    return torch.cat(found)


def probed_classes(known: Tensor, classes: Tensor, items: Tensor, count: int) -> Tensor:
    """The class that a linear probe, trained on the known items, gives each item; arguments of `nearest_classes`.

    Multinomial logistic regression on unit embeddings, each number of which is brought to mean 0 and deviation 1 over
    the known items. Its weight decay is chosen on every fifth known item, then all of them are learned.
    """
    known, items = F.normalize(known), F.normalize(items)
    mean, deviation = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
    known, items = (known - mean) / deviation, (items - mean) / deviation
    held = torch.arange(len(known), device=known.device) % HELD_OUT == 0
    best = DECAYS[0]
    if held.sum() < len(known):
        scored = []
        for decay in DECAYS:
            weights = fit_probe(known[~held], classes[~held], count, decay)
            scored.append((probe_logits(known[held], weights).argmax(dim=1) == classes[held]).double().mean().item())
        best = DECAYS[max(range(len(DECAYS)), key=lambda place: (scored[place], place))]
    return probe_logits(items, fit_probe(known, classes, count, best)).argmax(dim=1)


@torch.enable_grad()
def fit_probe(known: Tensor, classes: Tensor, count: int, decay: float) -> Tensor:
    """Weights and biases [C, D + 1] that make the mean cross-entropy plus decay / 2 |W|^2 least, by L-BFGS from 0.

    Args:
        known: [T, D].
        classes: [T] int64 in 0..C-1.
        count: C.
        decay: above 0; of the weights, not of the biases.
    """
    weights = known.new_zeros(count, known.shape[1] + 1).requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=MOST_STEPS, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe_logits(known, weights), classes)
        loss = loss + decay / 2 * weights[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(cost)  # type: ignore[no-untyped-call,unused-ignore]
    return weights.detach()


def probe_logits(items: Tensor, weights: Tensor) -> Tensor:
    """[N, D] by weights and biases [C, D + 1] -> [N, C]."""
    return items @ weights[:, :-1].T + weights[:, -1]


def confusion(truth: Tensor, taken_for: Tensor, count: int) -> Tensor:
    """How many items of each class (row) were taken for each (column): [N] and [N] in 0..C-1 -> [C, C] int64."""
    return torch.bincount(truth * count + taken_for, minlength=count**2).view(count, count)


def accuracies(confusions: Tensor) -> dict[str, float]:
    """Of a confusion [C, C], in percent: `accuracy` of all items, and `mean_accuracy` of the classes that have some."""
    right, items = confusions.diagonal().double(), confusions.sum(dim=1).double()
    shares = right[items > 0] / items[items > 0]
    return {"accuracy": float(100 * right.sum() / items.sum()), "mean_accuracy": float(100 * shares.mean())}
