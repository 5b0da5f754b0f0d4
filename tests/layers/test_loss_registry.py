"""What holds for every registered loss, found by its name, and the slow twins of the newer ones."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from batches.pairs import Pairs
from batches.sampling import Sample
from data.annotations import Annotations
from data.embeddings import EMBEDDINGS, FORMAT
from layers.base import l2norm
from layers.losses.affiliation import affiliation_parts
from layers.losses.base import Loss, Seen
from layers.losses.intra import intra_parts
from layers.losses.objective import build_objective
from layers.losses.sigmoid import sigmoid_parts
from layers.losses.soft_targets import soft_target_parts
from layers.registry import register_loss, registered_losses
from option.optim import Optim
from option.parameters import loss_blocks
from utils import InputError

ROWS = torch.tensor([0, 0, 1, 2, 3, 3])
"""Own images of six texts."""
GROUPS = torch.tensor([2, 0, -1, 2])
IMAGES = ("park_1.png", "road_2.png", "park_3.png", "pond_4.png")
CAPTIONS = ("a park", "trees", "a road", "green trees", "a pond", "water")


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [4, 6] and embeddings of unit length, float64."""
    draw = torch.Generator().manual_seed(seed)
    images, texts = (l2norm(torch.randn(count, 5, generator=draw, dtype=torch.float64)) for count in (4, 6))
    return images @ texts.T, images, texts


def a_list(folder: Path) -> Annotations:
    return Annotations(folder, "train", IMAGES, CAPTIONS, ROWS.numpy(), folder / "train_filename.txt", np.arange(1, 5))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return a_list(tmp_path_factory.mktemp("lists"))


def write_teacher(path: Path, images: Tensor, captions: Tensor, names: tuple[str, ...] = IMAGES) -> Path:
    with h5py.File(path, "w") as archive:
        archive.attrs["format"] = FORMAT
        archive.create_dataset("image_names", data=names, dtype=h5py.string_dtype())
        archive.create_dataset("captions", data=CAPTIONS, dtype=h5py.string_dtype())
        for name, rows in zip(EMBEDDINGS, (images, captions), strict=True):
            archive[f"teacher/{name}"] = rows.numpy()
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.h5", *inputs(7)[1:])


def built(name: str, train: Annotations, teacher: Path) -> Loss:
    optim = {"loss": name} | ({"soft_targets": {"teacher_path": teacher}} if name == "soft_targets" else {})
    objective = build_objective(Optim.whole().model_validate(optim))
    objective.prepare(train)
    loss = objective.losses[name]
    assert isinstance(loss, Loss)
    return loss.double()


