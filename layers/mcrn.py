"""MCRN: multi-source cross-modal retrieval network, images, captions and spoken captions in one space.

Yuan et al., "MCRN: A Multi-source Cross-modal Retrieval Network for remote sensing", JAG 2022.
Letters: B batch, D embedding. f is a modality's feature, g what the shared pattern transfer makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from layers.backbone import STEPS, ChosenBackboneParameters, backbone_width, build_backbone
from layers.base import Criterion, Encodings
from layers.losses.modalities import distillation
from layers.multiscale import RELEASED_MULTISCALE, MultiscaleImageEncoder, MultiscaleParameters
from layers.multiscale_model import MultiscaleModel, build_encoders
from layers.registry import register
from layers.released import load_fitting
from layers.shared_pattern import HEADS, SharedPatternTransfer, ShareParameters, released_share_names
from layers.text import RELEASED_CAPTIONS, EmbedParameters, Seq2VecParameters
from option.parameters import MOST_LAYERS, MOST_WIDTH, ModelParameters, Parameters
from runtime.weights import read_checkpoint
from utils import InputError

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options
    from vocab import Vocabulary

Modality = Literal["image", "text", "audio"]
MODALITIES: tuple[Modality, ...] = ("image", "text", "audio")
"""In the order of the discriminator's outputs."""

TRIPLET_WEIGHT = 0.5
ALIGNMENT_WEIGHT = 1000.0
ENCODER_RATE = 0.3
"""Learning rate of the encoders, in units of `optim.lr_finetune`."""


class McrnEmbedParameters(EmbedParameters):
    """`model.embed`: the common space."""

    embed_dim: int = Field(
        default=512,
        ge=HEADS,
        le=MOST_WIDTH,
        multiple_of=HEADS,
        description="width of the common space, D; 8 heads share it [numbers]",
    )
    share_dropout: float = Field(
        default=0.3, ge=0, lt=1, description="dropout on features before the shared module [probability]"
    )


class DiscriminatorParameters(Parameters):
    """`model.discriminator`: tells the modalities apart in pretraining."""

    in_size: int = Field(
        default=512,
        ge=1,
        le=MOST_WIDTH,
        description="pretraining: width of its input; must equal embed.embed_dim [numbers]",
    )
    mid_size: int = Field(default=128, ge=1, le=MOST_WIDTH, description="pretraining: its hidden width [numbers]")
    out_size: int = Field(default=3, ge=3, le=3, description="pretraining: modalities that it tells apart [modalities]")
    dropout_r: float = Field(
        default=0.1, ge=0, lt=1, description="pretraining: dropout before its last layer [probability]"
    )


class McrnParameters(ModelParameters):
    """The `model` block of MCRN."""

    image_step = STEPS[-1]
    name: Literal["MCRN"]
    multiscale: MultiscaleParameters = MultiscaleParameters()
    seq2vec: Seq2VecParameters = Seq2VecParameters()
    embed: McrnEmbedParameters = McrnEmbedParameters()
    share: ShareParameters = ShareParameters()
    num_modal: int = Field(
        default=3,
        ge=1,
        le=MOST_LAYERS,
        description="patterns of the shared module, each a matrix of D x D numbers [patterns]",
    )
    discriminator: DiscriminatorParameters = DiscriminatorParameters()
    backbone: ChosenBackboneParameters = ChosenBackboneParameters()
    init_from: Path | None = Field(default=None, description="checkpoint of pretrain.py to start from; null: none")

    @model_validator(mode="after")
    def _widths_agree(self) -> McrnParameters:
        if self.discriminator.in_size != self.embed.embed_dim:
            raise ValueError(
                f"discriminator.in_size ({self.discriminator.in_size}) and embed.embed_dim ({self.embed.embed_dim}) "
                "must be equal"
            )
        return self


