"""The image encoder that AMFMN, GaLR and MCRN share: a pyramid of maps under multiscale visual self-attention (MVSA).

AMFMN (Yuan et al., 2022), section III-B. Letters: B batch, C channels, H W grid, D embedding, S image side.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.pyramid import Maps, Pyramid
from option.parameters import MOST_WIDTH, Parameters


class MultiscaleParameters(Parameters):
    """`model.multiscale`: widths of the self-attention's maps."""

    multiscale_input_channel: int = Field(
        default=3,
        ge=1,
        le=MOST_WIDTH,
        description="channels that the fine and the coarse map are reduced to [channels]",
    )
    multiscale_output_channel: int = Field(
        default=1, ge=1, le=MOST_WIDTH, description="channels of the map that both are attended to [channels]"
    )


class MultiscaleImageEncoder(nn.Module):
    """Pyramid and MVSA: the pooled image, gated by what its scales agree on."""

    def __init__(
        self,
        pyramid: Pyramid,
        embed_dim: int,
        image_size: int,
        reduced_channels: int,
        attended_channels: int,
    ) -> None:
        """Build it for images of `image_size` pixels; the two channel counts size the MVSA maps."""
        super().__init__()
        self.pyramid = pyramid
        first, second, third, fourth = pyramid.channels
        self.solo = nn.Linear(fourth, embed_dim)
        self.reduce_lower = nn.Conv2d(first + second, reduced_channels, kernel_size=3, stride=4)
        self.reduce_higher = nn.Conv2d(third + fourth, reduced_channels, kernel_size=1)
        self.attended = nn.Conv2d(2 * reduced_channels, attended_channels, kernel_size=1)
        self.attention = nn.Conv2d(2 * reduced_channels, attended_channels, kernel_size=1)
        self.gate = nn.Linear(attended_channels * (image_size // 16) ** 2, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed normalised images [B, 3, S, S]. Returns [B, D], not of unit length. AMFMN, eq. 1-8."""
        return self._embed(self.pyramid(images))

    def finish(self, rows: Tensor) -> Tensor:
        """The same of what `Pyramid.frozen_part` gives for the images, [B, numbers]."""
        return self._embed(self.pyramid.finish(rows))

    def _embed(self, maps: Maps) -> Tensor:
        joined, top = self._join(maps)
        attended = self.attended(joined) * torch.sigmoid(self.attention(joined))
        gate: Tensor = torch.sigmoid(self.gate(attended.flatten(1)))  # [B, D]
        return cast(Tensor, self.solo(top)) * gate

    def attention_map(self, images: Tensor) -> Tensor:
        """How much of each place enters the gate: [B, 3, S, S] -> [B, S/16, S/16] in 0..1, the mean of all channels."""
        joined, _ = self._join(self.pyramid(images))
        return torch.sigmoid(self.attention(joined)).mean(dim=1)

    def _join(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Both scales as one map [B, 2C, S/16, S/16], and the pooled image [B, C4]."""
        fine, coarse = self.reduce(*maps)
        return torch.cat([fine, coarse], dim=1) + coarse.mean(dim=1, keepdim=True), maps[-1].mean(dim=(2, 3))

    def reduce(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
        """Fine map of the first two stages and coarse map of the last two, both [B, C, S/16, S/16].

        The published code doubles the cells of the second and the fourth stage, joins them to the first and the third,
        and reduces each joined map. A reduced sum is the sum of what is reduced, so nothing is doubled or joined here.
        Of `first` the cells that are read will do, see `layers.pyramid.read_cells`.
        """
        step = 2 * first.shape[-1] // second.shape[-1]  # 4; of the cells that are read, 3
        joined, weight = len(first[0]), self.reduce_lower.weight
        fine = F.conv2d(first, weight[:, :joined], self.reduce_lower.bias, stride=step)
        fine = fine + F.conv2d(second, on_doubled_cells(weight[:, joined:]), stride=2)
        joined, weight = len(third[0]), self.reduce_higher.weight
        coarse = F.conv2d(third, weight[:, :joined], self.reduce_higher.bias)
        doubled = F.interpolate(F.conv2d(fourth, weight[:, joined:]), scale_factor=2, mode="nearest")
        return fine, coarse + doubled


def on_doubled_cells(weight: Tensor) -> Tensor:
    """The kernel [*, *, 2, 2] that gives on a map what one of [*, *, 3, 3] gives where every cell stands twice.

    It steps from even cell to even cell there, so its first two rows see the same cells, and its first two columns.
    """
    rows = torch.stack([weight[..., 0, :] + weight[..., 1, :], weight[..., 2, :]], dim=-2)
    return torch.stack([rows[..., 0] + rows[..., 1], rows[..., 2]], dim=-1)


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
