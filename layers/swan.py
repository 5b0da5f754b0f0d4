"""SWAN: scene-aware aggregation network, two towers that meet in a cosine.

Pan et al., "Reducing Semantic Confusion: Scene-aware Aggregation Network for Remote Sensing Cross-modal Retrieval",
ICMR 2023. Letters: B batch, S image side in pixels, L words, D embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from layers.backbone import STEPS, BackboneParameters
from layers.base import Explanation, TwoEncoders
from layers.registry import register
from layers.swan_image import RELEASED_IMAGE, SceneImageEncoder, SceneStages
from layers.swan_text import RELEASED_TEXT, ContextCaptionEncoder
from layers.text import load_glove
from option.parameters import MOST_LAYERS, MOST_WIDTH, ModelParameters, Parameters
from utils import logger

if TYPE_CHECKING:
    from batches.batch import Batch
    from vocab import Vocabulary

WORD_TABLE = "caption_encoder.embedding.weight"
TOKEN_WEIGHTS = "image_encoder.details.token_weights"


class SwanEmbedParameters(Parameters):
    """`model.embed`: the common space and the word vectors."""

    embed_dim: int = Field(
        default=512,
        ge=8,
        le=MOST_WIDTH,
        multiple_of=8,
        description="width of the common space, D; 8 heads share it [numbers]",
    )
    glove: Path | None = Field(default=None, description="GloVe text file for the word vectors; absent: random")


class TcgeParameters(Parameters):
    """`model.tcge`: the gated attention over words."""

    rounding: Literal["floor", "none"] = Field(
        default="floor",
        description="floor: scores rounded down, as released, so that queries and keys never learn; none: not",
    )


class DropoutParameters(Parameters):
    """`model.dropout`: probabilities; the defaults are the released constants."""

    words: float = Field(default=0.4, ge=0, lt=1, description="dropout on word vectors [probability]")
    context: float = Field(
        default=0.2, ge=0, lt=1, description="dropout on what the gated attention adds to a word [probability]"
    )
    caption: float = Field(
        default=0.1, ge=0, lt=1, description="dropout inside the last MLP of the caption encoder [probability]"
    )
    global_view: float = Field(
        default=0.2, ge=0, lt=1, description="dropout inside the MLP of the pooled image [probability]"
    )
    local_view: float = Field(
        default=0.1, ge=0, lt=1, description="dropout on the detail tokens and their attention [probability]"
    )


class SwanParameters(ModelParameters):
    """The `model` block of SWAN."""

    image_step = STEPS[-1]
    name: Literal["SWAN"]
    embed: SwanEmbedParameters = SwanEmbedParameters()
    word_dim: int = Field(default=300, ge=1, le=MOST_WIDTH, description="length of a word vector [numbers]")
    num_layers: int = Field(default=1, ge=1, le=MOST_LAYERS, description="layers of the GRU [layers]")
    use_bidirectional_rnn: bool = Field(default=True, description="read captions from both ends, directions averaged")
    is_finetune: bool = Field(default=False, description="train the backbone; false: its weights stay as they start")
    freeze_statistics: bool = Field(
        default=False,
        description="of a frozen backbone; true: batch norms keep the statistics of its weights, so that features are "
        "kept; false: published",
    )
    resnet_ckpt: Path | None = Field(
        default=None, description="published name of the backbone's file; where given, backbone.pretrained is not read"
    )
    tcge: TcgeParameters = TcgeParameters()
    dropout: DropoutParameters = DropoutParameters()
    backbone: BackboneParameters = BackboneParameters()

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: a frozen backbone has no learning rate, and no other is frozen in part."""
        if self.is_finetune:
            return {"model.freeze_statistics": "model.is_finetune is true"}
        return {"optim.lr_backbone": "model.is_finetune is false"}

    @property
    def backbone_weights(self) -> str:
        """What the backbone starts from, as `layers.backbone.resnet` takes it."""
        return self.backbone.pretrained if self.resnet_ckpt is None else str(self.resnet_ckpt)


@register("SWAN", SwanParameters)
class SWAN(TwoEncoders):
    """Pooled scene and fine details of an image, aggregated; the last word of a caption in its context."""

    image_encoder: SceneImageEncoder
    caption_encoder: ContextCaptionEncoder
    released_names = {**RELEASED_IMAGE, **RELEASED_TEXT}  # noqa: RUF012 (ClassVar in the base class)

    @classmethod
    def from_parameters(
        cls, parameters: ModelParameters, image_size: int, vocabulary: Vocabulary, load_weights: bool
    ) -> SWAN:
        """See `RetrievalModel.from_parameters`; images of any size that is a multiple of 32 fit."""
        block = cast(SwanParameters, parameters)
        weights = block.backbone_weights if load_weights else "none"
        if load_weights and weights == "none" and not block.is_finetune:
            logger.warning(
                "The backbone starts random and stays so: set model.is_finetune=true to train it, or "
                "model.backbone.pretrained to weights."
            )
        image_encoder = SceneImageEncoder(
            block.embed.embed_dim,
            weights,
            block.is_finetune,
            block.freeze_statistics,
            block.dropout.global_view,
            block.dropout.local_view,
        )
        caption_encoder = ContextCaptionEncoder(
            words=len(vocabulary),
            word_dim=block.word_dim,
            embed_dim=block.embed.embed_dim,
            layers=block.num_layers,
            bidirectional=block.use_bidirectional_rnn,
            floor=block.tcge.rounding == "floor",
            word_dropout=block.dropout.words,
            context_dropout=block.dropout.context,
            caption_dropout=block.dropout.caption,
        )
        if load_weights:
            load_glove(caption_encoder.embedding, block.embed.glove, vocabulary.word2idx)
        return cls(image_encoder, caption_encoder)

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`: the backbone, where its statistics are frozen, too."""
        return SceneStages(self.image_encoder.resnet) if self.image_encoder.is_frozen else None

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`."""
        if batch.image_features is not None:
            return self.image_encoder.finish(batch.image_features)
        return super().encode_image(batch)

    def explain(self, batch: Batch) -> Explanation:
        """See `RetrievalModel.explain`: TCGE's attention of the last word, which becomes the caption's vector."""
        return Explanation(word_shares=self.caption_encoder.word_shares(batch.need("tokens"), batch.need("lengths")))

    def fit_released(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `RetrievalModel.fit_released`.

        The released word table has 8,590 rows whatever the vocabulary; those beyond ours are left out. The released
        weights of the detail tokens are [1, N, D], of which only the mean over D acts.
        """
        fitted = dict(state_dict)
        rows = self.caption_encoder.embedding.num_embeddings
        if WORD_TABLE in fitted and len(fitted[WORD_TABLE]) > rows:
            logger.warning(
                "The released word table has %d rows, of which a vocabulary of %d words reads 1 to %d. They are the "
                "right ones only if it is the vocabulary that the checkpoint was trained with (dataset.vocab_path).",
                *(len(fitted[WORD_TABLE]), rows - 1, rows - 1),
            )
            fitted[WORD_TABLE] = fitted[WORD_TABLE][:rows]
        if TOKEN_WEIGHTS in fitted and fitted[TOKEN_WEIGHTS].ndim == 3:
            fitted[TOKEN_WEIGHTS] = fitted[TOKEN_WEIGHTS].mean(dim=(0, 2))  # [N]
        return fitted
