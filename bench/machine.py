"""What the machine can do, measured in the same run as what is compared with it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from runs.record import machine_of

GEMM_SIDES = {"cpu": 2048, "cuda": 8192}
"""A GPU would spend a smaller product waiting for its start."""
COPY_BYTES = 2**28
_CLEAR = Path("/proc/self/clear_refs")
PRECISIONS = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Median time of some work run five times, after one run that does not count."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def gemm_rate(amp: str, device: torch.device) -> float:
    """GFLOP/s of a product of two square matrices of `GEMM_SIDES` in the precision of `amp`."""
    side = GEMM_SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(PRECISIONS[amp]) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: left @ right, device) / 1e9


def copy_rate(device: torch.device) -> float:
    """GB/s, read and written, of a copy of 256 MiB."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds_of(lambda: target.copy_(source), device) / 1e9


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def description(device: torch.device, threads: int) -> dict[str, object]:
    """The machine and what it is busy with: what a reader of a table needs."""
    return machine_of(device) | {"threads": threads, "load": round(os.getloadavg()[0], 1)}
