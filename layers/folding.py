"""What networks that only infer need not do again at each call: batch norms are folded, weights cast once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)
CLOSE = 1e-3
"""How far an output may move, as a share of the largest one; float32 rounds to a hundredth of this."""


@torch.no_grad()
def folded(network: Network, run: Callable[[Network], Tensor]) -> Network:
    """A copy of a network in evaluation mode without the batch norms that directly follow a convolution.

    A batch norm with fixed statistics is a factor and a summand for each channel. The convolution's own weights can
    take both over: the same numbers but for rounding, with one pass over memory less. timm's norms keep their
    activation.

    Args:
        network: in evaluation mode. It stays as it is; the copy shares all weights with it but those of the
            convolutions, so it is good for as long as no weight changes.
        run: what the copy is for, on a small input. Where the result moves by more than `CLOSE`, some module runs in
            another order than it was declared in, as none of a ResNet or an EfficientNet does.

    Returns:
        The copy; the network itself where nothing can be folded, or the order is another one.
    """
    if next(_pairs(network), None) is None:
        return network
    copy = deepcopy(network, {id(held): held for held in (*network.parameters(), *network.buffers())})
    for parent, name, norm_name in list(_pairs(copy)):
        conv, norm = getattr(parent, name), getattr(parent, norm_name)
        setattr(parent, name, fuse_conv_bn_eval(conv, norm))
        setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    expected, found = run(network), run(copy)
    return copy if float((expected - found).abs().max()) <= CLOSE * float(expected.abs().max()) else network


@torch.no_grad()
def precast(network: Network, run: Callable[[Network], Tensor]) -> Network:
    """A copy of a network whose linear maps hold their weights as autocast would cast them at each call.

    Without a graph autocast casts all weights anew each time, which takes longer than a short sentence itself.

    Args:
        network: in evaluation mode. It stays as it is; the copy shares all other weights with it, so it is good for as
            long as no weight changes.
        run: what the copy is for, on a small input, under autocast. Maps that it leaves out, or calls in full
            precision, stay as they are.

    Returns:
        The copy, which gives the very same numbers under the same autocast; the network itself where nothing can be
        cast, or the numbers are others: OpenCLIP's blocks compute in the precision of their weights.
    """
    casts: dict[nn.Module, torch.dtype | None] = {}

    def note(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kind = inputs[0].device.type
        casts[part] = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    hooks = [part.register_forward_pre_hook(note) for part in network.modules() if isinstance(part, nn.Linear)]
    try:
        expected = run(network)
    finally:
        for hook in hooks:
            hook.remove()
    lower: dict[int, object] = {
        id(held): nn.Parameter(held.to(dtype), requires_grad=False)
        for part, dtype in casts.items()
        if dtype is not None
        for held in part.parameters()
    }
    shared = {id(held): held for held in (*network.parameters(), *network.buffers())}
    copy = deepcopy(network, shared | lower) if lower else network
    return copy if torch.equal(run(copy), expected) else network


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Parent, name of a convolution and name of the norm with fixed statistics that is declared next."""
    for parent in network.modules():
        for (name, conv), (norm_name, norm) in pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fits(conv, norm):
                yield parent, name, norm_name


def _fits(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has fixed statistics of a convolution's channels."""
    return bool(norm.track_running_stats) and not norm.training and norm.num_features == conv.out_channels
