"""Networks as chains of parts, so that what a frozen first part gives can be kept, and the others go on from there.

Letters: B batch, S image side in pixels, L tokens, W width of a network's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn

from layers.backbone import import_timm

Last = Callable[[Tensor], Tensor]
"""From what the last part gives to what is pooled, as timm's `forward_features` gives it."""


def image_chain(network: Any) -> tuple[list[nn.Module], Last]:
    """Stem and blocks of one of timm's EfficientNets, ResNets or ViTs, and what follows; no parts of others."""
    models = import_timm().models
    if isinstance(network, models.EfficientNet):
        stem: nn.Module = nn.Sequential(network.conv_stem, network.bn1)
        return [stem, *chain(*network.blocks)], lambda maps: network.bn2(network.conv_head(maps))
    if isinstance(network, models.ResNet):
        stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
        stages = (network.layer1, network.layer2, network.layer3, network.layer4)
        return [stem, *chain(*stages)], lambda maps: maps
    if isinstance(network, models.VisionTransformer):
        return [PatchTokens(network), *network.blocks], network.norm
    return [], lambda maps: maps


class PatchTokens(nn.Module):
    """The first part of one of timm's ViTs: images [B, 3, S, S] -> tokens with their positions [B, L, W]."""

    patch_embed: Any  # called as timm's ViT calls them
    patch_drop: Any
    norm_pre: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in ("patch_embed", "pos_drop", "patch_drop", "norm_pre"):
            setattr(self, name, getattr(network, name))
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.embed_positions = network._pos_embed
        self.training = self.patch_embed.training

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of prepared images."""
        tokens = self.embed_positions(self.patch_embed(images))
        return cast(Tensor, self.norm_pre(self.patch_drop(tokens)))


class TokenStates(nn.Module):
    """The embeddings of one of transformers' encoders and its first layers: ids [B, L] -> states [B, L, W]."""

    def __init__(self, embeddings: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.embeddings, self.layers = embeddings, nn.ModuleList(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """States of captions, whose ids start from 1; 0 is padding."""
        states = cast(Tensor, self.embeddings(input_ids=(tokens - 1).clamp(min=0)))
        return through(self.layers, states, tokens)


def through(layers: Sequence[nn.Module] | nn.ModuleList, states: Tensor, tokens: Tensor) -> Tensor:
    """States [B, L, W] through layers of a transformer; tokens [B, L] are 0 at padding, which nothing attends to."""
    mask = (tokens != 0)[:, None, None]  # [B, 1, 1, L]
    for layer in layers:
        given = layer(states, mask)
        states = given[0] if isinstance(given, tuple) else given
    return states
