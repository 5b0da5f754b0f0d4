"""GaLR: remote sensing cross-modal retrieval based on global and local information.

Yuan et al., "Remote Sensing Cross-Modal Text-Image Retrieval Based on Global and Local Information", TGRS 2022.
Letters: B batch, R regions per image (20), D embedding. g is the global vector of an image, l its local one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from layers.backbone import STEPS
from layers.base import l2norm
from layers.multiscale import MultiscaleImageEncoder, MultiscaleParameters
from layers.multiscale_model import MultiscaleModel, build_encoders
from layers.pyramid import PyramidParameters
from layers.registry import register
from layers.single_token import PostNormBlock, released_block_names
from layers.text import EmbedParameters, Seq2VecParameters
from option.parameters import MOST_WIDTH, ModelParameters, Parameters

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options
    from vocab import Vocabulary

REGIONS = 20
GRAPH_WIDTHS = (20, 20, 10, 20)


class FusionParameters(Parameters):
    """`model.fusion`: multi-level information dynamic fusion (MIDF) of the global and the local vector."""

    dynamic_weights: Literal["released", "paper"] = Field(
        default="released", description="released: both parts count the same; paper: weights learned per image"
    )
    dynamic_fusion_dim: int = Field(
        default=512, ge=1, le=MOST_WIDTH, description="dynamic_weights paper: hidden width of the weights [numbers]"
    )
    dynamic_fusion_drop: float = Field(
        default=0.2, ge=0, lt=1, description="dynamic_weights paper: dropout before the weights [probability]"
    )
    mca_DROPOUT_R: float = Field(default=0.1, ge=0, lt=1, description="dropout in the attention blocks [probability]")
    mca_HIDDEN_SIZE: int = Field(
        default=512,
        ge=1,
        le=MOST_WIDTH,
        description="width of the attention blocks; must equal embed.embed_dim [numbers]",
    )
    mca_FF_SIZE: int = Field(
        default=1024, ge=1, le=MOST_WIDTH, description="hidden width of their feed-forward parts [numbers]"
    )
    mca_MULTI_HEAD: int = Field(
        default=8,
        ge=1,
        le=MOST_WIDTH,
        description="attention heads; heads times mca_HIDDEN_SIZE_HEAD must be mca_HIDDEN_SIZE [heads]",
    )
    mca_HIDDEN_SIZE_HEAD: int = Field(default=64, ge=1, le=MOST_WIDTH, description="width of a head [numbers]")


class GalrParameters(ModelParameters):
    """The `model` block of GaLR."""

    image_step = STEPS[-1]
    name: Literal["GaLR"]
    multiscale: MultiscaleParameters = MultiscaleParameters()
    seq2vec: Seq2VecParameters = Seq2VecParameters()
    embed: EmbedParameters = EmbedParameters()
    fusion: FusionParameters = FusionParameters()
    backbone: PyramidParameters = PyramidParameters()

    @model_validator(mode="after")
    def _widths_agree(self) -> GalrParameters:
        fusion, heads = self.fusion, self.fusion.mca_MULTI_HEAD * self.fusion.mca_HIDDEN_SIZE_HEAD
        if not fusion.mca_HIDDEN_SIZE == self.embed.embed_dim == heads:
            raise ValueError(
                f"fusion.mca_HIDDEN_SIZE ({fusion.mca_HIDDEN_SIZE}), embed.embed_dim ({self.embed.embed_dim}) and "
                f"fusion.mca_MULTI_HEAD x mca_HIDDEN_SIZE_HEAD ({heads}) must be equal"
            )
        return self


class RegionGraphEncoder(nn.Module):
    """Three graph layers without bias, X <- ReLU(W A X), and a projection of all regions together."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=False) for inputs, outputs in pairwise(GRAPH_WIDTHS)
        )
        self.projection = nn.Linear(REGIONS * GRAPH_WIDTHS[-1], embed_dim)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Embed region graphs: nodes [B, R, 20], adjacency [B, R, R] -> [B, D], of unit length."""
        for layer in self.layers:
            nodes = torch.relu(layer(adjacency @ nodes))  # [B, R, width]
        return l2norm(self.projection(nodes.flatten(1)))


class Fusion(nn.Module):
    """MIDF: the local vector corrects itself by the global one, which it then supplements."""

    def __init__(self, parameters: FusionParameters) -> None:
        super().__init__()
        width = parameters.mca_HIDDEN_SIZE
        block = (width, parameters.mca_FF_SIZE, parameters.mca_MULTI_HEAD, parameters.mca_DROPOUT_R)
        self.global_self = PostNormBlock(*block, guided=False)
        self.local_self = PostNormBlock(*block, guided=False)
        self.local_guided = PostNormBlock(*block, guided=True)
        self.global_guided = PostNormBlock(*block, guided=True)
        self.weighting: nn.Module | None = None
        if parameters.dynamic_weights == "paper":
            self.weighting = nn.Sequential(
                nn.Linear(width, parameters.dynamic_fusion_dim),
                nn.Sigmoid(),
                nn.Dropout(parameters.dynamic_fusion_drop),
                nn.Linear(parameters.dynamic_fusion_dim, 2),
            )

    def forward(self, global_vector: Tensor, local_vector: Tensor) -> Tensor:
        """Fuse g [B, D] and l [B, D] to the image's vector [B, D], not of unit length."""
        global_vector, local_vector = self.global_self(global_vector), self.local_self(local_vector)
        local_vector = self.local_guided(local_vector, global_vector)
        global_vector = self.global_guided(global_vector, local_vector)
        gated = torch.sigmoid(local_vector) * global_vector
        summed = global_vector + local_vector
        if self.weighting is None:
            # The released code weighs both by the same positive number, which the cosine cancels.
            return gated + summed
        weights = torch.softmax(self.weighting(gated + summed), dim=-1)  # [B, 2]
        return weights[:, :1] * gated + weights[:, 1:] * summed


