"""What every retrieval model is: three verbs and a training loss.

Letters: B batch, N images, M texts, D embedding, L words, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from batches.batch import Batch, QueryMode
    from option import Options
    from option.parameters import ModelParameters
    from vocab import Vocabulary


class Criterion(Protocol):
    """Losses of a batch."""

    def __call__(self, scores: Tensor, images: Tensor | None = None, texts: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a score matrix [N, M], and of the embeddings [N, D] and [M, D] for losses that compare these.

        Returns:
            Key `loss`, and its parts to log.
        """


NORM_FLOOR = 1e-8
AUDIO_KEYS = ("dataset.audio_path", "optim.methods", "optim.lr_finetune")


def l2norm(vectors: Tensor) -> Tensor:
    """Scale vectors [..., D] to unit length: x / (sqrt(sum x^2) + 1e-8), the released normalisation."""
    return vectors / (vectors.norm(dim=-1, keepdim=True) + NORM_FLOOR)


def normalise_rows(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """Batch norm of rows [B, D]; a single row has no variance, so it takes the running statistics in training, too."""
    if not norm.training or len(rows) > 1:
        return cast(Tensor, norm(rows))
    return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


@dataclass(frozen=True)
class Encodings:
    """What a training loss sees of a batch: N images, M captions; of several ranks those of all of them.

    Attributes:
        images: [N, D].
        texts: [M, D].
        audio: [M, D].
        second_view: [N, D].
        image_rows: [M] int64 row of each caption's image; None: caption i belongs to image i.
    """

    images: Tensor
    texts: Tensor
    audio: Tensor | None = None
    second_view: Tensor | None = None
    image_rows: Tensor | None = None

    def of_captions(self, images: Tensor) -> Tensor:
        """Of values per image [N, ...] those of each caption's image, [M, ...]."""
        return images if self.image_rows is None else images[self.image_rows]


@dataclass(frozen=True)
class Explanation:
    """What a model weighed in a batch of images and captions; None for what it has no such part for.

    Attributes:
        image_attention: [B, H, W] in 0..1, how much counts of each place of an image.
        word_shares: [B, L] how attention is shared out among the words of a caption; 1 in sum, 0 at padding.
    """

    image_attention: Tensor | None = None
    word_shares: Tensor | None = None


class RetrievalModel(nn.Module):
    """Contract between a model and everything else: training, evaluation, export and search use only these verbs."""

    released_names: Mapping[str, str | None] = MappingProxyType({})
    """Prefix of a name in a released checkpoint -> ours; None for a parameter that never reaches the output. A model
    whose options leave parts unbuilt has its own."""

    uses_regions: ClassVar[bool] = False
    """Whether images come with the `nodes` and `adjacency` of `dataset.local_path`."""

    uses_audio: ClassVar[bool] = False
    """Whether captions come with the spectrograms of `dataset.audio_path`, and `encode_audio` embeds them."""

    uses_second_view: ClassVar[bool] = False
    """Whether training batches carry a second view of their images, and images are searched with images."""

    batch_means: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that are means over a batch rather than sums over its items, see `loss_of`."""

    selected_by: ClassVar[str] = "mR"
    """The validation score that the best epoch has the highest of, see `metrics.ranks.task_recalls`."""

    @classmethod
    def from_parameters(
        cls, parameters: ModelParameters, image_size: int, vocabulary: Vocabulary, load_weights: bool
    ) -> RetrievalModel:
        """Build the model from the `model` block of a YAML.

        Args:
            parameters: the block, validated by the class that the model was registered with.
            image_size: side S of the images, pixels.
            vocabulary: the words whose ids `Batch.tokens` holds.
            load_weights: read the weight files that the block names; False where a checkpoint follows anyway.

        Raises:
            InputError: weights that the block names can't be had or don't fit.
        """
        raise NotImplementedError

    @classmethod
    def from_options(cls, options: Options, vocabulary: Vocabulary, load_weights: bool) -> RetrievalModel:
        """Build the model of an experiment; override it where more than the `model` block decides what is built."""
        return cls.from_parameters(options.model, options.dataset.image_size, vocabulary, load_weights)

    @classmethod
    def own_vocabulary(cls, parameters: ModelParameters) -> Vocabulary | None:
        """The words whose ids the model reads, where they come with it; None: those of `dataset.vocab_path`."""
        return None

    @classmethod
    def protocol_note(cls, options: Options) -> str:
        """What a recall table must say about the model of these options beyond its name; mostly nothing."""
        return ""

    @classmethod
    def scores_by_cosine(cls) -> bool:
        """Whether the score is the cosine of two embeddings, so that a vector index can search for it."""
        return cls.pair_scores is RetrievalModel.pair_scores

    @classmethod
    def query_mode(cls, parameters: ModelParameters) -> QueryMode:
        """What text queries are made of by a `model` block; `Batch.keywords` comes with any mode but "none"."""
        return "none"

    @classmethod
    def unread(cls, options: Options) -> Iterator[tuple[str, str]]:
        """Dotted keys outside of the `model` block that the model does not read, each with the reason."""
        name = options.model.name
        if not cls.uses_regions:
            yield "dataset.local_path", f"{name} has no regions"
        if options.dataset.keywords_path is not None and cls.query_mode(options.model) == "none":
            has_keywords = hasattr(options.model, "keywords")
            yield "dataset.keywords_path", "model.keywords.mode is none" if has_keywords else f"{name} has no keywords"
        for key in () if cls.uses_audio else AUDIO_KEYS:
            yield key, f"{name} has no audio"

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """What the optimiser trains, in groups that each have their learning rate (`params`, `lr`)."""
        live = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": live, "lr": options.optim.lr}]

    def fit_released(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring what a released checkpoint stores in another shape into ours; names are ours already."""
        return state_dict

    def encode_image(self, batch: Batch) -> Tensor:
        """Embed each image alone, independent of its batch. Returns [B, D]."""
        raise NotImplementedError

    def encode_text(self, batch: Batch) -> Tensor:
        """Embed each caption alone, independent of its batch. Returns [B, D]."""
        raise NotImplementedError

    def encode_audio(self, batch: Batch) -> Tensor:
        """Embed each spectrogram alone, independent of its batch; for models that use audio. Returns [B, D]."""
        raise NotImplementedError

    def frozen_image(self) -> nn.Module | None:
        """The first part of the image encoder that never changes, draws nothing at random and knows no batch.

        It takes images [B, 3, S, S]; where `Batch.image_features` holds what it gives, `encode_image` goes on from
        there. None: there is no such part.
        """
        return None

    def frozen_text(self) -> nn.Module | None:
        """The same of the text encoder: it takes tokens [B, L], `Batch.text_features` holds what it gives."""
        return None

    def installed_weights(self) -> dict[str, Tensor]:
        """The weights of all parts that start from a package, by their names in `state_dict`; mostly none.

        A model that was just built holds them as the package does, whatever of them learns.
        """
        return {}

    def merged(self) -> RetrievalModel:
        """The model with its adapters added to the weights beside them, for search and export; mostly itself."""
        return self

    def reranker(self) -> RetrievalModel:
        """The model whose score decides in a second stage of search; mostly itself.

        What another one encodes may be [B, L, H], L tokens of an item with rows of zeros at its end.
        """
        return self

    def explain(self, batch: Batch) -> Explanation:
        """What the model weighed in images and their captions; empty unless a model overrides it."""
        return Explanation()

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarity of every image to every text, in float32 whatever the autocast state.

        Args:
            images: [N, D] from `encode_image`.
            texts: [M, D] from `encode_text`.

        Returns:
            [N, M] in [-1, 1]; the cosine unless a model overrides `pair_scores`.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self.pair_scores(images.float(), texts.float())

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """The mathematics of `score` on float32 embeddings; override it where a pair needs more than a cosine."""
        return F.linear(l2norm(images), l2norm(texts))  # [N, M]

    def training_loss(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Loss of a batch: key `loss`, and its parts to log.

        Override `encodings` and `loss_of` instead where several devices are to train the model: what one encodes is
        gathered from all before the loss.
        """
        return self.loss_of(self.encodings(batch), criterion)

    def encodings(self, batch: Batch) -> Encodings:
        """What the training loss needs of a batch, each item alone."""
        return Encodings(self.encode_image(batch), self.encode_text(batch), image_rows=batch.image_rows)

    def loss_of(self, encodings: Encodings, criterion: Criterion) -> dict[str, Tensor]:
        """Loss of what `encodings` made of a batch: key `loss`, and its parts to log."""
        images, texts = encodings.images, encodings.texts
        return criterion(self.score(images, texts), images, texts)


class TwoEncoders(RetrievalModel):
    """A model whose images and captions have an encoder each.

    Attributes:
        image_encoder: normalised images [B, 3, S, S] -> [B, D].
        caption_encoder: tokens [B, L], lengths [B] (CPU) -> [B, D].
    """

    def __init__(self, image_encoder: nn.Module, caption_encoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.caption_encoder = caption_encoder

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`."""
        return cast(Tensor, self.image_encoder(batch.need("images")))

    def encode_text(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        return cast(Tensor, self.caption_encoder(batch.need("tokens"), batch.need("lengths")))
