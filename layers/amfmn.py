"""AMFMN: asymmetric multimodal feature matching network.

Yuan et al., "Exploring a Fine-Grained Multiscale Method for Cross-Modal Remote Sensing Image Retrieval", TGRS 2022.
Letters: B batch, N images, M texts, D embedding. F_ij is the vector of text j as image i sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from batches.batch import QueryMode
from layers.backbone import STEPS
from layers.base import NORM_FLOOR, l2norm
from layers.keywords import KeywordFusion, KeywordParameters
from layers.multiscale import MultiscaleImageEncoder, MultiscaleParameters
from layers.multiscale_model import MultiscaleModel, build_encoders
from layers.pyramid import PyramidParameters
from layers.registry import register
from layers.text import CaptionEncoder, EmbedParameters, Seq2VecParameters
from option.parameters import ModelParameters, Parameters

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options
    from vocab import Vocabulary


class CrossAttentionParameters(Parameters):
    """`model.cross_attention`: how an image guides a text."""

    att_type: Literal["soft_att", "fusion_att", "similarity_att"] = Field(
        default="soft_att",
        description="how an image guides a caption: F = sigmoid(W v) * t, or of both joined, or of their product",
    )
    vgmf: bool = Field(default=False, description="the paper's visual-guided fusion; the released code leaves it out")
    block_mib: int = Field(
        default=256,
        ge=1,
        le=2**20,
        description="memory that one block of pairs may take; larger score matrices are made in blocks [MiB]",
    )


class AmfmnParameters(ModelParameters):
    """The `model` block of AMFMN."""

    image_step = STEPS[-1]
    name: Literal["AMFMN"]
    multiscale: MultiscaleParameters = MultiscaleParameters()
    cross_attention: CrossAttentionParameters = CrossAttentionParameters()
    seq2vec: Seq2VecParameters = Seq2VecParameters()
    embed: EmbedParameters = EmbedParameters()
    keywords: KeywordParameters = KeywordParameters()
    backbone: PyramidParameters = PyramidParameters()


class CrossAttention(nn.Module):
    """How an image guides a text: terms that each item has once, and what a pair makes of them."""

    def image_terms(self, images: Tensor) -> Tensor:
        """What a pair needs of its image: [N, D] -> [N, K]."""
        raise NotImplementedError

    def text_terms(self, texts: Tensor) -> Tensor:
        """What a pair needs of its text: [M, D] -> [M, K]; unless overridden, the text, K = D."""
        return texts

    def guide(self, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """F of each pair, by broadcasting: [..., K] and [..., K] -> [..., D]."""
        raise NotImplementedError


class SoftAttention(CrossAttention):
    """soft_att: F_ij = sigmoid(W v_i) * t_j. AMFMN, eq. 12."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(embed_dim, embed_dim)

    def image_terms(self, images: Tensor) -> Tensor:
        """See `CrossAttention`; K = D."""
        return torch.sigmoid(self.gate(images))

    def guide(self, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """See `CrossAttention`."""
        return image_terms * text_terms


class FusionAttention(CrossAttention):
    """fusion_att: F_ij = sigmoid(A [v_i; t_j]) * B [v_i; t_j]. AMFMN, eq. 13.

    A linear map of [v; t] is a map of v plus a map of t, so both run once per item and only sums remain per pair.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * embed_dim, embed_dim)
        self.value = nn.Linear(2 * embed_dim, embed_dim)

    def image_terms(self, images: Tensor) -> Tensor:
        """See `CrossAttention`; the image's share of both maps, with their biases, K = 2D."""
        half = images.shape[-1]
        return torch.cat([F.linear(images, m.weight[:, :half], m.bias) for m in (self.gate, self.value)], dim=-1)

    def text_terms(self, texts: Tensor) -> Tensor:
        """See `CrossAttention`; the text's share of both maps, K = 2D."""
        half = texts.shape[-1]
        return torch.cat([F.linear(texts, m.weight[:, half:]) for m in (self.gate, self.value)], dim=-1)

    def guide(self, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """See `CrossAttention`."""
        gate, value = (image_terms + text_terms).chunk(2, dim=-1)
        return torch.sigmoid(gate) * value


class SimilarityAttention(CrossAttention):
    """similarity_att: v' = A v, t' = B t, F_ij = sigmoid(v'_i * t'_j) * t'_j. AMFMN, eq. 14."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.image_map = nn.Linear(embed_dim, embed_dim)
        self.text_map = nn.Linear(embed_dim, embed_dim)

    def image_terms(self, images: Tensor) -> Tensor:
        """See `CrossAttention`; v', K = D."""
        return cast(Tensor, self.image_map(images))

    def text_terms(self, texts: Tensor) -> Tensor:
        """See `CrossAttention`; t', K = D."""
        return cast(Tensor, self.text_map(texts))

    def guide(self, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """See `CrossAttention`."""
        return torch.sigmoid(image_terms * text_terms) * text_terms


ATTENTION: dict[str, Callable[[int], CrossAttention]] = {
    "soft_att": SoftAttention,
    "fusion_att": FusionAttention,
    "similarity_att": SimilarityAttention,
}
QUERIES: dict[QueryMode, str] = {
    "none": "",
    "sentence": "queries are sentences, whose known keyword words stand for keywords",
    "keywords": "queries are the keywords of the image, the same ones for all of its captions",
    "both": "queries are sentences with the keywords of their image",
}


@register("AMFMN", AmfmnParameters)
class AMFMN(MultiscaleModel):
    """Multiscale image encoder, skip-thoughts caption encoder, and a text vector of its own for each pair."""

    released_names = {  # noqa: RUF012 (never changed)
        **MultiscaleModel.released_names,
        "cross_attention_s.cross_attention.0.": "attention.gate.",
        "cross_attention_s.cross_attention_fc1.0.": "attention.gate.",
        "cross_attention_s.cross_attention_fc2.0.": "attention.value.",
        "cross_attention_s.fc_visual.0.": "attention.image_map.",
        "cross_attention_s.fc_text.0.": "attention.text_map.",
        "vgmf_gate.": None,
    }

    def __init__(
        self,
        image_encoder: MultiscaleImageEncoder,
        caption_encoder: nn.Module,
        embed_dim: int,
        att_type: str,
        vgmf: bool,
        block_mib: int,
        keywords: KeywordFusion | None = None,
    ) -> None:
        """Join two encoders of the same `embed_dim` by the attention `att_type`; see `CrossAttentionParameters`.

        With `keywords`, which the words of a `CaptionEncoder` go to, a text is a caption and keywords.
        """
        super().__init__(image_encoder, caption_encoder)
        self.attention = ATTENTION[att_type](embed_dim)
        self.vgmf = nn.Linear(2 * embed_dim, embed_dim) if vgmf else None
        self.block_bytes = block_mib * 2**20
        self.keywords = keywords

    @classmethod
    def from_parameters(
        cls, parameters: ModelParameters, image_size: int, vocabulary: Vocabulary, load_weights: bool
    ) -> AMFMN:
        """See `RetrievalModel.from_parameters`."""
        block = cast(AmfmnParameters, parameters)
        images, captions = build_encoders(block, image_size, vocabulary, load_weights)
        width, attention, keywords = block.embed.embed_dim, block.cross_attention, None
        if block.keywords.mode != "none":
            keywords = KeywordFusion(captions.word_table.embedding_dim, width)
        return cls(images, captions, width, attention.att_type, attention.vgmf, attention.block_mib, keywords)

    @classmethod
    def query_mode(cls, parameters: ModelParameters) -> QueryMode:
        """See `RetrievalModel.query_mode`."""
        return cast(AmfmnParameters, parameters).keywords.mode

    @classmethod
    def protocol_note(cls, options: Options) -> str:
        """See `RetrievalModel.protocol_note`: what the queries were."""
        return QUERIES[cls.query_mode(options.model)]

    def encode_text(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        sentences = super().encode_text(batch)
        if self.keywords is None:
            return sentences
        words = cast(CaptionEncoder, self.caption_encoder).word_table
        return cast(Tensor, self.keywords(sentences, batch.need("keywords"), words))

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of each image with each text as that image sees it. AMFMN, eq. 11.

        Args:
            images: [N, D].
            texts: [M, D].

        Returns:
            [N, M]. `soft_att` takes two matrix products; the other types, and `vgmf`, run in blocks of pairs that take
            at most `block_mib`.
        """
        if isinstance(self.attention, SoftAttention) and self.vgmf is None:
            return soft_scores(images, texts, self.attention.image_terms(images))
        image_terms, text_terms = self.attention.image_terms(images), self.attention.text_terms(texts)
        if torch.compiler.is_exporting():  # a graph has no loop over blocks
            return self._guided_cosine(images, image_terms, text_terms)
        rows, columns = block_shape(len(images), len(texts), images.shape[-1], self.block_bytes)
        whole = rows >= len(images) and columns >= len(texts)
        # Into one matrix: blocks that wait to be joined lie between freed tensors of pairs and keep these from being
        # used again, which took gigabytes.
        scores = images.new_empty(len(images), len(texts))
        for i in range(0, len(images), rows):
            for j in range(0, len(texts), columns):
                block = self._block(whole, images[i : i + rows], image_terms[i : i + rows], text_terms[j : j + columns])
                scores[i : i + rows, j : j + columns] = block
        return scores

    def _block(self, whole: bool, images: Tensor, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """Scores of a block of pairs; backward makes its tensors again unless the block is all there is."""
        if whole or not torch.is_grad_enabled():
            return self._guided_cosine(images, image_terms, text_terms)
        return cast(Tensor, checkpoint(self._guided_cosine, images, image_terms, text_terms, use_reentrant=False))

    def _guided_cosine(self, images: Tensor, image_terms: Tensor, text_terms: Tensor) -> Tensor:
        """cos(v_i, F_ij) of every pair: [n, D], [n, K], [m, K] -> [n, m]."""
        guided = self.attention.guide(image_terms[:, None], text_terms[None])  # [n, m, D]
        if self.vgmf is not None:
            guided = fuse(images, guided, self.vgmf)
        products = torch.einsum("id,ijd->ij", images, guided)
        norms = images.norm(dim=-1)[:, None] * guided.norm(dim=-1)
        return products / norms.clamp(min=NORM_FLOOR)


def fuse(images: Tensor, guided: Tensor, gate: nn.Linear) -> Tensor:
    """Visual-guided multimodal fusion: [n, D], [n, m, D] -> [n, m, D]. AMFMN, eq. 15-17.

    Args:
        images: v.
        guided: F of each pair.
        gate: linear map of [l2norm(v); l2norm(F)] to D numbers.
    """
    half = images.shape[-1]
    images, guided = l2norm(images), l2norm(guided)
    from_image = F.linear(images, gate.weight[:, :half], gate.bias)
    weight = torch.sigmoid(from_image[:, None] + F.linear(guided, gate.weight[:, half:]))
    return weight * images[:, None] + (1 - weight) * guided


def soft_scores(images: Tensor, texts: Tensor, gates: Tensor) -> Tensor:
    """Scores of `soft_att` without any tensor of pairs x D: v . F = (v * g) . t and |F|^2 = g^2 . t^2.

    Args:
        images: [N, D].
        texts: [M, D].
        gates: [N, D], sigmoid(W v).

    Returns:
        [N, M].
    """
    products = F.linear(images * gates, texts)
    # sqrt has no slope at 0.
    lengths = F.linear(gates.square(), texts.square()).clamp(min=NORM_FLOOR**2).sqrt()
    return products / (images.norm(dim=-1)[:, None] * lengths).clamp(min=NORM_FLOOR)


LIVE_PAIR_TENSORS = 12  # in backward of the greediest type, fusion_att with vgmf, and some room


def block_shape(images: int, texts: int, width: int, bound: int) -> tuple[int, int]:
    """Rows and columns of a block of pairs whose float32 tensors of `width` numbers per pair fit in `bound` bytes."""
    pairs = max(1, bound // (LIVE_PAIR_TENSORS * 4 * width))
    columns = min(texts, pairs)
    return max(1, min(images, pairs // columns)), columns
