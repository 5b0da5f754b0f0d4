"""Measurements as a table: medians, spreads, ratios pair by pair; as text and as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.process import Figures
from utils import markdown, write_text_atomic

Rounds = dict[str, list[Figures]]
"""Figures of each side, a dictionary per round; all sides have as many rounds."""


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def ratios(rounds: Rounds, reference: str, figure: str) -> dict[str, list[float]]:
    """How many times the reference's figure is that of each side, round by round."""
    base = [figures[figure] for figures in rounds[reference]]
    return {
        side: [theirs / ours[figure] for theirs, ours in zip(base, figures, strict=True)]
        for side, figures in rounds.items()
    }


def spread(rounds: Sequence[Figures]) -> str:
    """The fewest and the most seconds."""
    seconds = [figures["seconds"] for figures in rounds]
    return f"{min(seconds):.3g}-{max(seconds):.3g}"


def column(figures: Figures, name: str, form: str = "{:.0f}", scale: float = 1.0) -> str:
    """A figure as text; blank where a side, as an external command, does not have it."""
    return form.format(scale * figures[name]) if name in figures else ""


def machine_line(machine: Mapping[str, object]) -> str:
    """What the machine is, see `bench.machine.description`."""
    return (
        f"{machine['device']}, {machine['threads']} of {machine['processors']} processors used, "
        f"load {machine['load']}, torch {machine['torch']}"
    )


def reached(rounds: Rounds) -> str:
    """What the machine reached in the same run."""
    middle = {side: medians(figures) for side, figures in rounds.items() if "copy_gb_per_second" in figures[0]}
    gemm = ", ".join(f"{figures['gemm_gflop_per_second']:.0f} ({side})" for side, figures in middle.items())
    copied = statistics.median(figures["copy_gb_per_second"] for figures in middle.values())
    return f"GEMM {gemm} GFLOP/s, copy {copied:.1f} GB/s"


def show(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    result: Mapping[str, object],
    path: Path | None,
) -> None:
    """Print a table and what stands below it; write everything that was measured as JSON where `path` says."""
    print("\n".join(["", title, "", markdown([header, *rows]), "", *notes]))
    if path is not None:
        write_text_atomic(path, json.dumps({"title": title, **result}, indent=2) + "\n")
