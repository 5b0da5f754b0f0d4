"""Batches without pairs: images, captions or spectrograms alone, each item in one or two views.

Letters: B batch, N items of one modality, L words, S side of a view, R side of the images that it is cut from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from batches.augmentation import PUBLISHED, Augmentation, Draws, augment, crop, draw_offsets
from batches.batch import Batch, Captions
from batches.sampling import batches_of
from data.image_store import ImageStore
from dataloader import stored_batches
from utils import derive_seed


@dataclass(frozen=True)
class Schedule:
    """How the items of a loader are put in order and cut into batches.

    Attributes:
        items: N.
        batch_size: B.
        seed: root of order and views.
    """

    items: int
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(batches_of(torch.arange(self.items), self.batch_size))

    def draw(self, *epoch: int) -> tuple[list[Tensor], torch.Generator]:
        """The batches of an epoch as item numbers, and the generator that draws their views."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", *epoch))
        return batches_of(torch.randperm(self.items, generator=generator), self.batch_size), generator


@dataclass
class ViewLoader:
    """Two views of the items of one modality; order and views follow from the numbers of the epoch alone."""

    schedule: Schedule

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.schedule)

    def views(self, *epoch: int, skip: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """All items once, on the device, two views of each batch; the first `skip` batches are left out."""
        raise NotImplementedError


@dataclass
class StoredLoader(ViewLoader):
    """What images and spectrograms have in common: a store, which of its rows, and their order.

    Attributes:
        schedule: of N items.
        store: the images; their side R leaves room for a random crop.
        rows: [N] which of them.
        image_size: side S of the views, pixels.
        workers: processes that decode where the store holds nothing in memory.
        device: where the batches go.
    """

    store: ImageStore
    rows: Tensor
    _: KW_ONLY
    image_size: int
    workers: int
    device: torch.device

    @property
    def margin(self) -> int:
        """R - S, pixels."""
        return self.store.size - self.image_size

    def views(self, *epoch: int, skip: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """See `ViewLoader`."""
        return ((first, second) for first, second in self._views(epoch, (False, True), skip))

    def _views(self, epoch: tuple[int, ...], kinds: tuple[bool, ...], skip: int) -> Iterator[list[Batch]]:
        """The views of each batch; of what `kinds` says are second ones."""
        chunks, generator = self.schedule.draw(*epoch)
        for chunk in chunks[:skip]:
            for second in kinds:
                self._draw(len(chunk), generator, second)
        chunks = chunks[skip:]
        images = stored_batches(self.store, [self.rows[chunk] for chunk in chunks], self.workers)
        for ids, stored in zip(chunks, images, strict=True):
            resident = stored.to(self.device, non_blocking=True)
            yield [self._view(resident, ids, self._draw(len(ids), generator, second)) for second in kinds]

    def _draw(self, count: int, generator: torch.Generator, second: bool) -> Draws:
        """What chance decides for a view of `count` items."""
        raise NotImplementedError

    def _view(self, stored: Tensor, ids: Tensor, draws: Draws) -> Batch:
        raise NotImplementedError


@dataclass
class ImageLoader(StoredLoader):
    """Images of side `margin_size(S)`, in the training view and MCRN's second view, which is mirrored, too.

    `image_ids` of a batch are places among the N images.

    Attributes:
        augmentation: of the views; the others are `StoredLoader`'s.
    """

    augmentation: Augmentation = PUBLISHED

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """All images once, in the order of epoch `number`, in the training view, without the first `skip` batches."""
        for (view,) in self._views((number,), (False,), skip):
            yield view

    def _draw(self, count: int, generator: torch.Generator, second: bool) -> Draws:
        return Draws.draw(count, self.margin, generator, flips=second, augmentation=self.augmentation)

    def _view(self, stored: Tensor, ids: Tensor, draws: Draws) -> Batch:
        return Batch(images=augment(stored, self.image_size, draws), image_ids=ids).to(self.device)


class TwoViewLoader(ImageLoader):
    """Batches with two views of each image, `images` and `second_view`."""

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """As `ImageLoader.epoch`."""
        for first, second in self.views(number, skip=skip):
            yield replace(first, second_view=second.need("images"))


class SpectrogramLoader(StoredLoader):
    """Spectrograms of side `audio_margin_size(S)`, in two random crops."""

    def _draw(self, count: int, generator: torch.Generator, second: bool) -> Draws:
        return Draws(torch.zeros(count), draw_offsets(count, self.margin, generator))

    def _view(self, stored: Tensor, ids: Tensor, draws: Draws) -> Batch:
        return Batch(audio=crop(stored, self.image_size, draws.offsets))


@dataclass
class CaptionLoader(ViewLoader):
    """Captions alone: one caption of each image and, where it has another, that one as the second view.

    In both views some words are hidden behind `<unk>`, so that an image with one caption has two views as well.

    Attributes:
        schedule: of N images.
        captions: M of them.
        images: the caption numbers of each of the N images, at least one each.
        word_dropout: probability that a word is hidden.
        unknown: id of `<unk>`.
        device: where the batches go.
    """

    captions: Captions
    images: list[Tensor]
    _: KW_ONLY
    word_dropout: float
    unknown: int
    device: torch.device

    def views(self, *epoch: int, skip: int = 0) -> Iterator[tuple[Batch, Batch]]:
        """See `ViewLoader`."""
        chunks, generator = self.schedule.draw(*epoch)
        for number, chunk in enumerate(chunks):
            drawn = [self._two_captions(self.images[image], generator) for image in chunk.tolist()]
            first, second = torch.tensor(drawn).T
            views = self._view(first, generator), self._view(second, generator)
            if number >= skip:
                yield views

    @staticmethod
    def _two_captions(own: Tensor, generator: torch.Generator) -> tuple[int, int]:
        """Two different captions of an image; the same one twice where it has no other."""
        order = own[torch.randperm(len(own), generator=generator)].tolist()
        return order[0], order[-1]

    def _view(self, caption_ids: Tensor, generator: torch.Generator) -> Batch:
        batch = self.captions.batch(caption_ids)
        tokens = batch.need("tokens")
        hidden = (torch.rand(tokens.shape, generator=generator) < self.word_dropout) & (tokens != 0)
        return replace(batch, tokens=tokens.masked_fill(hidden, self.unknown)).to(self.device)
