"""What a run was made with: the commit, the machine, how much memory it took; kept beside its weights."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from runs.events import write_table
from runtime.untrusted import parse_json, read_bytes
from utils import as_json, logger

FILE = "record.json"
UNKNOWN = "unknown"
_ROOT = Path(__file__).parents[1]
_STATUS = Path("/proc/self/status")
_PROCESSORS = Path("/proc/cpuinfo")


@contextmanager
def recorded(folder: Path, device: torch.device, more: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Add an entry to `folder/record.json` for the work of this context, with `more`; a resumed run has several.

    An entry without `peak_memory_mib` is of a process that was killed.
    """
    path = folder / FILE
    earlier = read_record(folder)
    entry = {"started": _now(), "commit": commit(), **machine_of(device), **more}
    write_table(path, as_json([*earlier, entry]))
    try:
        yield
    finally:
        write_table(path, as_json([*earlier, entry | {"ended": _now(), "peak_memory_mib": round(peak_memory(device))}]))


def read_record(folder: Path) -> list[dict[str, Any]]:
    """The entries of a run, the oldest first; none where there is no readable record."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        entries = parse_json(read_bytes(path))
    except (OSError, ValueError) as fault:
        logger.warning("%s is not a record of a run (%s): a new one is begun.", path, fault)
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def commit() -> str:
    """The project's commit in 10 digits, `+` behind it where tracked files differ from it; `unknown` without git."""
    try:
        top, digest = _git("rev-parse", "--show-toplevel", "--short=10", "HEAD").splitlines()
        if Path(top).resolve() != _ROOT.resolve():  # a copy without its history, inside of another repository
            return UNKNOWN
        return digest + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


def machine_of(device: torch.device) -> dict[str, Any]:
    """What the work runs on: device, processors, threads, version of torch."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    lines = _PROCESSORS.read_text().splitlines() if _PROCESSORS.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def peak_memory(device: torch.device) -> float:
    """MiB: the most that this process has held of the GPU, or on the CPU of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        return process_status("VmHWM")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def held_memory(device: torch.device) -> float:
    """MiB that this process holds now; where the system does not tell, the most that it has held."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return process_status("VmRSS") if _STATUS.exists() else peak_memory(device)


def process_status(field: str) -> float:
    """A size in the status that Linux gives of this process, MiB."""
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return int(fields[field].split()[0]) / 2**10


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
