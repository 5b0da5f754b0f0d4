"""Which images and captions make a batch, and which of them each rank of a distributed run takes.

Letters: N images and M captions of a batch, T images and C captions of the list, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from option.dataset import Batching


@dataclass(frozen=True)
class Sample:
    """The images and captions of one batch, as places in their annotation list; on the CPU.

    Attributes:
        images: [N] int64.
        captions: [M] int64.
        rows: [M] int64, rising: the row of each caption's image in `images`; None: caption i belongs to image i.
    """

    images: Tensor
    captions: Tensor
    rows: Tensor | None = None

    def shares(self, ranks: int) -> list[Sample]:
        """Consecutive parts for W ranks, whose images differ in number by at most one."""
        even, longer = divmod(len(self.images), ranks)
        starts = [rank * even + min(rank, longer) for rank in range(ranks + 1)]
        return [self.part(start, stop) for start, stop in pairwise(starts)]

    def part(self, start: int, stop: int) -> Sample:
        """Some consecutive images with their captions."""
        captions = self.captions_of(start, stop)
        rows = None if self.rows is None else self.rows[captions] - start
        return Sample(self.images[start:stop], self.captions[captions], rows)

    def captions_of(self, start: int, stop: int) -> slice:
        """Where the captions of some consecutive images stand."""
        if self.rows is None:
            return slice(start, stop)
        return slice(*torch.searchsorted(self.rows, torch.tensor([start, stop])).tolist())


class Sampler(Protocol):
    """The items that an epoch puts in order, and the batch that some of them make."""

    def __len__(self) -> int:
        """Items that an epoch sees once."""

    def sample(self, items: Tensor, generator: torch.Generator) -> Sample:
        """The batch of some items [B] int64, each in 0..len - 1; what chance decides comes from the generator."""

    def longest(self, lengths: Tensor) -> Tensor:
        """Words of the longest caption of each item, from those of each caption [C]."""


class PairSampler:
    """An item is a caption with its image."""

    def __init__(self, caption_image: Tensor, usable: Tensor, repeats: Tensor | None = None) -> None:
        """Number the usable captions.

        Args:
            caption_image: [C] int64 image of each caption.
            usable: [C] bool, False for a caption that is left out.
            repeats: [T] int64, how often an epoch sees each image; None: once.
        """
        self.caption_image = caption_image
        self.captions = usable.nonzero().squeeze(1)
        if repeats is not None:
            self.captions = self.captions.repeat_interleave(repeats[caption_image[self.captions]])

    def __len__(self) -> int:
        """Usable captions, each as often as it is seen."""
        return len(self.captions)

    def sample(self, items: Tensor, generator: torch.Generator) -> Sample:
        """See `Sampler`; N = M = B."""
        captions = self.captions[items]
        return Sample(self.caption_image[captions], captions)

    def longest(self, lengths: Tensor) -> Tensor:
        """See `Sampler`."""
        return lengths[self.captions]


class ImageSampler:
    """An item is an image with all its captions."""

    def __init__(self, caption_image: Tensor, usable: Tensor, repeats: Tensor | None = None) -> None:
        """Number the images that have a usable caption, see `PairSampler`."""
        captions = usable.nonzero().squeeze(1)
        images = caption_image[captions]
        self.captions = captions[images.argsort(stable=True)]
        self.images, self.counts = images.unique(return_counts=True)
        self.starts = self.counts.cumsum(0) - self.counts
        if repeats is not None:
            seen = repeats[self.images]
            self.images, self.counts, self.starts = (
                each.repeat_interleave(seen) for each in (self.images, self.counts, self.starts)
            )

    def __len__(self) -> int:
        """Images with a usable caption, each as often as it is seen."""
        return len(self.images)

    def sample(self, items: Tensor, generator: torch.Generator) -> Sample:
        """See `Sampler`; N = B."""
        counts = self.counts[items]
        rows = torch.arange(len(items)).repeat_interleave(counts)  # [M]
        place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        return Sample(self.images[items], self.captions[self.starts[items][rows] + place], rows)

    def longest(self, lengths: Tensor) -> Tensor:
        """See `Sampler`."""
        rows = torch.arange(len(self)).repeat_interleave(self.counts)
        place = torch.arange(len(rows)) - (self.counts.cumsum(0) - self.counts)[rows]
        own = lengths[self.captions[self.starts[rows] + place]]
        return lengths.new_zeros(len(self)).scatter_reduce(0, rows, own, "amax")


class OneCaptionSampler(ImageSampler):
    """An item is an image with one of its captions, which each epoch draws anew."""

    def sample(self, items: Tensor, generator: torch.Generator) -> Sample:
        """See `Sampler`; N = M = B."""
        drawn = (torch.rand(len(items), generator=generator) * self.counts[items]).long()
        return Sample(self.images[items], self.captions[self.starts[items] + drawn])


SAMPLERS: dict[Batching, type[PairSampler] | type[ImageSampler]] = {
    "pairs": PairSampler,
    "images": ImageSampler,
    "one_caption": OneCaptionSampler,
}


def batches_of(order: Tensor, batch_size: int, least: int = 2) -> list[Tensor]:
    """Cut an order into batches of `batch_size`; a last one of fewer than `least` items joins the one before.

    Batch norms can't learn from a single item, so that each rank needs two.
    """
    chunks = list(order.split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) < least:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def like_lengths(
    order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator, least: int = 2
) -> list[Tensor]:
    """Batches of items of like length, themselves in random order.

    Args:
        order: items in random order, which decides among those of equal length.
        lengths: words of each item.
        batch_size: see `batches_of`.
        generator: for the order of the batches.
        least: see `batches_of`.
    """
    batches = batches_of(order[lengths[order].argsort(stable=True)], batch_size, least)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
