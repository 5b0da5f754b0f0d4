"""Keywords as a second text: a branch of their own and a gate that joins it with the sentence.

Yuan et al., "Exploring a Fine-Grained Multiscale Method for Cross-Modal Remote Sensing Image Retrieval", TGRS 2022.
Letters: B batch, P phrases, K = 2 P words, E word vector, D embedding.
"""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from batches.batch import QueryMode
from layers.base import l2norm
from option.parameters import Parameters


class KeywordParameters(Parameters):
    """`model.keywords`: whether texts have keywords."""

    mode: QueryMode = Field(
        default="none",
        description="what a text query is; none: a caption alone, as released; keywords: those of the image; both; "
        "sentence: a caption, with those of its words that are known from keywords in their place",
    )


class KeywordFusion(nn.Module):
    """text = w l2norm(s) + (1 - w) l2norm(k), one w = sigmoid(Linear([l2norm(s); l2norm(k)])) per item.

    k is an MLP of the mean over the phrases of a GRU's state after the phrase.
    """

    def __init__(self, word_dim: int, embed_dim: int) -> None:
        """Make the branch, whose states are as wide as the embedding, and the gate."""
        super().__init__()
        self.phrase = nn.GRUCell(word_dim, embed_dim)
        self.projection = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))
        self.gate = nn.Linear(2 * embed_dim, 1)

    def forward(self, sentences: Tensor, keywords: Tensor, words: nn.Embedding) -> Tensor:
        """Join sentences with their keywords.

        Args:
            sentences: s, [B, D].
            keywords: [B, K] word ids, two a phrase; a first word of 0 is passed over, a phrase with a second one of 0
                is none.
            words: the word vectors of the sentences, [words + 1, E].

        Returns:
            [B, D]; l2norm(s) where an item has no phrase.
        """
        phrases = keywords.unflatten(1, (-1, 2))  # [B, P, 2]
        present = phrases[..., 1:] != 0  # [B, P, 1]
        count = present.sum(dim=1)  # [B, 1]
        mean = (self.states(phrases, words) * present).sum(dim=1) / count.clamp(min=1)  # [B, D]
        sentence, keyword = l2norm(sentences), l2norm(self.projection(mean))
        weight = torch.sigmoid(self.gate(torch.cat([sentence, keyword], dim=-1)))  # [B, 1]
        weight = torch.where(count > 0, weight, 1.0)
        return weight * sentence + (1 - weight) * keyword

    def states(self, phrases: Tensor, words: nn.Embedding) -> Tensor:
        """State of the GRU after each phrase of one or two words: [B, P, 2] -> [B, P, D]."""
        first, second = words(phrases).flatten(0, 1).unbind(1)  # [B P, E] each
        begun = self.phrase(first) * (phrases[..., :1] != 0).flatten(0, 1)
        return cast(Tensor, self.phrase(second, begun)).unflatten(0, phrases.shape[:2])
