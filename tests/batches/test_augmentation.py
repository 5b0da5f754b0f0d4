"""The views of an image: as Pillow makes them, drawn evenly, the same on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from batches import augmentation
from batches.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PUBLISHED,
    Augmentation,
    Draws,
    audio_margin_size,
    augment,
    crop,
    draw_offsets,
    margin_size,
    normalise,
    recolour,
    right_angle_views,
    rotate_and_crop,
    turned,
)
from option.dataset import Angles


def _noise(count: int, side: int, seed: int = 0) -> Tensor:
    """Random images without the value 0, which the rotation fills in."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


ALL_CHANGES = Augmentation("published", 0.5, 0.4)


def augmented(images: Tensor, size: int, generator: torch.Generator, augmentation: Augmentation = PUBLISHED) -> Tensor:
    """Training views with fresh draws."""
    draws = Draws.draw(len(images), images.shape[-1] - size, generator, augmentation=augmentation)
    return augment(images, size, draws)


def test_margin_size() -> None:
    assert [margin_size(size) for size in (256, 64, 96, 512)] == [278, 70, 104, 556]
    assert [audio_margin_size(size) for size in (256, 64, 96)] == [300, 75, 112]


def test_normalise() -> None:
    pixels = _noise(2, 9)
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert normalise(pixels).dtype == torch.float32
    np.testing.assert_allclose(normalise(pixels).numpy(), (pixels.numpy() / 255 - mean) / std, atol=2e-6)
    floats = pixels.float()
    normalise(floats)
    assert torch.equal(floats, pixels.float())  # what it is given stays as it was


@pytest.mark.parametrize(("side", "size"), [(70, 64), (35, 32)])
def test_overhead_views_are_turned_and_mirrored_cuts(side: int, size: int) -> None:
    """Each view is one of the eight of some cut, to the last pixel, and all eight come."""
    images = _noise(1, side).expand(64, -1, -1, -1)
    draws = Draws.draw(64, side - size, torch.Generator().manual_seed(0), augmentation=Augmentation("overhead"))
    views = augment(images, size, draws)
    assert draws.flips is not None
    seen = set()
    for view, angle, (left, top), (across, down) in zip(views, draws.angles, draws.offsets, draws.flips, strict=True):
        turns = round(float(angle) / 90)
        cut = images[0].rot90(turns, (1, 2))[:, top : top + size, left : left + size]
        cut = cut.flip(2) if across else cut
        torch.testing.assert_close(view, normalise(cut.flip(1) if down else cut), rtol=0, atol=0)
        seen.add((turns, bool(across), bool(down)))
    assert len(seen) == 16


def test_a_part_is_cut_from_the_crop_and_enlarged() -> None:
    side, size = 70, 64
    images = _noise(16, side)
    draws = Draws.draw(16, side - size, torch.Generator().manual_seed(0), augmentation=Augmentation("overhead", 0.25))
    assert draws.parts is not None
    parts, upright = draws.parts.numpy().astype(np.float64), torch.zeros(16)
    views = rotate_and_crop(images, upright, draws.offsets, size, draws.parts)
    for number, (share, left, top) in enumerate(parts):
        assert 0.5 <= share <= 1
        x, y = (
            draws.offsets[number, axis].item() + size * (1 - share) * place + share * (np.arange(size) + 0.5)
            for axis, place in enumerate((left, top))
        )
        sure = (abs(x - x.round()) > 1e-3)[None, :] & (abs(y - y.round()) > 1e-3)[:, None]  # not on a pixel's edge
        expected = images[number].numpy()[:, y.astype(int)[:, None], x.astype(int)[None, :]]
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(views[number].numpy()[:, sure], expected[:, sure])


def test_areas_of_parts_are_drawn_evenly() -> None:
    parts = Draws.draw(20_000, 3, torch.Generator().manual_seed(0), augmentation=Augmentation(smallest_part=0.2)).parts
    assert parts is not None
    areas = parts[:, 0].double().square()
    assert 0.2 <= areas.min() < 0.21
    assert 0.99 < areas.max() <= 1
    assert areas.mean().item() == pytest.approx(0.6, abs=0.01)
    assert parts[:, 1:].mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("angles", ["published", "overhead"])
