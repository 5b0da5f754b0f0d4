"""Batch norms with fixed statistics are folded into convolutions; networks that only infer cast their weights once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

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


class FoldedNorms(TorchFunctionMode):
    """Within it, convolutions that learn take over the norms of `folded` that follow them, in each pass anew.

    The factors go into the weights and not into the maps, which are read and written a time less, forward and
    backward. Weights and norms get the gradients that they would have got, but for rounding.
    """

    def __init__(self, network: nn.Module) -> None:
        """Take a network whose norms run right behind the convolutions that they are declared behind."""
        super().__init__()
        pairs = ((getattr(parent, name), getattr(parent, norm)) for parent, name, norm in _pairs(network))
        self.norms = {id(conv.weight): norm for conv, norm in pairs if norm.affine and norm.weight.requires_grad}
        self.made: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as asked, but for such convolutions and their norms."""
        if func is F.conv2d and len(args) > 2 and torch.is_grad_enabled() and id(args[1]) in self.norms:
            images, weights, bias, *others = args
            norm = self.norms[id(weights)]
            maps = func(images, *_taken_over(weights, bias, norm), *others, **(kwargs or {}))
            self.made[id(norm.running_mean)] = maps
            return maps
        if func is F.batch_norm and len(args) > 1 and self.made.get(id(args[1])) is args[0]:
            return self.made.pop(id(args[1]))
        return func(*args, **(kwargs or {}))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Leave it.

        Raises:
            RuntimeError: something else than its norm followed a convolution.
        """
        super().__exit__(kind, *rest)
        if kind is None and self.made:
            raise RuntimeError("FoldedNorms: a norm did not follow the convolution that took it over")


def _taken_over(weights: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights [C, I, k, k] and bias [C] of a convolution that does what its norm did, too."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # [C]
    summand = norm.bias - norm.running_mean * factor
    return weights * factor[:, None, None, None], summand if bias is None else summand + bias * factor


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Parent, name of a convolution and name of the norm with fixed statistics that is declared next."""
    for parent in network.modules():
        for (name, conv), (norm_name, norm) in pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fits(conv, norm):
                yield parent, name, norm_name


def _fits(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Whether a norm has fixed statistics of a convolution's channels."""
    return bool(norm.track_running_stats) and not norm.training and norm.num_features == conv.out_channels
