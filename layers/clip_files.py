"""The files and folders that CLIP's weights are handed around in, read under open_clip's names.

Letters: D embedding, W width of a tower.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layers.backbone import import_extra
from runtime.untrusted import parse_json, read_bytes
from runtime.weights import read_checkpoint
from utils import InputError, file_sha256, first_line

STORED_SETTINGS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's archives hold beside the weights."""
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
FOLDER_FILES = (*HUB_FILES, "model.safetensors", "pytorch_model.bin")
RENAMED = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
"""Part of a name of transformers' CLIP -> open_clip's."""
PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
LEFT_OUT = re.compile(r"\.self_attn\.[kv]_proj\.|position_ids$")
QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")


def read_clip(path: Path) -> dict[str, Tensor]:
    """The weights of a CLIP under open_clip's names.

    Args:
        path: a checkpoint, one of OpenAI's archives of TorchScript, or a folder of transformers or of open_clip's hub.

    Raises:
        InputError: it can't be read; the message names what it is.
    """
    if path.is_dir():
        return _read_folder(path)
    if is_torchscript(path):
        return _read_archive(path)
    return read_checkpoint(path)["model"]


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
    found = [folder / name for name in FOLDER_FILES if (folder / name).is_file()]
    if not found:
        raise InputError(
            f"model.pretrained: {folder} holds no weights; expected one of {', '.join(FOLDER_FILES)}, as transformers "
            "and open_clip's hub write them."
        )
    weights = read_checkpoint(found[0])["model"]
    if not any(name.startswith("vision_model.") for name in weights):
        return weights
    kind = _model_type(folder)
    if kind != "clip":
        raise InputError(
            f"model.pretrained: {folder} is a {kind} of transformers; its CLIPs can be read (model_type clip). Of "
            "others take open_clip's own files."
        )
    return open_clip_names(weights)


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
    vision = _settings(path / "config.json").get("vision_config") or {}  # what is left out is as OpenAI has it
    return isinstance(vision, dict) and vision.get("hidden_act", "quick_gelu") == "quick_gelu"


def open_clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' CLIP as open_clip names and shapes them.

    Queries, keys and values [W, W] are one matrix [3 W, W]; projections are [W, D] in place of [D, W].
    """
    joined: dict[str, Tensor] = {}
    for name, value in weights.items():
        if match := QUERY.fullmatch(name):
            parts = [weights[name.replace("q_proj", kind)] for kind in ("q_proj", "k_proj", "v_proj")]
            joined[f"{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif name.endswith(PROJECTIONS):
            joined[name] = value.T.contiguous()
        elif not LEFT_OUT.search(name):
            joined[name] = value
    return {_renamed(name): value for name, value in joined.items()}


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name
