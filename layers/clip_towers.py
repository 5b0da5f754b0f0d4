"""Which parts of one of open_clip's models are its image tower and its text tower, and their blocks in order.

Letters: B batch, S image side in pixels, L token ids, D embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor, nn

TOWERS = {
    "image": ("visual.",),
    "text": ("text.", "text_projection", "transformer.", "token_embedding.", "positional_embedding", "ln_final."),
}
"""How the names of the parameters of either tower begin."""
EMBEDS = re.compile(r"^(?!.*attnpool).*(embed|\.conv\d|\.bn\d|ln_pre|patch|cls_|stem)")
"""In names of parameters outside of the layers that come before these."""


class ClipTower(nn.Module):
    """One tower with all that it computes with, and nothing of the other."""

    def __init__(self, clip: nn.Module, side: str, embed: Callable[[Tensor], Tensor], **buffers: Tensor) -> None:
        """Take the parts of a tower, `image` or `text`, what embeds with them, and what else that computes with."""
        super().__init__()
        for name, member in (*clip.named_children(), *clip.named_parameters(recurse=False)):
            if f"{name}.".startswith(TOWERS[side]):
                setattr(self, name, member)
        for name, values in buffers.items():
            self.register_buffer(name, values)
        self.embed = embed

    def forward(self, given: Tensor) -> Tensor:
        """Images [B, 3, S, S] or tokens [B, L] -> [B, D]."""
        return self.embed(given)


def blocks_of(clip: nn.Module, side: str) -> list[list[str]]:
    """Names of a tower's parameters by block, from the input on: what comes before the layers, then each layer.

    What is in no layer belongs to the first block if it embeds, and to the last if it follows the layers.
    """
    layers = _layers(clip, side)
    within = {id(weight): place for place, layer in enumerate(layers, start=1) for weight in layer.parameters()}
    blocks: list[list[str]] = [[] for _ in range(len(layers) + 1)]
    for name, weight in clip.named_parameters():
        if name.startswith(TOWERS[side]):
            outside = 0 if EMBEDS.search(name) else len(layers)
            blocks[within.get(id(weight), outside)].append(name)
    return [block for block in blocks if block]


def _layers(clip: nn.Module, side: str) -> list[nn.Module]:
    """The layers of a tower: the stages of a ResNet, else its longest list of like parts."""
    parts = {name: part for name, part in clip.named_modules() if name.startswith(TOWERS[side])}
    stages = [parts[f"visual.layer{number}"] for number in range(1, 5) if f"visual.layer{number}" in parts]
    if stages:
        return [block for stage in stages for block in stage.children()]
    lists = [list(part.children()) for part in parts.values() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    return max((found for found in lists if len({type(part) for part in found}) == 1), key=len, default=[])
