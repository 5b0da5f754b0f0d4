"""From annotations and pictures to batches: tokens, order, views.

Letters: B batch, N images, M captions, A spectrograms, L words, S image side, R side of the pictures before the crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from augmentation import Augmentation, Draws, augment, crop, draw_offsets, normalise
from data.annotations import Annotations
from data.picture_store import PictureStore
from data.region_file import Regions, region_fields
from interruption import obey_parent_alone
from machine import explain
from utils import InputError, RunFault, derive_seed
from vocab import Vocabulary

VIEW_SEED = 0
"""Of the views that image-to-image retrieval is scored with, so that two evaluations agree."""


@dataclass(frozen=True)
class Batch:
    """What a model sees at once; a field that the batch does not carry is None.

    Attributes:
        images: [B, 3, S, S] float, normalised.
        tokens: [B, L] int64 word ids, zero-padded to the longest caption of the batch.
        lengths: [B] int64 words per caption, at least 1; always on the CPU, where the recurrent encoders need them.
        image_ids: [B] int64 index of each picture in its annotation list.
        caption_ids: [B] int64 index of each caption in its annotation list; in evaluation the first of equal ones.
        second_view: [B, 3, S, S] another augmentation of the same pictures.
        audio: [B, 3, S, S] spectrogram pictures.
        nodes: [B, 20, 20] features of the pictures' regions, see `data.region_graph`.
        adjacency: [B, 20, 20] their graph.
        keywords: [B, K] int64 word ids of the pictures' keywords, two to each, zero-padded; 0 is also a missing first
            word. In a query by sentence alone, words of the sentence; see `queries`.
    """

    images: Tensor | None = None
    tokens: Tensor | None = None
    lengths: Tensor | None = None
    image_ids: Tensor | None = None
    caption_ids: Tensor | None = None
    second_view: Tensor | None = None
    audio: Tensor | None = None
    nodes: Tensor | None = None
    adjacency: Tensor | None = None
    keywords: Tensor | None = None

    def __len__(self) -> int:
        """Items, B."""
        return next(len(value) for value in vars(self).values() if value is not None)

    def need(self, field: str) -> Tensor:
        """The tensor of a field that a model can't do without.

        Raises:
            ValueError: the batch does not carry it.
        """
        value: Tensor | None = getattr(self, field)
        if value is None:
            raise ValueError(f"this model needs Batch.{field}, which the batch does not carry")
        return value

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; `lengths` stays on the CPU."""
        held = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "lengths"}
        moved = {name: value.to(device, non_blocking=True) for name, value in held.items() if value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Captions:
    """Captions as word ids, tokenised once.

    Attributes:
        tokens: [M, L] int64, zero-padded.
        lengths: [M] int64, at least 1.
        keywords: [M, K] int64, zero-padded, see `Batch`; None for models that know no keywords.
    """

    tokens: Tensor
    lengths: Tensor
    keywords: Tensor | None = None

    @classmethod
    def encode(cls, captions: Sequence[str], vocabulary: Vocabulary) -> Captions:
        """Tokenise captions; one without any word becomes `<unk>` alone, so that it keeps its row."""
        ids = {caption: torch.tensor(vocabulary.encode(caption)) for caption in set(captions)}
        encoded = [ids[caption] for caption in captions]
        lengths = torch.tensor([len(row) for row in encoded])
        return cls(torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True), lengths)

    def batch(self, ids: Tensor) -> Batch:
        """The captions `ids` [B], padded no further than their longest."""
        lengths = self.lengths[ids]
        keywords = None if self.keywords is None else self.keywords[ids]
        tokens = self.tokens[ids, : int(lengths.max())]
        return Batch(tokens=tokens, lengths=lengths, caption_ids=ids, keywords=keywords)

    def distinct(self) -> tuple[Captions, Tensor]:
        """Every different word sequence once, the longest first; with other keywords it is another one.

        Returns:
            The U distinct captions, and for each of the M captions its row among them [M].
        """
        width = self.tokens.shape[1]
        ids = self.tokens if self.keywords is None else torch.cat([self.tokens, self.keywords], dim=1)
        distinct, row_of = ids.unique(dim=0, return_inverse=True)
        lengths = (distinct[:, :width] != 0).sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        distinct = distinct[order]
        keywords = None if self.keywords is None else distinct[:, width:]
        return Captions(distinct[:, :width], lengths[order], keywords), order.argsort()[row_of]


