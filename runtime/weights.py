"""Reading checkpoints, ours or a stranger's, without running code from them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.untrusted import is_plain_weight, load_torch
from utils import InputError, first_line, import_extra

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and trainers put before every name."""
START = 512  # bytes that tell what a file is
MOST_HEADER = 2**30
TAKEN_FOR_ONE = {
    b"version https://git-lfs": "a Git LFS pointer: the weights were not downloaded. Run `git lfs pull` in its folder",
    b"<!doctype html": "a web page: the download needs a login or another address. Download the file itself",
    b"<html": "a web page: the download needs a login or another address. Download the file itself",
    b"<?xml": "an XML answer of a server: the address is wrong or has expired. Download the file again",
    b"{": "a JSON text. Give the file of the weights beside it",
    b"\x89hdf": "HDF5, as Keras writes it. Convert it to a state dict of PyTorch",
    b"\x1f\x8b": "packed with gzip. Unpack it first",
    b"7z\xbc\xaf": "packed with 7-Zip. Unpack it first",
    b"rar!": "packed with RAR. Unpack it first",
}
"""First bytes of what is often given for a checkpoint, in lower case -> what it is, and what to do."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or one that a model's authors published, without running code from it.

    Returns:
        Its content, the weights under the key `model`, also where they were stored as `state_dict` or alone.

    Raises:
        InputError: the file is missing, or is not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}.")
    start = read_start(path)
    if (kind := kind_of(start)) is not None:
        raise InputError(f"{path} is no checkpoint but {kind}.")
    try:
        content: Any = read_safetensors(path) if is_safetensors(start) else load_torch(path)
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
    if "format" not in content:
        content["model"] = without_wrappers(content["model"])
    return content


def without_wrappers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without the prefixes that wrappers of a model put before every name, such as DataParallel's `module.`."""
    names = list(weights)
    while prefix := next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, weights.values(), strict=True))


def read_start(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        InputError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(START)
    except OSError as fault:
        raise InputError(f"{path} can't be read as a checkpoint: {first_line(fault)}.") from fault


def kind_of(start: bytes) -> str | None:
    """What a file is by its first bytes, if it is often taken for a checkpoint, and what to do; None: none of these."""
    return next((kind for mark, kind in TAKEN_FOR_ONE.items() if start.lstrip().lower().startswith(mark)), None)


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is of the library safetensors: a length in 8 bytes, and JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < MOST_HEADER


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: the library is missing.
        ValueError: the file is damaged.
    """
    safe, reader = (
        import_extra(module, f"{path}: safetensors needs the library", "weights")
        for module in ("safetensors", "safetensors.torch")
    )
    try:
        return dict(reader.load_file(path))
    except safe.SafetensorError as fault:
        raise ValueError(str(fault)) from fault


def refuse_odd_weights(weights: dict[Any, Any], source: str) -> None:
    """Raise an InputError if some weights are no plain tensors under a name each."""
    odd = [name for name, value in weights.items() if not (isinstance(name, str) and is_plain_weight(value))]
    if odd:
        raise InputError(
            f"{source}: {len(odd)} of {len(weights)} weights are no plain tensors, the first is {odd[0]!r:.80}. Get "
            "the file from its authors again."
        )
