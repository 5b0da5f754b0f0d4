"""Views of pictures for training: rotation, flips and crops as one resampling, drawn apart from the pixels.

Letters: B batch, S side of a view, R side of the pictures that it is cut from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ROTATION = 90.0  # degrees
FLIP_PROBABILITY = 0.5

Augmentation = Literal["published", "overhead"]
Views = Literal["one", "right_angles"]


def draw_offsets(count: int, margin: int, generator: torch.Generator) -> Tensor:
    """Left and top of `count` random crops, [count, 2], 0 to `margin` pixels each."""
    return torch.randint(0, margin + 1, (count, 2), generator=generator)


@dataclass(frozen=True)
class Draws:
    """What chance decided for B views; drawn on the CPU, so that it is the same on every device.

    Attributes:
        angles: [B] counter-clockwise, degrees.
        offsets: [B, 2] left and top of the cut, pixels.
        flips: [B, 2] bool: mirror left and right, mirror top and bottom; None: no view is mirrored.
    """

    angles: Tensor
    offsets: Tensor
    flips: Tensor | None = None

    @classmethod
    def draw(
        cls,
        count: int,
        margin: int,
        generator: torch.Generator,
        flips: bool = False,
        augmentation: Augmentation = "published",
    ) -> Draws:
        """Draw `count` views, with offsets from 0 to `margin` pixels.

        `published`: any angle from 0 to 90 degrees, mirrored where `flips` says so. `overhead`: a multiple of 90
        degrees, and mirrored; seen from above, every such view is as good as the first, and no corner is left black.
        """
        if augmentation == "overhead":
            angles = torch.randint(0, 4, (count,), generator=generator) * 90.0
        else:
            angles = torch.rand(count, generator=generator) * MAX_ROTATION
        offsets = draw_offsets(count, margin, generator)
        mirrored = None
        if flips or augmentation == "overhead":
            mirrored = torch.rand(count, 2, generator=generator) < FLIP_PROBABILITY
        return cls(angles, offsets, mirrored)

    def rows(self, ids: Tensor) -> Draws:
        """The draws of some of the views."""
        return Draws(self.angles[ids], self.offsets[ids], None if self.flips is None else self.flips[ids])


def margin_size(image_size: int) -> int:
    """Side R to which a picture is resized before the random crop: 278 for 256, in proportion for other sizes."""
    return round(image_size * 278 / 256)


def audio_margin_size(image_size: int) -> int:
    """`margin_size` of a spectrogram: 300 for 256."""
    return round(image_size * 300 / 256)


def normalise(pixels: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] with values 0..255 as ImageNet-normalised floats."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)[:, None, None] * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device)[:, None, None] * 255
    return (pixels.float() - mean) / std


def rotate_and_crop(pictures: Tensor, angles: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Rotate about the centre and cut a square, in one nearest-neighbour resampling.

    Differs from the released code, where AMFMN's rotation never rotated (a mistaken argument): the paper says it does.

    Args:
        pictures: [B, 3, R, R] uint8.
        angles: [B] counter-clockwise, degrees.
        offsets: [B, 2] left and top of the cut in the rotated picture, 0..R - S pixels.
        size: side S of the cut.

    Returns:
        [B, 3, S, S] uint8; zero where the rotated picture has no pixel.
    """
    side = pictures.shape[-1]
    cosine, sine = angles.deg2rad().cos()[:, None, None], angles.deg2rad().sin()[:, None, None]
    from_centre = torch.arange(size, device=pictures.device) + 0.5 - side / 2
    x = (offsets[:, :1] + from_centre)[:, None, :]  # [B, 1, S]
    y = (offsets[:, 1:] + from_centre)[:, :, None]  # [B, S, 1]
    # Written out instead of as a matrix product, which mixed precision and TF32 would round to other pixels.
    column = (cosine * x - sine * y + side / 2).floor().long()  # [B, S, S]
    row = (sine * x + cosine * y + side / 2).floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    place = (row * side + column).where(inside, 0).flatten(1)  # [B, S * S]
    cut = pictures.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).unflatten(2, (size, size))
    return cut * inside[:, None]


def augment(pictures: Tensor, size: int, draws: Draws) -> Tensor:
    """The training view: rotation, random crop, normalisation, and mirroring where it was drawn.

    Args:
        pictures: [B, 3, R, R] uint8, on any device.
        size: side S of the crop, at most R.
        draws: B of them.

    Returns:
        [B, 3, S, S] float, on the pictures' device.
    """
    device = pictures.device
    view = rotate_and_crop(pictures, draws.angles.to(device), draws.offsets.to(device), size)
    if draws.flips is not None:
        # The offsets are as likely on either side, so mirroring the cut is as good as cutting the mirrored picture.
        flips = draws.flips.to(device)[:, :, None, None, None]
        view = torch.where(flips[:, 0], view.flip(-1), view)
        view = torch.where(flips[:, 1], view.flip(-2), view)
    return normalise(view)


def right_angle_views(images: Tensor) -> Iterator[Tensor]:
    """The 8 views of square pictures [B, 3, S, S] that right angles and a mirror give, itself the first."""
    for turns in range(4):
        turned = images.rot90(turns, (-2, -1))
        yield turned
        yield turned.flip(-1)


def crop(pictures: Tensor, size: int, offsets: Tensor) -> Tensor:
    """The training view of a spectrogram: a random crop, normalised.

    Args:
        pictures: [B, 3, R, R] uint8.
        size: side S of the crop, at most R.
        offsets: [B, 2] left and top of the cut, 0..R - S pixels, on any device.
    """
    device = pictures.device
    return normalise(rotate_and_crop(pictures, torch.zeros(len(pictures), device=device), offsets.to(device), size))
