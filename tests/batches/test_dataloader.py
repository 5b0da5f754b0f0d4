"""Tokens, and the batches of training and evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vocab
from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise
from batches.batch import Batch, Captions
from batches.sampling import like_lengths
from data.annotations import Annotations
from data.image_store import ImageStore
from dataloader import EvaluationLoader, TrainLoader
from option.images import ImageRule
from utils import InputError

CPU = torch.device("cpu")
COUNT = 7
SIZE = 32
MARGIN = 35
RULE = ImageRule(max_pixels=10_000)
CAPTIONS = (
    *("two planes", "two planes", "a big plane is parked near the terminal"),
    *("a farm", ".", "a green farm with trees"),
    *("  ", "", " . "),
    *("a port", "A port.", "port"),
    *("many boats in the port", "boats", "two boats"),
    *("a beach", "waves", "a beach"),
    *("trees", "many trees", "green trees"),
)
BLANK = (4, 6, 7, 8)
VOCABULARY = vocab.build(CAPTIONS, min_count=1, stop_words=False)
UNKNOWN = VOCABULARY.word2idx["<unk>"]


@pytest.fixture
def listed(tmp_path: Path) -> Annotations:
    """Seven images of noise, three captions each; image i has no value outside of 30 i + 10 .. 30 i + 29."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(COUNT):
        noise = random.integers(30 * i + 10, 30 * i + 30, (50 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"images/{i}.png")
    return Annotations(
        folder=tmp_path,
        name="train",
        image_names=tuple(f"{i}.png" for i in range(COUNT)),
        captions=CAPTIONS,
        caption_image=np.repeat(np.arange(COUNT), 3),
        names_file=tmp_path / "train_filename.txt",
        image_lines=np.arange(COUNT) + 1,
    )


def _store(listed: Annotations, cache: str, size: int) -> ImageStore:
    """The images in the opposite order, as a store of other lists, too, may hold them."""
    paths = [listed.folder / "images" / name for name in reversed(listed.image_names)]
    return ImageStore(paths, size, cache, listed.folder / "cache", CPU, RULE)


def _train_loader(
    listed: Annotations,
    cache: str = "ram",
    batch_size: int = 5,
    workers: int = 0,
    seed: int = 1,
    length_buckets: bool = False,
) -> TrainLoader:
    return TrainLoader(
        listed,
        Captions.encode(listed.captions, VOCABULARY),
        torch.tensor([i not in BLANK for i in range(len(CAPTIONS))]),
        _store(listed, cache, MARGIN),
        torch.arange(COUNT).flip(0),
        batch_size=batch_size,
        image_size=SIZE,
        workers=workers,
        seed=seed,
        device=CPU,
        length_buckets=length_buckets,
    )


def _evaluation_loader(listed: Annotations, cache: str = "ram", workers: int = 0) -> EvaluationLoader:
    return EvaluationLoader(
        listed,
        Captions.encode(listed.captions, VOCABULARY),
        _store(listed, cache, SIZE),
        torch.arange(COUNT).flip(0),
        batch_size=3,
        workers=workers,
        device=CPU,
    )


def _assert_same(batches: Sequence[Batch], others: Sequence[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for field in ("images", "tokens", "lengths", "image_ids", "caption_ids"):
            assert torch.equal(batch.need(field), other.need(field)), field


def _caption_order(batches: Sequence[Batch]) -> list[int]:
    return torch.cat([batch.need("caption_ids") for batch in batches]).tolist()


def test_captions_are_encoded_and_padded() -> None:
    captions = Captions.encode(CAPTIONS, VOCABULARY)
    assert captions.tokens.dtype == captions.lengths.dtype == torch.int64
    assert captions.tokens.shape == (len(CAPTIONS), 8)
    for row, length, caption in zip(captions.tokens, captions.lengths, CAPTIONS, strict=True):
        assert row.tolist() == VOCABULARY.encode(caption) + [0] * (8 - length)
    for blank in BLANK:
        assert (captions.tokens[blank, 0], captions.lengths[blank]) == (UNKNOWN, 1)
    batch = captions.batch(torch.tensor([13, 0, 5]))
    assert batch.need("tokens").shape == (3, 5)
    assert batch.need("lengths").tolist() == [1, 2, 5]
    assert batch.need("caption_ids").tolist() == [13, 0, 5]
    assert batch.images is None


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=12))
def test_distinct_captions(rows: list[list[int]]) -> None:
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    captions = Captions(tokens, torch.tensor([len(row) for row in rows]))
    distinct, row_of = captions.distinct()
    assert len(distinct.lengths) == len(set(map(tuple, rows)))
    assert torch.equal(distinct.tokens[row_of], captions.tokens)
    assert torch.equal(distinct.lengths[row_of], captions.lengths)
    assert distinct.lengths.tolist() == sorted(distinct.lengths.tolist(), reverse=True)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_an_epoch_has_every_usable_pair_once(listed: Annotations, batch_size: int) -> None:
    loader = _train_loader(listed, batch_size=batch_size)
    batches = list(loader.epoch(0))
    sizes = [len(batch.need("caption_ids")) for batch in batches]
    assert len(loader) == len(sizes)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sorted(_caption_order(batches)) == [i for i in range(len(CAPTIONS)) if i not in BLANK]


def test_a_batch_holds_matching_pairs(listed: Annotations) -> None:
    for batch in _train_loader(listed).epoch(2):
        images, tokens, lengths = batch.need("images"), batch.need("tokens"), batch.need("lengths")
        assert (images.shape[1:], images.dtype) == ((3, SIZE, SIZE), torch.float32)
        assert lengths.device == CPU
        assert tokens.shape == (len(images), int(lengths.max()))
        # The centre of a view lies inside of the image at any angle.
        centre = images[:, :, SIZE // 2, SIZE // 2] * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
        shown = (centre * 255 - 10) / 30
        for row, caption in enumerate(batch.need("caption_ids").tolist()):
            image = int(batch.need("image_ids")[row])
            assert image == listed.caption_image[caption]
            assert ((shown[row] > image - 0.01) & (shown[row] < image + 0.66)).all()
            ids = VOCABULARY.encode(CAPTIONS[caption])
            assert int(lengths[row]) == len(ids)
            assert tokens[row].tolist() == ids + [0] * (tokens.shape[1] - len(ids))


def test_order_and_views_follow_from_seed_and_epoch_alone(listed: Annotations) -> None:
    loader = _train_loader(listed)
    fresh = list(loader.epoch(3))
    next(loader.epoch(0))
    list(loader.epoch(1))
    torch.manual_seed(99)
    _assert_same(list(loader.epoch(3)), fresh)
    _assert_same(list(_train_loader(listed).epoch(3)), fresh)
    orders = [
        _caption_order(list(_train_loader(listed, seed=seed).epoch(epoch))) for seed in (1, 2) for epoch in (3, 4)
    ]
    assert orders[0] == _caption_order(fresh)
    assert len(set(map(tuple, orders))) == 4
    # One epoch in which all pairs fit into one batch shows that the views, too, are drawn anew.
    (one,), (other,) = (list(_train_loader(listed, batch_size=100).epoch(epoch)) for epoch in (0, 1))
    views = [batch.need("images")[batch.need("caption_ids").argsort()] for batch in (one, other)]
    assert not (views[0] == views[1]).flatten(1).all(dim=1).any()


def test_batches_of_like_lengths_hold_the_same_captions() -> None:
    lengths = torch.tensor([5, 1, 9, 1, 5, 9, 2, 2, 5])
    order = torch.tensor([8, 0, 3, 5, 7, 1, 2, 6, 4])
    seen = set()
    for seed in range(20):
        batches = like_lengths(order, lengths, 2, torch.Generator().manual_seed(seed))
        # By length, captions of equal length as in the order; the single last one joins the batch before it.
        assert sorted(batch.tolist() for batch in batches) == [[3, 1], [4, 5, 2], [7, 6], [8, 0]]
        seen.add(tuple(batch[0].item() for batch in batches))
    assert len(seen) > 10  # the batches come in random order


def test_length_buckets_change_the_order_alone(listed: Annotations) -> None:
    plain, bucketed = _train_loader(listed), _train_loader(listed, length_buckets=True)
    first, again, next_epoch = (list(bucketed.epoch(number)) for number in (3, 3, 4))
    _assert_same(first, again)
    assert sorted(_caption_order(first)) == sorted(_caption_order(list(plain.epoch(3))))
    assert len(first) == len(plain)
    assert _caption_order(first) != _caption_order(next_epoch)
    spans = sorted((int(batch.need("lengths").min()), int(batch.need("lengths").max())) for batch in first)
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("cache", "workers"), [("ram", 2), ("disk", 0), ("disk", 2), ("off", 0), ("off", 2)])
def test_cache_and_workers_change_nothing(listed: Annotations, cache: str, workers: int) -> None:
    expected = list(_train_loader(listed).epoch(1))
    expected_views = list(_evaluation_loader(listed).image_batches())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _assert_same(list(_train_loader(listed, cache, workers=workers).epoch(1)), expected)
    views = list(_evaluation_loader(listed, cache, workers).image_batches())
    assert all(torch.equal(a.need("images"), b.need("images")) for a, b in zip(views, expected_views, strict=True))
    assert torch.equal(torch.get_rng_state(), before), "dropout would depend on it"


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_gives_its_message_alone(listed: Annotations, workers: int) -> None:
    path = listed.folder / "images/2.png"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(_evaluation_loader(listed, "off", workers).image_batches())
    assert str(caught.value) == (f"1 of 3 images can't be read:\n  {path}: the image is empty (0 bytes): copy it again")


def test_nothing_to_train_on(listed: Annotations) -> None:
    loader = _train_loader(listed)
    with pytest.raises(InputError, match="none of the 21 train captions has a token"):
        TrainLoader(
            listed,
            loader.captions,
            torch.zeros(len(CAPTIONS), dtype=torch.bool),
            loader.store,
            loader.image_ids,
            batch_size=5,
            image_size=SIZE,
            workers=0,
            seed=0,
            device=CPU,
        )


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_evaluation_sees_each_image_once(listed: Annotations, cache: str) -> None:
    loader = _evaluation_loader(listed, cache)
    for _ in range(2):
        batches = list(loader.image_batches())
        assert [len(batch.need("images")) for batch in batches] == [3, 3, 1]
        assert torch.cat([batch.need("image_ids") for batch in batches]).tolist() == list(range(COUNT))
        for image, view in enumerate(torch.cat([batch.need("images") for batch in batches])):
            with Image.open(listed.folder / "images" / listed.image_names[image]) as file:
                resized = np.asarray(file.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            assert torch.equal(view, normalise(torch.from_numpy(resized.copy()).permute(2, 0, 1)))
    assert loader.store.decoded == COUNT


def test_evaluation_sees_each_caption_once(listed: Annotations) -> None:
    loader = _evaluation_loader(listed)
    batches = list(loader.caption_batches())
    encoded = [
        row[:length].tolist()
        for batch in batches
        for row, length in zip(batch.need("tokens"), batch.need("lengths"), strict=True)
    ]
    assert len(encoded) == len(set(map(tuple, encoded))) == 15
    assert [encoded[row] for row in loader.caption_row] == [VOCABULARY.encode(caption) for caption in CAPTIONS]
    assert [encoded[loader.caption_row[blank]] for blank in BLANK] == [[UNKNOWN]] * 4
    assert all(batch.need("tokens").shape[1] == batch.need("lengths").max() for batch in batches)
    assert [len(ids) for ids in encoded] == sorted(map(len, encoded), reverse=True)
    assert loader.text_image.tolist() == [i // 3 for i in range(len(CAPTIONS))]
    for row, caption in enumerate(_caption_order(batches)):
        assert (loader.caption_row == row).nonzero()[0].item() == caption


def test_a_batch_says_what_it_lacks() -> None:
    batch = Batch(tokens=torch.ones(2, 3), lengths=torch.tensor([3, 3]))
    assert batch.need("tokens") is batch.tokens
    with pytest.raises(ValueError, match=r"needs Batch\.audio, which the batch does not carry"):
        batch.need("audio")


def test_lengths_stay_on_the_cpu() -> None:
    moved = Batch(tokens=torch.ones(2, 3), lengths=torch.tensor([3, 2]), nodes=torch.ones(2, 20, 20)).to(
        torch.device("meta")
    )
    assert moved.need("tokens").device.type == moved.need("nodes").device.type == "meta"
    assert moved.need("lengths").tolist() == [3, 2]
    assert moved.images is None
