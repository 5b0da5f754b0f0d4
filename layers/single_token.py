"""Transformer blocks on sequences of one token, as the fusion of GaLR and the shared pattern transfer of MCRN use them.

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
        weights = self.dropout(values.new_ones(values.shape[0], self.heads, 1))
        return cast(Tensor, self.merge((weights * values).flatten(1)))


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear: `width` -> `hidden` -> `width`."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
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


class PreNormBlock(nn.Module):
    """Attention to itself, then a feed-forward; each x = x + dropout(part(LN(x)))."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float, attention_dropout: float) -> None:
        """Make the parts; `attention_dropout` acts on the attention weights, `dropout` on everything else."""
        super().__init__()
        self.attention = SingleTokenAttention(width, heads, attention_dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(UnbiasedLayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, token: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        token = token + self.dropout(self.attention(self.norms[0](token)))
        return cast(Tensor, token + self.dropout(self.feed_forward(self.norms[1](token))))


class PreNormEncoder(nn.Module):
    """Pre-norm blocks, one after the other, and a last normalisation."""

    def __init__(
        self, layers: int, width: int, hidden: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(PreNormBlock(width, hidden, heads, dropout, attention_dropout) for _ in range(layers))
        )
        self.norm = UnbiasedLayerNorm(width)

    def forward(self, token: Tensor) -> Tensor:
        """[B, D] -> [B, D]."""
        return cast(Tensor, self.norm(self.blocks(token)))


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


def released_encoder_names(released: str, ours: str, layers: int) -> dict[str, str | None]:
    """Names of a `PreNormEncoder` of some layers in released checkpoints -> ours; queries and keys are dead."""
    names: dict[str, str | None] = {
        f"{released}norm.a_2": f"{ours}norm.scale",
        f"{released}norm.b_2": f"{ours}norm.shift",
    }
    for layer in range(layers):
        there, here = f"{released}layers.{layer}.", f"{ours}blocks.{layer}."
        names[f"{there}self_attn.linears.0."] = names[f"{there}self_attn.linears.1."] = None
        names[f"{there}self_attn.linears.2."] = f"{here}attention.value."
        names[f"{there}self_attn.linears.3."] = f"{here}attention.merge."
        names[f"{there}feed_forward.w_1."] = f"{here}feed_forward.expand."
        names[f"{there}feed_forward.w_2."] = f"{here}feed_forward.contract."
        for index in range(2):
            names[f"{there}sublayer.{index}.norm.a_2"] = f"{here}norms.{index}.scale"
            names[f"{there}sublayer.{index}.norm.b_2"] = f"{here}norms.{index}.shift"
    return names
