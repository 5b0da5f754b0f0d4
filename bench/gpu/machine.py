"""Parts that look around: the machine and what it reaches, the data set, and the tests that need a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import torch

from bench.gpu.setting import Section, Setting, Skipped, make_data
from bench.machine import copy_rate, description, gemm_rate
from bench.table import machine_line
from data.annotations import read_annotations
from layers.installed import PACKAGES
from utils import RunFault, markdown

PROJECT = Path(__file__).parents[2]
OPTIONAL = ("timm", "transformers", "triton", *(package.name for package in PACKAGES.values()))
TAIL = 15
"""Lines of pytest that the report shows."""


def machine(setting: Setting, section: Section) -> None:
    """What it is, and how fast it multiplies and copies."""
    device = setting.device
    section.add(machine_line(description(device, torch.get_num_threads())) + ".")
    rows = [["what", "found"], *([name, version(name)] for name in OPTIONAL)]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        rows += [["memory, MiB", f"{total / 2**20:.0f}"], ["CUDA", str(torch.version.cuda)]]
        rows += [["compute capability", ".".join(map(str, torch.cuda.get_device_capability(device)))]]
    rates = [(name, gemm_rate(amp, device)) for name, amp in (("float32", "off"), ("bf16", "bf16"))]
    rows += [[f"GEMM, {name}, GFLOP/s", f"{rate:.0f}"] for name, rate in rates]
    rows += [["copy, GB/s", f"{copy_rate(device):.1f}"]]
    section.add(markdown(rows))


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def data(setting: Setting, section: Section) -> None:
    """Find RSICD, or draw the toy set."""
    section.add(f"{make_data(setting)}, scaled to {setting.sizes.side} pixels.")
    table = section.table(["list", "images", "captions"])
    for split in ("train", "test"):
        read = read_annotations(setting.data(), split)
        table.row(split, str(len(read.image_names)), str(len(read.captions)))


def tests(setting: Setting, section: Section) -> None:
    """The tests marked for CUDA.

    Raises:
        RunFault: some failed.
        Skipped: none ran.
    """
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed: bash exec/environment.sh test")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", setting.sizes.tests]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() + done.stderr.strip().splitlines()
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    section.add(", ".join(f"{number} {word}" for word, number in counts.items()) or "None ran.")
    if done.returncode not in (0, 5):  # 5: there are none
        section.add("```\n" + "\n".join(lines[-TAIL:]) + "\n```")
        raise RunFault(f"pytest ended with status {done.returncode}.")
    if not counts.get("passed"):
        raise Skipped("none of the tests marked for CUDA ran")
