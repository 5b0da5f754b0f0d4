"""Names of image encoders in a YAML."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Those that torchvision has weights for."""
TIMM = "timm/"
"""Before a name of timm's."""


def _known(architecture: str) -> str:
    # Plain names alone: after `hf-hub:` and `local-dir:` timm reads a configuration from anywhere.
    if architecture in RESNETS or re.fullmatch(rf"{TIMM}[A-Za-z0-9_.]+", architecture):
        return architecture
    raise ValueError(f"expected {TIMM}NAME with a name of timm's, or one of torchvision's {', '.join(RESNETS)}")


Architecture = Annotated[str, AfterValidator(_known)]
"""The name of an image encoder in a YAML."""
