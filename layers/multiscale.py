"""The image encoder that AMFMN, GaLR and MCRN share: a ResNet pyramid under multiscale visual self-attention (MVSA).

AMFMN (Yuan et al., 2022), section III-B. Letters: B batch, C channels, H W grid, D embedding, S image side.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.backbone import BackboneParameters, resnet
from layers.registry import Parameters


class MultiscaleParameters(Parameters):
    """`model.multiscale`: widths of the self-attention's maps."""

    multiscale_input_channel: int = Field(
        default=3, ge=1, description="channels that the fine and the coarse map are reduced to [channels]"
    )
    multiscale_output_channel: int = Field(
        default=1, ge=1, description="channels of the map that both are attended to [channels]"
    )


class ResNetPyramid(nn.Module):
    """ResNet-18 whose four stages are joined in a fine and a coarse map, and pooled."""

    lower_channels = 64 + 128
    higher_channels = 256 + 512
    top_channels = 512

    resnet: Any  # a torchvision ResNet; its stages are called one by one

    def __init__(self, pretrained: str) -> None:
        """Start from the weights that `layers.backbone.resnet` takes."""
        super().__init__()
        self.resnet = resnet("resnet18", pretrained)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of normalised pictures.

        Args:
            images: [B, 3, S, S], S a multiple of 32.

        Returns:
            lower [B, 192, S/4, S/4], higher [B, 768, S/16, S/16], and the top stage's spatial mean [B, 512].
        """
        stem = self.resnet
        stage = stem.maxpool(stem.relu(stem.bn1(stem.conv1(images))))
        first = stem.layer1(stage)
        second = stem.layer2(first)
        third = stem.layer3(second)
        fourth = stem.layer4(third)
        lower = torch.cat([first, F.interpolate(second, scale_factor=2, mode="nearest")], dim=1)  # [B, 192, S/4, S/4]
        higher = torch.cat(
            [third, F.interpolate(fourth, scale_factor=2, mode="nearest")], dim=1
        )  # [B, 768, S/16, S/16]
        return lower, higher, fourth.mean(dim=(2, 3))


class MultiscaleImageEncoder(nn.Module):
    """ResNet pyramid and MVSA: the pooled picture, gated by what its scales agree on."""

    def __init__(
        self, embed_dim: int, image_size: int, reduced_channels: int, attended_channels: int, pretrained: str
    ) -> None:
        """Build it for pictures of `image_size` pixels; the two channel counts size the MVSA maps."""
        super().__init__()
        self.pyramid = ResNetPyramid(pretrained)
        self.solo = nn.Linear(self.pyramid.top_channels, embed_dim)
        self.reduce_lower = nn.Conv2d(self.pyramid.lower_channels, reduced_channels, kernel_size=3, stride=4)
        self.reduce_higher = nn.Conv2d(self.pyramid.higher_channels, reduced_channels, kernel_size=1)
        self.attended = nn.Conv2d(2 * reduced_channels, attended_channels, kernel_size=1)
        self.attention = nn.Conv2d(2 * reduced_channels, attended_channels, kernel_size=1)
        self.gate = nn.Linear(attended_channels * (image_size // 16) ** 2, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised pictures [B, 3, S, S]. Returns [B, D], not of unit length. AMFMN, eq. 1-8."""
        joined, top = self._join(images)
        attended = self.attended(joined) * torch.sigmoid(self.attention(joined))
        gate: Tensor = torch.sigmoid(self.gate(attended.flatten(1)))  # [B, D]
        return cast(Tensor, self.solo(top)) * gate

    def attention_map(self, images: Tensor) -> Tensor:
        """How much of each place enters the gate: [B, 3, S, S] -> [B, S/16, S/16] in 0..1, the mean of all channels."""
        joined, _ = self._join(images)
        return torch.sigmoid(self.attention(joined)).mean(dim=1)

    def _join(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both scales as one map [B, 2C, S/16, S/16], and the pooled picture [B, 512]."""
        lower, higher, top = self.pyramid(images)
        fine, coarse = self.reduce_lower(lower), self.reduce_higher(higher)  # both [B, C, S/16, S/16]
        return torch.cat([fine, coarse], dim=1) + coarse.mean(dim=1, keepdim=True), top


def multiscale_encoder(
    parameters: MultiscaleParameters, backbone: BackboneParameters, embed_dim: int, image_size: int, load_weights: bool
) -> MultiscaleImageEncoder:
    """Build the image encoder that the options choose; with `load_weights`, start it from the weights they name.

    Raises:
        InputError: the weights can't be had or don't fit.
    """
    return MultiscaleImageEncoder(
        embed_dim,
        image_size,
        parameters.multiscale_input_channel,
        parameters.multiscale_output_channel,
        backbone.pretrained if load_weights else "none",
    )


RELEASED_MULTISCALE: dict[str, str | None] = {
    "extract_feature.resnet.fc.": None,
    "extract_feature.resnet.": "image_encoder.pyramid.resnet.",
    "extract_feature.linear.": "image_encoder.solo.",
    "mvsa.LF_conv.": "image_encoder.reduce_lower.",
    "mvsa.HF_conv.": "image_encoder.reduce_higher.",
    "mvsa.conv1x1_1.": "image_encoder.attended.",
    "mvsa.conv1x1_2.": "image_encoder.attention.",
    "mvsa.solo_attention.": "image_encoder.gate.",
}
