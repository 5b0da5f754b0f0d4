"""torchvision's ResNets and timm's networks without their classifiers, and the weights that they start from."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD
from layers.depthwise import PreciseDepthwise
from layers.installed import INSTALLED, efficientnet_weights, package_of
from option.architecture import RESNETS, TIMM, Architecture
from option.parameters import Parameters
from runtime.untrusted import load_torch
from runtime.weights import refuse_odd_weights
from utils import InputError, file_sha256, first_line, logger
from utils import import_extra as import_any

STEPS = (4, 8, 16, 32)
"""A network's four stages give maps of these parts of an image's side."""
_COMPILED_OPERATORS = ("nms", "qnms")
_declared: list[torch.library.Library] = []


def import_torchvision(module: str) -> ModuleType:
    """Import a module of torchvision, also where torchvision's compiled part does not fit the installed torch.

    torchvision as published on PyPI is compiled against the CUDA build of torch. Beside a CPU-only torch its library
    can't be loaded, and the import ends in "operator torchvision::nms does not exist". The models need none of these
    operators, so declaring their names without an implementation is enough.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as fault:
        if "torchvision::" not in str(fault):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in _COMPILED_OPERATORS:
            library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # a Library undeclares its operators when it is collected
        return importlib.import_module(module)


class BackboneParameters(Parameters):
    """`model.backbone`: what the image encoder starts from."""

    pretrained: str = Field(
        default="imagenet",
        description="imagenet (torchvision's download), none (random), or the path of a torchvision-style state dict",
    )


class ChosenBackboneParameters(BackboneParameters):
    """`model.backbone` of a model that takes other image encoders than the published one."""

    pretrained: str = Field(
        default="imagenet",
        description="imagenet (torchvision's or timm's download), installed (the extra weights), none (random), or a "
        "file under their names",
    )
    architecture: Architecture = Field(
        default="resnet18",
        description=f"torchvision's {', '.join(RESNETS)}, or timm/NAME of a network with four stages (extra timm); "
        "published: resnet18",
    )

    @property
    def frozen_stages(self) -> int:
        """Stages of it that never learn, from the first on."""
        return 0


def build_backbone(architecture: str, pretrained: str, load_weights: bool = True) -> nn.Module:
    """A network without its classifier: normalised images [B, 3, S, S] -> [B, C], see `backbone_width`.

    Args:
        architecture: torchvision's name of a ResNet, or `timm/` and a name of timm's.
        pretrained: see `resnet`; for timm `imagenet` is its download, `installed` a package of `layers.installed`.
        load_weights: False where other weights follow, which were trained from these.

    Raises:
        InputError: the weights can't be had or don't fit, or timm is missing or has no such network.
    """
    if architecture.startswith(TIMM):
        return TimmBackbone(architecture.removeprefix(TIMM), pretrained, load_weights)
    return resnet(architecture, pretrained if load_weights else "none")


def backbone_width(backbone: nn.Module) -> int:
    """Channels C of what `build_backbone` gives."""
    return cast(int, backbone.width if isinstance(backbone, TimmBackbone) else backbone.inplanes)