def test_parts_and_colours_are_drawn_after_all_else(angles: Angles) -> None:
    plain, more = (
        Draws.draw(8, 6, torch.Generator().manual_seed(3), flips=True, augmentation=choice)
        for choice in (Augmentation(angles), Augmentation(angles, 0.5, 0.4))
    )
    assert plain.parts is plain.colours is None
    assert torch.equal(plain.angles, more.angles)
    assert torch.equal(plain.offsets, more.offsets)
    assert plain.flips is not None
    assert more.flips is not None
    assert torch.equal(plain.flips, more.flips)


def test_a_part_that_is_all_and_factors_of_one_change_nothing() -> None:
    images = _noise(8, 70)
    whole = torch.tensor([[1.0, 0.3, 0.8]]).expand(8, -1)
    turned, offsets = torch.arange(8) * 11.0, draw_offsets(8, 6, torch.Generator().manual_seed(0))
    assert torch.equal(
        rotate_and_crop(images, turned, offsets, 64), rotate_and_crop(images, turned, offsets, 64, whole)
    )
    assert torch.equal(recolour(images, torch.ones(8, 3)), images.float())


def test_corners_stay_black_in_other_colours() -> None:
    draws = Draws(torch.full((1,), 45.0), torch.zeros(1, 2, dtype=torch.int64), colours=torch.tensor([[1.2, 0.6, 1.3]]))
    corner = augment(torch.full((1, 3, 64, 64), 200, dtype=torch.uint8), 64, draws)[0, :, 0, 0]
    torch.testing.assert_close(corner, -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))


def test_colours_as_pillow_changes_them() -> None:
    images = _noise(6, 32)
    for enhancer, place in ((ImageEnhance.Brightness, 0), (ImageEnhance.Contrast, 1)):
        for image, factor in zip(images, (0.6, 0.8, 1.0, 1.2, 1.4, 1.9), strict=True):
            grey = image.float().mean(dim=0).round().byte().expand(3, -1, -1)  # Pillow's contrast goes by the grey mean
            factors = torch.ones(1, 3)
            factors[0, place] = factor
            found = recolour(grey[None], factors)[0].permute(1, 2, 0).numpy()
            expected = np.asarray(enhancer(Image.fromarray(grey.permute(1, 2, 0).numpy())).enhance(factor))
            assert np.abs(found - expected).max() <= 1.5  # it rounds, the mean and the result
    for image in images:
        changed = recolour(image[None], torch.tensor([[1.0, 1.0, 0.0]]))[0]  # without saturation: grey
        torch.testing.assert_close(changed, image.float().mean(dim=0).expand(3, -1, -1))
        half = recolour(image[None], torch.tensor([[1.0, 1.0, 0.5]]))[0]
        torch.testing.assert_close(half, (changed + image.float()) / 2)


def test_colours_are_drawn_evenly_and_stay_in_range() -> None:
    draws = Draws.draw(5000, 3, torch.Generator().manual_seed(0), augmentation=Augmentation(colours=0.4))
    assert draws.colours is not None
    assert 0.6 <= draws.colours.min() < 0.61
    assert 1.39 < draws.colours.max() <= 1.4
    assert draws.colours.mean(dim=0).tolist() == pytest.approx([1, 1, 1], abs=0.02)
    views = augment(_noise(16, 35), 32, draws.rows(torch.arange(16)))
    std = torch.tensor(IMAGENET_STD)[:, None, None]
    pixels = (views * std + torch.tensor(IMAGENET_MEAN)[:, None, None]) * 255
    assert pixels.min() > -1e-3
    assert pixels.max() < 255 + 1e-3


