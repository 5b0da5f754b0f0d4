"""Feeds the parsers inputs that a coverage-guided fuzzer makes up: `python -m bench.fuzz TARGET --seconds N`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.fuzz_targets import TARGETS
from runtime.entry_point import run_entry_point
from utils import InputError, write_text_atomic

FOLDER = Path(".fuzz")


def fuzz(name: str, seconds: int, folder: Path) -> dict[str, object]:
    """Fuzz one target in a process of its own; what it makes up is kept, and the next run goes on from it.

    Args:
        name: one of `bench.fuzz_targets.TARGETS`.
        seconds: how long.
        folder: gets `corpus/`, `found/` with the inputs that did what they may not, and the fuzzer's `log.txt`.

    Returns:
        `target`, `seconds`, `inputs` (how many were tried) and `found` (files).

    Raises:
        InputError: the fuzzer could not start.
    """
    for part in ("corpus", "found"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    before = set((folder / "found").iterdir())
    command = [sys.executable, "-m", "bench.fuzz_process", name, "--seconds", str(seconds)]
    command += ["--corpus", str(folder / "corpus"), "--found", str(folder / "found")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    write_text_atomic(folder / "log.txt", done.stdout)
    counts = re.findall(r"stat::number_of_executed_units: +(\d+)", done.stdout)
    found = sorted(str(path) for path in set((folder / "found").iterdir()) - before)
    if not counts and not found:
        raise InputError(f"the fuzzer did not start; see {folder / 'log.txt'}")
    return {"target": name, "seconds": seconds, "inputs": int(counts[-1]) if counts else None, "found": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz some targets, one after the other, and write how many inputs each was given."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=f"all, or some of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="for each target (60)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER", help=f"what is kept ({FOLDER})")
    given = parser.parse_args(arguments)
    names = list(TARGETS) if given.targets == ["all"] else given.targets
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise InputError(f"no target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        raise InputError("the fuzzer is the extra fuzz: bash exec/environment.sh fuzz")
    results = []
    for name in names:
        results.append(fuzz(name, given.seconds, given.out / name))
        print(json.dumps(results[-1]), flush=True)
        write_text_atomic(given.out / "results.json", json.dumps(results, indent=2) + "\n")
    if any(result["found"] for result in results):
        raise InputError(f"some inputs did what they may not; see found/ and log.txt in {given.out}/TARGET")


if __name__ == "__main__":
    run_entry_point(main)
