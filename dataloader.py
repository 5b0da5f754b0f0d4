"""From annotations and images to batches: tokens, order, views.

Letters: B batch, N images, M captions, A spectrograms, L words, S image side, R side of the images before the crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from batches.augmentation import PUBLISHED, Augmentation, Draws, augment, crop, draw_offsets, normalise
from batches.batch import Batch, Captions
from batches.features import NO_FEATURES, ListFeatures
from batches.prefetch import overlapped, pinned
from batches.sampling import SAMPLERS, Sample, batches_of, like_lengths
from data.annotations import Annotations
from data.image_store import ImageStore
from data.regions.file import Regions, region_fields
from option.dataset import Batching
from runtime.distributed import ALONE, World
from runtime.interruption import obey_parent_alone, termination_held
from runtime.machine import explain
from utils import InputError, RunFault, derive_seed

VIEW_SEED = 0
"""Of the views that image-to-image retrieval is scored with, so that two evaluations agree."""


class _Images(Dataset[Tensor | InputError]):
    """Uint8 images by index batch, or why they can't be read: raised in a worker, that would end in a traceback."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __getitem__(self, indices: Tensor) -> Tensor | InputError:
        try:
            images = self.store.batch(indices)
            # Shared now, while a failure can be told: the thread that would do it later would fail without a word.
            return images if get_worker_info() is None else images.share_memory_()
        except InputError as fault:
            return fault
        except RuntimeError as fault:
            text = explain(fault)
            if text is None:
                raise
            return RunFault(text)


