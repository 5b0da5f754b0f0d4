"""The pyramid of maps that AMFMN, GaLR and MCRN make of an image, and which of its four stages learn.

Letters: B batch, C1 to C4 channels, S image side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from layers.backbone import STEPS, ChosenBackboneParameters, TimmBackbone, resnet
from layers.depthwise import PreciseDepthwise
from option.architecture import TIMM
from option.parameters import Parameters
from utils import InputError, logger

Maps = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a network's four stages: [B, C1, S/4, S/4], [B, C2, S/8, S/8], [B, C3, S/16, S/16], [B, C4, S/32, S/32]."""
SIDES = tuple(STEPS[-1] // step for step in STEPS)
"""Cells per side of these maps, where the last has one."""


class LastStages(Parameters):
    """`train: {last: N}`."""

    last: int = Field(ge=1, lt=len(STEPS), description="stages that learn, counted from the output")


class PyramidParameters(ChosenBackboneParameters):
    """`model.backbone` of AMFMN and GaLR: what the image encoder starts from, and what of it learns."""

    train: Annotated[Literal["none", "all"] | LastStages, Field(union_mode="left_to_right")] = Field(
        default="all",
        description="what learns: all (published), none, or {last: N}: the last N of the four stages; the others keep "
        "their weights and batch statistics",
    )

    @property
    def frozen_stages(self) -> int:
        """See `ChosenBackboneParameters`."""
        if isinstance(self.train, LastStages):
            return len(STEPS) - self.train.last
        return 0 if self.train == "all" else len(STEPS)

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: what is frozen whole has no learning rate."""
        return {"optim.lr_backbone": "model.backbone.train is none"} if self.train == "none" else {}


class Pyramid(nn.Module):
    """All four stages of a network, the first of which may be frozen.

    Attributes:
        channels: C1 to C4.
        frozen: stages that never learn; they stay in evaluation mode.
    """

    channels: tuple[int, ...]
    frozen = 0

    def stages(self) -> list[nn.Module]:
        """The four stages, one after the other; the first takes images."""
        raise NotImplementedError

    def maps(self, images: Tensor) -> Maps:
        """See `forward`; the network as a whole."""
        return cast(Maps, through(self.stages(), images))

    def freeze(self, count: int) -> None:
        """Leave the first `count` stages as they are, 0 to 4.

        Raises:
            InputError: the network can't be run stage by stage.
        """
        self.frozen = count
        for stage in self.stages()[:count] if count else ():
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Pyramid:
        """Bring what learns into training mode."""
        super().train(mode)
        for stage in self.stages()[: self.frozen] if self.frozen else ():
            stage.eval()
        return self

    def forward(self, images: Tensor) -> Maps:
        """Maps of normalised images [B, 3, S, S], S a multiple of 32."""
        if not self.frozen:
            return self.maps(images)
        with torch.no_grad():
            first = through(self.stages()[: self.frozen], images)
        return self._go_on(first)

    def frozen_part(self) -> nn.Module | None:
        """What of it never learns, see `FrozenStages`; None: all of it learns."""
        return FrozenStages(self.stages()[: self.frozen]) if self.frozen else None

    def finish(self, rows: Tensor) -> Maps:
        """The maps of images from what `frozen_part` gives of them, of the first one `read_cells` alone."""
        sides = FrozenStages.sides(self.frozen)
        cells = [channels * side**2 for channels, side in zip(self.channels, sides, strict=False)]
        last = math.isqrt(rows.shape[1] // sum(cells))  # S / 32
        parts = rows.split([last**2 * count for count in cells], dim=1)
        shapes = [(last * side, last * side, -1) for side in sides]
        return self._go_on(
            [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]
        )

    def _go_on(self, first: Sequence[Tensor]) -> Maps:
        """From the maps of the frozen stages to those of all."""
        with PreciseDepthwise():
            return cast(Maps, (*first, *through(self.stages()[self.frozen :], first[-1])))


def through(stages: Iterable[nn.Module], maps: Tensor) -> tuple[Tensor, ...]:
    """What each of some stages makes of what the one before it gave."""
    found = []
    for stage in stages:
        maps = stage(maps)
        found.append(maps)
    return tuple(found)


class FrozenStages(nn.Module):
    """All that is read of the maps of a pyramid's first stages, as one row for an image, to be kept."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        """Take 1 to 4 of them."""
        super().__init__()
        self.stages = nn.ModuleList(stages)

    @staticmethod
    def sides(count: int) -> tuple[int, ...]:
        """Cells per side of what is kept of the first `count` stages, where the last map of all has one.

        The second stage reads all cells of the first map; what else reads it does not, see `read_cells`.
        """
        return ((SIDES[0] if count == 1 else read_rows(SIDES[0])), *SIDES[1:count])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, S, S] -> [B, numbers], cell by cell."""
        first, *others = through(self.stages, images)
        maps = [read_cells(first), *others] if others else [first]
        return torch.cat([found.permute(0, 2, 3, 1).flatten(1) for found in maps], dim=1)


def read_rows(side: int) -> int:
    """Of `side` rows those that a kernel of 3 rows reads in steps of 4."""
    return side // 4 * 3


def read_cells(maps: Tensor) -> Tensor:
    """The cells that a kernel of 3 x 3 cells reads in steps of 4: [B, C, 4 H, 4 H] -> [B, C, 3 H, 3 H]."""
    blocks = maps.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # [B, C, H, 4, H, 4]
    return blocks[:, :, :, :3, :, :3].flatten(4, 5).flatten(2, 3)


class ResNetPyramid(Pyramid):
    """All four stages of one of torchvision's ResNets; of a ResNet-18 C1 to C4 are 64, 128, 256, 512."""

    resnet: Any  # a torchvision ResNet; its stages are called one by one

    def __init__(self, architecture: str, pretrained: str) -> None:
        """Start from the weights that `layers.backbone.resnet` takes."""
        super().__init__()
        self.resnet = resnet(architecture, pretrained)
        top = self.resnet.inplanes
        self.channels = (top // 8, top // 4, top // 2, top)

    def stages(self) -> list[nn.Module]:
        """See `Pyramid`."""
        net = self.resnet
        stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        return [stem, net.layer2, net.layer3, net.layer4]


class TimmPyramid(Pyramid):
    """The four stages of one of timm's networks, without what comes after them."""

    def __init__(self, name: str, pretrained: str, load_weights: bool = True) -> None:
        """Start from the weights that `layers.backbone.TimmBackbone` takes.

        Raises:
            InputError: as there.
        """
        super().__init__()
        self.name = name
        self.backbone = TimmBackbone(name, pretrained, load_weights)
        self.backbone.prune()
        self.channels = self.backbone.channels

    def maps(self, images: Tensor) -> Maps:
        """See `Pyramid`."""
        return cast(Maps, self.backbone.maps(images))

    def stages(self) -> list[nn.Module]:
        """See `Pyramid`; what timm declares up to the end of each stage."""
        first, *others = parts_up_to(self.backbone.network, self.backbone.ends)
        return [nn.Sequential(_Renormalised(self.backbone.scale, self.backbone.shift), *first), *others]

    def freeze(self, count: int) -> None:
        """See `Pyramid`."""
        if count and not self._in_stages():
            raise InputError(
                f"model.backbone.train: timm/{self.name} can't be run stage by stage, so no part of it can be frozen. "
                "Most networks can, such as timm/tf_efficientnet_lite0; or set model.backbone.train=all."
            )
        super().freeze(count)

    @torch.no_grad()
    def _in_stages(self) -> bool:
        """Whether the stages give what the network gives as a whole."""
        mode, side = self.training, 64
        images = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)
        self.eval()
        try:
            pairs = zip(self.maps(images), through(self.stages(), images), strict=True)
            return all(torch.allclose(whole, found, rtol=1e-4, atol=1e-5) for whole, found in pairs)
        except (TypeError, ValueError, RuntimeError):  # parts that are called in another way
            return False
        finally:
            self.train(mode)


