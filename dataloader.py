"""From annotations and pictures to batches: tokens, order, augmentation.

Letters: B batch, N images, M captions, L words, S image side, R side of the pictures before the crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.annotations import Annotations
from data.picture_store import PictureStore
from data.region_file import Regions, region_fields
from utils import InputError, derive_seed
from vocab import Vocabulary

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ROTATION = 90.0  # degrees


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
        keywords: [B, K] int64 word ids of the pictures' keywords.
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
    """

    tokens: Tensor
    lengths: Tensor

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
        return Batch(tokens=self.tokens[ids, : int(lengths.max())], lengths=lengths, caption_ids=ids)

    def distinct(self) -> tuple[Captions, Tensor]:
        """Every different word sequence once, the longest first.

        Returns:
            The U distinct captions, and for each of the M captions its row among them [M].
        """
        tokens, row_of = self.tokens.unique(dim=0, return_inverse=True)
        lengths = (tokens != 0).sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        return Captions(tokens[order], lengths[order]), order.argsort()[row_of]


def margin_size(image_size: int) -> int:
    """Side R to which a picture is resized before the random crop: 278 for 256, in proportion for other sizes."""
    return round(image_size * 278 / 256)


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


def augment(pictures: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The training view: rotation by a uniform angle in [0, 90] degrees, random crop, normalisation.

    Args:
        pictures: [B, 3, R, R] uint8, on any device.
        size: side S of the crop, at most R.
        generator: on the CPU, so that the draws are the same on every device.

    Returns:
        [B, 3, S, S] float, on the pictures' device.
    """
    angles = torch.rand(len(pictures), generator=generator) * MAX_ROTATION
    offsets = torch.randint(0, pictures.shape[-1] - size + 1, (len(pictures), 2), generator=generator)
    return normalise(rotate_and_crop(pictures, angles.to(pictures.device), offsets.to(pictures.device), size))


class _Pictures(Dataset[Tensor | InputError]):
    """Uint8 pictures by index batch, or why they can't be read: raised in a worker, that would end in a traceback."""

    def __init__(self, store: PictureStore) -> None:
        self.store = store

    def __getitem__(self, indices: Tensor) -> Tensor | InputError:
        try:
            return self.store.batch(indices)
        except InputError as fault:
            return fault


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
        read = DataLoader(_Pictures(store), batch_size=None, sampler=batches, num_workers=workers, generator=own)
    for pictures in read:
        if isinstance(pictures, InputError):
            raise pictures
        yield pictures


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

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.pairs) / self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All pairs once, in the order of epoch `number`, on the device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", number))
        order = self.pairs[torch.randperm(len(self.pairs), generator=generator)]
        chunks = order.split(self.batch_size)
        image_chunks = [self.caption_image[chunk] for chunk in chunks]
        pictures = stored_batches(self.store, [self.picture_ids[images] for images in image_chunks], self.workers)
        for caption_ids, image_ids, stored in zip(chunks, image_chunks, pictures, strict=True):
            view = augment(stored.to(self.device, non_blocking=True), self.image_size, generator)
            local = region_fields(self.regions, image_ids)
            pairs = replace(self.captions.batch(caption_ids), image_ids=image_ids, images=view, **local)
            yield pairs.to(self.device)


class PictureLoader:
    """Batches of pictures alone, shuffled anew in every epoch; order and views follow from (seed, epoch) alone."""

    def __init__(
        self,
        store: PictureStore,
        picture_ids: Tensor,
        *,
        batch_size: int,
        image_size: int,
        workers: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """See `TrainLoader`; `image_ids` of a batch are places in `picture_ids` [N]."""
        self.store = store
        self.picture_ids = picture_ids
        self.batch_size = batch_size
        self.image_size = image_size
        self.workers = workers
        self.seed = seed
        self.device = device

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.picture_ids) / self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All pictures once, in the order of epoch `number`, on the device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", number))
        chunks = torch.randperm(len(self.picture_ids), generator=generator).split(self.batch_size)
        pictures = stored_batches(self.store, [self.picture_ids[chunk] for chunk in chunks], self.workers)
        for image_ids, stored in zip(chunks, pictures, strict=True):
            view = augment(stored.to(self.device, non_blocking=True), self.image_size, generator)
            yield Batch(images=view, image_ids=image_ids).to(self.device)


class EvaluationLoader:
    """Each picture once and each different caption once, for the two encoders apart."""

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
    ) -> None:
        """See `TrainLoader`; the store's pictures have the side S here."""
        self.text_image = torch.from_numpy(annotations.caption_image)
        self.distinct, self.caption_row = captions.distinct()
        self.first_caption = torch.from_numpy(np.unique(self.caption_row.numpy(), return_index=True)[1])
        self.store = store
        self.picture_ids = picture_ids
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.regions = regions

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
