"""A matching head: whether an image and a caption belong together, from the tokens of both.

Li et al., "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation", NeurIPS 2021
(ALBEF): image-text matching with hard negatives that the contrastive scores of the batch draw. Li et al., "BLIP:
Bootstrapping Language-Image Pre-training", ICML 2022 (the same with one encoder for each use). Letters: B batch,
N images, M captions, P pairs, T tokens of an image, L tokens of a caption, W width of a tower, H width of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from layers.base import Encodings
from option.parameters import MOST_LAYERS, MOST_WIDTH, Parameters

PAIRS = 512
"""Pairs that are scored at once."""


class MatchingParameters(Parameters):
    """`model.matching`: a head that scores pairs by the tokens of both towers, for a second stage of search."""

    layers: int = Field(default=0, ge=0, le=MOST_LAYERS, description="cross-attention layers; 0: there is no such head")
    width: int = Field(default=256, ge=1, le=MOST_WIDTH, description="of its tokens [numbers]")
    heads: int = Field(default=4, ge=1, le=MOST_WIDTH, description="attention heads, which divide width")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="in its layers [probability]")
    weight: float = Field(default=1.0, gt=0, le=100, description="of its loss beside that of optim.loss")
    temperature: float = Field(
        default=0.07, gt=0, le=1, description="of the scores that draw hard negatives; small: nearly always the hardest"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> MatchingParameters:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`."""
        keys = ("width", "heads", "dropout", "weight", "temperature")
        return {f"model.matching.{key}": "model.matching.layers is 0" for key in keys if self.layers == 0}


class MatchingHead(nn.Module):
    """The tokens of a caption attend to each other and to those of an image; their mean decides.

    Differs from ALBEF: the towers are any, so both sides' tokens are brought to one width first, and few new layers
    stand behind the text tower in place of its own upper half.
    """

    def __init__(self, image_width: int, text_width: int, parameters: MatchingParameters) -> None:
        """Take towers with tokens of these widths."""
        super().__init__()
        width, heads, dropout = parameters.width, parameters.heads, parameters.dropout
        self.weight, self.temperature = parameters.weight, parameters.temperature
        self.from_image = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.from_text = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(parameters.layers)
        )
        self.decide = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def image_tokens(self, states: Tensor) -> Tensor:
        """Tokens of images, [B, T, W] -> [B, T, H]."""
        return cast(Tensor, self.from_image(states))

    def text_tokens(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Tokens of captions, [B, L, W] -> [B, L, H]; rows of zeros where the ids [B, L] are padding."""
        return cast(Tensor, self.from_text(states)) * (tokens != 0)[..., None]

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Log-odds that the items of each pair belong together: [P, T, H] and [P, L, H] -> [P]."""
        words = texts.any(dim=-1)  # [P, L]
        states = texts
        for layer in self.layers:
            states = layer(states, images, tgt_key_padding_mask=~words)
        share = words[..., None] / words.sum(dim=1)[:, None, None]  # [P, L, 1]
        return cast(Tensor, self.decide((states * share).sum(dim=1)))[:, 0]

    def scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """Probability that they belong together, of every pair: [N, T, H] and [M, L, H] -> [N, M] in 0..1."""
        rows = torch.arange(len(images), device=images.device).repeat_interleave(len(texts))
        columns = torch.arange(len(texts), device=images.device).repeat(len(images))
        parts = zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)
        logits = torch.cat([self(images[image], texts[text]) for image, text in parts])
        return logits.float().sigmoid().view(len(images), len(texts))

    def loss(self, encodings: TokenEncodings, scores: Tensor) -> Tensor:
        """`matching_loss` of a batch, times its weight."""
        images, texts, rows = encodings.image_tokens, encodings.text_tokens, encodings.rows
        matches = matches_of(encodings.tokens, rows, len(images))
        other_images, other_texts = hard_negatives(scores, matches, rows, self.temperature)
        own = images[rows]
        wrong = [(images[other_images], texts), (own, texts[other_texts])]
        found = [~matches.all(dim=0), ~matches.all(dim=1)[rows]]
        logits = [self(own, texts), *(self(*pair) for pair in wrong)]
        return self.weight * matching_loss(logits[0], torch.stack(logits[1:]), torch.stack(found))


@dataclass(frozen=True, kw_only=True)
class TokenEncodings(Encodings):
    """What a training with a matching head sees of a batch: also the tokens of both sides.

    Attributes:
        image_tokens: [N, T, H].
        text_tokens: [M, L, H], zeros at padding.
        tokens: [M, L] ids of the captions.
    """

    image_tokens: Tensor
    text_tokens: Tensor
    tokens: Tensor

    @property
    def rows(self) -> Tensor:
        """Row of each caption's image, [M] int64."""
        return torch.arange(len(self.texts), device=self.texts.device) if self.image_rows is None else self.image_rows


def matches_of(tokens: Tensor, rows: Tensor, images: int) -> Tensor:
    """Which captions are those of an image, or equal to one of them word for word, [N, M] bool.

    Args:
        tokens: [M, L] ids.
        rows: [M] row of each caption's image.
        images: N.
    """
    kinds = tokens.unique(dim=0, return_inverse=True)[1]  # [M]
    held = torch.zeros(images, len(tokens), dtype=torch.bool, device=tokens.device)
    held[rows, kinds] = True  # an image holds captions of these kinds
    return held[:, kinds]


def hard_negatives(scores: Tensor, matches: Tensor, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """For each caption another image, and for its image another caption, drawn by softmax(score / temperature).

    ALBEF, section 3.2. Where there is none that does not match, any.

    Args:
        scores: [N, M].
        matches: [N, M] bool, pairs that are no negatives.
        rows: [M] row of each caption's image.
        temperature: of the softmax.

    Returns:
        Images [M] and captions [M].
    """
    logits = (scores.detach().float() / temperature).masked_fill(matches, float("-inf"))
    # The greatest sum with Gumbel noise is a draw from the softmax.
    noise = [-torch.empty_like(part).exponential_().log() for part in (logits, logits[rows])]
    return (logits + noise[0]).argmax(dim=0), (logits[rows] + noise[1]).argmax(dim=1)


def matching_loss(own: Tensor, wrong: Tensor, found: Tensor) -> Tensor:
    """Binary cross-entropy of each caption's own pair and its negatives, their mean, summed over the captions.

    Args:
        own: log-odds of the own pairs [M].
        wrong: of the negatives [2, M].
        found: which of these there are [2, M] bool.
    """
    costs = F.softplus(-own.float()) + (F.softplus(wrong.float()) * found).sum(dim=0)
    return (costs / (1 + found.sum(dim=0))).sum()
