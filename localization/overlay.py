"""Attention laid over an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64)
"""Colours from the lowest to the highest attention, dark blue to yellow."""
OPACITY = 0.5
FLAT = 1e-6  # attention that differs less than this shows nothing


def overlay(image: Image.Image, attention: Tensor) -> Image.Image:
    """Lay attention [H, W] over an image, stretched from its lowest value (blue) to its highest (yellow)."""
    values = attention.numpy().astype(np.float32)
    spread = float(values.max() - values.min())
    values = (values - values.min()) / spread if spread > FLAT else np.zeros_like(values)
    resized = Image.fromarray(values).resize(image.size, Image.Resampling.BILINEAR)
    heat = heat_colours(np.asarray(resized).clip(0, 1))
    mixed = (1 - OPACITY) * np.asarray(image, dtype=np.float64) + OPACITY * heat
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_colours(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Numbers [H, W] in 0..1 as colours [H, W, 3] of `HEAT`."""
    steps = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, steps, channel) for channel in HEAT.T], axis=-1)
