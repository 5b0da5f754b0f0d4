"""Which device a command works on."""

from __future__ import annotations

import torch

from utils import InputError


def choose_device(name: str | None) -> torch.device:
    """The device that was asked for; without a wish a CUDA device where there is one, else the CPU.

    Raises:
        InputError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:NUMBER.") from fault
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:NUMBER.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: {count} CUDA devices are visible on this machine; try --device cpu.")
    return device
