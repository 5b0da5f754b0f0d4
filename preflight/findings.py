"""Faults, collected from readers that each stop at their first one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from utils import InputError

SHOWN = 3
"""Of faults of one kind."""

Result = TypeVar("Result")


class Findings:
    """The faults that were found, in groups, each once."""

    def __init__(self) -> None:
        """Nothing was found yet."""
        self.groups: dict[str, list[str]] = defaultdict(list)
        self.count = 0

    def add(self, group: str, text: str, faults: int = 1) -> None:
        """Note a fault, or `faults` of one kind that one text sums up, unless it is known."""
        if not any(text in texts for texts in self.groups.values()):
            self.groups[group].append(text)
            self.count += faults

    def add_alike(self, group: str, texts: Sequence[str]) -> None:
        """Note faults of files, each `FILE: what is wrong`: those of one kind as one, with the first three."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for text in texts:
            kinds[re.sub(r"\d+", "#", text.partition(": ")[2])].append(text)
        for alike in kinds.values():
            more = [f"... and {len(alike) - SHOWN} more like these"] if len(alike) > SHOWN else []
            self.add(group, "\n".join([*alike[:SHOWN], *more]), len(alike))

    def attempt(self, group: str, read: Callable[[], Result]) -> Result | None:
        """What a reader gives; None where it raises an InputError, which is noted."""
        try:
            return read()
        except InputError as fault:
            self.add(group, str(fault))
            return None

    def refuse(self, source: str) -> None:
        """Raise an InputError that lists all faults, if there are any, grouped and numbered, under the file's name."""
        if not self.groups:
            return
        lines = [f"{source}: {self.count:,} fault{'s' if self.count > 1 else ''} found before any work"]
        number = 0
        for group, texts in self.groups.items():
            lines += ["", group]
            for text in texts:
                number += 1
                first, *others = text.splitlines()
                lines += [f"{number:>3}. {first}", *(f"     {line}" for line in others)]
        raise InputError("\n".join(lines))