def test_right_angle_views_are_all_symmetries_of_the_square() -> None:
    image = _noise(2, 5).float()
    views = list(right_angle_views(image))
    torch.testing.assert_close(views[0], image)
    assert len({view.numpy().tobytes() for view in views}) == 8
    for change in (lambda x: x.rot90(1, (2, 3)), lambda x: x.flip(2), lambda x: x.transpose(2, 3)):
        changed = {view.numpy().tobytes() for view in right_angle_views(change(image))}
        assert changed == {view.numpy().tobytes() for view in views}


def test_each_image_is_turned_by_its_own_number() -> None:
    images, views = _noise(16, 5), torch.tensor([*range(8), *reversed(range(8))])
    all_views = list(right_angle_views(images))
    expected = torch.stack([all_views[view][row] for row, view in enumerate(views.tolist())])
    assert torch.equal(turned(images, views), expected)
    assert torch.equal(turned(images, torch.zeros(16).long()), images)


@pytest.mark.parametrize(("angles", "among"), [("right_angles", 8), ("none", 1)])
def test_a_view_of_the_whole_image_is_drawn_by_number(angles: Angles, among: int) -> None:
    augmentation = Augmentation(angles)
    assert augmentation.views == among
    assert augmentation.stored_size(32) == 32
    draws = Draws.draw(4000, 0, torch.Generator().manual_seed(0), augmentation=augmentation)
    counts = draws.need_views().bincount(minlength=among)
    assert len(counts) == among
    assert counts.min() > 0.8 * 4000 / among
    images = _noise(8, 6)
    some = draws.rows(torch.arange(8))
    expected = normalise(turned(images, some.need_views()))
    assert torch.equal(augment(images, 6, some), expected)


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation("overhead"), Augmentation("none", 0.5), Augmentation("right_angles", colours=0.1)],
)
def test_other_views_have_no_number(augmentation: Augmentation) -> None:
    assert augmentation.views is None


@pytest.mark.parametrize(("side", "size"), [(278, 256), (104, 96), (35, 32)])
def test_rotation_and_crop_as_pillow_does_them(side: int, size: int) -> None:
    spare = side - size
    cases = [
        (angle, offset)
        for angle in (0.0, 3.7, 30.0, 45.0, 61.8, 89.0, 90.0)
        for offset in ((0, 0), (spare, spare), (1, spare - 1))
    ]
    images = _noise(len(cases), side)
    angles, offsets = torch.tensor([angle for angle, _ in cases]), torch.tensor([offset for _, offset in cases])
    views = rotate_and_crop(images, angles, offsets, size)
    assert (views.shape, views.dtype) == ((len(cases), 3, size, size), torch.uint8)
    for image, view, (angle, (left, top)) in zip(images, views, cases, strict=True):
        turned = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(angle, Image.Resampling.NEAREST)
        expected = np.asarray(turned.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
        equal = (view.numpy() == expected).mean()
        assert equal >= (1.0 if angle in (0.0, 90.0) else 0.99), (angle, left, top)


def test_rotation_takes_no_notice_of_mixed_precision() -> None:
    images, angles, offsets = _noise(2, 278), torch.tensor([20.0, 70.0]), torch.tensor([[3, 20], [11, 0]])
    expected = rotate_and_crop(images, angles, offsets, 256)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotate_and_crop(images, angles, offsets, 256), expected)


def test_corners_are_black_before_they_are_normalised() -> None:
    white = torch.full((1, 3, 200, 200), 255, dtype=torch.uint8)
    view = rotate_and_crop(white, torch.tensor([45.0]), torch.zeros(1, 2), 200)
    assert view.unique().tolist() == [0, 255]
    # The octagon that a square shares with itself, turned by 45 degrees, has the area 2 (sqrt 2 - 1).
    assert (view == 255).float().mean().item() == pytest.approx(2 * (2**0.5 - 1), abs=0.002)
    assert (view[0, :, 0, 0] == 0).all()
    generator = torch.Generator().manual_seed(3)
    seen = torch.cat([augmented(white, 180, generator) for _ in range(20)])
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        np.testing.assert_allclose(seen[:, channel].unique(), [-mean / std, (1 - mean) / std], atol=1e-6)


