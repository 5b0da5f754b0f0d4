"""Batches of images with all their captions: what they hold, the loss of several captions per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import option
from batches.batch import Batch
from batches.pairs import Pairs, PairSource
from batches.sampling import ImageSampler, OneCaptionSampler, PairSampler, Sample, batches_of
from data.annotations import Annotations, read_annotations
from data.similarity.prior import PriorSimilarity
from layers import build_model
from layers.losses.contrastive import contrastive_parts
from layers.losses.objective import build_objective
from layers.losses.triplet import triplet_parts
from layers.registry import registered
from option import Options
from option.optim import Optim
from runs.loaders import train_loader
from runs.media import Media
from runtime.weights import read_checkpoint
from tests.layers.test_layers import random_batch
from tests.tiny import make_precomp, write_experiment
from train import main as train_main
from training.learner import Losses
from training.memory import parts_of
from vocab import Vocabulary

CPU = torch.device("cpu")
CAPTIONS = ("a red roof .", "two roofs", "A red roof", "many trees", "a red  roof.", "trees")


def listed(caption_image: list[int]) -> Annotations:
    images = max(caption_image) + 1
    return Annotations(
        folder=Path("absent"),
        name="train",
        image_names=tuple(f"{image}.png" for image in range(images)),
        captions=CAPTIONS[: len(caption_image)],
        caption_image=np.array(caption_image, dtype=np.int64),
        names_file=Path("absent"),
        image_lines=np.arange(images, dtype=np.int64) + 1,
    )


class TestSampling:
    """Which images and captions make a batch."""

    @given(
        st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30), st.integers(1, 4), st.randoms()
    )
    def test_images_come_with_all_their_usable_captions(
        self, captions: list[tuple[int, bool]], ranks: int, random: object
    ) -> None:
        caption_image = torch.tensor([image for image, _ in captions])
        usable = torch.tensor([good for _, good in captions])
        sampler = ImageSampler(caption_image, usable)
        assert len(sampler) == len(set(caption_image[usable].tolist()))
        items = torch.randperm(len(sampler))
        sample = sampler.sample(items, torch.Generator())
        assert sample.rows is not None
        assert sorted(sample.captions.tolist()) == usable.nonzero().squeeze(1).tolist()
        assert torch.equal(sample.images[sample.rows], caption_image[sample.captions])
        assert (sample.rows.diff() >= 0).all()
        lengths = torch.randint(1, 9, caption_image.shape)
        owned = [lengths[usable & (caption_image == image)].max() for image in sampler.images]
        assert sampler.longest(lengths).tolist() == owned
        shares = sample.shares(ranks)
        assert torch.equal(torch.cat([share.images for share in shares]), sample.images)
        assert torch.equal(torch.cat([share.captions for share in shares]), sample.captions)
        for share in shares:
            assert share.rows is not None
            assert torch.equal(share.images[share.rows], caption_image[share.captions])

    @given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30), st.integers(0, 99))
    def test_each_image_comes_with_one_of_its_usable_captions(
        self, captions: list[tuple[int, bool]], seed: int
    ) -> None:
        caption_image = torch.tensor([image for image, _ in captions])
        usable = torch.tensor([good for _, good in captions])
        sampler = OneCaptionSampler(caption_image, usable)
        items = torch.randperm(len(sampler))
        sample = sampler.sample(items, torch.Generator().manual_seed(seed))
        assert sorted(sample.images.tolist()) == sorted(set(caption_image[usable].tolist()))
        assert torch.equal(caption_image[sample.captions], sample.images)
        assert usable[sample.captions].all()
        assert sample.rows is None
        again = sampler.sample(items, torch.Generator().manual_seed(seed))
        assert torch.equal(again.captions, sample.captions)

    def test_every_caption_is_drawn_in_some_epoch_and_as_often_as_the_others(self) -> None:
        caption_image = torch.tensor([0, 1, 0, 1, 1, 2])
        sampler = OneCaptionSampler(caption_image, torch.tensor([True] * 4 + [False, True]))
        generator = torch.Generator().manual_seed(0)
        drawn = [sampler.sample(torch.arange(3), generator).captions for _ in range(2000)]
        shares = torch.cat(drawn).bincount(minlength=6) / 2000
        torch.testing.assert_close(shares, torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 1.0]), atol=0.05, rtol=0)

    def test_pairs_are_shared_evenly(self) -> None:
        sampler = PairSampler(torch.arange(9) // 2, torch.tensor([True] * 3 + [False] + [True] * 5))
        sample = sampler.sample(torch.tensor([7, 0, 3, 2, 5]), torch.Generator())
        assert sample.captions.tolist() == [8, 0, 4, 2, 6]
        assert sample.images.tolist() == [4, 0, 2, 1, 3]
        assert [share.captions.tolist() for share in sample.shares(2)] == [[8, 0, 4], [2, 6]]

    @pytest.mark.parametrize(
        ("count", "sizes"), [(16, [8, 8]), (20, [8, 8, 4]), (19, [8, 11]), (17, [8, 9]), (3, [3]), (8, [8])]
    )
    def test_no_rank_is_left_with_less_than_two(self, count: int, sizes: list[int]) -> None:
        chunks = batches_of(torch.arange(count), 8, least=4)
        assert [len(chunk) for chunk in chunks] == sizes
        assert torch.cat(chunks).tolist() == list(range(count))


def naive_triplet(
    scores: list[list[float]], owner: list[int], margins: list[list[float]], hardest: bool, matches: list[list[bool]]
) -> tuple[float, float]:
    """Every text with its image is a query both ways; the texts of a wrong image weigh as much as one."""
    sums = [0.0, 0.0]
    for query, image in enumerate(owner):
        own = scores[image][query]
        texts = [
            (max(0.0, margins[image][j] + scores[image][j] - own), owner.count(owner[j]))
            for j in range(len(owner))
            if not matches[image][j]
        ]
        images = [
            max(0.0, margins[i][query] + scores[i][query] - own) for i in range(len(scores)) if not matches[i][query]
        ]
        if hardest:
            sums[0] += max((cost for cost, _ in texts), default=0.0)
            sums[1] += max(images, default=0.0)
        else:
            sums[0] += sum(cost / siblings for cost, siblings in texts)
            sums[1] += sum(images)
    return sums[0], sums[1]


def naive_contrastive(
    scores: list[list[float]], owner: list[int], temperature: float, smoothing: float, matches: list[list[bool]]
) -> tuple[float, float]:
    """Cross-entropies query by query."""
    sums = [0.0, 0.0]
    for query, image in enumerate(owner):
        table = [
            (scores[image], matches[image]),
            ([row[query] for row in scores], [row[query] for row in matches]),
        ]
        for place, (row, own) in enumerate(table):
            total = sum(math.exp(score / temperature) for score in row)
            for score, match in zip(row, own, strict=True):
                target = smoothing / len(row) + (1 - smoothing) * match / sum(own)
                sums[place] -= 0.5 * target * math.log(math.exp(score / temperature) / total)
    return sums[0], sums[1]


@st.composite
def image_batches(draw: st.DrawFn) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Owner of each text, scores, margins and matches [N, M], own pairs and some more."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    owner = [image for image, count in enumerate(counts) for _ in range(count)]
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    scores, margins = torch.rand(2, len(counts), len(owner), generator=random, dtype=torch.float64)
    further = torch.rand(scores.shape, generator=random) < draw(st.sampled_from([0.0, 0.3]))
    return owner, scores, margins, (torch.arange(len(counts))[:, None] == torch.tensor(owner)) | further


class TestLosses:
    """Images with several texts each."""

    @given(given_batch=image_batches(), hardest=st.booleans())
    def test_triplets_equal_their_slow_twin(
        self, given_batch: tuple[list[int], Tensor, Tensor, Tensor], hardest: bool
    ) -> None:
        owner, scores, margins, matches = given_batch
        found = triplet_parts(scores, margins, hardest, matches, torch.tensor(owner))
        expected = naive_triplet(scores.tolist(), owner, margins.tolist(), hardest, matches.tolist())
        assert [part.item() for part in found] == pytest.approx(expected, abs=1e-12)

    @given(given_batch=image_batches(), smoothing=st.sampled_from([0.0, 0.2]))
    def test_contrastive_equals_its_slow_twin(
        self, given_batch: tuple[list[int], Tensor, Tensor, Tensor], smoothing: float
    ) -> None:
        owner, scores, _, matches = given_batch
        found = contrastive_parts(scores, 0.3, smoothing, 0.0, matches, torch.tensor(owner))
        expected = naive_contrastive(scores.tolist(), owner, 0.3, smoothing, matches.tolist())
        assert [part.item() for part in found] == pytest.approx(expected, rel=1e-9)

    def test_a_case_by_hand(self) -> None:
        scores = torch.tensor([[0.5, 0.4, 0.45], [0.35, 0.0, 0.3]])
        parts = triplet_parts(scores, 0.2, hardest=False, image_rows=torch.tensor([0, 0, 1]))
        # Image 0 by text 0: 0.15, by text 1: 0.25 from text 2; image 1 by text 2: (0.25 + 0) / 2 from texts 0 and 1.
        # Text 0: 0.05, text 1: none from image 1; text 2: 0.35 from image 0.
        assert [round(part.item(), 6) for part in parts] == [0.525, 0.4]

    @pytest.mark.parametrize("hardest", [False, True])
    def test_with_one_text_each_nothing_changes_to_the_last_bit(self, hardest: bool) -> None:
        draw = torch.Generator().manual_seed(0)
        scores, prior = torch.rand(2, 9, 9, generator=draw)
        objective = build_objective(
            Optim.whole().model_validate(
                {"loss": {"triplet": 1, "dynamic": 1, "contrastive": 1}, "max_violation": hardest}
                | {"contrastive": {"hard_weight": 0.5, "label_smoothing": 0.1}}
            )
        )
        usual = objective(scores, pairs=Pairs(prior=prior))
        found = objective(scores, pairs=Pairs(prior=prior, image_rows=torch.arange(9)))
        assert all(torch.equal(found[name], value) for name, value in usual.items())


class TestPairSource:
    """What is known of such a batch."""

    SAMPLE = Sample(torch.tensor([2, 0]), torch.tensor([4, 5, 0, 1]), torch.tensor([0, 0, 1, 1]))

    def of(self, mask: str) -> Pairs:
        annotations = listed([0, 0, 1, 1, 2, 2])
        batch = Batch(image_ids=self.SAMPLE.images, caption_ids=self.SAMPLE.captions, whole=self.SAMPLE)
        return PairSource(annotations, mask, PriorSimilarity.build(annotations)).of(batch)  # type: ignore[arg-type]

    def test_equal_captions_match_where_they_are_asked_for(self) -> None:
        assert self.of("none").matches is None
        image, caption = self.of("image"), self.of("caption")
        assert image.matches is not None
        assert caption.matches is not None
        assert image.matches.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
        # Captions 4 and 0 are equal, so that each matches the other's image, too.
        assert caption.matches.int().tolist() == [[1, 1, 1, 0], [1, 0, 1, 1]]
        assert (image.masked_share().item(), caption.masked_share().item()) == (0.0, 0.5)
        assert caption.image_rows is not None
        assert caption.image_rows.tolist() == [0, 0, 1, 1]

    def test_the_prior_stands_at_image_and_caption(self) -> None:
        found = self.of("none").prior
        assert found is not None
        expected = PriorSimilarity.build(listed([0, 0, 1, 1, 2, 2])).between(np.array([2, 0]), np.array([4, 5, 0, 1]))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_model_learns_from_images(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    loss = {"triplet": 1.0, "dynamic": 1.0, "contrastive": 1.0}
    options = tiny_options(name, {"optim.loss": loss, "optim.mask": "caption"})
    model, objective = build_model(options, vocabulary), build_objective(options.optim)
    annotations = listed([0, 0, 1, 1, 2, 2])
    sample = ImageSampler(torch.from_numpy(annotations.caption_image), torch.ones(6) > 0).sample(
        torch.arange(3), torch.Generator()
    )
    items = random_batch(6)
    images = ("images", "second_view", "nodes", "adjacency")
    fewer: dict[str, Any] = {field: items.need(field)[:3] for field in images}
    batch = replace(items, **fewer)
    batch = replace(batch, image_ids=sample.images, image_rows=sample.rows, whole=sample)
    losses = Losses(model, objective, PairSource(annotations, "caption", PriorSimilarity.build(annotations)))(batch)
    assert losses["masked_share"].item() == pytest.approx(6 * 6 / 12)  # each image also matches a caption of the others
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert broken == []


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return write_experiment(folder, make_precomp(folder / "data"))


def batches(experiment: Path, batching: str, each: int) -> list[Batch]:
    """An epoch of the train list, of which only the first `each` captions of an image are usable."""
    options = option.load_options(experiment, [f"dataset.batching={batching}"])
    vocabulary = Vocabulary.load(Path(options.dataset.vocab_path))
    whole = read_annotations(options.dataset.folder, "train")
    captions = [caption if i % 2 < each else " . " for i, caption in enumerate(whole.captions)]
    annotations = replace(whole, captions=tuple(captions))
    return list(train_loader(options, 0, vocabulary, annotations, Media.of(options, [annotations], CPU), CPU).epoch(0))


def test_with_one_caption_per_image_batches_are_those_of_pairs(experiment: Path) -> None:
    for pairs, images in zip(batches(experiment, "pairs", 1), batches(experiment, "images", 1), strict=True):
        for field in ("images", "tokens", "lengths", "image_ids", "caption_ids"):
            assert torch.equal(pairs.need(field), images.need(field)), field
        assert images.need("image_rows").tolist() == list(range(8))


def test_each_image_is_encoded_once_for_its_captions(experiment: Path) -> None:
    found = batches(experiment, "images", 2)
    assert [(batch.image_count, batch.items, len(batch.need("images"))) for batch in found] == [(8, 16, 8)] * 3
    assert sorted(torch.cat([batch.need("image_ids") for batch in found]).tolist()) == list(range(24))
    assert sorted(torch.cat([batch.need("caption_ids") for batch in found]).tolist()) == list(range(48))


def test_training_on_images(experiment: Path) -> None:
    train_main(["--path_opt", str(experiment), "--folds", "0", "--set", "dataset.batching=images", "optim.epochs=3"])
    rows = read_checkpoint(experiment.parent / "checkpoint" / "tiny" / "0" / "last.pth")["history"]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_a_batch_that_does_not_fit_is_cut_between_images(experiment: Path) -> None:
    batch = batches(experiment, "images", 2)[0]
    parts = parts_of(batch, 3)
    assert [(part.image_count, part.items, len(part.need("tokens"))) for part in parts] == [
        (3, 6, 6),
        (3, 6, 6),
        (2, 4, 4),
    ]
    for part in parts:
        assert part.whole is not None
        images = part.need("image_ids")[part.need("image_rows")]
        assert images.tolist() == (part.need("caption_ids") // 2).tolist()
        assert torch.equal(part.whole.captions, part.need("caption_ids"))
        assert torch.equal(part.whole.images, part.need("image_ids"))
    for field in ("images", "caption_ids", "lengths"):
        assert torch.equal(torch.cat([part.need(field) for part in parts]), batch.need(field))
