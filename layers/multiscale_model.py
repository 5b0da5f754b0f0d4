"""What AMFMN, GaLR and MCRN share: the multiscale image encoder and the caption encoder, and what explains an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from layers.backbone import ChosenBackboneParameters
from layers.base import Explanation, TwoEncoders
from layers.multiscale import RELEASED_MULTISCALE, MultiscaleImageEncoder, MultiscaleParameters
from layers.pyramid import pyramid
from layers.text import RELEASED_CAPTIONS, CaptionEncoder, EmbedParameters, Seq2VecParameters, caption_encoder

if TYPE_CHECKING:
    from batches.batch import Batch
    from vocab import Vocabulary


class MultiscaleBlock(Protocol):
    """What the `model` blocks of these models have in common."""

    @property
    def multiscale(self) -> MultiscaleParameters: ...  # noqa: D102
    @property
    def seq2vec(self) -> Seq2VecParameters: ...  # noqa: D102
    @property
    def embed(self) -> EmbedParameters: ...  # noqa: D102
    @property
    def backbone(self) -> ChosenBackboneParameters: ...  # noqa: D102


class MultiscaleModel(TwoEncoders):
    """A model with these two encoders."""

    image_encoder: MultiscaleImageEncoder
    released_names = {**RELEASED_MULTISCALE, **RELEASED_CAPTIONS}  # noqa: RUF012 (never changed)

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`: the first stages of the pyramid, as far as they are frozen."""
        return self.image_encoder.pyramid.frozen_part()

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`."""
        if batch.image_features is not None:
            return self.image_encoder.finish(batch.image_features)
        return super().encode_image(batch)

    def explain(self, batch: Batch) -> Explanation:
        """See `RetrievalModel.explain`: MVSA's attention."""
        return Explanation(image_attention=self.image_encoder.attention_map(batch.need("images")))


def build_encoders(
    block: MultiscaleBlock, image_size: int, vocabulary: Vocabulary, load_weights: bool
) -> tuple[MultiscaleImageEncoder, CaptionEncoder]:
    """Build both encoders; arguments as of `RetrievalModel.from_parameters`.

    Raises:
        InputError: weights that the block names can't be had or don't fit.
    """
    start = block.backbone
    images = MultiscaleImageEncoder(
        pyramid(start.architecture, start.pretrained, load_weights, start.frozen_stages),
        block.embed.embed_dim,
        image_size,
        block.multiscale.multiscale_input_channel,
        block.multiscale.multiscale_output_channel,
    )
    return images, caption_encoder(block.seq2vec, block.embed, vocabulary.word2idx, load_weights)