def test_draws_cover_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    angles, offsets = [], []

    def record(images: Tensor, angle: Tensor, offset: Tensor, size: int, parts: Tensor | None) -> Tensor:
        angles.append(angle)
        offsets.append(offset)
        return images[:, :, :size, :size]

    monkeypatch.setattr(augmentation, "rotate_and_crop", record)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        augmented(torch.zeros(500, 3, 35, 35, dtype=torch.uint8), 32, generator)
    drawn = torch.cat(angles)
    assert 0 <= drawn.min() < 0.5
    assert 89.5 < drawn.max() <= 90
    np.testing.assert_allclose(torch.histc(drawn, 9, 0, 90) / 2000, 1 / 9, atol=0.03)
    pairs, counts = torch.cat(offsets).unique(dim=0, return_counts=True)
    assert pairs.tolist() == [[left, top] for left in range(4) for top in range(4)]
    np.testing.assert_allclose(counts / 2000, 1 / 16, atol=0.025)


def test_the_same_generator_gives_the_same_view() -> None:
    images = _noise(4, 35)
    first = augmented(images, 32, torch.Generator().manual_seed(5))
    assert torch.equal(first, augmented(images, 32, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, augmented(images, 32, torch.Generator().manual_seed(6)))
    # Without room for a crop and with the angle known, the view is the rotated image.
    generator = torch.Generator().manual_seed(5)
    angles = torch.rand(4, generator=torch.Generator().manual_seed(5)) * 90
    assert torch.equal(
        augmented(images, 35, generator), normalise(rotate_and_crop(images, angles, torch.zeros(4, 2), 35))
    )


@pytest.mark.parametrize("augmentation", [PUBLISHED, ALL_CHANGES])
def test_draws_do_not_depend_on_the_device(augmentation: Augmentation) -> None:
    states = []
    for device in ("cpu", "meta"):
        generator = torch.Generator().manual_seed(5)
        assert augmented(_noise(4, 35).to(device), 32, generator, augmentation).device.type == device
        states.append(generator.get_state())
    assert torch.equal(*states)


@pytest.mark.cuda
@pytest.mark.parametrize("augmentation", [PUBLISHED, ALL_CHANGES])
def test_a_view_is_the_same_on_a_gpu(augmentation: Augmentation) -> None:
    images = _noise(4, 278)
    first, second = (
        augmented(images.to(device), 256, torch.Generator().manual_seed(5), augmentation).cpu()
        for device in ("cpu", "cuda")
    )
    assert first.isclose(second, atol=1e-5).float().mean() > 0.999


def test_mirrored_views() -> None:
    images, still, offsets = _noise(4, 35), torch.zeros(4), torch.tensor([[0, 1], [2, 3], [3, 0], [1, 1]])
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    plain = augment(images, 32, Draws(still, offsets))
    mirrored = augment(images, 32, Draws(still, offsets, flips))
    expected = [plain[0], plain[1].flip(-1), plain[2].flip(-2), plain[3].flip(-1, -2)]
    assert torch.equal(mirrored, torch.stack(expected))


def test_mirrors_are_drawn_apart_and_evenly() -> None:
    draws = Draws.draw(4000, 3, torch.Generator().manual_seed(0), flips=True)
    assert draws.flips is not None
    _, counts = draws.flips.unique(dim=0, return_counts=True)
    np.testing.assert_allclose(counts / 4000, 1 / 4, atol=0.03)
    chosen = draws.rows(torch.tensor([7, 2]))
    assert chosen.flips is not None
    assert torch.equal(chosen.flips, draws.flips[[7, 2]])
    assert torch.equal(chosen.angles, draws.angles[[7, 2]])
    assert torch.equal(chosen.offsets, draws.offsets[[7, 2]])


def test_a_spectrogram_is_only_cropped() -> None:
    images = _noise(3, 75)
    offsets = draw_offsets(3, 75 - 64, torch.Generator().manual_seed(1))
    places = zip(images, offsets.tolist(), strict=True)
    expected = [image[:, top : top + 64, left : left + 64] for image, (left, top) in places]
    assert torch.equal(crop(images, 64, offsets), normalise(torch.stack(expected)))
