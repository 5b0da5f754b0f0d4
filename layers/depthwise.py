"""Depthwise convolutions that learn on a CPU in mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
            return func(images.float(), *others, **(kwargs or {})).to(torch.get_autocast_dtype("cpu"))


def learns_depthwise(images: Tensor, weights: Tensor) -> bool:
    """Whether autocast meets a convolution that learns, whose channels [B, C, H, W] have own weights [C, 1, k, k]."""
    learns = torch.is_grad_enabled() and (images.requires_grad or weights.requires_grad)
    lowered = images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return learns and lowered and weights.shape[1] == 1 < weights.shape[0]
