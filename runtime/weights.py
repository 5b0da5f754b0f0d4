"""Reading checkpoints, ours or a stranger's, without running code from them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.untrusted import is_plain_weight, load_torch
from utils import InputError, first_line


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or one that a model's authors published, without running code from it.

    Returns:
        Its content, the weights under the key `model`, also where they were stored as `state_dict` or alone.

    Raises:
        InputError: the file is missing, or is not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}.")
    try:
        content = load_torch(path)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as fault:
        raise InputError(
            f"{path} can't be read as a checkpoint: {first_line(fault)}. Copy or download it again."
        ) from fault
    except Exception as fault:  # pickle's own errors share no useful base class
        raise InputError(
            f"{path} was refused: it holds more than tensors and plain values ({first_line(fault)}). Don't load it by "
            "other means unless you trust its source."
        ) from fault
    if isinstance(content, dict) and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        content = {"model": content}
    elif isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {"model": content["state_dict"]}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            f"{path} is not a checkpoint: expected the weights under the key `model` or `state_dict`, or nothing else."
        )
    refuse_odd_weights(content["model"], str(path))
    return content


def refuse_odd_weights(weights: dict[Any, Any], source: str) -> None:
    """Raise an InputError if some weights are no plain tensors under a name each."""
    odd = [name for name, value in weights.items() if not (isinstance(name, str) and is_plain_weight(value))]
    if odd:
        raise InputError(
            f"{source}: {len(odd)} of {len(weights)} weights are no plain tensors, the first is {odd[0]!r:.80}. Get "
            "the file from its authors again."
        )
