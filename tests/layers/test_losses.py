"""The training objectives against the released implementation, a double loop, and numerical gradients."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from batches.pairs import Pairs
from data.similarity.margin import dynamic_margin
from layers.losses.base import Seen
from layers.losses.contrastive import contrastive_parts
from layers.losses.dynamic import DynamicMarginLoss
from layers.losses.modalities import (
    distillation,
    generator_loss,
    maximum_mean_discrepancy,
    modality_loss,
    norm_penalty,
)
from layers.losses.objective import build_objective
from layers.losses.triplet import triplet_parts
from option.optim import Optim
from tests import ROOT
from tests.criteria import triplet_criterion

REFERENCE = ROOT / "tests" / "reference"
MARGIN = 0.2  # of the reference


def reference(name: str = "losses") -> dict[str, Tensor]:
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


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


@pytest.mark.parametrize(("copy", "published"), [("losses", "func_utils"), ("alignment", "func_mcrn")])
def test_the_copied_reference_is_the_published_one(copy: str, published: str) -> None:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    with np.load(Path(os.environ["RSR_DATA"]) / "reference" / f"{published}.npz", allow_pickle=False) as archive:
        for name, value in reference(copy).items():
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


def matches_of(size: int, groups: list[int]) -> Tensor:
    """Items of one group match each other."""
    ids = torch.tensor((groups * size)[:size])
    return ids[:, None] == ids[None]


def naive_masked_triplet(scores: Tensor, margins: Tensor, hardest: bool, matches: Tensor) -> tuple[float, float]:
    size = len(scores)
    sums = [0.0, 0.0]
    for query in range(size):
        others = [other for other in range(size) if not matches[query, other]]
        own = float(scores[query, query])
        by_image = [max(0.0, float(margins[query, j]) + float(scores[query, j]) - own) for j in others]
        by_text = [max(0.0, float(margins[i, query]) + float(scores[i, query]) - own) for i in others]
        for place, costs in enumerate((by_image, by_text)):
            sums[place] += max(costs, default=0.0) if hardest else sum(costs)
    return sums[0], sums[1]


def naive_contrastive(
    scores: Tensor, temperature: float, smoothing: float, hard_weight: float, matches: Tensor
) -> tuple[float, float]:
    """Cross-entropies query by query, the weights of the negatives as plain factors."""
    size = len(scores)
    sums = [0.0, 0.0]
    for place, table in enumerate((scores, scores.T)):
        for query in range(size):
            logits = [float(score) / temperature for score in table[query]]
            negatives = [j for j in range(size) if not matches[query, j]]
            hardness = {j: math.exp(hard_weight * logits[j]) for j in negatives}
            mean = sum(hardness.values()) / max(1, len(negatives))
            terms = [math.exp(logits[j]) * (hardness[j] / mean if j in hardness else 1.0) for j in range(size)]
            for j in range(size):
                target = smoothing / size
                if j not in hardness:
                    target += (1 - smoothing) / (size - len(negatives))
                sums[place] -= 0.5 * target * math.log(terms[j] / sum(terms))
    return sums[0], sums[1]


GROUPS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


class TestObjective:
    """What `optim.loss` and `optim.mask` choose."""

    @given(scores=score_matrices(), groups=GROUPS, hardest=st.booleans(), seed=st.integers(0, 99))
    def test_triplets_with_other_margins_and_true_matches(
        self, scores: list[list[float]], groups: list[int], hardest: bool, seed: int
    ) -> None:
        matrix = torch.tensor(scores, dtype=torch.float64)
        margins = torch.rand(matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        matches = matches_of(len(matrix), groups)
        found = triplet_parts(matrix, margins, hardest, matches)
        expected = naive_masked_triplet(matrix, margins, hardest, matches)
        assert [part.item() for part in found] == pytest.approx(expected, abs=1e-12)

    @given(
        scores=score_matrices(),
        groups=GROUPS,
        temperature=st.floats(0.05, 1),
        smoothing=st.floats(0, 0.9),
        hard_weight=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def test_contrastive_equals_its_slow_twin(
        self, scores: list[list[float]], groups: list[int], temperature: float, smoothing: float, hard_weight: float
    ) -> None:
        matrix = torch.tensor(scores, dtype=torch.float64)
        matches = matches_of(len(matrix), groups)
        found = contrastive_parts(matrix, temperature, smoothing, hard_weight, matches)
        expected = naive_contrastive(matrix, temperature, smoothing, hard_weight, matches)
        assert [part.item() for part in found] == pytest.approx(expected, rel=1e-9, abs=1e-9)

    def test_contrastive_is_the_usual_cross_entropy_where_nothing_else_is_asked_for(self) -> None:
        scores = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(7)
        expected = [
            torch.nn.functional.cross_entropy(s / 0.07, labels, reduction="sum") / 2 for s in (scores, scores.T)
        ]
        torch.testing.assert_close(contrastive_parts(scores, 0.07), tuple(expected))

    @pytest.mark.parametrize("hard_weight", [0.0, 0.7])
    @pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1], [0]])
    def test_contrastive_gradients_are_the_numerical_ones(self, hard_weight: float, groups: list[int]) -> None:
        scores = torch.rand(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
        temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        matches = matches_of(5, groups)
        assert torch.autograd.gradcheck(
            lambda s, t: contrastive_parts(s, t, 0.1, hard_weight, matches), (scores, temperature)
        )

    @pytest.mark.parametrize("hardest", [False, True])
    def test_masked_dynamic_gradients_are_the_numerical_ones(self, hardest: bool) -> None:
        draw = torch.Generator().manual_seed(4)
        scores, prior = torch.rand(2, 5, 5, generator=draw, dtype=torch.float64)
        loss = DynamicMarginLoss(0.6, 5.0, hardest)
        pairs = Pairs(matches_of(5, [0, 1, 0, 2, 3]), prior)
        margins = dynamic_margin(prior, 0.6, 5.0)
        for own in (scores.diagonal()[:, None], scores.diagonal()[None]):
            assert (margins + scores - own)[~torch.eye(5, dtype=torch.bool)].abs().min() > 1e-4
        assert torch.autograd.gradcheck(lambda s: loss(Seen(s, pairs)), scores.requires_grad_())

    def test_the_dynamic_margin_by_hand(self) -> None:
        margins = dynamic_margin(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.6, 5.0)
        middle = 0.6 * (math.exp(5) - math.exp(2.5)) / (math.exp(5) - 1)
        assert margins.tolist() == pytest.approx([0.6, middle, 0.0], abs=1e-12)

    def test_the_default_is_the_triplet_loss_alone(self) -> None:
        scores = reference()["scores"]
        found = build_objective(Optim())(scores, pairs=Pairs())
        expected = triplet_criterion(0.2, hardest=False)(scores)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_a_weighted_sum_and_its_parts(self) -> None:
        scores = reference()["scores"]
        prior = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
        weights = {"triplet": 2.0, "dynamic": 0.5, "contrastive": 0.25}
        losses = build_objective(Optim.whole().model_validate({"loss": weights}))(scores, pairs=Pairs(prior=prior))
        single = {
            "triplet": triplet_parts(scores, 0.2, hardest=False),
            "dynamic": triplet_parts(scores, dynamic_margin(prior, 0.6, 5.0), hardest=False),
            "contrastive": contrastive_parts(scores, 0.07),
        }
        expected = {name: weights[name] * (both[0] + both[1]).item() for name, both in single.items()}
        assert {name: losses[name].item() for name in weights} == pytest.approx(expected, rel=1e-5)
        assert losses["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-5)
        assert (losses["image_to_text"] + losses["text_to_image"]).item() == pytest.approx(losses["loss"].item())

    @pytest.mark.parametrize(("start", "kept"), [(-9.0, 0.01), (3.0, 1.0)])
    def test_a_temperature_out_of_range_comes_back_and_still_learns(self, start: float, kept: float) -> None:
        objective = build_objective(Optim.whole().model_validate({"loss": "contrastive"}))
        assert objective.figures()["temperature"].item() == pytest.approx(0.07)
        parameter = next(objective.parameters())
        torch.nn.init.constant_(parameter, start)
        objective(reference()["scores"], pairs=Pairs())["loss"].backward()
        assert objective.figures()["temperature"].item() == pytest.approx(kept)
        assert parameter.grad is not None
        assert parameter.grad.abs() > 1e-3

    def test_the_masked_share_counts_pairs_off_the_diagonal(self) -> None:
        assert Pairs(matches_of(4, [0, 1, 0, 2])).masked_share().item() == pytest.approx(2 / 12)
        assert Pairs(matches_of(1, [0])).masked_share().item() == 0

    def test_the_dynamic_margin_needs_a_prior(self) -> None:
        with pytest.raises(ValueError, match=r"Pairs\.prior"):
            DynamicMarginLoss(0.6, 5.0, max_violation=False)(Seen(torch.zeros(2, 2), Pairs()))


def naive_distillation(student: Tensor, teacher: Tensor) -> float:
    total = 0.0
    for row_student, row_teacher in zip(student.tolist(), teacher.tolist(), strict=True):
        q_sum, p_sum = (sum(math.exp(x / 0.2) for x in row) for row in (row_student, row_teacher))
        for a, b in zip(row_student, row_teacher, strict=True):
            q, p = math.exp(a / 0.2) / q_sum, math.exp(b / 0.2) / p_sum
            total += p * (math.log(p) - math.log(q))
    return total / student.numel()


def naive_discrepancy(first: Tensor, second: Tensor) -> float:
    features = [*first.tolist(), *second.tolist()]
    count, half = len(features), len(first)
    squared = [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in features] for a in features]
    base = sum(map(sum, squared)) / (count * count - count)
    total = 0.0
    for i in range(count):
        for j in range(count):
            sign = 1 if (i < half) == (j < half) else -1
            total += sign * sum(math.exp(-squared[i][j] / max(base * 2.0**k, 1e-8)) for k in range(-2, 3))
    return total


def naive_modality_loss(logits: Tensor, modality: int) -> float:
    rows = logits.tolist()
    return sum(math.log(sum(map(math.exp, row))) - row[modality] for row in rows) / len(rows)


class TestAlignment:
    """The objectives of MCRN, whose reference values stem from three sets of features [16, 512]: A, B, and C near A."""

    def test_half_of_both_triplets_is_the_released_multi_source_loss(self) -> None:
        expected = reference("alignment")
        for hardest in (False, True):
            criterion = triplet_criterion(MARGIN, hardest)
            loss = 0.5 * (criterion(expected["score_vt"])["loss"] + criterion(expected["score_va"])["loss"])
            torch.testing.assert_close(loss, expected[f"multi_source_triplet_mv{hardest:d}"], atol=0, rtol=1e-6)

    @pytest.mark.parametrize("pair", ["AB", "AC", "AA"])
    def test_reference_discrepancy_and_gradient(self, pair: str) -> None:
        expected = reference("alignment")
        first = expected[f"feat{pair[0]}"].requires_grad_()
        loss = maximum_mean_discrepancy(first, expected[f"feat{pair[1]}"].detach().clone())
        loss.backward()
        # C is so near to A that the reference, in float32, has lost all digits but two.
        assert loss.item() == pytest.approx(expected[f"mmd_rbf_{pair}"].item(), rel=1e-6, abs=1e-5)
        assert first.grad is not None
        torch.testing.assert_close(first.grad, expected[f"mmd_rbf_{pair}_grad"], atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("pair", ["AB", "AC", "AA"])
    def test_reference_distillation(self, pair: str) -> None:
        expected = reference("alignment")
        loss = distillation(expected[f"feat{pair[0]}"], expected[f"feat{pair[1]}"])
        torch.testing.assert_close(loss, expected[f"kd_{pair}"], atol=1e-10, rtol=1e-6)

    def test_the_gradient_of_distillation_reaches_the_teacher(self) -> None:
        expected = reference("alignment")
        student, teacher = expected["featA"].requires_grad_(), expected["featB"].requires_grad_()
        distillation(student, teacher).backward()
        torch.testing.assert_close(student.grad, expected["kd_AB_grad_student"], atol=1e-9, rtol=1e-5)
        torch.testing.assert_close(teacher.grad, expected["kd_AB_grad_teacher"], atol=1e-9, rtol=1e-5)

    @pytest.mark.parametrize(("name", "share"), [("A", 1), ("small", 0.01), ("mixed", None)])
    def test_reference_norm_penalty(self, name: str, share: float | None) -> None:
        expected = reference("alignment")
        features = expected["norm_loss_in_mixed"] if share is None else share * expected["featA"]
        torch.testing.assert_close(norm_penalty(features), expected[f"norm_loss_{name}"], atol=0, rtol=2e-6)

    @given(seed=st.integers(0, 2**31), size=st.integers(1, 5), width=st.integers(1, 4), spread=st.floats(0.01, 3))
    def test_equal_their_slow_twins(self, seed: int, size: int, width: int, spread: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        first, second = torch.randn(2, size, width, generator=draw, dtype=torch.float64) * spread
        assert distillation(first, second).item() == pytest.approx(naive_distillation(first, second), abs=1e-12)
        found = maximum_mean_discrepancy(first, second).item()
        assert found == pytest.approx(naive_discrepancy(first, second), abs=1e-9)
        lengths = [math.hypot(*row) for row in first.tolist()]
        assert norm_penalty(first).item() == pytest.approx(abs(sum(lengths) / size - 1), abs=1e-12)
        for modality in range(width):
            expected = naive_modality_loss(first, modality)
            assert modality_loss(first, modality).item() == pytest.approx(expected, abs=1e-12)

    def test_equal_features_of_no_spread_have_no_discrepancy(self) -> None:
        constant = torch.ones(3, 4, requires_grad=True)
        loss = maximum_mean_discrepancy(constant, torch.ones(3, 4))
        loss.backward()
        assert loss.item() == 0
        assert constant.grad is not None
        assert constant.grad.eq(0).all()

    def test_the_bandwidth_has_no_gradient(self) -> None:
        draw = torch.Generator().manual_seed(0)
        first, second = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
        base = float(torch.pdist(torch.cat([first, second])).square().mean())

        def fixed(given: Tensor) -> Tensor:
            features = torch.cat([given, second])
            squared = (features[:, None] - features[None]).square().sum(-1)
            kernels = sum(torch.exp(-squared / (base * 2.0**k)) for k in range(-2, 3))
            assert isinstance(kernels, Tensor)
            return kernels[:4, :4].sum() + kernels[4:, 4:].sum() - 2 * kernels[:4, 4:].sum()

        (expected,) = torch.autograd.grad(fixed(first.requires_grad_()), first)
        (found,) = torch.autograd.grad(maximum_mean_discrepancy(first, second), first)
        torch.testing.assert_close(found, expected)

    def test_the_generators_loss_part_by_part(self) -> None:
        draw = torch.Generator().manual_seed(1)
        f1, f2, g1, g2 = torch.randn(4, 6, 5, generator=draw, dtype=torch.float64)
        d1, d2 = torch.randn(2, 6, 3, generator=draw, dtype=torch.float64)
        losses = {name: value.item() for name, value in generator_loss((f1, f2), (g1, g2), (d1, d2), 2).items()}
        lengths = [sum(math.hypot(*row) for row in view.tolist()) / 6 for view in (f1, f2, g1, g2)]
        assert losses == pytest.approx(
            {
                "loss": sum(value for name, value in losses.items() if name != "loss"),
                "mmd": 0.01 * naive_discrepancy(f1, f2),
                "mse_view": sum((x - y) ** 2 for x, y in zip(g1.flatten(), g2.flatten(), strict=True)).item() / 30,
                "adversarial": naive_modality_loss(d1, 2) + naive_modality_loss(d2, 2),
                "norm": 0.01 * sum(abs(length - 1) for length in lengths),
            }
        )

    def test_a_discrepancy_above_200_is_clipped_and_pulls_nowhere(self) -> None:
        first, second = torch.zeros(40, 8, requires_grad=True), torch.ones(40, 8)
        assert maximum_mean_discrepancy(first, second).item() > 200
        views = torch.ones(40, 8)
        losses = generator_loss((first, second), (views, views), (views[:, :3], views[:, :3]), 0)
        assert losses["mmd"].item() == pytest.approx(2)
        (gradient,) = torch.autograd.grad(losses["mmd"], first)
        assert gradient.eq(0).all()