class _Pictures(Dataset[Tensor | InputError]):
    """Uint8 pictures by index batch, or why they can't be read: raised in a worker, that would end in a traceback."""

    def __init__(self, store: PictureStore) -> None:
        self.store = store

    def __getitem__(self, indices: Tensor) -> Tensor | InputError:
        try:
            pictures = self.store.batch(indices)
            # Shared now, while a failure can be told: the thread that would do it later would fail without a word.
            return pictures if get_worker_info() is None else pictures.share_memory_()
        except InputError as fault:
            return fault
        except RuntimeError as fault:
            text = explain(fault)
            if text is None:
                raise
            return RunFault(text)


def stored_batches(store: PictureStore, batches: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
    """Pictures [B, 3, R, R] uint8 of each index batch, in order.

    Workers, which pictures in memory do not need, draw nothing at random: their number can't change a result.

    Raises:
        InputError: a picture can't be read.
    """
    read: Iterable[Tensor | InputError] = map(_Pictures(store).__getitem__, batches)
    if store.cache in ("disk", "off") and workers > 0:
        # Without a generator of its own, it would draw a number from the one that dropout uses.
        own = torch.Generator()
        read = DataLoader(
            _Pictures(store),
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            generator=own,
            worker_init_fn=obey_parent_alone,
        )
    for pictures in read:
        if isinstance(pictures, InputError):
            raise pictures
        yield pictures


@dataclass(frozen=True)
class Spectrograms:
    """The spoken captions, as pictures.

    Attributes:
        store: spectrogram pictures, in training of side `audio_margin_size(S)`, in evaluation of side S.
        rows: [M] int64, which of them belongs to each caption; captions may share one.
    """

    store: PictureStore
    rows: Tensor


def batches_of(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut an order into batches of `batch_size`; a last single item, which batch norms can't learn from, joins them."""
    chunks = list(order.split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def like_lengths(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Batches of captions of like length, themselves in random order.

    Args:
        order: caption ids in random order, which decides among those of equal length.
        lengths: [M] words of each caption.
        batch_size: see `batches_of`.
        generator: for the order of the batches.
    """
    batches = batches_of(order[lengths[order].argsort(stable=True)], batch_size)
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


class TrainLoader:
    """Batches of matching pairs, shuffled anew in every epoch.

    The order and the augmentation follow from (seed, epoch) alone, whatever was run before, so that a resumed run
    sees the batches that it would have seen.
    """

    def __init__(
        self,
        annotations: Annotations,
        captions: Captions,
        usable: Tensor,
        store: PictureStore,
        picture_ids: Tensor,
        *,
        batch_size: int,
        image_size: int,
        workers: int,
        seed: int,
        device: torch.device,
        regions: Regions | None = None,
        audio: Spectrograms | None = None,
        two_views: bool = False,
        augmentation: Augmentation = "published",
        length_buckets: bool = False,
    ) -> None:
        """Pair each usable caption with its picture.

        Args:
            annotations: N images and M captions.
            captions: the same captions, tokenised.
            usable: [M] bool, False for a caption that can't train a text encoder.
            store: pictures of side R = `margin_size(image_size)`.
            picture_ids: [N] index of each image in the store.
            batch_size: pairs per batch, B.
            image_size: side S of the views, pixels.
            workers: processes that decode where the store holds nothing in memory.
            seed: root of order and augmentation.
            device: where the batches go.
            regions: of the N images, for models that use them.
            audio: of the M captions, for models that use them.
            two_views: whether batches carry a second view of their pictures.
            augmentation: of the views.
            length_buckets: whether the captions of a batch are of like length.

        Raises:
            InputError: no caption is usable.
        """
        if not usable.any():
            raise InputError(f"{annotations.folder}: none of the {len(usable)} train captions has a token; mend them")
        self.captions = captions
        self.caption_image = torch.from_numpy(annotations.caption_image)
        self.pairs = usable.nonzero().squeeze(1)  # caption ids
        self.store = store
        self.picture_ids = picture_ids
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

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(batches_of(self.pairs, self.batch_size))

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """All pairs once, in the order of epoch `number`, on the device; the first `skip` batches are left out."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", number))
        order = self.pairs[torch.randperm(len(self.pairs), generator=generator)]
        chunks = batches_of(order, self.batch_size)
        if self.length_buckets:
            chunks = like_lengths(order, self.captions.lengths, self.batch_size, generator)
        for chunk in chunks[:skip]:
            self._draw(len(chunk), generator)
        chunks = chunks[skip:]
        image_chunks = [self.caption_image[chunk] for chunk in chunks]
        pictures = stored_batches(self.store, [self.picture_ids[images] for images in image_chunks], self.workers)
        spoken = self._spoken(chunks)
        for caption_ids, image_ids, stored in zip(chunks, image_chunks, pictures, strict=True):
            size, (first, second, offsets) = self.image_size, self._draw(len(caption_ids), generator)
            resident = stored.to(self.device, non_blocking=True)
            fields = {"images": augment(resident, size, first)}
            if second is not None:
                fields["second_view"] = augment(resident, size, second)
            if offsets is not None:
                fields["audio"] = crop(next(spoken).to(self.device, non_blocking=True), size, offsets)
            fields |= region_fields(self.regions, image_ids)
            yield replace(self.captions.batch(caption_ids), image_ids=image_ids, **fields).to(self.device)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Draws, Draws | None, Tensor | None]:
        """What chance decides for `count` pairs: the view, the second view, the crop of the spectrograms."""
        size, margin = self.image_size, self.store.size - self.image_size
        view = Draws.draw(count, margin, generator, augmentation=self.augmentation)
        second = None
        if self.two_views:
            second = Draws.draw(count, margin, generator, flips=True, augmentation=self.augmentation)
        offsets = draw_offsets(count, self.audio.store.size - size, generator) if self.audio is not None else None
        return view, second, offsets

    def _spoken(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Stored spectrograms of the captions of each batch."""
        if self.audio is None:
            return iter(())
        return stored_batches(self.audio.store, [self.audio.rows[chunk] for chunk in chunks], self.workers)


class EvaluationLoader:
    """Each picture, each different caption and each different spectrogram once, for the encoders apart."""

    def __init__(
        self,
        annotations: Annotations,
        captions: Captions,
        store: PictureStore,
        picture_ids: Tensor,
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        regions: Regions | None = None,
        audio: Spectrograms | None = None,
        views: PictureStore | None = None,
    ) -> None:
        """See `TrainLoader`; the store's pictures have the side S here, those of `views` the side R."""
        self.text_image = torch.from_numpy(annotations.caption_image)
        self.distinct, self.caption_row = captions.distinct()
        self.first_caption = torch.from_numpy(np.unique(self.caption_row.numpy(), return_index=True)[1])
        self.store = store
        self.picture_ids = picture_ids
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.regions = regions
        self.audio = audio
        self.views = views

    def image_batches(self) -> Iterator[Batch]:
        """Every picture once, in order."""
        chunks = torch.arange(len(self.picture_ids)).split(self.batch_size)
        pictures = stored_batches(self.store, [self.picture_ids[chunk] for chunk in chunks], self.workers)
        for image_ids, stored in zip(chunks, pictures, strict=True):
            local = region_fields(self.regions, image_ids)
            yield Batch(images=normalise(stored.to(self.device)), image_ids=image_ids, **local).to(self.device)

    def caption_batches(self) -> Iterator[Batch]:
        """Every different caption once, the longest first; `caption_row` [M] says which row is whose."""
        for rows in torch.arange(len(self.distinct.lengths)).split(self.batch_size):
            yield replace(self.distinct.batch(rows), caption_ids=self.first_caption[rows]).to(self.device)

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
        for stored in stored_batches(self.audio.store, rows.split(self.batch_size), self.workers):
            yield Batch(audio=normalise(stored.to(self.device)))

    def view_batches(self) -> Iterator[Batch]:
        """Another view of every picture once, in order; the same views each time, whatever the batch size."""
        if self.views is None:
            raise ValueError("this loader was made without second views")
        size, count = self.store.size, len(self.picture_ids)
        generator = torch.Generator().manual_seed(VIEW_SEED)
        draws = Draws.draw(count, self.views.size - size, generator, flips=True)
        chunks = torch.arange(count).split(self.batch_size)
        pictures = stored_batches(self.views, [self.picture_ids[chunk] for chunk in chunks], self.workers)
        for image_ids, stored in zip(chunks, pictures, strict=True):
            view = augment(stored.to(self.device), size, draws.rows(image_ids))
            yield Batch(images=view, image_ids=image_ids).to(self.device)
