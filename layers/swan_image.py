"""SWAN's image encoder: a pooled view of the whole image, tokens of its fine details, and their aggregation.

Letters: B batch, C channels, N = 128 detail tokens, D embedding, S image side in pixels.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.backbone import resnet

STAGE_CHANNELS = (512, 1024, 2048)  # of ResNet-50's layer2, layer3, layer4
STEM_CHANNELS = 64
GRID = 16  # cells per side of a detail map
DETAIL_CHANNELS = (32, 32, 64)  # of the kernels 1x1, 3x3, 5x5
HEADS = 8


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution by `kernel` pixels in steps of as many, without bias; batch norm; ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=kernel, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def mlp(embed_dim: int, activation: nn.Module, dropout: float) -> nn.Sequential:
    """Two linear maps through twice the width: [..., D] -> [..., D]."""
    return nn.Sequential(
        nn.Linear(embed_dim, 2 * embed_dim), activation, nn.Dropout(dropout), nn.Linear(2 * embed_dim, embed_dim)
    )


class MultiscaleFusion(nn.Module):
    """VMSF, visual multiscale fusion: three stages of the backbone at one scale, mixed and pooled."""

    def __init__(self, embed_dim: int, dropout: float) -> None:
        """Make the maps of each stage; `dropout` acts inside the MLP."""
        super().__init__()
        second, third, fourth = STAGE_CHANNELS
        self.second = nn.Conv2d(second, 512, kernel_size=1)
        self.third = nn.Conv2d(third, 512, kernel_size=1)
        self.fourth = nn.Conv2d(fourth, 1024, kernel_size=1)
        self.mix = conv_norm(512 + 512 + 1024, embed_dim, 1)
        self.mlp = mlp(embed_dim, nn.ReLU(), dropout)
        for stage in (self.second, self.third, self.fourth):
            # The batch norm in `mix` takes the mean away, and this bias with it: all that reaches it is rounding noise.
            cast(nn.Parameter, stage.bias).requires_grad_(False)

    def forward(self, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        """Pool the stages [B, 512, S/8, S/8], [B, 1024, S/16, S/16], [B, 2048, S/32, S/32]. Returns [B, D]."""
        return self.pool(every_second_cell(second), third, fourth)

    def pool(self, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        """The same of `every_second_cell` of the first of them, [B, 512, S/16, S/16]."""
        # A 1x1 convolution commutes with the choice of the nearest cell, so each runs on the fewest cells.
        coarse = F.interpolate(self.fourth(fourth), scale_factor=2, mode="nearest")
        joined = torch.cat([self.second(second), self.third(third), coarse], dim=1)  # [B, 2048, S/16, S/16]
        return cast(Tensor, self.mlp(self.mix(joined).mean(dim=(2, 3))))


def every_second_cell(maps: Tensor) -> Tensor:
    """Of each two cells the first: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.interpolate(maps, scale_factor=0.5, mode="nearest")


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Keys have no bias: it would add the same number to all scores of a query, which the softmax takes away.
    """

    def __init__(self, embed_dim: int, dropout: float) -> None:
        """Make the four maps; `dropout` acts on the attention weights."""
        super().__init__()
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.merge = nn.Linear(embed_dim, embed_dim)
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """Let tokens attend to each other: [B, N, D] -> [B, N, D]."""
        query, key, value = (
            linear(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [B, heads, N, D / heads]
            for linear in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return cast(Tensor, self.merge(attended.transpose(1, 2).flatten(2)))


class DetailTokens(nn.Module):
    """SFGS, shallow features guided by self-attention: details at three kernel sizes as tokens, weighed and summed."""

    def __init__(self, channels: int, embed_dim: int, dropout: float) -> None:
        """Take maps of `channels`; `dropout` acts after each part and on the attention weights."""
        super().__init__()
        self.scales = nn.ModuleList(
            conv_norm(channels, outputs, kernel) for outputs, kernel in zip(DETAIL_CHANNELS, (1, 3, 5), strict=True)
        )
        self.project = nn.Linear(GRID * GRID, embed_dim)
        self.attention = SelfAttention(embed_dim, dropout)
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = mlp(embed_dim, nn.GELU(), dropout)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        tokens = sum(DETAIL_CHANNELS)
        self.token_weights = nn.Parameter(torch.full((tokens,), 1 / tokens))  # starts as the plain mean
        self.dropout = nn.Dropout(dropout)

    def tokens(self, shallow: Tensor) -> Tensor:
        """A token per channel of each scale: [B, C, S/4, S/4] -> [B, N, D], not negative."""
        maps = [F.adaptive_avg_pool2d(scale(shallow), GRID).flatten(2) for scale in self.scales]
        return F.relu(self.project(torch.cat(maps, dim=1)))  # [B, N, D]

    def forward(self, shallow: Tensor) -> Tensor:
        """Sum the attended tokens by one learned weight each: [B, C, S/4, S/4] -> [B, D].

        The released code multiplies the tokens x [N, D] by a matrix W [N, D] and takes the mean of the rows of
        W^T x [D, D]. That mean is sum_n (mean_d W[n, d]) x[n], so one number per token says the same.
        """
        tokens = self.dropout(self.tokens(shallow))
        tokens = self.attention_norm(tokens + self.dropout(self.attention(tokens)))
        tokens = self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))
        return torch.einsum("n,bnd->bd", self.token_weights, tokens)


def stages(network: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The stem's map [B, 64, S/4, S/4] of a torchvision ResNet, and those of layer2, layer3, layer4."""
    stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    second = network.layer2(network.layer1(stem))
    third = network.layer3(second)
    return stem, second, third, network.layer4(third)


