"""The towers of a dual encoder: what all have, and the image tower, a pooled network of timm.

A tower is frozen whole, trained from one of its blocks on, or trained whole. What is frozen stays in evaluation mode:
it draws nothing at random, and its batch norms keep their statistics.

Letters: B batch, S image side in pixels, L tokens, W width of a tower's features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layers.adapters import AdapterParameters
from layers.backbone import timm_network
from layers.chains import image_chain
from layers.depthwise import PreciseDepthwise
from layers.folding import FoldedNorms
from layers.installed import INSTALLED
from option.architecture import TIMM
from option.parameters import MOST_LAYERS, Parameters
from utils import InputError, first_line

Trained = Literal["none", "all"] | int
"""What of a tower learns: nothing, all of it, or its last blocks, by their number."""


class LastBlocks(Parameters):
    """`train: {last: N}`."""

    last: int = Field(ge=1, le=MOST_LAYERS, description="blocks that learn, counted from the output")


Train = Literal["none", "all"] | LastBlocks
"""What of a tower learns."""


class TowerParameters(Parameters):
    """What both towers have."""

    train: Annotated[Train, Field(union_mode="left_to_right")] = Field(
        default="none", description="what learns: none, all, or {last: N}: the last N blocks"
    )
    lr: float | None = Field(default=None, gt=0, description="learning rate of the last block; null: optim.lr")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="learning rate of a block, as a share of that of the block behind it"
    )

    @property
    def trained(self) -> Trained:
        """`train` as a number of blocks where it is one."""
        return self.train.last if isinstance(self.train, LastBlocks) else self.train


def blocks_that_learn(trained: Trained, blocks: int, key: str) -> int:
    """How many of a tower's blocks learn, counted from the output.

    Raises:
        InputError: it has fewer; `key` is the option that asks for them.
    """
    if isinstance(trained, int) and trained > blocks:
        raise InputError(f"{key}: last {trained} blocks; this tower has {blocks}.")
    return trained if isinstance(trained, int) else blocks if trained == "all" else 0


def rest(network: nn.Module, norms: bool) -> None:
    """Bring into evaluation mode what of a network in training never learns, and with `norms` all batch norms."""
    for part in network.modules():
        learns = [parameter.requires_grad for parameter in part.parameters()]
        if (norms and isinstance(part, nn.modules.batchnorm._BatchNorm)) or (learns and not any(learns)):
            for inner in part.modules():  # dropout has no parameters: it goes with what it lies in
                inner.training = False


class Tower(nn.Module):
    """A network whose blocks stand in order; a parameter belongs to one of them, or never learns.

    Attributes:
        width: W of its features.
        blocks: names of the parameters of each block, from the input on.
        from_package: whether its start can be had again at any time, so that what never learns is not saved.
    """

    width: int
    blocks: list[list[str]]
    from_package = False
    network: Any
    adapted = False
    """Whether adapters learn in it, in place of its own weights."""
    keeps_tokens = False
    """Whether its tokens are asked for, too, so that what is kept of a frozen one is not pooled."""
    token_width: int
    """Numbers of a token."""
    _cuts: bool | None = None
    """Whether it gives the same in two parts; None: not tried yet."""

    def freeze(self, trained: Trained, key: str = "train") -> None:
        """Leave all but the last blocks as they are.

        Raises:
            InputError: it has fewer blocks; `key` is the option that asks for them.
        """
        self.trained_blocks, self._cuts = blocks_that_learn(trained, len(self.blocks), key), None
        learning = {name for block in self.blocks[len(self.blocks) - self.trained_blocks :] for name in block}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in learning)

    def adapt(self, adapter: AdapterParameters, side: str) -> None:
        """Put adapters in; all else stays as it is.

        Raises:
            InputError: see `layers.adapters.adapt`.
        """
        self.freeze("none")
        adapter.put_into(self.network, side)
        self.adapted = True

    def checkpoint_gradients(self) -> None:
        """Let the network compute again in the backward pass what it would keep for it.

        Raises:
            InputError: it can't.
        """
        raise InputError("model.gradient_checkpointing: this tower has no blocks to compute twice; leave it false.")

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it learns."""
        return self.trained_blocks == 0 and not self.adapted

    def frozen_part(self) -> nn.Module | None:
        """What comes before the blocks that learn, where it can be had by itself; the whole tower if none learns."""
        if self.is_frozen and not self.keeps_tokens:
            return self
        if self.adapted:
            return None
        start = self._start()
        if start is not None and self._cuts is None:
            self._cuts = self._same(start)
        return start if self._cuts else None

    def _start(self) -> nn.Module | None:
        """The part of the tower that never learns; None where all of it learns, or its parts are not known."""
        return None

    def _sample(self) -> Tensor:
        """Some input of the tower."""
        raise NotImplementedError

    @torch.no_grad()
    def _same(self, start: nn.Module) -> bool:
        """Whether the tower gives by way of `start` and `finish` what it gives as a whole."""
        mode, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            given = self._sample().to(device)
            return torch.allclose(self.finish(start(given), given), self(given), rtol=1e-4, atol=1e-5)
        except (TypeError, ValueError, RuntimeError, AttributeError):  # a part that takes other arguments
            return False
        finally:
            self.train(mode)

    def finish(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """From what `frozen_part` gives to the tower's features [B, W]; `given` is what the tower was given."""
        if self.is_frozen and not self.keeps_tokens:
            return features
        return self.pool(self.finish_states(features, given), given)

    def states(self, given: Tensor) -> Tensor:
        """What the tower pools."""
        raise NotImplementedError

    def finish_states(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """The same from what `frozen_part` gives."""
        raise NotImplementedError

    def pool(self, states: Tensor, given: Tensor | None = None) -> Tensor:
        """The tower's features [B, W], of its states."""
        raise NotImplementedError

    def tokens(self, states: Tensor) -> Tensor:
        """Its states as tokens [B, L, `token_width`]."""
        return states

    def keep_tokens(self) -> None:
        """Let what is kept of the tower hold its tokens.

        Raises:
            InputError: it has none.
        """
        raise InputError("model.matching: this tower pools while it reads and has no tokens; model.matching.layers=0.")

    def train(self, mode: bool = True) -> Tower:
        """Bring what learns into training mode; batch norms stay with the statistics that they came with."""
        learning = mode and not self.is_frozen
        super().train(learning)
        if learning:
            rest(self, norms=True)
        return self

    def groups(self, rate: float, decay: float) -> Iterator[dict[str, Any]]:
        """The blocks that learn with their learning rates: the last at `rate`, each before it at `decay` times that."""
        named = dict(self.named_parameters())
        if self.adapted:
            yield {"params": [parameter for parameter in named.values() if parameter.requires_grad], "lr": rate}
            return
        for depth, block in enumerate(reversed(self.blocks)):
            learning = [named[name] for name in block if named[name].requires_grad]
            if learning:
                yield {"params": learning, "lr": rate * decay**depth}


class TimmTower(Tower):
    """A network of timm without its classifier; its images are normalised as its weights expect it.

    Attributes:
        computes_twice: whether the backward pass computes again what the forward pass would keep.
        folds_norms: whether convolutions that learn take over the batch norms behind them, see `FoldedNorms`.
    """

    def __init__(self, architecture: str, pretrained: str, load_weights: bool, adapted: bool = False) -> None:
        """Build the network.

        Args:
            architecture: `timm/` and a name of timm's.
            pretrained: `installed`, `imagenet` (timm's download), `none`, or the path of a state dict.
            load_weights: False where a checkpoint follows; installed weights are read all the same.
            adapted: whether adapters will learn in it: then all weights but random ones count as installed.

        Raises:
            InputError: timm has no such network, or the weights can't be had or don't fit.
        """
        super().__init__()
        if not architecture.startswith(TIMM):
            raise InputError(f"model.image.architecture {architecture}: expected {TIMM}NAME, a network of timm's.")
        self.from_package = pretrained == INSTALLED or (adapted and pretrained != "none")
        self.network, scale, shift = timm_network(
            architecture.removeprefix(TIMM), pretrained, load_weights or self.from_package, "model.image.pretrained"
        )
        self.width = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.blocks = self._blocks()
        self.computes_twice = False
        self.folds_norms = bool(image_chain(self.network)[0])  # its parts run in the order in which they are declared

    @torch.no_grad()
    def check_side(self, side: int) -> None:
        """Try an image of a side out, unless the network was made for it.

        Raises:
            InputError: the network does not take it.
        """
        expected = self.network.default_cfg["input_size"][-1]
        if side == expected:
            return
        try:
            self.network.eval()(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as fault:
            raise InputError(
                f"dataset.image_size: the image tower does not take images of {side} pixels ({first_line(fault)}). "
                f"It was made for {expected}: --set dataset.image_size={expected}"
            ) from fault
        finally:
            self.network.train(self.training)

    def checkpoint_gradients(self) -> None:
        """See `Tower.checkpoint_gradients`."""
        self.network.set_grad_checkpointing(True)
        self.computes_twice = True

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """How its passes compute: gradients only of what learns, and as quick as the device allows."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            if self.computes_twice or not torch.is_grad_enabled():
                yield  # the second time, in the backward pass, is not within it
                return
            with PreciseDepthwise(), FoldedNorms(self.network) if self.folds_norms else nullcontext():
                yield

    def _blocks(self) -> list[list[str]]:
        """Names of parameters by timm's own grouping: stem, stages or blocks, head."""
        from timm.models import group_parameters

        grouped = group_parameters(self.network, self.network.group_matcher(coarse=False))
        return [[f"network.{name}" for name in names] for _, names in sorted(grouped.items()) if names]

    def _start(self) -> nn.Module | None:
        """See `Tower._start`: the stem and the blocks that do not learn, see `image_chain`."""
        parts, _ = image_chain(self.network)
        first = parts[: len(self.blocks) - self.trained_blocks] if len(parts) == len(self.blocks) else []
        return _Start(first, self.scale, self.shift) if first else None

    def _sample(self) -> Tensor:
        """See `Tower._sample`: an image of the size that the network was made for."""
        side = self.network.default_cfg["input_size"][-1]
        return torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)

    def finish_states(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See `Tower.finish_states`."""
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        parts, last = image_chain(self.network)
        with self._computing():
            for part in parts[len(self.blocks) - self.trained_blocks :]:
                features = self._through(part, features)
            return last(features)

    def _through(self, part: nn.Module, features: Tensor) -> Tensor:
        """What one part makes of what the one before it gave."""
        if self.computes_twice and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(part, features, use_reentrant=False))
        return cast(Tensor, part(features))

    def states(self, images: Tensor) -> Tensor:
        """What timm's `forward_features` gives: maps [B, C, H, W] or [B, H, W, C], or tokens [B, T, C]."""
        with self._computing():
            return cast(Tensor, self.network.forward_features(images * self.scale + self.shift))

    def pool(self, states: Tensor, given: Tensor | None = None) -> Tensor:
        """See `Tower.pool`."""
        with self._computing():
            return cast(Tensor, self.network.forward_head(states))

    def tokens(self, states: Tensor) -> Tensor:
        """See `Tower.tokens`: a token for each place of the maps."""
        if states.ndim == 3:
            return states
        return states.flatten(2).transpose(1, 2) if states.shape[1] == self.token_width else states.flatten(1, 2)

    @torch.no_grad()
    def keep_tokens(self) -> None:
        """See `Tower.keep_tokens`."""
        self.token_width = int(self.network.num_features)
        mode = self.training
        states = self.eval().states(self._sample())
        self.train(mode)
        if states.ndim not in (3, 4) or self.token_width not in (states.shape[1], states.shape[-1]):
            raise InputError(
                f"model.matching: {self.network.default_cfg['architecture']} gives neither maps nor tokens before it "
                "pools; take another model.image.architecture, or model.matching.layers=0."
            )
        self.keeps_tokens = True

    def forward(self, images: Tensor) -> Tensor:
        """Pool normalised images [B, 3, S, S] -> [B, W]."""
        with self._computing():
            return cast(Tensor, self.network(images * self.scale + self.shift))


class _Start(nn.Module):
    """The first parts of a network behind its normalisation: images [B, 3, S, S] -> maps [B, C, H, W]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, parts: Sequence[nn.Module], scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.parts(images * self.scale + self.shift))
