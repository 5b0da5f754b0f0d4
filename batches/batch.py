"""What a model sees at once, and captions as word ids.

Letters: B batch, N images, M captions, L words, K keyword ids, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from batches.sampling import Sample
from vocab import Vocabulary

QueryMode = Literal["none", "sentence", "keywords", "both"]
"""What a text query is made of; "none": captions, for models that know no keywords. See `batches.queries`."""


@dataclass(frozen=True)
class Batch:
    """What a model sees at once; a field that the batch does not carry is None.

    A training batch of images with all their captions has N images (`images`, `image_ids`, `second_view`, `nodes`,
    `adjacency`) and M captions (`tokens`, `lengths`, `caption_ids`, `audio`, `keywords`); any other has B of both.

    Attributes:
        images: [B, 3, S, S] float, normalised.
        image_features: [B, ...] in place of the images, what the frozen part of the image encoder makes of them; in
            evaluation with several views [B, views, ...].
        tokens: [B, L] int64 word ids, zero-padded to the longest caption of the batch.
        text_features: [B, ...] what the frozen part of the text encoder makes of the captions.
        lengths: [B] int64 words per caption, at least 1; always on the CPU, where the recurrent encoders need them.
        image_ids: [B] int64 index of each image in its annotation list.
        caption_ids: [B] int64 index of each caption in its annotation list; in evaluation the first of equal ones.
        second_view: [B, 3, S, S] another augmentation of the same images.
        audio: [B, 3, S, S] spectrogram images.
        nodes: [B, 20, 20] features of the images' regions, see `data.regions.graph`.
        adjacency: [B, 20, 20] their graph.
        keywords: [B, K] int64 word ids of the images' keywords, two to each, zero-padded; 0 is also a missing first
            word. In a query by sentence alone, words of the sentence; see `batches.queries`.
        image_rows: [M] int64 row of each caption's image; None: caption i belongs to image i.
        whole: what the batches of all ranks hold together; None: not known, or no training batch.
        share: of the items of a step's batch, where that is worked off in parts; None: it is all of them.
    """

    images: Tensor | None = None
    image_features: Tensor | None = None
    tokens: Tensor | None = None
    text_features: Tensor | None = None
    lengths: Tensor | None = None
    image_ids: Tensor | None = None
    caption_ids: Tensor | None = None
    second_view: Tensor | None = None
    audio: Tensor | None = None
    nodes: Tensor | None = None
    adjacency: Tensor | None = None
    keywords: Tensor | None = None
    image_rows: Tensor | None = None
    whole: Sample | None = None
    share: float | None = None

    def __len__(self) -> int:
        """Items, B; of a training batch of images with all their captions the images."""
        return next(len(value) for value in vars(self).values() if value is not None)

    @property
    def image_count(self) -> int:
        """Images of the batches of all ranks."""
        return len(self) if self.whole is None else len(self.whole.images)

    @property
    def items(self) -> int:
        """Matching pairs of the batches of all ranks; items where there are no pairs."""
        return len(self) if self.whole is None else len(self.whole.captions)

    def need(self, field: str) -> Tensor:
        """The tensor of a field that a model can't do without.

        Raises:
            ValueError: the batch does not carry it.
        """
        value: Tensor | None = getattr(self, field)
        if value is None:
            raise ValueError(f"this model needs Batch.{field}, which the batch does not carry")
        return value

    def first(self) -> Batch:
        """The first item of an evaluation batch alone."""
        alone: dict[str, Any] = {name: value[:1] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **alone)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; `lengths` stays on the CPU."""
        held = {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "lengths"}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in held.items()}
        return replace(self, **moved)


OF_CAPTIONS = ("tokens", "text_features", "lengths", "caption_ids", "audio", "keywords", "image_rows")
"""The fields of a batch with an entry per caption; all others have one per image."""


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
