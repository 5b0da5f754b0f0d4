"""The report: a section for each part, and a line for each at the end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from runs.record import commit
from utils import markdown

SKIPPED = 77
"""Exit status of a part that has nothing to work with."""
TIMED_OUT = (124, 137)
TAIL = 12
"""Lines of its log that a part shows that failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a part: its exit status and its seconds, of those that it had."""

    name: str
    status: int
    seconds: int
    limit: int

    @property
    def result(self) -> str:
        """In a word."""
        return "passed" if self.status == 0 else "skipped" if self.status == SKIPPED else "failed"

    @property
    def reason(self) -> str:
        """Why it failed."""
        if self.status in TIMED_OUT:
            return f"Failed: not done within its {self.limit} s. What it had found until then stands above."
        return f"Failed with exit status {self.status}."


def read_outcomes(folder: Path) -> list[Outcome]:
    """What `bench/gpu_check.sh` noted: a line for each part."""
    lines = (folder / "outcomes.txt").read_text(encoding="utf-8").splitlines()
    return [Outcome(name, *map(int, numbers)) for name, *numbers in map(str.split, lines)]


def report(folder: Path, command: str) -> tuple[str, str]:
    """The report of a check whose files lie in a folder, as Markdown, and its last lines alone."""
    outcomes = read_outcomes(folder)
    head = f"Commit {commit()}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, `{command}`: {verdict(outcomes)}."
    sections = [f"## {outcome.name}\n\n{section(outcome, folder)}" for outcome in outcomes]
    rows = [["part", "result", "seconds", "at most"]]
    rows += [[outcome.name, outcome.result, str(outcome.seconds), str(outcome.limit)] for outcome in outcomes]
    total = sum(outcome.seconds for outcome in outcomes)
    last = f"{markdown(rows)}\n\n{verdict(outcomes)}, {total} s."
    return "\n\n".join(["# GPU check", head, *sections, f"## Summary\n\n{last}"]) + "\n", last


def verdict(outcomes: list[Outcome]) -> str:
    """How many parts passed, failed, were skipped."""
    results = [outcome.result for outcome in outcomes]
    return ", ".join(f"{results.count(word)} {word}" for word in ("passed", "failed", "skipped"))


def section(outcome: Outcome, folder: Path) -> str:
    """What a part wrote; of one that failed also why, and the end of its log."""
    path, log = folder / f"{outcome.name}.md", folder / f"{outcome.name}.log"
    parts = [path.read_text(encoding="utf-8").strip()] if path.is_file() else []
    if outcome.result == "failed":
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-TAIL:] if log.is_file() else []
        parts += [outcome.reason, "\n".join(["```", *said, "```"])]
    return "\n\n".join(parts)
