"""Depthwise convolutions that learn on a CPU in mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

COLUMNS = 3
"""Kernels up to so wide have a quick gradient on CPUs: with 1,152 channels of 7 x 7, that of 3 x 3 weights takes a
twelfth of the time that 5 x 5 weights take."""
Size = tuple[int, int]


class PreciseDepthwise(TorchFunctionMode):
    """Within it, depthwise convolutions that learn on a CPU compute in float32, whatever autocast says.

    On CPUs torch has no quick bfloat16 kernel for the gradient of their weights: with 672 channels of 14 x 14 and 5 x 5
    weights it takes three times as long as the float32 one, and more than all other layers of an EfficientNet together.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as asked, but for such a convolution."""
        if func is not F.conv2d or len(args) < 2 or not learns_depthwise(*args[:2]):
            return func(*args, **(kwargs or {}))
        images, *others = args
        with torch.autocast("cpu", enabled=False):
            compute = _Wide.apply if not kwargs and is_wide(*others) else func
            return compute(images.float(), *others, **(kwargs or {})).to(torch.get_autocast_dtype("cpu"))


def learns_depthwise(images: Tensor, weights: Tensor) -> bool:
    """Whether autocast meets a convolution that learns, whose channels [B, C, H, W] have own weights [C, 1, k, k]."""
    learns = torch.is_grad_enabled() and (images.requires_grad or weights.requires_grad)
    lowered = images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return learns and lowered and weights.shape[1] == 1 < weights.shape[0]


def is_wide(
    weights: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *rest: Any
) -> bool:
    """Whether weights [C, 1, k, k] that learn have more than `COLUMNS` columns, and the convolution is a plain one."""
    plain = isinstance(stride, tuple) and isinstance(padding, tuple) and dilation == (1, 1)
    return plain and weights.requires_grad and weights.shape[3] > COLUMNS


class _Wide(torch.autograd.Function):
    """A depthwise convolution whose weights' gradient is computed a few columns at a time."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weights: Tensor, bias: Tensor | None, stride: Size, padding: Size, *rest: Any
    ) -> Tensor:
        """Takes what `F.conv2d` takes."""
        ctx.save_for_backward(images, weights)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weights, bias, stride, padding, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of images, weights and bias."""
        images, weights = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        of_images, of_weights, of_bias, *others = ctx.needs_input_grad
        found: list[Tensor | None] = [None, None, gradient.sum(dim=(0, 2, 3)) if of_bias else None]
        if of_images:
            found[0] = _backward(gradient, images, weights, stride, padding, 0)
        if of_weights:
            found[1] = weights_gradient(gradient, images, weights, stride, padding)
        return *found, *(None for _ in others)


def weights_gradient(gradient: Tensor, images: Tensor, weights: Tensor, stride: Size, padding: Size) -> Tensor:
    """That of depthwise weights [C, 1, k, k] from that of the maps which images [B, C, H, W] became."""
    rows, columns = padding
    padded = F.pad(images, (columns, columns)) if columns else images
    reach = (gradient.shape[3] - 1) * stride[1]  # from what the first place of a row sees to what the last one does
    found = []
    for start in range(0, weights.shape[3], COLUMNS):
        part = weights[..., start : start + COLUMNS]
        seen = padded[..., start : start + reach + part.shape[3]]
        found.append(_backward(gradient, seen, part, stride, (rows, 0), 1))
    return torch.cat(found, dim=3)


def _backward(gradient: Tensor, images: Tensor, weights: Tensor, stride: Size, padding: Size, place: int) -> Tensor:
    """Gradient of the images (`place` 0) or the weights (1) of a depthwise convolution."""
    wanted = [number == place for number in range(3)]
    settings = None, stride, padding, (1, 1), False, (0, 0), len(weights)
    made: Tensor = torch.ops.aten.convolution_backward(gradient, images, weights, *settings, wanted)[place]
    return made