class AudioEncoder(nn.Module):
    """A backbone (published: ResNet-18) on a spectrogram image: its spatial mean, projected."""

    def __init__(self, embed_dim: int, architecture: str, pretrained: str, load_weights: bool) -> None:
        """Start from what `layers.backbone.build_backbone` takes."""
        super().__init__()
        self.resnet = build_backbone(architecture, pretrained, load_weights)  # named so in checkpoints, whatever it is
        self.projection = nn.Linear(backbone_width(self.resnet), embed_dim)

    def forward(self, audio: Tensor) -> Tensor:
        """Embed normalised spectrogram images: [B, 3, S, S] -> [B, D]."""
        return cast(Tensor, self.projection(self.resnet(audio)))


class Discriminator(nn.Module):
    """Which modality an embedding comes from: the adversary of the shared module in pretraining."""

    released_names = {"fc1.linear.": "expand.", "linear.": "classify."}  # noqa: RUF012 (never changed)

    def __init__(self, parameters: DiscriminatorParameters) -> None:
        super().__init__()
        self.expand = nn.Linear(parameters.in_size, parameters.mid_size)
        self.classify = nn.Linear(parameters.mid_size, parameters.out_size)
        self.dropout = nn.Dropout(parameters.dropout_r)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits [B, 3] of embeddings [B, D], in the order of `MODALITIES`."""
        return cast(Tensor, self.classify(self.dropout(torch.relu(self.expand(embeddings)))))


@register("MCRN", McrnParameters)
class MCRN(MultiscaleModel):
    """An encoder for each modality, and the shared pattern transfer that all of them go through."""

    uses_audio = True
    uses_second_view = True
    selected_by = "tasks_mR"
    batch_means = ("mse_view", "kd", "alignment")

    def __init__(
        self,
        image_encoder: MultiscaleImageEncoder,
        caption_encoder: nn.Module,
        audio_encoder: nn.Module,
        share: SharedPatternTransfer,
        share_dropout: float,
        aligned: bool,
    ) -> None:
        """Join three encoders of one width.

        Args:
            image_encoder: images [B, 3, S, S] -> [B, D].
            caption_encoder: tokens [B, L], lengths [B] -> [B, D].
            audio_encoder: spectrogram images [B, 3, S, S] -> [B, D].
            share: the module that all features go through.
            share_dropout: dropout on features before it, in fine-tuning, probability.
            aligned: whether the training loss aligns views and modalities besides the triplets.
        """
        super().__init__(image_encoder, caption_encoder)
        self.audio_encoder = audio_encoder
        self.share = share
        self.dropout = nn.Dropout(share_dropout)
        self.aligned = aligned
        self.released_names = {
            **{f"visual.{released}": ours for released, ours in RELEASED_MULTISCALE.items()},
            **{released.replace("text_feature.", "text."): ours for released, ours in RELEASED_CAPTIONS.items()},
            "audio.resnet.": "audio_encoder.resnet.",
            "audio.linear.": "audio_encoder.projection.",
            **released_share_names(len(share.enter.blocks)),
        }

    @classmethod
    def from_parameters(
        cls,
        parameters: ModelParameters,
        image_size: int,
        vocabulary: Vocabulary,
        load_weights: bool,
        aligned: bool = True,
    ) -> MCRN:
        """See `RetrievalModel.from_parameters`; `backbone` is what images and sounds start from."""
        block = cast(McrnParameters, parameters)
        width = block.embed.embed_dim
        model = cls(
            *build_encoders(block, image_size, vocabulary, load_weights),
            AudioEncoder(width, block.backbone.architecture, block.backbone.pretrained, load_weights),
            SharedPatternTransfer(width, block.num_modal, block.share),
            block.embed.share_dropout,
            aligned,
        )
        if load_weights and block.init_from is not None:
            load_pretraining(model, block.init_from, vocabulary)
        return model

    @classmethod
    def from_options(cls, options: Options, vocabulary: Vocabulary, load_weights: bool) -> MCRN:
        """See `RetrievalModel.from_options`; `optim.methods` decides what the training loss aligns."""
        aligned = options.optim.methods == "all"
        return cls.from_parameters(options.model, options.dataset.image_size, vocabulary, load_weights, aligned)

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """See `RetrievalModel.parameter_groups`: the shared module at `lr_finetune`, the encoders at 0.3 of it."""
        shared = [parameter for parameter in self.share.parameters() if parameter.requires_grad]
        known = set(map(id, shared))
        encoders = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [
            {"params": shared, "lr": options.optim.lr_finetune},
            {"params": encoders, "lr": ENCODER_RATE * options.optim.lr_finetune},
        ]

    @classmethod
    def unread(cls, options: Options) -> Iterator[tuple[str, str]]:
        """See `RetrievalModel.unread`."""
        yield from super().unread(options)
        yield "optim.lr", f"{options.model.name} learns at optim.lr_finetune"

    def features(self, modality: Modality, batch: Batch) -> Tensor:
        """Feature f of one modality of a batch, [B, D]."""
        if modality == "audio":
            return cast(Tensor, self.audio_encoder(batch.need("audio")))
        return super().encode_text(batch) if modality == "text" else super().encode_image(batch)

    def encode(self, modality: Modality, batch: Batch) -> Tensor:
        """Embedding g of one modality of a batch, [B, D]."""
        return cast(Tensor, self.share(self.dropout(self.features(modality, batch))))

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`."""
        return self.encode("image", batch)

    def encode_text(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        return self.encode("text", batch)

    def encode_audio(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_audio`."""
        return self.encode("audio", batch)

    def forward_views(self, modality: Modality, first: Batch, second: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two views of the same items in pretraining, without feature dropout: f1, f2, g1, g2, each [B, D].

        Differs from the released code: audio goes through the audio encoder, not through that of images.
        """
        f1, f2 = self.features(modality, first), self.features(modality, second)
        return f1, f2, self.share(f1), self.share(f2)

    def encodings(self, batch: Batch) -> Encodings:
        """See `RetrievalModel.encodings`.

        Raises:
            ValueError: the batch lacks `audio`, or `second_view` where `aligned`.
        """
        images, texts, audio = (self.encode(modality, batch) for modality in MODALITIES)
        second = self.share(self.image_encoder(batch.need("second_view"))) if self.aligned else None
        return Encodings(images, texts, audio, second, batch.image_rows)

    def loss_of(self, encodings: Encodings, criterion: Criterion) -> dict[str, Tensor]:
        """Triplets from images to captions and to audio; with `aligned`, also views and modalities brought together.

        Returns:
            `loss` and its parts as they enter it: `triplet_text`, `triplet_audio`; `mse_view` (two views of an image),
            `kd` and `alignment` (distillation and mean squared error of each two modalities).
        """
        texts, audio, seen = encodings.texts, cast(Tensor, encodings.audio), encodings.images
        parts = {
            "triplet_text": TRIPLET_WEIGHT * criterion(self.score(seen, texts), seen, texts)["loss"],
            "triplet_audio": TRIPLET_WEIGHT * criterion(self.score(seen, audio), seen, audio)["loss"],
        }
        if encodings.second_view is not None:
            images = encodings.of_captions(encodings.images)  # [M, D]
            pairs = ((images, texts), (images, audio), (audio, texts))
            parts["mse_view"] = ALIGNMENT_WEIGHT * F.mse_loss(encodings.images, encodings.second_view)
            parts["kd"] = ALIGNMENT_WEIGHT * torch.stack([distillation(*pair) for pair in pairs]).sum()
            parts["alignment"] = ALIGNMENT_WEIGHT * torch.stack([F.mse_loss(*pair) for pair in pairs]).sum()
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def load_pretraining(model: MCRN, path: Path, vocabulary: Vocabulary) -> None:
    """Start a model from a checkpoint of `pretrain.py`.

    Raises:
        InputError: the file can't be read, or its weights or vocabulary do not fit.
    """
    content = read_checkpoint(path)
    if content.get("vocabulary", vocabulary.digest) != vocabulary.digest:
        raise InputError(
            f"model.init_from: {path} was pretrained with another vocabulary than dataset.vocab_path: its word ids "
            "mean other words. Give the vocabulary that it was pretrained with."
        )
    load_fitting(
        model,
        content["model"],
        f"model.init_from: {path}",
        "Give the model block and dataset.image_size that it was pretrained with; a published checkpoint goes into "
        "optim.resume.",
    )