@register("GaLR", GalrParameters)
class GaLR(MultiscaleModel):
    """Multiscale image encoder, region graph encoder and their fusion; skip-thoughts caption encoder.

    Without regions ("global only") the image's vector is g: no graph encoder and no fusion are built.
    """

    uses_regions = True
    released_names = {  # noqa: RUF012 (never changed)
        **MultiscaleModel.released_names,
        "local_feature.fc1.": "regions.layers.0.",
        "local_feature.fc2.": "regions.layers.1.",
        "local_feature.fc3.": "regions.layers.2.",
        "local_feature.out.": "regions.projection.",
        **released_block_names("fusion.g2g_SA.", "fusion.global_self.", guided=False),
        **released_block_names("fusion.l2l_SA.", "fusion.local_self.", guided=False),
        **released_block_names("fusion.g2l_SGA.", "fusion.local_guided.", guided=True),
        **released_block_names("fusion.l2g_SGA.", "fusion.global_guided.", guided=True),
        "fusion.dynamic_weight.": "fusion.weighting.",
    }

    def __init__(
        self,
        image_encoder: MultiscaleImageEncoder,
        caption_encoder: nn.Module,
        regions: RegionGraphEncoder | None,
        fusion: Fusion | None,
    ) -> None:
        """Join encoders of one width; `regions` and `fusion` come together, or neither for "global only"."""
        super().__init__(image_encoder, caption_encoder)
        self.regions = regions
        self.fusion = fusion
        if fusion is not None and fusion.weighting is None:
            self.released_names = {**type(self).released_names, "fusion.dynamic_weight.": None}

    @classmethod
    def from_parameters(
        cls,
        parameters: ModelParameters,
        image_size: int,
        vocabulary: Vocabulary,
        load_weights: bool,
        regions: bool = True,
    ) -> GaLR:
        """See `RetrievalModel.from_parameters`; without `regions` it is the global-only model."""
        block = cast(GalrParameters, parameters)
        images, captions = build_encoders(block, image_size, vocabulary, load_weights)
        if not regions:
            return cls(images, captions, None, None)
        return cls(images, captions, RegionGraphEncoder(block.embed.embed_dim), Fusion(block.fusion))

    @classmethod
    def from_options(cls, options: Options, vocabulary: Vocabulary, load_weights: bool) -> GaLR:
        """See `RetrievalModel.from_options`; without `dataset.local_path` it is the global-only model."""
        regions = options.dataset.local_path is not None
        return cls.from_parameters(options.model, options.dataset.image_size, vocabulary, load_weights, regions)

    @classmethod
    def protocol_note(cls, options: Options) -> str:
        """See `RetrievalModel.protocol_note`."""
        return "" if options.dataset.local_path is not None else "global only (no dataset.local_path)"

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`; also reads the batch's `nodes` and `adjacency`, unless global only."""
        global_vector = l2norm(super().encode_image(batch))
        if self.regions is None or self.fusion is None:
            return global_vector
        local_vector = self.regions(batch.need("nodes"), batch.need("adjacency"))
        return cast(Tensor, self.fusion(global_vector, local_vector))
