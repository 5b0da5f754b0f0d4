"""The models as the published code computes them: the same weights and numbers, without what makes ours faster.

Each class takes a part of ours and overrides how it computes. Letters: B batch, N tokens, L words, D embedding.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.amfmn import AMFMN
from layers.base import RetrievalModel, l2norm, normalise_rows
from layers.galr import GaLR
from layers.mcrn import MCRN
from layers.multiscale import MultiscaleImageEncoder
from layers.single_token import SingleTokenAttention
from layers.skip_thoughts import BayesianUniSkip
from layers.swan_image import HEADS, DetailTokens, MultiscaleFusion, SelfAttention
from layers.swan_text import ContextCaptionEncoder

Model = TypeVar("Model", bound=RetrievalModel)

IMAGENET_CLASSES = 1000


class StepwiseUniSkip(BayesianUniSkip):
    """Every product of every time step by itself, over the whole padded length; autograd differentiates it."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `SkipThoughts.forward`."""
        words = self.embedding(tokens)  # [B, L, E]
        state = words.new_zeros(len(words), self.output_dim)
        drop = self.training and self.dropout > 0
        for_words = [self.mask(words) if drop else None for _ in range(3)]
        for_states = [self.mask(state) if drop else None for _ in range(3)]
        states = []
        for word in words.unbind(1):
            x_reset, x_update, x_new = (word if mask is None else word * mask for mask in for_words)
            h_reset, h_update, h_new = (state if mask is None else state * mask for mask in for_states)
            reset = torch.sigmoid(self.input_reset(x_reset) + self.state_reset(h_reset))
            update = torch.sigmoid(self.input_update(x_update) + self.state_update(h_update))
            new = torch.tanh(self.input_new(x_new) + reset * self.state_new(h_new))
            state = (1 - update) * new + update * state
            states.append(state)
        return torch.stack(states, dim=1)[torch.arange(len(words)), lengths - 1]  # [B, H]


class WholeAttention(SingleTokenAttention):
    """Queries, keys and a softmax over one token, which is 1."""

    unused_query: nn.Linear
    unused_key: nn.Linear

    def forward(self, token: Tensor) -> Tensor:
        """See `SingleTokenAttention.forward`."""
        maps = (self.unused_query, self.unused_key, self.value)
        query, key, value = (linear(token).unflatten(-1, (self.heads, 1, -1)) for linear in maps)  # [B, heads, 1, D/h]
        scores = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return cast(Tensor, self.merge((self.dropout(scores) @ value).flatten(1)))


class JoinedMultiscaleImageEncoder(MultiscaleImageEncoder):
    """Stages brought to one size and joined before they are reduced."""

    def reduce(self, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
        """See `MultiscaleImageEncoder.reduce`."""
        lower = torch.cat([first, F.interpolate(second, scale_factor=2, mode="nearest")], dim=1)
        higher = torch.cat([third, F.interpolate(fourth, scale_factor=2, mode="nearest")], dim=1)
        return self.reduce_lower(lower), self.reduce_higher(higher)


class WholeMultiscaleFusion(MultiscaleFusion):
    """1x1 convolutions on more cells than are used: before taking every second one, and after doubling them."""

    def forward(self, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
        """See `MultiscaleFusion.forward`."""
        fine = F.interpolate(self.second(second), scale_factor=0.5, mode="nearest")
        coarse = self.fourth(F.interpolate(fourth, scale_factor=2, mode="nearest"))
        joined = torch.cat([fine, self.third(third), coarse], dim=1)
        return cast(Tensor, self.mlp(self.mix(joined).mean(dim=(2, 3))))


class MatrixSelfAttention(SelfAttention):
    """Scores and weights as whole matrices."""

    def forward(self, tokens: Tensor) -> Tensor:
        """See `SelfAttention.forward`."""
        maps = (self.query, self.key, self.value)
        query, key, value = (linear(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2) for linear in maps)
        scores = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        weights = F.dropout(scores, self.dropout, self.training)
        return cast(Tensor, self.merge((weights @ value).transpose(1, 2).flatten(2)))


class MatrixDetailTokens(DetailTokens):
    """Tokens weighed by a whole matrix [N, D], whose product [B, D, D] is averaged."""

    def forward(self, shallow: Tensor) -> Tensor:
        """See `DetailTokens.forward`."""
        tokens = self.dropout(self.tokens(shallow))
        tokens = self.attention_norm(tokens + self.dropout(self.attention(tokens)))
        tokens = self.feed_forward_norm(tokens + self.dropout(self.feed_forward(tokens)))
        matrix = self.token_weights[:, None].expand(-1, tokens.shape[-1])
        return (matrix.T @ tokens).mean(dim=1)  # [B, D]


class WholeContextCaptionEncoder(ContextCaptionEncoder):
    """Every word to the end, and two convolutions that reach no output; then the last word is taken."""

    unused_convolutions: Any  # a ModuleList

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `ContextCaptionEncoder.forward`."""
        real = torch.arange(tokens.shape[1]) < lengths[:, None]  # [B, L]
        states = self.read(tokens, lengths)
        for convolution in self.unused_convolutions:
            if tokens.shape[1] >= convolution[0].kernel_size[0]:
                convolution(states.transpose(1, 2))
        words = self.attention(states, real)
        context = torch.zeros_like(words)
        context[real] = normalise_rows(self.norm, words[real])
        enhanced = states + self.context_dropout(context)
        finished = self.mlp(enhanced) + enhanced  # [B, L, D]
        return l2norm(finished[torch.arange(len(tokens)), lengths - 1])


class PairwiseAMFMN(AMFMN):
    """A text vector of its own for each pair, all of them at once."""

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """See `AMFMN.pair_scores`."""
        return self._guided_cosine(images, self.attention.image_terms(images), self.attention.text_terms(texts))


PARTS: dict[type[nn.Module], type[nn.Module]] = {
    BayesianUniSkip: StepwiseUniSkip,
    MultiscaleImageEncoder: JoinedMultiscaleImageEncoder,
    SingleTokenAttention: WholeAttention,
    MultiscaleFusion: WholeMultiscaleFusion,
    SelfAttention: MatrixSelfAttention,
    DetailTokens: MatrixDetailTokens,
    ContextCaptionEncoder: WholeContextCaptionEncoder,
    AMFMN: PairwiseAMFMN,
}


def published_twin(model: Model) -> Model:
    """A copy of a model that computes as the published code does, in its layout of memory.

    What the published code builds besides, without an effect on any output, stands under names with `unused_`.
    """
    twin = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for part in list(twin.modules()):
        if type(part) in PARTS:
            part.__class__ = PARTS[type(part)]
            _add_unused(part)
    if isinstance(twin, (AMFMN, GaLR, MCRN)):
        twin.unused_classifier = nn.Linear(512, IMAGENET_CLASSES)
    return cast(Model, twin)


def _add_unused(part: Any) -> None:
    """Build what the published code builds, computes or not, and never uses."""
    if isinstance(part, WholeAttention):
        width = part.value.in_features
        part.unused_query, part.unused_key = nn.Linear(width, width), nn.Linear(width, width)
    elif isinstance(part, WholeContextCaptionEncoder):
        width = part.norm.num_features
        part.unused_convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv1d(width, width, kernel), nn.BatchNorm1d(width), nn.ReLU()) for kernel in (2, 3)
        )
    elif isinstance(part, PairwiseAMFMN):
        width = part.image_encoder.solo.out_features
        part.unused_gate = nn.Linear(2 * width, width)


def loop_adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam that takes one parameter after the other, as PyTorch's did when the models were published."""
    return torch.optim.Adam(groups, foreach=False, fused=False)
