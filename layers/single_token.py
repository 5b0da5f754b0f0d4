"""Transformer blocks on sequences of one token, as the fusion of GaLR uses them.

A softmax over one score is 1: attention to a single token gives that token's value whatever query and key are, so
neither is computed. Letters: B batch, D embedding.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

DEVIATION_FLOOR = 1e-6


class UnbiasedLayerNorm(nn.Module):
    """a * (x - mean) / (deviation + 1e-6) + b with the unbiased deviation, which `nn.LayerNorm` does not have."""

    def __init__(self, width: int) -> None:
        """Start with a = 1 and b = 0."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, vectors: Tensor) -> Tensor:
        """Normalise [..., D] over its last axis, under autocast in the precision of the parameters."""
        vectors = vectors.to(self.scale.dtype)
        deviation, mean = torch.std_mean(vectors, dim=-1, keepdim=True)
        return self.scale * (vectors - mean) / (deviation + DEVIATION_FLOOR) + self.shift


class SingleTokenAttention(nn.Module):
    """Multi-head attention to one token: merge(value(token))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Make both maps; `dropout` acts on the attention weights, so it leaves out whole heads."""
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token: Tensor) -> Tensor:
        """What any query gets from a token: [B, D] -> [B, D]."""
        values = self.value(token).unflatten(-1, (self.heads, -1))  # [B, heads, D / heads]
        weights = self.dropout(values.new_ones(len(values), self.heads, 1))
        return cast(Tensor, self.merge((weights * values).flatten(1)))


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        """Make both maps, `width` -> `hidden` -> `width`."""
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, token: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return cast(Tensor, self.contract(self.dropout(torch.relu(self.expand(token)))))


class PostNormBlock(nn.Module):
    """Attention to itself, then to a guide if there is one, then a feed-forward; each x = LN(x + dropout(part(x)))."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, guided: bool) -> None:
        """Make the parts; `guided` adds the attention to a guide."""
        super().__init__()
        sources = 2 if guided else 1
        self.attentions = nn.ModuleList(SingleTokenAttention(width, heads, dropout) for _ in range(sources))
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(UnbiasedLayerNorm(width) for _ in range(sources + 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, token: Tensor, guide: Tensor | None = None) -> Tensor:
        """One token [B, D], and the guide [B, D] where the block is built for one -> [B, D]."""
        token = self.norms[0](token + self.dropout(self.attentions[0](token)))
        if guide is not None:
            token = self.norms[1](token + self.dropout(self.attentions[1](guide)))
        return cast(Tensor, self.norms[-1](token + self.dropout(self.feed_forward(token))))


def released_block_names(released: str, ours: str, guided: bool) -> dict[str, str | None]:
    """Names of a block in released checkpoints -> ours; queries and keys are dead.

    Args:
        released: prefix of the block there, such as `fusion.g2g_SA.`.
        ours: prefix of the `PostNormBlock` here.
        guided: whether it attends to a guide.
    """
    names: dict[str, str | None] = {
        f"{released}ffn.mlp.fc.linear.": f"{ours}feed_forward.expand.",
        f"{released}ffn.mlp.linear.": f"{ours}feed_forward.contract.",
    }
    attentions = ("mhatt1.", "mhatt2.") if guided else ("mhatt.",)
    for index, attention in enumerate(attentions):
        names[f"{released}{attention}linear_v."] = f"{ours}attentions.{index}.value."
        names[f"{released}{attention}linear_merge."] = f"{ours}attentions.{index}.merge."
        names[f"{released}{attention}linear_k."] = names[f"{released}{attention}linear_q."] = None
    for index in range(len(attentions) + 1):
        names[f"{released}norm{index + 1}.a_2"] = f"{ours}norms.{index}.scale"
        names[f"{released}norm{index + 1}.b_2"] = f"{ours}norms.{index}.shift"
    return names
