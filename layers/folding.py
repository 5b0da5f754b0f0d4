"""Batch norms folded into the convolutions before them, for networks that only infer."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLOSE = 1e-3
"""How far an output may move, as a share of the largest one; float32 rounds to a hundredth of this."""


@torch.no_grad()
def folded(network: nn.Module, sample: Tensor) -> nn.Module:
    """A copy of a network in evaluation mode without the batch norms that directly follow a convolution.

    A batch norm with fixed statistics is a factor and a summand for each channel. The convolution's own weights can
    take both over: the same numbers but for rounding, with one pass over memory less. timm's norms keep their
    activation.

    Args:
        network: whose modules run in the order in which they are declared, as those of ResNets and EfficientNets do.
        sample: an input. Where its output moves by more than `CLOSE`, the order is another one: the copy stays whole.
    """
    whole, copy = deepcopy(network).eval(), deepcopy(network).eval()
    for parent in list(copy.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fits(conv, norm):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    expected, found = whole(sample), copy(sample)
    return copy if float((expected - found).abs().max()) <= CLOSE * float(expected.abs().max()) else whole


def _fits(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has fixed statistics of a convolution's channels."""
    return bool(norm.track_running_stats) and norm.num_features == conv.out_channels
