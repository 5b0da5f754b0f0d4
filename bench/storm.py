"""Kills small trainings at random moments and compares where they end with one that was left alone.

python -m bench.storm --kills 100
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.storm_trainings import Training, ending, make_data, trainings
from pretraining.scenes import SceneClassifier
from runtime.entry_point import run_entry_point
from runtime.weights import read_checkpoint
from utils import RUN_AGAIN, UNFINISHED, InputError, logger, remove_unfinished

PATIENCE = 600.0  # seconds that an attempt may take
POLL = 0.0005  # seconds between two looks for a file that is being written


@dataclass
class Tally:
    """What a storm came to."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault where something does not hold."""
        if not holds:
            self.faults.append(fault)


class Storm:
    """Runs one training again and again, ending it in all manners, and compares its endings."""

    def __init__(self, training: Training, folder: Path, chance: random.Random, tmpfs: bool) -> None:
        self.training, self.folder, self.chance, self.tmpfs = training, folder, chance, tmpfs
        self.log = folder / "log.txt"
        self.tally = Tally()
        self.seconds = 0.0

    def rage(self, kills: int) -> Tally:
        """Train undisturbed once; then kill so often, over as many runs as that takes; compare all endings."""
        whole = self.folder / "whole"
        started = time.monotonic()
        child = self.training.start(whole, self.log)
        self.tally.expect(_wait(child) == 0, f"the undisturbed run failed, see {self.log}")
        if self.tally.faults:
            return self.tally
        self.seconds = time.monotonic() - started
        expected = ending(whole / self.training.place)
        while self.tally.counts["kills"] < kills:
            checkpoints = self.folder / f"run{self.tally.counts['runs']}"
            with _disk(checkpoints, self.tmpfs):
                self._one_run(checkpoints, kills)
                if self.tally.faults:
                    return self.tally
                found = ending(checkpoints / self.training.place)
                different = [name for name in expected if found.get(name) != expected[name]]
                self.tally.expect(found.keys() == expected.keys() and not different, f"{checkpoints}: {different}")
            shutil.rmtree(checkpoints)
            self.tally.counts["runs"] += 1
        return self.tally

    def _one_run(self, checkpoints: Path, kills: int) -> None:
        """Start a run until it is done, ending most attempts early."""
        run, reached, tally = checkpoints / self.training.place, (0, 0), self.tally
        plan: list[Callable[[Path], None]] = [self._full_disk, self._read_only]
        while True:
            if plan and (run / "last.pth").is_file() and self.chance.random() < 0.5:
                plan.pop()(checkpoints)
            child = self.training.start(checkpoints, self.log)
            status = self._end(child, run) if tally.counts["kills"] < kills else _wait(child)
            if status == -signal.SIGKILL:
                tally.counts["kills"] += 1
                tally.counts["kills while a file was written"] += any(run.glob(f".*{UNFINISHED}"))
            tally.counts["attempts"] += 1
            tally.expect(status in (0, -signal.SIGKILL, RUN_AGAIN), f"{run}: exit status {status}, see {self.log}")
            if status == 0 or tally.faults:
                return
            tally.counts["stopped by SIGTERM"] += status == RUN_AGAIN
            reached = self._position(run, reached)

    def _end(self, child: int, run: Path) -> int:
        """End an attempt: anywhere, or just when a file is being written; now and then by SIGTERM."""
        sent, writing = signal.SIGKILL, self.chance.random() < 0.5
        if not writing:
            sent = signal.SIGTERM if self.chance.random() < 0.2 else signal.SIGKILL
            status = _wait(child, self.chance.uniform(0, self.seconds / 2))
        else:
            status = _wait(child, PATIENCE, run, self.chance.randint(1, 6))
            if status is None:
                status = _wait(child, self.chance.uniform(0, 0.1))
        if status is None:
            with suppress(ProcessLookupError):
                os.kill(child, sent)
            status = _wait(child)
        assert status is not None
        return status

    def _position(self, run: Path, before: tuple[int, int]) -> tuple[int, int]:
        """How far the run's checkpoint is: it must be whole, and never behind what it was."""
        if not (run / "last.pth").is_file():
            self.tally.expect(before == (0, 0), f"{run}: last.pth is gone")
            return before
        try:
            last = torch.load(run / "last.pth", mmap=True, weights_only=True)
        except (OSError, RuntimeError) as fault:
            self.tally.faults.append(f"{run}: {fault}")
            return before
        position = (last["epoch"], last["batch"])
        self.tally.expect(position >= before, f"{run}: {position} after {before}")
        return position

    def _full_disk(self, checkpoints: Path) -> None:
        """Let an attempt run into a full disk."""
        last = checkpoints / self.training.place / "last.pth"
        filler = checkpoints / "filler"
        remove_unfinished(last.parent)  # the attempt would do so, and have room
        if self.tmpfs:
            free = shutil.disk_usage(checkpoints).free
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - last.stat().st_size // 2))
        limit = None if self.tmpfs else last.stat().st_size // 2
        self._failing(checkpoints, "full disk", limit)
        filler.unlink(missing_ok=True)

    def _read_only(self, checkpoints: Path) -> None:
        """Let an attempt find that it can't write; without a tmpfs the superuser can write everywhere."""
        if self.tmpfs:
            subprocess.run(["mount", "-o", "remount,ro", checkpoints], check=True)
            self._failing(checkpoints, "read-only folder", None)
            subprocess.run(["mount", "-o", "remount,rw", checkpoints], check=True)
        elif os.geteuid() != 0:
            run = checkpoints / self.training.place
            run.chmod(0o555)
            self._failing(checkpoints, "read-only folder", None)
            run.chmod(0o755)

    def _failing(self, checkpoints: Path, name: str, largest_file: int | None) -> None:
        """An attempt that must fail and leave the checkpoint as it is."""
        last = checkpoints / self.training.place / "last.pth"
        before = hashlib.sha256(last.read_bytes()).digest()
        finished = read_checkpoint(last)["epoch"] == 2
        status = _wait(self.training.start(checkpoints, self.log, largest_file))
        self.tally.expect(finished or status not in (0, None), f"{last.parent}: {name} went unnoticed")
        same = hashlib.sha256(last.read_bytes()).digest() == before
        self.tally.expect(same, f"{last}: changed by an attempt with a {name}")
        self.tally.counts[name] += not finished


