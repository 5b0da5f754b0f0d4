"""SWAN's caption encoder: word vectors, a GRU, and text coarse-grained enhancement (TCGE) by gated attention.

Letters: B batch, L words of the longest caption, W words of all captions, H heads, E word vector, D embedding.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from layers.base import l2norm, normalise_rows
from layers.swan_image import mlp

HEADS = 2


class GatedAttention(nn.Module):
    """Self-attention over words, its queries and keys gated by each other."""

    def __init__(self, embed_dim: int, floor: bool) -> None:
        """Make the maps; with `floor`, scores are rounded down to whole numbers, as released."""
        super().__init__()
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.query_gate = nn.Linear(embed_dim // HEADS, embed_dim // HEADS)
        self.key_gate = nn.Linear(embed_dim // HEADS, embed_dim // HEADS)
        self.gates = nn.Linear(embed_dim // HEADS, 2 * embed_dim // HEADS)
        self.floor = floor
        if floor:
            # No gradient passes the floor: these ten tensors stay as they start, in the released code, too.
            for module in (self.query, self.key, self.query_gate, self.key_gate, self.gates):
                module.requires_grad_(False)
        # The batch norm after the attention takes the mean away, and this bias with it.
        self.value.bias.requires_grad_(False)

    def forward(self, words: Tensor, real: Tensor) -> Tensor:
        """Let words attend to each other.

        Args:
            words: [B, L, D].
            real: [B, L] bool, False for padding, which no word attends to.

        Returns:
            [B, L, D]; what stands at padding means nothing.
        """
        return (self.weights(words, real) @ _heads(self.value, words)).transpose(1, 2).flatten(2)  # [B, L, D]

    def weights(self, words: Tensor, real: Tensor) -> Tensor:
        """How much each word takes of each: arguments as in `forward` -> [B, H, L, L], 1 in sum over the last."""
        query, key = _heads(self.query, words), _heads(self.key, words)
        gates = torch.sigmoid(self.gates(self.query_gate(query) * self.key_gate(key)))
        for_query, for_key = gates.chunk(2, dim=-1)
        scores = (query * for_query) @ (key * for_key).transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, H, L, L]
        if self.floor:
            scores = scores.floor()
        return scores.masked_fill(~real[:, None, None], float("-inf")).softmax(dim=-1)


def _heads(linear: nn.Linear, words: Tensor) -> Tensor:
    """A map of words [B, L, D], its result shared out to the heads: [B, H, L, D / H]."""
    return cast(Tensor, linear(words)).unflatten(-1, (HEADS, -1)).transpose(1, 2)


class ContextCaptionEncoder(nn.Module):
    """Embeds a caption as its last word in the context of all others."""

    def __init__(
        self,
        *,
        words: int,
        word_dim: int,
        embed_dim: int,
        layers: int,
        bidirectional: bool,
        floor: bool,
        word_dropout: float,
        context_dropout: float,
        caption_dropout: float,
    ) -> None:
        """Build it.

        Args:
            words: entries of the vocabulary; the table has one row more, row 0 for padding.
            word_dim: numbers per word vector, E.
            embed_dim: numbers per embedding, D.
            layers: of the GRU.
            bidirectional: also read from the end; both directions are averaged.
            floor: see `GatedAttention`.
            word_dropout: probability, on word vectors.
            context_dropout: probability, on what the attention adds to a word.
            caption_dropout: probability, inside the last MLP.
        """
        super().__init__()
        self.embedding = nn.Embedding(words + 1, word_dim, padding_idx=0)
        self.word_dropout = nn.Dropout(word_dropout)
        self.rnn = nn.GRU(word_dim, embed_dim, layers, batch_first=True, bidirectional=bidirectional)
        self.attention = GatedAttention(embed_dim, floor)
        self.norm = nn.BatchNorm1d(embed_dim)
        self.context_dropout = nn.Dropout(context_dropout)
        self.mlp = mlp(embed_dim, nn.ReLU(), caption_dropout)

    def read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """States of the GRU: tokens [B, L], lengths [B] (CPU) -> [B, L, D], zero at padding."""
        words = self.word_dropout(self.embedding(tokens))  # [B, L, E]
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return states.unflatten(-1, (-1, self.rnn.hidden_size)).mean(dim=-2)  # [B, L, D]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embed captions.

        Args:
            tokens: [B, L] word ids, zero-padded.
            lengths: [B] words per caption, at least 1, on the CPU.

        Returns:
            [B, D] of unit length.
        """
        real = torch.arange(tokens.shape[1]) < lengths[:, None]  # [B, L]
        place = real.flatten().nonzero().squeeze(1).to(tokens.device, non_blocking=True)  # [W]
        last = (lengths.cumsum(0) - 1).to(tokens.device, non_blocking=True)  # [B], of the W words
        # Not in mixed precision: a score that is rounded across a whole number changes its weight by a factor of e.
        with torch.autocast(tokens.device.type, enabled=False):
            states = self.read(tokens, lengths)
            context = self.attention(states, real.to(tokens.device, non_blocking=True))
            # Statistics over real words alone; what follows treats each word alone, so only the last one is needed.
            context = normalise_rows(self.norm, context.flatten(0, 1)[place])[last]  # [B, D]
            enhanced = states.flatten(0, 1)[place[last]] + self.context_dropout(context)
        return l2norm(self.mlp(enhanced) + enhanced)

    def word_shares(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """How much the last word takes of each word, mean of the heads; arguments as in `forward` -> [B, L]."""
        real = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(tokens.device)  # [B, L]
        with torch.autocast(tokens.device.type, enabled=False):
            weights = self.attention.weights(self.read(tokens, lengths), real).mean(dim=1)  # [B, L, L]
        return weights[torch.arange(len(tokens)), lengths - 1]


RELEASED_TEXT: dict[str, str | None] = {
    "text_encoder.embed.": "caption_encoder.embedding.",
    "text_encoder.rnn.": "caption_encoder.rnn.",
    "text_encoder.projection.": None,
    "tcge.conv1d_block_": None,
    "tcge.ga.linears.0.": "caption_encoder.attention.query.",
    "tcge.ga.linears.1.": "caption_encoder.attention.key.",
    "tcge.ga.linears.2.": "caption_encoder.attention.value.",
    "tcge.ga.fc_q.": "caption_encoder.attention.query_gate.",
    "tcge.ga.fc_k.": "caption_encoder.attention.key_gate.",
    "tcge.ga.fc_g.": "caption_encoder.attention.gates.",
    "tcge.bn_1d.": "caption_encoder.norm.",
    "tcge.mlp.fc.linear.": "caption_encoder.mlp.0.",
    "tcge.mlp.linear.": "caption_encoder.mlp.3.",
}
