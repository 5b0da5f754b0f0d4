"""Views of images for training: colours, then rotation, flips and crops as one resampling.

What chance decides is drawn apart from the pixels.

Letters: B batch, S side of a view, R side of the images that it is cut from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from option.dataset import Angles, AugmentedReading

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ROTATION = 90.0  # degrees
FLIP_PROBABILITY = 0.5
RIGHT_ANGLE_VIEWS = 8


def draw_offsets(count: int, margin: int, generator: torch.Generator) -> Tensor:
    """Left and top of `count` random crops, [count, 2], 0 to `margin` pixels each."""
    return torch.randint(0, margin + 1, (count, 2), generator=generator)


@dataclass(frozen=True)
class Augmentation:
    """What training views may differ in, beside the random crop.

    Attributes:
        angles: `published`: any from 0 to 90 degrees. `overhead`: a multiple of 90 degrees, and mirrored; seen from
            above, every such view is as good as the first, and no corner is left black. `right_angles`: the same eight
            views, of the whole image instead of a crop. `none`: the whole image as it is.
        smallest_part: the cut has this share of its full area, or more, and is enlarged to it; 1: always all of it.
        colours: brightness, contrast and saturation are multiplied by factors that are at most this far from 1.
    """

    angles: Angles = "published"
    smallest_part: float = 1.0
    colours: float = 0.0

    @classmethod
    def of(cls, dataset: AugmentedReading) -> Augmentation:
        """That of a `dataset` block."""
        return cls(dataset.augmentation, dataset.smallest_part, dataset.colour_jitter)

    @property
    def of_whole_image(self) -> bool:
        """Whether there is no random crop, so that images are read at the size S of the views."""
        return self.angles in ("right_angles", "none")

    @property
    def views(self) -> int | None:
        """How many views an image has, the first ones of `right_angle_views`; None: no two views are alike."""
        if not self.of_whole_image or self.smallest_part < 1 or self.colours > 0:
            return None
        return 1 if self.angles == "none" else RIGHT_ANGLE_VIEWS

    def stored_size(self, image_size: int) -> int:
        """Side R that images are read at for views of side `image_size`."""
        return image_size if self.of_whole_image else margin_size(image_size)


PUBLISHED = Augmentation()


@dataclass(frozen=True)
class Draws:
    """What chance decided for B views; drawn on the CPU, so that it is the same on every device.

    Attributes:
        angles: [B] counter-clockwise, degrees.
        offsets: [B, 2] left and top of the cut, pixels.
        flips: [B, 2] bool: mirror left and right, mirror top and bottom; None: no view is mirrored.
        parts: [B, 3] side of the cut as a share of S, where it lies in the full cut, 0 (left) to 1 and 0 (top) to 1;
            None: all of it.
        colours: [B, 3] factors on brightness, contrast and saturation; None: colours stay.
        views: [B] int64, which of `right_angle_views` is seen; None: the angles say it.
    """

    angles: Tensor
    offsets: Tensor
    flips: Tensor | None = None
    parts: Tensor | None = None
    colours: Tensor | None = None
    views: Tensor | None = None

    @classmethod
    def draw(
        cls,
        count: int,
        margin: int,
        generator: torch.Generator,
        flips: bool = False,
        augmentation: Augmentation = PUBLISHED,
    ) -> Draws:
        """Draw `count` views, with offsets from 0 to `margin` pixels, mirrored also where `flips` says so."""
        overhead = augmentation.angles == "overhead"
        views = None
        if augmentation.of_whole_image:
            angles = torch.zeros(count)
            among = RIGHT_ANGLE_VIEWS if augmentation.angles == "right_angles" else 1
            views = torch.randint(0, among, (count,), generator=generator)
        elif overhead:
            angles = torch.randint(0, 4, (count,), generator=generator) * 90.0
        else:
            angles = torch.rand(count, generator=generator) * MAX_ROTATION
        offsets = draw_offsets(count, margin, generator)
        mirrored, parts, colours = None, None, None
        if flips or overhead:
            mirrored = torch.rand(count, 2, generator=generator) < FLIP_PROBABILITY
        if augmentation.smallest_part < 1:
            parts = torch.rand(count, 3, generator=generator)
            parts[:, 0] = torch.lerp(torch.ones(()), torch.tensor(augmentation.smallest_part), parts[:, 0]).sqrt()
        if augmentation.colours > 0:
            colours = 1 + augmentation.colours * (2 * torch.rand(count, 3, generator=generator) - 1)
        return cls(angles, offsets, mirrored, parts, colours, views)

    def need_views(self) -> Tensor:
        """`views` of a draw that has them.

        Raises:
            ValueError: it has none.
        """
        if self.views is None:
            raise ValueError("features stand for right-angle views alone")
        return self.views

    def rows(self, ids: Tensor) -> Draws:
        """The draws of some of the views."""
        chosen: dict[str, Any] = {name: None if value is None else value[ids] for name, value in vars(self).items()}
        return Draws(**chosen)


def margin_size(image_size: int) -> int:
    """Side R to which an image is resized before the random crop: 278 for 256, in proportion for other sizes."""
    return round(image_size * 278 / 256)


def audio_margin_size(image_size: int) -> int:
    """`margin_size` of a spectrogram: 300 for 256."""
    return round(image_size * 300 / 256)


def normalise(pixels: Tensor) -> Tensor:
    """Images [B, 3, S, S] with values 0..255 as ImageNet-normalised floats."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)[:, None, None] * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device)[:, None, None] * 255
    return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)  # in place: large arrays cost more than arithmetic