def _wait(child: int, seconds: float = PATIENCE, writing: Path | None = None, times: int = 1) -> int | None:
    """Wait for the end of an attempt.

    Args:
        child: its process.
        seconds: to wait at most.
        writing: return, too, when files have begun to be written in this folder `times` times.
        times: see `writing`.

    Returns:
        Its exit status, negative for a signal; None: it still runs.
    """
    deadline, seen = time.monotonic() + seconds, set[str]()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if writing is not None:
            seen |= {file.name for file in writing.glob(f".*{UNFINISHED}")}
            if len(seen) >= times:
                return None
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL if writing is not None else 0.005)


@contextmanager
def _disk(folder: Path, tmpfs: bool) -> Iterator[None]:
    """A folder, on a disk of its own where `tmpfs` says so, which takes the superuser."""
    folder.mkdir()
    if tmpfs:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        if tmpfs:
            subprocess.run(["umount", folder], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Storm the chosen trainings and report; the exit status is 1 where anything was lost or differs."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.storm", description="Kill small trainings at random moments; compare where they end."
    )
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs for each training (default 100)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trainings: models, scenes, modalities")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--tmpfs", action="store_true", help="as root: fill up and lock small disks of their own")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says of every purge that it was one
    SceneClassifier("resnet18", "none", 2)  # what it imports, each attempt would import anew
    report: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        found = trainings(make_data(Path(name) / "data"))
        unknown = set(given.only or ()) - found.keys()
        if unknown:
            raise InputError(f"--only {' '.join(sorted(unknown))}: expected some of {', '.join(found)}")
        for chosen in given.only or found:
            importlib.import_module(found[chosen].program)
            folder = Path(name) / chosen
            folder.mkdir()
            tally = Storm(found[chosen], folder, random.Random(f"{given.seed}/{chosen}"), given.tmpfs).rage(given.kills)
            report[chosen] = {**tally.counts, "faults": tally.faults}
            print(f"{chosen}: " + ", ".join(f"{count} {what}" for what, count in tally.counts.items()), flush=True)
            for fault in tally.faults:
                print(f"  FAULT {fault}\n{(folder / 'log.txt').read_text()[-3000:]}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if any(entry["faults"] for entry in report.values()):
        logger.error("Something was lost or differs.")
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