def plain_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The state dict of what `build_backbone` gives under torchvision's or timm's own names, as it takes it back."""
    return (backbone.network if isinstance(backbone, TimmBackbone) else backbone).state_dict()


class TimmBackbone(nn.Module):
    """One of timm's networks without its classifier; its images are normalised as its weights expect it.

    Attributes:
        width: channels C of its pooled images.
        stages: its numbers of the four stages, see `STEPS`.
        ends: names of the modules that these end with.
        channels: of their maps.
    """

    network: Any  # its parts are called by timm's names
    scale: Tensor
    shift: Tensor
    channels: tuple[int, ...]

    def __init__(self, name: str, pretrained: str, load_weights: bool = True) -> None:
        """Build the network of this name; the rest as in `build_backbone`.

        Raises:
            InputError: as `build_backbone`, or it does not give maps of four stages.
        """
        super().__init__()
        self.network, scale, shift = timm_network(name, pretrained, load_weights, "model.backbone.pretrained")
        self.width: int = getattr(self.network, "head_hidden_size", self.network.num_features)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        try:
            place = {stage["reduction"]: number for number, stage in enumerate(self.network.feature_info)}
            if missing := [step for step in STEPS if step not in place]:
                raise ValueError(f"no stage at 1/{missing[0]}")
            self.stages = [place[step] for step in STEPS]
            self.channels = tuple(self.network.feature_info[number]["num_chs"] for number in self.stages)
            self.ends = [self.network.feature_info[number]["module"] for number in self.stages]
            self._try_out()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as fault:
            raise InputError(
                f"architecture timm/{name}: does not give maps of 1/4, 1/8, 1/16 and 1/32 of any image's side "
                f"({first_line(fault)}). Convolutional networks of four stages do, such as timm/convnext_tiny, "
                "timm/resnet26 or timm/regnety_016."
            ) from fault

    @torch.no_grad()
    def _try_out(self) -> None:
        """Raise a ValueError if the maps of a small image are of other sizes."""
        side = 64
        self.eval()
        shapes = [tuple(found.shape[1:]) for found in self.maps(torch.zeros(1, 3, side, side))]
        self.train()
        if shapes != [(width, side // step, side // step) for width, step in zip(self.channels, STEPS, strict=True)]:
            raise ValueError(f"{side} pixels give {shapes}")

    def prune(self) -> None:
        """Take away what `maps` does not need; `forward` can't be called any more."""
        self.stages = self.network.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps of the four stages: [B, 3, S, S] -> [B, C, S / step, S / step] for each of `STEPS`."""
        prepared = images * self.scale + self.shift
        with PreciseDepthwise():
            found = self.network.forward_intermediates(
                prepared, indices=self.stages, norm=False, output_fmt="NCHW", intermediates_only=True
            )
        return tuple(found)

    def forward(self, images: Tensor) -> Tensor:
        """Pool normalised images [B, 3, S, S] -> [B, C]."""
        with PreciseDepthwise():
            return cast(Tensor, self.network(images * self.scale + self.shift))


def renormalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factor and summand [3, 1, 1] that bring ImageNet-normalised images to another mean and deviation (in 0..1)."""
    scale = [ours / theirs for ours, theirs in zip(IMAGENET_STD, std, strict=True)]
    shift = [(ours - theirs) / by for ours, theirs, by in zip(IMAGENET_MEAN, mean, std, strict=True)]
    return torch.tensor(scale)[:, None, None], torch.tensor(shift)[:, None, None]


def timm_network(name: str, pretrained: str, load_weights: bool, key: str) -> tuple[nn.Module, Tensor, Tensor]:
    """One of timm's networks without its classifier, and how its images are brought to what its weights expect.

    Args:
        name: timm's.
        pretrained: see `build_backbone`.
        load_weights: likewise.
        key: of `pretrained`, for messages.

    Returns:
        The network, factor and summand of `renormalisation`.

    Raises:
        InputError: timm is missing or has no such network, or the weights can't be had or don't fit.
    """
    network = _timm_network(name, "imagenet" if load_weights and pretrained == "imagenet" else "none")
    settings: Any = network.default_cfg
    mean, deviation = settings["mean"], settings["std"]
    if pretrained == INSTALLED:
        package = package_of(f"{TIMM}{name}", key)
        mean, deviation = (package.mean,) * 3, (package.deviation,) * 3
        if load_weights:
            network.load_state_dict(efficientnet_weights(package, network), strict=False)
    elif load_weights and pretrained not in ("imagenet", "none"):
        heads = settings.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        _load_backbone(network, read_backbone_file(Path(pretrained)), pretrained, heads)
    return network, *renormalisation(mean, deviation)


def _timm_network(name: str, pretrained: str) -> nn.Module:
    """Build one of timm's networks, with its own weights where `pretrained` is `imagenet`."""
    timm = import_timm()
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise InputError(f"architecture {TIMM}{name}: timm {timm.__version__} has no such network.{hint}")
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=pretrained == "imagenet", num_classes=0))
    except Exception as fault:  # a download, an unknown tag of weights: each has errors of its own
        raise InputError(
            f"architecture {TIMM}{name}, pretrained {pretrained}: timm can't build it ({first_line(fault)}). Weights "
            "that can't be downloaded can be given as a file (pretrained=FILE), or start random (pretrained=none)."
        ) from fault


def import_timm() -> ModuleType:
    """timm, which only its own networks need; see `import_extra`."""
    return import_extra("timm", "timm", f"architecture {TIMM}...: networks of timm need it")


def import_extra(module: str, extra: str, need: str) -> ModuleType:
    """A library that is no part of the common installation and imports torchvision.

    Args:
        module: its name.
        extra: what `exec/environment.sh` installs it by.
        need: who needs it, for the message.

    Raises:
        InputError: it is not installed.
    """
    import_torchvision("torchvision")  # first, since it may not fit the installed torch
    found: ModuleType = import_any(module, need, extra)
    return found


