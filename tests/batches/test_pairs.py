"""What is known of the pairs of a batch, and that every model trains with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from batches.batch import Batch
from batches.pairs import PairSource
from data.annotations import Annotations
from data.similarity.margin import dynamic_margin
from data.similarity.prior import PriorSimilarity
from layers import build_model
from layers.losses.objective import build_objective
from layers.losses.triplet import triplet_parts
from layers.registry import registered
from option import Options
from tests.layers.test_layers import random_batch
from training.learner import Losses
from vocab import Vocabulary

CAPTIONS = ("a red roof .", "two roofs", "A red roof", "many trees", "a red  roof.", "trees")


@pytest.fixture(scope="module")
def pair_list() -> Annotations:
    """Three images of two captions; the first caption stands under each of them, up to case and punctuation."""
    return Annotations(
        folder=Path("absent"),
        name="train",
        image_names=("0.png", "1.png", "2.png"),
        captions=CAPTIONS,
        caption_image=np.repeat(np.arange(3, dtype=np.int64), 2),
        names_file=Path("absent"),
        image_lines=np.arange(3, dtype=np.int64) + 1,
    )


def batch_of(captions: list[int]) -> Batch:
    ids = torch.tensor(captions)
    return Batch(caption_ids=ids, image_ids=ids // 2)


def test_without_a_mask_nothing_is_known(pair_list: Annotations) -> None:
    pairs = PairSource(pair_list, "none", None).of(batch_of([0, 1, 2]))
    assert pairs.matches is None
    assert pairs.prior is None


def test_images_and_equal_captions_match(pair_list: Annotations) -> None:
    batch = batch_of([4, 1, 0, 5])
    images = PairSource(pair_list, "image", None).of(batch).matches
    captions = PairSource(pair_list, "caption", None).of(batch).matches
    assert images is not None
    assert captions is not None
    assert images.int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    assert captions.int().tolist() == [[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_the_prior_stands_at_image_and_caption(pair_list: Annotations) -> None:
    prior = PriorSimilarity.build(pair_list)
    found = PairSource(pair_list, "none", prior).of(batch_of([4, 1, 0])).prior
    assert found is not None
    assert found.dtype == torch.float32
    expected = prior.between(np.array([2, 0, 0]), np.array([4, 1, 0]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_model_learns_with_every_objective(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary, pair_list: Annotations
) -> None:
    loss = {"triplet": 1.0, "dynamic": 1.0, "contrastive": 1.0}
    options = tiny_options(name, {"optim.loss": loss, "optim.mask": "caption"})
    model, objective = build_model(options, vocabulary), build_objective(options.optim)
    ids = batch_of([0, 1, 2, 3, 4, 5])
    batch = random_batch(6)
    object.__setattr__(batch, "image_ids", ids.image_ids)
    source = PairSource(pair_list, "caption", PriorSimilarity.build(pair_list))
    losses = Losses(model, objective, source)(batch)
    assert losses["masked_share"].item() == pytest.approx(6 * 12 / 30)
    assert losses["temperature"].item() == pytest.approx(6 * 0.07)
    losses["loss"].backward()
    (parameter,) = objective.parameters()
    assert parameter.grad is not None
    assert parameter.grad != 0


def test_the_margin_falls_on_the_right_pair(pair_list: Annotations) -> None:
    pairs = PairSource(pair_list, "none", PriorSimilarity.build(pair_list)).of(batch_of([0, 2, 3]))
    assert pairs.prior is not None
    margins = dynamic_margin(pairs.prior, 0.6, 5.0)
    # Equal but for the full stop: hardly any margin between image 0 and caption 2; captions 0 and 3 share nothing.
    assert margins[0, 2].item() == pytest.approx(0.6)
    assert margins[0, 1] < 0.59
    scores = torch.zeros(3, 3)
    there, back = triplet_parts(scores, margins, hardest=False)
    off_diagonal = margins.sum() - margins.diagonal().sum()
    assert [there.item(), back.item()] == pytest.approx([off_diagonal.item()] * 2)
