"""Neighbours, the linear probe and confusions: by hand, against slow twins, and the optimum of the probe."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from metrics.probes import accuracies, confusion, fit_probe, nearest_classes, probe_logits, probed_classes


def points(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("neighbours", [1, 4, 99])
def test_the_nearest_vote_by_their_cosines(neighbours: int) -> None:
    known, items = points(12, 0), points(7, 1)
    classes = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 1, 0, 2])
    expected = []
    for item in items:
        cosines = [float(F.cosine_similarity(item, other, dim=0)) for other in known]
        votes = [0.0, 0.0, 0.0]
        for place in sorted(range(12), key=lambda row: -cosines[row])[:neighbours]:
            votes[int(classes[place])] += max(0.0, cosines[place])
        expected.append(votes.index(max(votes)))
    assert nearest_classes(known, classes, items, 3, neighbours).tolist() == expected
    assert len(set(expected)) > 1


def test_the_probe_stands_where_its_cost_is_least() -> None:
    known, classes = points(40, 2), torch.arange(40) % 3
    weights = fit_probe(known, classes, 3, 0.01).requires_grad_()
    cost = F.cross_entropy(probe_logits(known, weights), classes) + 0.005 * weights[:, :-1].square().sum()
    (slope,) = torch.autograd.grad(cost, weights)
    assert slope.abs().max() < 1e-4
    assert cost < math.log(3)


def test_the_probe_tells_lines_apart_that_neighbours_can_not() -> None:
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(300, 20, generator=generator)
    classes = (items[:, 0] > 0).long()
    found = probed_classes(items[:200], classes[:200], items[200:], 2)
    assert (found == classes[200:]).double().mean() > 0.9
    assert (nearest_classes(items[:200], classes[:200], items[200:], 2) == classes[200:]).double().mean() < 0.9


def test_confusions_and_accuracies_by_hand() -> None:
    found = confusion(torch.tensor([0, 0, 0, 1, 3]), torch.tensor([0, 0, 1, 1, 0]), 4)
    assert found.tolist() == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    # Of five items three are right; class 0 has 2 of 3, class 1 its one, class 2 no items, class 3 none right.
    assert accuracies(found) == pytest.approx({"accuracy": 60.0, "mean_accuracy": 100 * (2 / 3 + 1 + 0) / 3})