def resnet(architecture: str, pretrained: str) -> nn.Module:
    """A torchvision ResNet with an empty classifier.

    Args:
        architecture: torchvision's name, e.g. `resnet18`.
        pretrained: `imagenet`, `none`, or the path of a state dict: wrapped in `state_dict` or `model` or not, with or
            without `module.` before its names, with any classifier (it is left out).

    Raises:
        InputError: the weights can't be had or don't fit; no package has any of a ResNet.
    """
    constructors = import_torchvision("torchvision.models.resnet")
    network: nn.Module = getattr(constructors, architecture)(weights=None)
    if pretrained == "imagenet":
        _load_backbone(network, _download(constructors, architecture), "ImageNet", ("fc",))
    elif pretrained == INSTALLED:
        package_of(architecture, "model.backbone.pretrained")
    elif pretrained != "none":
        _load_backbone(network, read_backbone_file(Path(pretrained)), pretrained, ("fc",))
    network.fc = nn.Identity()
    return network


def backbone_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of a model that lie inside what `build_backbone` gives."""
    kinds = (import_torchvision("torchvision.models.resnet").ResNet, TimmBackbone)
    return [parameter for part in model.modules() if isinstance(part, kinds) for parameter in part.parameters()]


def synchronise_norms(model: nn.Module) -> nn.Module:
    """Batch norms that see the batches of all ranks; of timm's, which torch's would drop, activations stay."""
    if any(hasattr(part, "act") for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        convert = importlib.import_module("timm.layers").convert_sync_batchnorm
    else:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    return cast(nn.Module, convert(model))


def _download(constructors: ModuleType, architecture: str) -> dict[str, Tensor]:
    """Torchvision's ImageNet weights, from its cache or its own download."""
    offered = next(kind for name, kind in vars(constructors).items() if name.lower() == f"{architecture}_weights")
    weights = next(iter(offered))  # the first release, which the published models started from
    kept = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    digest = kept.stem.rpartition("-")[2]
    # The library compares it after a download alone, not for what lies in its cache.
    if kept.is_file() and not file_sha256(kept).startswith(digest):
        raise InputError(f"{kept}: damaged: its SHA-256 does not begin with {digest}. Delete it: it is fetched again.")
    try:
        return cast(dict[str, Tensor], weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as fault:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"model.backbone.pretrained: imagenet: the weights could not be downloaded ({fault}). Fetch "
            f"{weights.url} on another machine and put the file into {folder}, or give its path "
            "(--set model.backbone.pretrained=FILE), or start from random weights "
            "(--set model.backbone.pretrained=none; of pretrain.py's backbones --set backbone.pretrained=none)."
        ) from fault


def read_backbone_file(path: Path) -> dict[str, Tensor]:
    """Read a backbone's state dict, unwrapped and without `module.` prefixes.

    Raises:
        InputError: the file is missing, or not a state dict that can be read without running code.
    """
    if not path.is_file():
        raise InputError(
            f"model.backbone.pretrained: no file {path}. Give imagenet, installed, none, or the path of a state dict."
        )
    try:
        content = load_torch(path)
    except Exception as fault:
        raise InputError(
            f"model.backbone.pretrained: {path} can't be read as a plain state dict "
            f"({first_line(fault)}). Files that hold more than tensors are refused."
        ) from fault
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"model.backbone.pretrained: {path} holds a {type(content).__name__}, not a state dict.")
    weights = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    refuse_odd_weights(weights, f"model.backbone.pretrained: {path}")
    return weights


def _load_backbone(network: nn.Module, weights: dict[str, Tensor], source: str, heads: Sequence[str]) -> None:
    """Copy weights into a network, all but the classifier's layers; all else that is missing or over is an error."""
    classifier = tuple(f"{head}." for head in heads)
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith(classifier)}
    given = {name: value for name, value in weights.items() if not name.startswith(classifier)}
    faults = [f"missing {name}" for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    faults += [f"unexpected {name}" for name in given if name not in wanted]
    faults += [
        f"{name} has shape {list(given[name].shape)}, expected {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if faults:
        raise InputError(
            f"model.backbone.pretrained: {source} does not fit {type(network).__name__}: "
            f"{'; '.join(faults[:5])}{f' and {len(faults) - 5} more' if len(faults) > 5 else ''}."
        )
    network.load_state_dict(given, strict=False)
    logger.info("Backbone weights: %s", source)
