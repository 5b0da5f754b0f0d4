"""The sides of a comparison: what each does of all that makes ours faster than the published code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""As `exec/common.sh` sets them: freed memory is kept for the next step instead of given back to the kernel."""


@dataclass(frozen=True)
class Variant:
    """One side. The defaults are the published code's; `amp` is ours alone.

    Attributes:
        name: in the table.
        allocator: the memory settings of `exec/common.sh`.
        once: training: images are decoded once; evaluation: each image and each different caption is encoded once.
        ours: our layers, that leave out what has no effect.
        channels_last: convolutions in the layout that CPUs and tensor cores prefer.
        fused: the optimiser steps in one pass over all weights.
        amp: `off` or `bf16`.
    """

    name: str
    allocator: bool = False
    once: bool = False
    ours: bool = False
    channels_last: bool = False
    fused: bool = False
    amp: str = "off"

    def environment(self, threads: int) -> Mapping[str, str | None]:
        """Variables of the process of this side; None: not set."""
        settings = {name: value if self.allocator else None for name, value in ALLOCATOR.items()}
        return settings | {"OMP_NUM_THREADS": str(threads)}


PUBLISHED = Variant("published")
OURS = Variant("ours", allocator=True, once=True, ours=True, channels_last=True, fused=True)


def sides(amps: Sequence[str], with_published: bool, with_settings: bool = False) -> list[Variant]:
    """The published path, where wanted, and with our memory settings where wanted; ours in each precision."""
    ours = [replace(OURS, name=f"ours {amp}" if amp != "off" else "ours float32", amp=amp) for amp in amps]
    settled = replace(PUBLISHED, name="published, memory settings", allocator=True)
    return [*[PUBLISHED] * with_published, *[settled] * with_settings, *ours]


def ladder(changes: Sequence[str], amp: str) -> list[Variant]:
    """From the published path to ours, one change at a time, in the order of `changes`; the last is the precision."""
    rungs = [PUBLISHED]
    for change in changes:
        name = f"+ {change.replace('_', ' ')}"
        rungs.append(Variant(**vars(rungs[-1]) | {"name": name, change: True}))
    return [*rungs, replace(rungs[-1], name=f"+ {amp}", amp=amp)]
