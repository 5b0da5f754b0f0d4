"""torchvision's ResNets without their classifiers, and the weights that they start from."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from layers.registry import Parameters
from untrusted import load_torch
from utils import InputError, first_line, logger, refuse_odd_weights

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


def resnet(architecture: str, pretrained: str) -> nn.Module:
    """A torchvision ResNet with an empty classifier.

    Args:
        architecture: torchvision's name, e.g. `resnet18`.
        pretrained: `imagenet`, `none`, or the path of a state dict: wrapped in `state_dict` or `model` or not, with or
            without `module.` before its names, with any classifier (it is left out).

    Raises:
        InputError: the weights can't be had or don't fit.
    """
    constructors = import_torchvision("torchvision.models.resnet")
    network: nn.Module = getattr(constructors, architecture)(weights=None)
    if pretrained == "imagenet":
        _load_backbone(network, _download(constructors, architecture), "ImageNet")
    elif pretrained != "none":
        _load_backbone(network, read_backbone_file(Path(pretrained)), pretrained)
    network.fc = nn.Identity()
    return network


def resnet_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of a model that lie inside torchvision's ResNets."""
    kind = import_torchvision("torchvision.models.resnet").ResNet
    return [parameter for part in model.modules() if isinstance(part, kind) for parameter in part.parameters()]


class SceneClassifier(nn.Module):
    """A torchvision ResNet that tells scene classes apart: what a scene-pretrained backbone is made with."""

    resnet: Any  # a torchvision ResNet, whose width nn.Module's types do not know

    def __init__(self, architecture: str, pretrained: str, classes: int) -> None:
        """Put a new classifier on the network that `resnet` builds."""
        super().__init__()
        self.resnet = resnet(architecture, pretrained)
        self.resnet.fc = nn.Linear(self.resnet.inplanes, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: normalised pictures [B, 3, S, S] -> [B, classes]."""
        return cast(Tensor, self.resnet(images))


def _download(constructors: ModuleType, architecture: str) -> dict[str, Tensor]:
    """Torchvision's ImageNet weights, from its cache or its own download."""
    offered = next(kind for name, kind in vars(constructors).items() if name.lower() == f"{architecture}_weights")
    weights = next(iter(offered))  # the first release, which the published models started from
    try:
        return cast(dict[str, Tensor], weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as fault:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"model.backbone.pretrained: imagenet: the weights could not be downloaded ({fault}). Fetch "
            f"{weights.url} on another machine and put the file into {folder}, or give its path "
            "(--set model.backbone.pretrained=FILE), or start from random weights "
            "(--set model.backbone.pretrained=none)."
        ) from fault


def read_backbone_file(path: Path) -> dict[str, Tensor]:
    """Read a backbone's state dict, unwrapped and without `module.` prefixes.

    Raises:
        InputError: the file is missing, or not a state dict that can be read without running code.
    """
    if not path.is_file():
        raise InputError(
            f"model.backbone.pretrained: no file {path}. Give imagenet, none, or the path of a state dict."
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


def _load_backbone(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into a network, all but the classifier; anything else that is missing or over is an error."""
    wanted = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    given = {name: value for name, value in weights.items() if not name.startswith("fc.")}
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
