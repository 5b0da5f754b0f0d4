"""Tokens, the two views of a picture, and the batches of training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import dataloader
import vocab
from data.annotations import Annotations
from data.picture_store import PictureStore
from dataloader import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Batch,
    Captions,
    EvaluationLoader,
    TrainLoader,
    augment,
    margin_size,
    normalise,
    rotate_and_crop,
)
from utils import InputError

CPU = torch.device("cpu")
COUNT = 7
SIZE = 32
MARGIN = 35
LIMIT = 10_000
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
    """Seven pictures of noise, three captions each; picture i has no value outside of 30 i + 10 .. 30 i + 29."""
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


def _store(listed: Annotations, cache: str, size: int) -> PictureStore:
    """The pictures in the opposite order, as a store of other lists, too, may hold them."""
    paths = [listed.folder / "images" / name for name in reversed(listed.image_names)]
    return PictureStore(paths, size, cache, listed.folder / "cache", CPU, LIMIT)


def _train_loader(
    listed: Annotations, cache: str = "ram", batch_size: int = 5, workers: int = 0, seed: int = 1
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


def _noise(count: int, side: int, seed: int = 0) -> Tensor:
    """Random pictures without the value 0, which the rotation fills in."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def test_margin_size() -> None:
    assert [margin_size(size) for size in (256, 64, 96, 512)] == [278, 70, 104, 556]
    assert margin_size(SIZE) == MARGIN


def test_normalise() -> None:
    pixels = _noise(2, 9)
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert normalise(pixels).dtype == torch.float32
    np.testing.assert_allclose(normalise(pixels).numpy(), (pixels.numpy() / 255 - mean) / std, atol=2e-6)


@pytest.mark.parametrize(("side", "size"), [(278, 256), (104, 96), (35, 32)])
def test_rotation_and_crop_as_pillow_does_them(side: int, size: int) -> None:
    spare = side - size
    cases = [
        (angle, offset)
        for angle in (0.0, 3.7, 30.0, 45.0, 61.8, 89.0, 90.0)
        for offset in ((0, 0), (spare, spare), (1, spare - 1))
    ]
    pictures = _noise(len(cases), side)
    angles, offsets = torch.tensor([angle for angle, _ in cases]), torch.tensor([offset for _, offset in cases])
    views = rotate_and_crop(pictures, angles, offsets, size)
    assert (views.shape, views.dtype) == ((len(cases), 3, size, size), torch.uint8)
    for picture, view, (angle, (left, top)) in zip(pictures, views, cases, strict=True):
        turned = Image.fromarray(picture.permute(1, 2, 0).numpy()).rotate(angle, Image.Resampling.NEAREST)
        expected = np.asarray(turned.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
        equal = (view.numpy() == expected).mean()
        assert equal >= (1.0 if angle in (0.0, 90.0) else 0.99), (angle, left, top)


def test_rotation_takes_no_notice_of_mixed_precision() -> None:
    pictures, angles, offsets = _noise(2, 278), torch.tensor([20.0, 70.0]), torch.tensor([[3, 20], [11, 0]])
    expected = rotate_and_crop(pictures, angles, offsets, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotate_and_crop(pictures, angles, offsets, 256), expected)


def test_corners_are_black_before_they_are_normalised() -> None:
    white = torch.full((1, 3, 200, 200), 255, dtype=torch.uint8)
    view = rotate_and_crop(white, torch.tensor([45.0]), torch.zeros(1, 2), 200)
    assert view.unique().tolist() == [0, 255]
    # The octagon that a square shares with itself, turned by 45 degrees, has the area 2 (sqrt 2 - 1).
    assert (view == 255).float().mean().item() == pytest.approx(2 * (2**0.5 - 1), abs=0.002)
    assert (view[0, :, 0, 0] == 0).all()
    generator = torch.Generator().manual_seed(3)
    seen = torch.cat([augment(white, 180, generator) for _ in range(20)])
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        np.testing.assert_allclose(seen[:, channel].unique(), [-mean / std, (1 - mean) / std], atol=1e-6)


def test_draws_cover_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    angles, offsets = [], []

    def record(pictures: Tensor, angle: Tensor, offset: Tensor, size: int) -> Tensor:
        angles.append(angle)
        offsets.append(offset)
        return pictures[:, :, :size, :size]

    monkeypatch.setattr(dataloader, "rotate_and_crop", record)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        augment(torch.zeros(500, 3, 35, 35, dtype=torch.uint8), 32, generator)
    drawn = torch.cat(angles)
    assert 0 <= drawn.min() < 0.5
    assert 89.5 < drawn.max() <= 90
    np.testing.assert_allclose(torch.histc(drawn, 9, 0, 90) / 2000, 1 / 9, atol=0.03)
    pairs, counts = torch.cat(offsets).unique(dim=0, return_counts=True)
    assert pairs.tolist() == [[left, top] for left in range(4) for top in range(4)]
    np.testing.assert_allclose(counts / 2000, 1 / 16, atol=0.025)


def test_the_same_generator_gives_the_same_view() -> None:
    pictures = _noise(4, 35)
    first = augment(pictures, 32, torch.Generator().manual_seed(5))
    assert torch.equal(first, augment(pictures, 32, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, augment(pictures, 32, torch.Generator().manual_seed(6)))
    # Without room for a crop and with the angle known, the view is the rotated picture.
    generator = torch.Generator().manual_seed(5)
    angles = torch.rand(4, generator=torch.Generator().manual_seed(5)) * 90
    assert torch.equal(
        augment(pictures, 35, generator), normalise(rotate_and_crop(pictures, angles, torch.zeros(4, 2), 35))
    )


def test_draws_do_not_depend_on_the_device() -> None:
    states = []
    for device in ("cpu", "meta"):
        generator = torch.Generator().manual_seed(5)
        assert augment(_noise(4, 35).to(device), 32, generator).device.type == device
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_view_is_the_same_on_a_gpu() -> None:
    pictures = _noise(4, 278)
    first, second = (
        augment(pictures.to(device), 256, torch.Generator().manual_seed(5)).cpu() for device in ("cpu", "cuda")
    )
    assert first.isclose(second, atol=1e-5).float().mean() > 0.999


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
        # The centre of a view lies inside of the picture at any angle.
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
def test_an_unreadable_picture_gives_its_message_alone(listed: Annotations, workers: int) -> None:
    path = listed.folder / "images/2.png"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(_evaluation_loader(listed, "off", workers).image_batches())
    assert str(caught.value) == (
        f"1 of 3 pictures can't be read:\n  {path}: the picture is empty (0 bytes): copy it again"
    )


def test_nothing_to_train_on(listed: Annotations) -> None:
    loader = _train_loader(listed)
    with pytest.raises(InputError, match="none of the 21 train captions has a token"):
        TrainLoader(
            listed,
            loader.captions,
            torch.zeros(len(CAPTIONS), dtype=torch.bool),
            loader.store,
            loader.picture_ids,
            batch_size=5,
            image_size=SIZE,
            workers=0,
            seed=0,
            device=CPU,
        )


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_evaluation_sees_each_picture_once(listed: Annotations, cache: str) -> None:
    loader = _evaluation_loader(listed, cache)
    for _ in range(2):
        batches = list(loader.image_batches())
        assert [len(batch.need("images")) for batch in batches] == [3, 3, 1]
        assert torch.cat([batch.need("image_ids") for batch in batches]).tolist() == list(range(COUNT))
        for image, view in enumerate(torch.cat([batch.need("images") for batch in batches])):
            with Image.open(listed.folder / "images" / listed.image_names[image]) as picture:
                resized = np.asarray(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
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