def rotate_and_crop(images: Tensor, angles: Tensor, offsets: Tensor, size: int, parts: Tensor | None = None) -> Tensor:
    """Rotate about the centre and cut a square, in one nearest-neighbour resampling.

    Differs from the released code, where AMFMN's rotation never rotated (a mistaken argument): the paper says it does.

    Args:
        images: [B, 3, R, R] of any type.
        angles: [B] counter-clockwise, degrees.
        offsets: [B, 2] left and top of the cut in the rotated image, 0..R - S pixels.
        size: side S of the cut.
        parts: [B, 3] of `Draws`: the part of the cut that is enlarged to it.

    Returns:
        [B, 3, S, S] of the same type; zero where the rotated image has no pixel.
    """
    side = images.shape[-1]
    cosine, sine = angles.deg2rad().cos()[:, None, None], angles.deg2rad().sin()[:, None, None]
    along = torch.arange(size, device=images.device) + 0.5
    left, top = offsets[:, :1] + along, offsets[:, 1:] + along  # [B, S]
    if parts is not None:
        share, spare = parts[:, :1], size * (1 - parts[:, :1])
        left, top = (offsets[:, i : i + 1] + share * along + spare * parts[:, i + 1 : i + 2] for i in (0, 1))
    x, y = (left - side / 2)[:, None, :], (top - side / 2)[:, :, None]
    # Written out instead of as a matrix product, which mixed precision and TF32 would round to other pixels.
    column = (cosine * x - sine * y + side / 2).floor().long()  # [B, S, S]
    row = (sine * x + cosine * y + side / 2).floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    place = (row * side + column).where(inside, 0).flatten(1)  # [B, S * S]
    cut = images.flatten(2).gather(2, place[:, None].expand(-1, 3, -1)).unflatten(2, (size, size))
    return cut * inside[:, None]


def recolour(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply brightness, then contrast about the image's mean, then saturation.

    Args:
        images: [B, 3, S, S] with values 0..255.
        factors: [B, 3] of the three.

    Returns:
        [B, 3, S, S] float, 0..255.
    """
    brightness, contrast, saturation = factors.T[:, :, None, None, None]
    changed = (brightness * images.float()).clamp(0, 255)
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    changed = torch.lerp(mean, changed, contrast).clamp(0, 255)
    grey = changed.mean(dim=1, keepdim=True)
    return torch.lerp(grey, changed, saturation).clamp(0, 255)


def augment(images: Tensor, size: int, draws: Draws) -> Tensor:
    """The training view: rotation, random crop, normalisation, and what else was drawn.

    Args:
        images: [B, 3, R, R] uint8, on any device.
        size: side S of the crop, at most R.
        draws: B of them.

    Returns:
        [B, 3, S, S] float, on the images' device.
    """
    device = images.device
    if draws.colours is not None:  # before the rotation, whose corners stay black
        images = recolour(images, draws.colours.to(device))
    parts = None if draws.parts is None else draws.parts.to(device)
    view = rotate_and_crop(images, draws.angles.to(device), draws.offsets.to(device), size, parts)
    if draws.views is not None:
        view = turned(view, draws.views)
    if draws.flips is not None:
        # The offsets are as likely on either side, so mirroring the cut is as good as cutting the mirrored image.
        flips = draws.flips.to(device)[:, :, None, None, None]
        view = torch.where(flips[:, 0], view.flip(-1), view)
        view = torch.where(flips[:, 1], view.flip(-2), view)
    return normalise(view)


def right_angle_views(images: Tensor) -> Iterator[Tensor]:
    """The 8 views of square images [B, 3, S, S] that right angles and a mirror give, itself the first."""
    for turns in range(4):
        turned = images.rot90(turns, (-2, -1))
        yield turned
        yield turned.flip(-1)


def turned(images: Tensor, views: Tensor) -> Tensor:
    """Square images [B, 3, S, S], each in its own one of `right_angle_views`, by numbers [B]."""
    result = images.clone()
    for number in views.unique().tolist():
        rows = (views == number).nonzero().squeeze(1).to(images.device)
        view = images[rows].rot90(number // 2, (-2, -1))
        result[rows] = view.flip(-1) if number % 2 else view
    return result


def crop(images: Tensor, size: int, offsets: Tensor) -> Tensor:
    """The training view of a spectrogram: a random crop, normalised.

    Args:
        images: [B, 3, R, R] uint8.
        size: side S of the crop, at most R.
        offsets: [B, 2] left and top of the cut, 0..R - S pixels, on any device.
    """
    device = images.device
    return normalise(rotate_and_crop(images, torch.zeros(len(images), device=device), offsets.to(device), size))
