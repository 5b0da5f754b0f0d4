"""The files and folders that CLIP's weights are handed around in, read under open_clip's names."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from layers.backbone import import_extra
from layers.clip_names import Family, open_clip_names
from runtime.untrusted import parse_json, read_bytes
from runtime.weights import read_checkpoint
from utils import InputError, file_sha256, first_line

STORED_SETTINGS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold beside the weights."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_FILES = (*HUB_FILES, "model.safetensors", "pytorch_model.bin")
SHARDS = "model-*-of-*.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
PREPARATIONS = (("preprocessor_config.json", "image_mean", "image_std"), ("open_clip_config.json", "mean", "std"))
"""Files of a folder that say how images are normalised, and their keys."""
LONG, LONG_FROM = "positional_embedding_res", 20
"""Long-CLIP's places from this one on are in a table of their own (Zhang et al., ECCV 2024)."""


def read_clip(path: Path) -> dict[str, Tensor]:
    """The weights of a CLIP under open_clip's names.

    Args:
        path: a checkpoint, one of OpenAI's archives of TorchScript, or a folder of transformers or of open_clip's hub.

    Raises:
        InputError: it can't be read; the message names what it is.
    """
    if path.is_dir():
        return _read_folder(path)
    return _joined_places(_read_archive(path) if is_torchscript(path) else read_checkpoint(path)["model"])


def _joined_places(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Long-CLIP with one table of places, of others as they are."""
    if LONG not in weights:
        return weights
    first, later = (weights[name] for name in ("positional_embedding", LONG))
    return {name: value for name, value in weights.items() if name != LONG} | {
        "positional_embedding": torch.cat([first[:LONG_FROM], later[LONG_FROM:]])
    }


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, which holds code beside the weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _read_archive(path: Path) -> dict[str, Tensor]:
    """One of OpenAI's archives, known by its SHA-256: TorchScript of a stranger could run anything."""
    if file_sha256(path) not in published_archives():
        raise InputError(
            f"{path}: an archive of TorchScript, which can run code, and none that OpenAI published (by its SHA-256). "
            "Ask its authors for a state dict, or for safetensors."
        )
    weights = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call,unused-ignore]
    return {name: value.float() for name, value in weights.items() if name not in STORED_SETTINGS}


def published_archives() -> set[str]:
    """SHA-256 of OpenAI's archives, which their addresses hold."""
    tables = import_extra("open_clip.pretrained", "clip", "CLIP needs open_clip")._PRETRAINED
    addresses = [str(found.get("url", "")) for tags in tables.values() for found in tags.values()]
    return {
        part for address in addresses if "openaipublic" in address for part in address.split("/") if len(part) == 64
    }


def _read_folder(folder: Path) -> dict[str, Tensor]:
    found = [folder / name for name in FOLDER_FILES if (folder / name).is_file()][:1] or sorted(folder.glob(SHARDS))
    if not found:
        raise InputError(
            f"model.pretrained: {folder} holds no weights; expected one of {', '.join(FOLDER_FILES)}, as transformers "
            "and open_clip's hub write them."
        )
    weights = {name: value for path in found for name, value in read_checkpoint(path)["model"].items()}
    if not any(name.startswith("vision_model.") for name in weights):
        return weights
    kind = _model_type(folder)
    if kind not in get_args(Family):
        raise InputError(
            f"model.pretrained: {folder} is a {kind} of transformers; its CLIPs and SigLIPs can be read (model_type "
            "clip or siglip). Of others take open_clip's own files."
        )
    return open_clip_names(weights, cast(Family, kind))


def _model_type(folder: Path) -> str:
    """What transformers calls the model of a folder."""
    kind = _settings(folder / "config.json").get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{folder / 'config.json'}: expected transformers' model_type.")
    return kind


def _settings(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError) as fault:
        raise InputError(f"{path} can't be read ({first_line(fault)}).") from fault
    return content if isinstance(content, dict) else {}


def tokenizer_folder(pretrained: str) -> str | None:
    """The folder of weights, where a tokenizer lies beside them."""
    return pretrained if any(Path(pretrained, name).is_file() for name in TOKENIZER_FILES) else None


def stated_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Channel means and standard deviations that a folder states for its images, in 0..1; None: it states none."""
    for name, mean, deviation in PREPARATIONS:
        settings = _settings(folder / name) if (folder / name).is_file() else {}
        settings = settings.get("preprocess_cfg") or settings
        if mean in settings and deviation in settings:
            return tuple(map(float, settings[mean])), tuple(map(float, settings[deviation]))
    return None


def check_activation(path: Path, clip: nn.Module) -> None:
    """Refuse weights that were trained with another activation than the network's: names and shapes fit all the same.

    Raises:
        InputError: that of the network is another one.
    """
    stated, built = uses_quick_gelu(path), any(type(part).__name__ == "QuickGELU" for part in clip.modules())
    if stated is not None and stated != built:
        theirs, ours = ("QuickGELU", "GELU") if stated else ("GELU", "QuickGELU")
        raise InputError(
            f"model.architecture: the weights of {path} were trained with {theirs}, and this network has {ours}: it "
            f"would read them, and score worse. Take open_clip's architecture {'with' if stated else 'without'} "
            "-quickgelu at its end, such as ViT-B-32-quickgelu."
        )


def uses_quick_gelu(path: Path) -> bool | None:
    """Whether the weights of a file or folder were trained with OpenAI's QuickGELU; None where nothing says so."""
    if not path.is_dir():
        return True if is_torchscript(path) else None
    if (path / "open_clip_config.json").is_file():
        model = _settings(path / "open_clip_config.json").get("model_cfg")
        return bool(model.get("quick_gelu")) if isinstance(model, dict) else None
    if any((path / name).is_file() for name in HUB_FILES) or not (path / "config.json").is_file():
        return None
    settings = _settings(path / "config.json")
    vision, usual = (
        settings.get("vision_config") or {},
        "quick_gelu" if settings.get("model_type") == "clip" else "gelu",
    )
    return isinstance(vision, dict) and vision.get("hidden_act", usual) == "quick_gelu"