class SceneStages(nn.Module):
    """All that the rest of the encoder reads of a frozen ResNet, as one row for an image, to be kept."""

    def __init__(self, network: nn.Module) -> None:
        """Take a torchvision ResNet-50."""
        super().__init__()
        self.resnet = network

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> [B, 12 S^2]: 4 S^2 of the stem, then 2, 4 and 2 S^2 of the stages."""
        stem, second, third, fourth = stages(self.resnet, images)
        return torch.cat([maps.flatten(1) for maps in (stem, every_second_cell(second), third, fourth)], dim=1)

    @staticmethod
    def parts(rows: Tensor) -> list[Tensor]:
        """The four maps of `forward`, the second as `every_second_cell` of it: [B, 12 S^2] -> [B, C, H, H] each."""
        area = rows.shape[1] // 12  # S^2
        channels = (STEM_CHANNELS, *STAGE_CHANNELS)
        flat = rows.split([4 * area, 2 * area, 4 * area, 2 * area], dim=1)
        sides = [math.isqrt(part.shape[1] // count) for part, count in zip(flat, channels, strict=True)]
        return [part.unflatten(1, (count, side, side)) for part, count, side in zip(flat, channels, sides, strict=True)]


class SceneImageEncoder(nn.Module):
    """ResNet-50, its stages pooled (global), its stem's details as tokens (local), and both aggregated."""

    resnet: Any  # a torchvision ResNet; its stages are called one by one

    def __init__(
        self,
        embed_dim: int,
        pretrained: str,
        is_finetune: bool,
        freeze_statistics: bool,
        global_dropout: float,
        local_dropout: float,
    ) -> None:
        """Start from the weights that `layers.backbone.resnet` takes; they are trained only with `is_finetune`.

        Differs from the released code: with `freeze_statistics` the batch norms of a backbone that is not trained stay
        in evaluation mode, with the statistics that its weights came with. Published, they take those of each training
        batch, and evaluation those of all training batches. What the backbone makes of an image then depends on no
        batch, so that it can be kept.
        """
        super().__init__()
        self.is_finetune = is_finetune
        self.is_frozen = freeze_statistics and not is_finetune
        self.resnet = resnet("resnet50", pretrained)
        self.resnet.requires_grad_(is_finetune)
        self.shallow = conv_norm(STEM_CHANNELS, STEM_CHANNELS // 2, 1)
        self.fusion = MultiscaleFusion(embed_dim, global_dropout)
        self.details = DetailTokens(STEM_CHANNELS // 2, embed_dim, local_dropout)
        self.aggregation = nn.Sequential(
            nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim)
        )

    def train(self, mode: bool = True) -> SceneImageEncoder:
        """Bring it into training mode; the statistics of a frozen backbone follow unless they are frozen, too."""
        super().train(mode)
        if self.is_frozen:
            self.resnet.eval()
        return self

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the function of this name; without a graph where the backbone is not trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_finetune):
            return stages(self.resnet, images)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images [B, 3, S, S], S a multiple of 32. Returns [B, D], not of unit length."""
        stem, *maps = self.stages(images)
        return self._aggregate(stem, self.fusion(*maps))

    def finish(self, rows: Tensor) -> Tensor:
        """The same from what `SceneStages` gives, [B, 12 S^2]."""
        stem, *maps = SceneStages.parts(rows)
        return self._aggregate(stem, self.fusion.pool(*maps))

    def _aggregate(self, stem: Tensor, pooled: Tensor) -> Tensor:
        both = torch.cat([self.details(self.shallow(stem)), pooled], dim=-1)  # [B, 2D]
        return cast(Tensor, self.aggregation(both))


RELEASED_IMAGE: dict[str, str | None] = {
    "image_encoder.resnet.fc.": None,
    "image_encoder.conv_filter.": "image_encoder.shallow.",
    "image_encoder.vmsf.conv_512.": "image_encoder.fusion.second.",
    "image_encoder.vmsf.conv_1024.": "image_encoder.fusion.third.",
    "image_encoder.vmsf.conv_2048.": "image_encoder.fusion.fourth.",
    "image_encoder.vmsf.channel_att.": "image_encoder.fusion.mix.",
    "image_encoder.vmsf.channel_filter.fc.linear.": "image_encoder.fusion.mlp.0.",
    "image_encoder.vmsf.channel_filter.linear.": "image_encoder.fusion.mlp.3.",
    "sfgs.conv2d_block_11.": "image_encoder.details.scales.0.",
    "sfgs.conv2d_block_33.": "image_encoder.details.scales.1.",
    "sfgs.conv2d_block_55.": "image_encoder.details.scales.2.",
    "sfgs.fc.linear.": "image_encoder.details.project.",
    "sfgs.wsa.fmp_weight": "image_encoder.details.token_weights",
    # The released attention permutes its roles: what it calls v makes the keys, k the queries, q the values.
    "sfgs.wsa.mhatt.linear_v.": "image_encoder.details.attention.key.",
    "sfgs.wsa.mhatt.linear_v.bias": None,
    "sfgs.wsa.mhatt.linear_k.": "image_encoder.details.attention.query.",
    "sfgs.wsa.mhatt.linear_q.": "image_encoder.details.attention.value.",
    "sfgs.wsa.mhatt.linear_merge.": "image_encoder.details.attention.merge.",
    "sfgs.wsa.ffn.net.": "image_encoder.details.feed_forward.",
    "sfgs.wsa.norm1.": "image_encoder.details.attention_norm.",
    "sfgs.wsa.norm2.": "image_encoder.details.feed_forward_norm.",
    "agg.fc_1.": "image_encoder.aggregation.0.",
    "agg.fc_2.": "image_encoder.aggregation.2.",
}