def pairs_of(order: Tensor | None = None) -> Pairs:
    """All images of the list with their captions, or with those captions in another order."""
    order = torch.arange(6) if order is None else order
    prior = torch.rand(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[:, order]
    return Pairs(None, prior, ROWS[order], Sample(torch.arange(4), order, ROWS[order]))


@pytest.mark.parametrize("name", sorted(registered_losses()))
class TestEveryLoss:
    def test_both_directions_are_finite_costs(self, name: str, train: Annotations, teacher: Path) -> None:
        parts = built(name, train, teacher)(Seen(inputs()[0], pairs_of(), *inputs()[1:]))
        assert [part.shape for part in parts] == [(), ()]
        assert all(part.isfinite() and part >= 0 for part in parts)
        assert parts[0] + parts[1] > 0

    def test_the_gradient_is_the_numerical_one(self, name: str, train: Annotations, teacher: Path) -> None:
        loss = built(name, train, teacher)

        def cost(*given: Tensor) -> Tensor:
            return torch.stack(loss(Seen(given[0], pairs_of(), *given[1:]))).sum()

        given = [value.requires_grad_() for value in inputs(3)]
        learned = list(loss.parameters())
        assert torch.autograd.gradcheck(cost, given)
        grads = torch.autograd.grad(cost(*given), [*given, *learned], allow_unused=True)
        assert any(grad is not None and grad.abs().sum() > 0 for grad in grads[:3])
        assert all(grad is not None and grad.isfinite().all() for grad in grads[3:])

    def test_the_order_of_the_captions_does_not_matter(self, name: str, train: Annotations, teacher: Path) -> None:
        order, (scores, images, texts) = torch.tensor([3, 0, 5, 2, 1, 4]), inputs()
        loss = built(name, train, teacher)
        expected = loss(Seen(scores, pairs_of(), images, texts))
        found = loss(Seen(scores[:, order], pairs_of(order), images, texts[order]))
        assert [part.item() for part in found] == pytest.approx([part.item() for part in expected], rel=1e-12)


def naive_sigmoid(scores: Tensor, temperature: float, bias: float) -> float:
    total = 0.0
    for image in range(4):
        for text in range(6):
            logit = float(scores[image, text]) / temperature + bias
            total += math.log(1 + math.exp(-logit if int(ROWS[text]) == image else logit))
    return total


def test_the_sigmoid_loss_equals_its_slow_twin() -> None:
    scores, (t, b) = inputs()[0], torch.tensor([0.3, -2.0], dtype=torch.float64)
    parts = sigmoid_parts(scores, t, b, Seen(scores, pairs_of()).matches)
    assert parts[0] == parts[1]
    assert 2 * parts[0].item() == pytest.approx(naive_sigmoid(scores, 0.3, -2.0), rel=1e-12)


def naive_intra(scores: Tensor, images: Tensor, texts: Tensor, t: float, alike: set[tuple[int, int]]) -> list[float]:
    """Query by query; `alike` are the images and texts that are no negatives besides the own ones."""
    fits = {(int(ROWS[text]), text) for text in range(6)} | alike
    sums = [0.0, 0.0]
    for text in range(6):
        image = int(ROWS[text])
        own = math.exp(float(scores[image, text]) / t)
        others = [j for j in range(4) if not any((image, k) in fits for k in range(6) if int(ROWS[k]) == j)]
        rest = sum(math.exp(float(images[image] @ images[j]) / t) for j in others)
        sums[0] -= 0.5 * math.log(own / (own + rest))
        rest = sum(math.exp(float(texts[text] @ texts[k]) / t) for k in range(6) if (image, k) not in fits)
        sums[1] -= 0.5 * math.log(own / (own + rest))
    return sums


@pytest.mark.parametrize("alike", [set(), {(1, 0), (0, 4), (2, 3)}])
def test_the_contrast_inside_modalities_equals_its_slow_twin(alike: set[tuple[int, int]]) -> None:
    given = inputs()
    matches = Seen(given[0], pairs_of()).matches.clone()
    for pair in alike:
        matches[pair] = True
    parts = intra_parts(*given, torch.tensor(0.4, dtype=torch.float64), matches, ROWS)
    assert [part.item() for part in parts] == pytest.approx(naive_intra(*given, 0.4, alike), rel=1e-12)


def naive_affiliation(images: Tensor, texts: Tensor, t: float) -> list[float]:
    groups, rows = GROUPS.tolist(), ROWS.tolist()
    centres = {
        group: (
            torch.stack([texts[k] for k in range(6) if groups[rows[k]] == group]).mean(dim=0),
            torch.stack([images[i] for i in range(4) if groups[i] == group]).mean(dim=0),
        )
        for group in set(groups) - {-1}
    }
    sums = [0.0, 0.0]
    for text, image in enumerate(rows):
        for side, item in enumerate((images[image], texts[text])):
            if groups[image] >= 0:
                terms = {group: math.exp(float(item @ both[side]) / t) for group, both in centres.items()}
                sums[side] -= 0.5 * math.log(terms[groups[image]] / sum(terms.values()))
    return sums


def test_the_affiliation_loss_equals_its_slow_twin_and_leaves_out_what_has_no_scene() -> None:
    _, images, texts = inputs()
    parts = affiliation_parts(images, texts, GROUPS, ROWS, torch.tensor(0.3, dtype=torch.float64))
    assert [part.item() for part in parts] == pytest.approx(naive_affiliation(images, texts, 0.3), rel=1e-12)
    none = affiliation_parts(images, texts, torch.full((4,), -1), ROWS, torch.tensor(0.3))
    assert [part.item() for part in none] == [0, 0]


def test_the_affiliation_loss_knows_scenes_by_file_names(train: Annotations, teacher: Path) -> None:
    scores, images, texts = inputs()
    found = built("affiliation", train, teacher)(Seen(scores, pairs_of(), images, texts))
    scenes = torch.tensor([0, 2, 0, 1])
    expected = affiliation_parts(images, texts, scenes, ROWS, torch.tensor(0.07, dtype=torch.float64))
    assert [part.item() for part in found] == pytest.approx([part.item() for part in expected], rel=1e-6)


def test_the_affiliation_loss_needs_two_scenes(tmp_path: Path) -> None:
    names = tuple(f"{number}.png" for number in range(4))
    annotations = Annotations(tmp_path, "train", names, CAPTIONS, ROWS.numpy(), tmp_path / "names", np.arange(1, 5))
    objective = build_objective(Optim.whole().model_validate({"loss": "affiliation"}))
    with pytest.raises(InputError, match=r"optim\.loss: affiliation.*0 named scenes.*scenes\.txt"):
        objective.prepare(annotations)


def naive_soft_targets(scores: Tensor, cosines: Tensor, t: float, teacher_t: float) -> list[float]:
    sums = [0.0, 0.0]
    for text, image in enumerate(ROWS.tolist()):
        for side, (model, target) in enumerate(((scores[image], cosines[image]), (scores[:, text], cosines[:, text]))):
            q = [math.exp(value / t) for value in model.tolist()]
            p = [math.exp(value / teacher_t) for value in target.tolist()]
            for a, b in zip(p, q, strict=True):
                sums[side] += 0.5 * a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
    return sums


def test_soft_targets_equal_their_slow_twin_and_cost_nothing_where_both_agree(
    train: Annotations, teacher: Path
) -> None:
    scores, cosines = inputs()[0], inputs(7)[0]
    parts = soft_target_parts(scores, cosines, 0.3, 0.2, ROWS)
    assert [part.item() for part in parts] == pytest.approx(naive_soft_targets(scores, cosines, 0.3, 0.2), rel=1e-12)
    assert built("soft_targets", train, teacher)(Seen(cosines, pairs_of()))[0].item() == pytest.approx(0, abs=1e-9)


def test_a_teacher_is_read_by_names_and_refused_where_it_lacks_some(tmp_path: Path, train: Annotations) -> None:
    _, images, captions = inputs(7)
    turned = write_teacher(tmp_path / "turned.h5", images.flip(0), captions, tuple(reversed(IMAGES)))
    assert built("soft_targets", train, turned)(Seen(images @ captions.T, pairs_of()))[1].item() < 1e-9
    other = write_teacher(tmp_path / "other.h5", images, captions, ("another.png", *IMAGES[1:]))
    with pytest.raises(InputError, match=r"no embedding of 1 of 4 images \(park_1\.png\)"):
        built("soft_targets", train, other)
    (tmp_path / "text.h5").write_text("no archive")
    with pytest.raises(InputError, match=r"text\.h5: expected one group of embeddings"):
        built("soft_targets", train, tmp_path / "text.h5")
    with pytest.raises(InputError, match=r"optim\.soft_targets\.teacher_path: needed"):
        build_objective(Optim.whole().model_validate({"loss": "soft_targets"})).prepare(train)


def test_losses_of_embeddings_say_so_where_a_model_hands_over_scores_alone(train: Annotations, teacher: Path) -> None:
    with pytest.raises(InputError, match=r"optim\.loss: one of these losses compares embeddings"):
        built("intra", train, teacher)(Seen(inputs()[0], pairs_of()))


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="'triplet' is already registered by TripletLoss"):
        register_loss("triplet")(Loss)


def test_every_block_is_part_of_the_options() -> None:
    optim = Optim.whole().model_validate({})
    blocks = {name: block.parameters for name, block in loss_blocks().items() if block.parameters is not None}
    assert {name: type(getattr(optim, name)) for name in blocks} == blocks
    assert len(blocks) >= 6