def stored_batches(store: ImageStore, batches: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
    """Images [B, 3, R, R] uint8 of each index batch, in order.

    Workers, which images in memory do not need, draw nothing at random: their number can't change a result.

    Raises:
        InputError: an image can't be read.
    """
    read: Iterable[Tensor | InputError] = map(_Images(store).__getitem__, batches)
    if store.cache in ("disk", "off") and workers > 0:
        # Without a generator of its own, it would draw a number from the one that dropout uses.
        own = torch.Generator()
        read = DataLoader(
            _Images(store),
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            generator=own,
            worker_init_fn=obey_parent_alone,
        )
    with termination_held():
        started = iter(read)
    for images in started:
        if isinstance(images, InputError):
            raise images
        yield images


@dataclass(frozen=True)
class Spectrograms:
    """The spoken captions, as images.

    Attributes:
        store: spectrogram images, in training of side `audio_margin_size(S)`, in evaluation of side S.
        rows: [M] int64, which of them belongs to each caption; captions may share one.
    """

    store: ImageStore
    rows: Tensor


class TrainLoader:
    """Batches of matching pairs, or of images with all their captions, shuffled anew in every epoch.

    The order and the augmentation follow from (seed, epoch) alone, whatever was run before, so that a resumed run
    sees the batches that it would have seen. Several ranks share each batch that one process would have had.
    """

    def __init__(
        self,
        annotations: Annotations,
        captions: Captions,
        usable: Tensor,
        store: ImageStore | None,
        image_ids: Tensor,
        *,
        batch_size: int,
        image_size: int,
        workers: int,
        seed: int,
        device: torch.device,
        regions: Regions | None = None,
        audio: Spectrograms | None = None,
        two_views: bool = False,
        augmentation: Augmentation = PUBLISHED,
        length_buckets: bool = False,
        batching: Batching = "pairs",
        repeats: Tensor | None = None,
        features: ListFeatures = NO_FEATURES,
        world: World = ALONE,
    ) -> None:
        """Pair each usable caption with its image.

        Args:
            annotations: N images and M captions.
            captions: the same captions, tokenised.
            usable: [M] bool, False for a caption that can't train a text encoder.
            store: images of side R = `Augmentation.stored_size`; None where features stand for them.
            image_ids: [N] index of each image in the store.
            batch_size: pairs, or images, per batch of a rank.
            image_size: side S of the views, pixels.
            workers: processes that decode where the store holds nothing in memory.
            seed: root of order and augmentation.
            device: where the batches go.
            regions: of the N images, for models that use them.
            audio: of the M captions, for models that use them.
            two_views: whether batches carry a second view of their images.
            augmentation: of the views.
            length_buckets: whether the captions of a batch are of like length.
            batching: what a batch is made of.
            repeats: [N] int64, how often an epoch sees each image; None: once.
            features: what frozen towers make of the list.
            world: the ranks that share each batch.

        Raises:
            InputError: no caption is usable, or there are too few items for the ranks.
        """
        if not usable.any():
            raise InputError(f"{annotations.folder}: none of the {len(usable)} train captions has a token; mend them")
        self.captions = captions
        self.sampler = SAMPLERS[batching](torch.from_numpy(annotations.caption_image), usable, repeats)
        self.world = world
        self.least = 2 * world.size  # see `batches_of`
        if world.size > 1 and len(self.sampler) < self.least:
            raise InputError(
                f"{annotations.folder}: {len(self.sampler)} {batching} to train on are too few for {world.size} ranks, "
                "each of which needs 2 in every batch; start fewer."
            )
        self.store = store
        self.image_ids = image_ids
        self.batch_size = batch_size
        self.image_size = image_size
        self.workers = workers
        self.seed = seed
        self.device = device
        self.regions = regions
        self.audio = audio
        self.two_views = two_views
        self.augmentation = augmentation
        self.length_buckets = length_buckets
        self.features = features
        self.margin = 0 if store is None else store.size - image_size

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(batches_of(torch.arange(len(self.sampler)), self.batch_size * self.world.size, self.least))

    def _cut(self, order: Tensor, generator: torch.Generator) -> list[Tensor]:
        """An order in batches of all ranks together."""
        batch_size = self.batch_size * self.world.size
        if not self.length_buckets:
            return batches_of(order, batch_size, self.least)
        return like_lengths(order, self.sampler.longest(self.captions.lengths), batch_size, generator, self.least)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """All items once, in the order of epoch `number`, on the device; the first `skip` batches are left out.

        Of several ranks each yields its share of every batch.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", number))
        order = torch.randperm(len(self.sampler), generator=generator)
        samples = [self.sampler.sample(items, generator) for items in self._cut(order, generator)]
        for sample in samples[:skip]:
            self._draw(sample, generator)
        return overlapped(self._batches(samples[skip:], generator), self.device)

    def _batches(self, samples: Sequence[Sample], generator: torch.Generator) -> Iterator[Batch]:
        shares = [sample.shares(self.world.size)[self.world.rank] for sample in samples]
        images, spoken = self._stored(shares), self._spoken(shares)
        for whole, share in zip(samples, shares, strict=True):
            size, (first, second, offsets) = self.image_size, self._draw(whole, generator)
            fields: dict[str, Any] = {"text_features": self.features.of_captions(share.captions)}
            if self.store is None:
                fields["image_features"] = self.features.of_views(share.images, first.need_views())
            else:
                resident = pinned(next(images), self.device).to(self.device, non_blocking=True)
                fields["images"] = augment(resident, size, first)
                if second is not None:
                    fields["second_view"] = augment(resident, size, second)
            if offsets is not None:
                heard = pinned(next(spoken), self.device)
                fields["audio"] = crop(heard.to(self.device, non_blocking=True), size, offsets)
            fields |= region_fields(self.regions, share.images)
            batch = replace(self.captions.batch(share.captions), image_ids=share.images, **fields)
            yield replace(batch, image_rows=share.rows, whole=whole).to(self.device)

    def _draw(self, whole: Sample, generator: torch.Generator) -> tuple[Draws, Draws | None, Tensor | None]:
        """What chance decides for this rank's share: the view, the second view, the crop of the spectrograms.

        Drawn for all ranks, as one process would have drawn it.
        """
        size, margin, count = self.image_size, self.margin, len(whole.images)
        shares = whole.shares(self.world.size)
        images = torch.arange(count).split([len(share.images) for share in shares])[self.world.rank]
        view = Draws.draw(count, margin, generator, augmentation=self.augmentation).rows(images)
        second, offsets = None, None
        if self.two_views:
            second = Draws.draw(count, margin, generator, flips=True, augmentation=self.augmentation).rows(images)
        if self.audio is not None:
            drawn = draw_offsets(len(whole.captions), self.audio.store.size - size, generator)
            offsets = drawn.split([len(share.captions) for share in shares])[self.world.rank]
        return view, second, offsets

    def _stored(self, shares: Sequence[Sample]) -> Iterator[Tensor]:
        """Stored images of each batch; none where features stand for them."""
        if self.store is None:
            return iter(())
        return stored_batches(self.store, [self.image_ids[share.images] for share in shares], self.workers)

    def _spoken(self, shares: Sequence[Sample]) -> Iterator[Tensor]:
        """Stored spectrograms of the captions of each batch."""
        if self.audio is None:
            return iter(())
        rows = self.audio.rows
        return stored_batches(self.audio.store, [rows[share.captions] for share in shares], self.workers)


class EvaluationLoader:
    """Each image, each different caption and each different spectrogram once, for the encoders apart."""

    def __init__(
        self,
        annotations: Annotations,
        captions: Captions,
        store: ImageStore,
        image_ids: Tensor,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        regions: Regions | None = None,
        audio: Spectrograms | None = None,
        views: ImageStore | None = None,
        features: ListFeatures = NO_FEATURES,
        world: World = ALONE,
    ) -> None:
        """See `TrainLoader`; the store's images have the side S here, those of `views` the side R.

        Of several ranks each gets every W-th batch; `join` brings together what they make of them.
        """
        self.text_image = torch.from_numpy(annotations.caption_image)
        self.distinct, self.caption_row = captions.distinct()
        self.first_caption = torch.from_numpy(np.unique(self.caption_row.numpy(), return_index=True)[1])
        self.store = store
        self.image_ids = image_ids
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.regions = regions
        self.audio = audio
        self.views = views
        self.features = features
        self.world = world

    def _own(self, chunks: Sequence[Tensor]) -> Sequence[Tensor]:
        """Every W-th chunk; a rank without one does the first as well, so that it knows the form of the result."""
        return chunks[self.world.rank :: self.world.size] or chunks[:1]

    def reading(self, features: ListFeatures) -> EvaluationLoader:
        """The same loader with what frozen towers make of the list."""
        other = copy(self)
        other.features = features
        return other

    def join(self, rows: Tensor, total: int) -> Tensor:
        """Embeddings [total, D] of all ranks, from those that this rank made of its batches."""
        return self.world.weave(rows, self.batch_size, total)

    def image_batches(self) -> Iterator[Batch]:
        """Every image once, in order."""
        chunks = self._own(torch.arange(len(self.image_ids)).split(self.batch_size))
        if self.features.images is not None:
            for image_ids in chunks:
                features, local = self.features.of_images(image_ids), region_fields(self.regions, image_ids)
                yield Batch(image_features=features, image_ids=image_ids, **local).to(self.device)
            return
        self.store.load(self.image_ids, "images")
        images = stored_batches(self.store, [self.image_ids[chunk] for chunk in chunks], self.workers)
        for image_ids, stored in zip(chunks, images, strict=True):
            local = region_fields(self.regions, image_ids)
            yield Batch(images=normalise(stored.to(self.device)), image_ids=image_ids, **local).to(self.device)

    def caption_batches(self) -> Iterator[Batch]:
        """Every different caption once, the longest first; `caption_row` [M] says which row is whose."""
        for rows in self._own(torch.arange(len(self.distinct.lengths)).split(self.batch_size)):
            first = self.first_caption[rows]
            features = self.features.of_captions(first)
            yield replace(self.distinct.batch(rows), caption_ids=first, text_features=features).to(self.device)

    @property
    def spectrograms(self) -> int:
        """Different spectrograms."""
        return 0 if self.audio is None else len(self.audio.rows.unique())

    @property
    def caption_audio(self) -> Tensor:
        """For each caption the row of its spectrogram in what `audio_batches` gives, [M]."""
        if self.audio is None:
            raise ValueError("this loader was made without spectrograms")
        return self.audio.rows.unique(return_inverse=True)[1]

    def audio_batches(self) -> Iterator[Batch]:
        """Every different spectrogram once."""
        if self.audio is None:
            raise ValueError("this loader was made without spectrograms")
        rows = self.audio.rows.unique()
        self.audio.store.load(rows, "spectrograms")
        for stored in stored_batches(self.audio.store, self._own(rows.split(self.batch_size)), self.workers):
            yield Batch(audio=normalise(stored.to(self.device)))

    def view_batches(self) -> Iterator[Batch]:
        """Another view of every image once, in order; the same views each time, whatever the batch size."""
        if self.views is None:
            raise ValueError("this loader was made without second views")
        size, count = self.store.size, len(self.image_ids)
        generator = torch.Generator().manual_seed(VIEW_SEED)
        draws = Draws.draw(count, self.views.size - size, generator, flips=True)
        chunks = self._own(torch.arange(count).split(self.batch_size))
        self.views.load(self.image_ids, "images")
        images = stored_batches(self.views, [self.image_ids[chunk] for chunk in chunks], self.workers)
        for image_ids, stored in zip(chunks, images, strict=True):
            view = augment(stored.to(self.device), size, draws.rows(image_ids))
            yield Batch(images=view, image_ids=image_ids).to(self.device)
