"""Models whose towers start from what can be had again at any time: what of it never learns is in no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from layers.adapters import digest_of, is_adapted, is_adapter, merge
from layers.base import RetrievalModel
from utils import InputError

BASE = "base_sha256"


class PackagedModel(RetrievalModel):
    """A model that leaves such parts out of its state dict, and fills them in again."""

    base_sha256: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_without_packaged)
        self.register_load_state_dict_pre_hook(_with_packaged)

    def packaged(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts that can be had again, with their names."""
        yield from ()

    def remember_base(self) -> None:
        """Keep the digest of these parts, before adapters are put into them: the adapters fit no others."""
        parts = list(self.packaged())
        if parts:
            self.register_buffer(BASE, digest_of(parts))

    def installed_weights(self) -> dict[str, Tensor]:
        """See `RetrievalModel.installed_weights`; adapters start at random, so no package has them."""
        return {name: value for name, value in self.startable().items() if not is_adapter(name)}

    def startable(self) -> dict[str, Tensor]:
        """All weights of these parts by their names in `state_dict`, their adapters included."""
        return {
            f"{place}.{name}": value for place, part in self.packaged() for name, value in part.state_dict().items()
        }

    def merged(self) -> RetrievalModel:
        """See `RetrievalModel.merged`."""
        for part in self.children():
            merge(part)
        return self


def _without_packaged(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Leave out of a state dict what a package holds and never learns; batch statistics don't, either."""
    assert isinstance(model, PackagedModel)
    for start, part in model.packaged():
        learning = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
        for name in part.state_dict().keys() - learning:
            state.pop(f"{prefix}{start}.{name}", None)


def _with_packaged(model: PackagedModel, state: dict[str, Any], prefix: str, *ignored: object) -> None:
    """Fill in what `_without_packaged` left out, and what learns here but did not where the state comes from.

    Raises:
        InputError: the state is of adapters of other weights.
    """
    own, given = getattr(model, BASE, None), state.get(f"{prefix}{BASE}")
    if own is not None and given is not None and not torch.equal(given.cpu(), own.cpu()):
        theirs, ours = (bytes(value.tolist()).hex()[:12] for value in (given, own))
        raise InputError(
            f"model.adapter: these adapters were trained beside other weights (SHA-256 {theirs}..., here {ours}...). "
            "Give the pretrained weights that the training started from."
        )
    for name, value in model.startable().items():
        state.setdefault(prefix + name, value)
    if own is not None:
        state.setdefault(prefix + BASE, own)


def count_line(model: nn.Module) -> str:
    """How much of a model with adapters learns, for the log and the protocol; "" where there are none."""
    if not is_adapted(model):
        return ""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    trained, held = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
    return f"adapters: {trained:,} of {held:,} weights trained ({100 * trained / held:.1f} %)"