class _Renormalised(nn.Module):
    """Images as the weights of a network expect them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def parts_up_to(network: nn.Module, ends: Sequence[str]) -> list[nn.Sequential]:
    """What a network declares up to each of some modules, given by their dotted names in that order."""
    groups: list[list[nn.Module]] = [[]]

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if any(end.startswith(f"{path}.") for end in ends):
                walk(child, f"{path}.")
                continue
            groups[-1].append(child)
            if path in ends:
                groups.append([])

    walk(network, "")
    return [nn.Sequential(*group) for group in groups[: len(ends)]]


def pyramid(architecture: str, pretrained: str, load_weights: bool = True, frozen: int = 0) -> Pyramid:
    """The pyramid of an image encoder.

    Args:
        architecture: as `layers.backbone.build_backbone` takes it, and the next two.
        pretrained: likewise.
        load_weights: likewise.
        frozen: stages that never learn, from the first on.

    Raises:
        InputError: as there, or the network can't be frozen in part.
    """
    if load_weights and frozen and pretrained == "none":
        logger.warning(
            "The frozen stages of the backbone start random and stay so: set model.backbone.train=all, or "
            "model.backbone.pretrained to weights."
        )
    made: Pyramid
    if architecture.startswith(TIMM):
        made = TimmPyramid(architecture.removeprefix(TIMM), pretrained, load_weights)
    else:
        made = ResNetPyramid(architecture, pretrained if load_weights else "none")
    made.freeze(frozen)
    return made
