"""The training objectives against the released implementation, a double loop, and numerical gradients."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from layers.losses import triplet_criterion, triplet_parts

REFERENCE = Path(__file__).parent / "reference" / "losses.npz"
MARGIN = 0.2  # of the reference


def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def naive_triplet(scores: list[list[float]], margin: float, hardest: bool) -> tuple[float, float]:
    """Both sums of hinges, pair by pair."""
    size = len(scores)
    by_image: list[list[float]] = [[] for _ in range(size)]
    by_text: list[list[float]] = [[] for _ in range(size)]
    for image in range(size):
        for text in range(size):
            if image != text:
                by_image[image].append(max(0.0, margin + scores[image][text] - scores[image][image]))
                by_text[text].append(max(0.0, margin + scores[image][text] - scores[text][text]))
    reduce = (lambda costs: max(costs, default=0.0)) if hardest else sum
    return float(sum(map(reduce, by_image))), float(sum(map(reduce, by_text)))


@st.composite
def score_matrices(draw: st.DrawFn) -> list[list[float]]:
    size = draw(st.integers(1, 6))
    score = st.floats(-1, 1, width=32)
    return draw(st.lists(st.lists(score, min_size=size, max_size=size), min_size=size, max_size=size))


@pytest.mark.parametrize(("hardest", "name"), [(False, "calcul_loss_mv0"), (True, "calcul_loss_mv1")])
def test_reference_loss_and_gradient(hardest: bool, name: str) -> None:
    expected = reference()
    scores = expected["scores"].requires_grad_()
    losses = triplet_criterion(MARGIN, hardest)(scores)
    losses["loss"].backward()
    torch.testing.assert_close(losses["loss"], expected[name], atol=0, rtol=1e-6)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, expected[f"{name}_grad"], atol=1e-6, rtol=0)


def test_the_copied_reference_is_the_published_one() -> None:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    with np.load(Path(os.environ["RSR_DATA"]) / "reference" / "func_utils.npz", allow_pickle=False) as archive:
        for name, value in reference().items():
            np.testing.assert_array_equal(archive[name], value.numpy(), strict=True)


def test_a_case_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.6, 0.1], [0.2, 0.9, 0.8], [0.4, 0.0, 0.3]])
    # Image 0: 0.3 from text 1; image 1: 0.1 from text 2; image 2: 0.3 from text 0.
    # Text 0: 0.1 from image 2; text 1: none; text 2: 0.7 from image 1.
    losses = triplet_criterion(0.2, hardest=False)(scores)
    assert list(losses) == ["loss", "image_to_text", "text_to_image"]
    assert [round(value.item(), 6) for value in losses.values()] == [1.5, 0.7, 0.8]


def test_only_the_hardest_pair_of_each_query_counts() -> None:
    scores = torch.tensor([[0.5, 0.6, 0.4], [0.2, 0.5, 0.4], [0.5, 0.6, 0.5]])
    # Images: 0.3 (0.1 left out), 0.1, 0.3 (0.2 left out). Texts: 0.2, 0.3 (0.3 left out), 0.1 (0.1 left out).
    image_to_text, text_to_image = triplet_parts(scores, 0.2, hardest=True)
    assert round(image_to_text.item(), 6) == 0.7
    assert round(text_to_image.item(), 6) == 0.6


@given(scores=score_matrices(), margin=st.floats(0, 2), hardest=st.booleans())
def test_equals_the_double_loop(scores: list[list[float]], margin: float, hardest: bool) -> None:
    given_parts = triplet_parts(torch.tensor(scores, dtype=torch.float64), margin, hardest)
    assert [part.item() for part in given_parts] == pytest.approx(naive_triplet(scores, margin, hardest), abs=1e-12)


@given(scores=score_matrices(), margin=st.floats(0, 2), hardest=st.booleans())
def test_both_directions_change_places_with_the_matrix(scores: list[list[float]], margin: float, hardest: bool) -> None:
    matrix = torch.tensor(scores, dtype=torch.float64)
    there = triplet_parts(matrix, margin, hardest)
    back = triplet_parts(matrix.T, margin, hardest)
    assert [part.item() for part in there] == pytest.approx([part.item() for part in reversed(back)], abs=1e-12)


@pytest.mark.parametrize("hardest", [False, True])
def test_a_lead_of_the_margin_costs_nothing_and_pulls_nowhere(hardest: bool) -> None:
    scores = torch.eye(4).mul(0.5).requires_grad_()
    loss = triplet_criterion(0.4, hardest)(scores)["loss"]
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.eq(0).all()


@pytest.mark.parametrize("hardest", [False, True])
def test_gradient_is_the_numerical_one(hardest: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    scores = torch.rand(5, 5, generator=draw, dtype=torch.float64)
    matches = scores.diagonal()
    for lead in (scores - matches[:, None], scores - matches[None]):
        off_diagonal = ~torch.eye(5, dtype=torch.bool)
        assert (MARGIN + lead)[off_diagonal].abs().min() > 1e-3  # no hinge within reach of the finite difference
    criterion = triplet_criterion(MARGIN, hardest)
    assert torch.autograd.gradcheck(lambda given: criterion(given)["loss"], scores.requires_grad_())
