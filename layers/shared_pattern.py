"""MCRN's shared pattern transfer module (SPTM): features of any modality, expressed in patterns that all share.

Letters: B batch, D embedding, P patterns.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from layers.base import l2norm, normalise_rows
from layers.single_token import PreNormEncoder, released_encoder_names
from option.parameters import MOST_LAYERS, Parameters

HEADS = 8
ATTENTION_HIDDEN = 768
CLASSIFIER_HIDDEN = 1024


class ShareParameters(Parameters):
    """`model.share`: the shared pattern transfer module."""

    n_sa: int = Field(
        default=1,
        ge=1,
        le=MOST_LAYERS,
        description="self-attention layers before the patterns, and after them [layers]",
    )
    sa_drop: float = Field(default=0.3, ge=0, lt=1, description="dropout in the self-attention layers [probability]")
    attention_drop: float = Field(
        default=0.1, ge=0, lt=1, description="dropout on the attention weights of these layers [probability]"
    )
    pattern_drop: float = Field(
        default=0.2, ge=0, lt=1, description="dropout in the layers that weigh the patterns [probability]"
    )


class SharedPatternTransfer(nn.Module):
    """g = out(sum over patterns of p_m(x) x P_m), x = in(BN(l2norm(f))). MCRN (Yuan et al., 2022)."""

    def __init__(self, width: int, patterns: int, parameters: ShareParameters) -> None:
        """Make it for features of `width` numbers, a multiple of 8, and so many patterns."""
        super().__init__()
        encoder = (parameters.n_sa, width, ATTENTION_HIDDEN, HEADS, parameters.sa_drop, parameters.attention_drop)
        self.normalise = nn.BatchNorm1d(width)
        self.enter = PreNormEncoder(*encoder)
        self.weigh = nn.Sequential(
            nn.Linear(width, CLASSIFIER_HIDDEN),
            nn.GELU(),
            nn.Dropout(parameters.pattern_drop),
            nn.Linear(CLASSIFIER_HIDDEN, patterns),
            nn.Dropout(parameters.pattern_drop),
        )
        self.patterns = nn.ParameterList(nn.Parameter(torch.rand(width, width)) for _ in range(patterns))
        self.leave = PreNormEncoder(*encoder)

    def forward(self, features: Tensor) -> Tensor:
        """Features f [B, D] of one modality -> g [B, D], not of unit length; in float32 whatever the autocast state.

        The batch norm magnifies the small differences between features that lie close together, and what mixed
        precision has rounded off with them.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._transfer(features.to(self.normalise.weight.dtype))

    def _transfer(self, features: Tensor) -> Tensor:
        # The last batch of an epoch may be a single item.
        tokens = self.enter(normalise_rows(self.normalise, l2norm(features)))
        weights = torch.sigmoid(self.weigh(tokens))  # [B, P]
        shares = [
            weight[:, None] * (tokens @ pattern) for weight, pattern in zip(weights.T, self.patterns, strict=True)
        ]
        transferred: Tensor = self.leave(torch.stack(shares).sum(dim=0))
        return transferred


def released_share_names(layers: int) -> dict[str, str | None]:
    """Names of the module `share` in released checkpoints -> ours, of one with `share.n_sa` layers."""
    return {
        "share.in_bn.": "share.normalise.",
        "share.pattern_memory.": "share.patterns.",
        "share.pattern_classifer.fc1.": "share.weigh.0.",
        "share.pattern_classifer.fc2.": "share.weigh.3.",
        **released_encoder_names("share.in_SA.encoder.", "share.enter.", layers),
        **released_encoder_names("share.out_SA.encoder.", "share.leave.", layers),
    }
