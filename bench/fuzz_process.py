"""One target under the fuzzer, which takes the process over; `bench.fuzz` starts it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SLOWEST = 20  # seconds that one input may take
MOST_MEMORY = 4096  # MiB that the process may take
WATCHED = ("bench", "data", "layers", "option", "reports", "runtime", "utils", "vocab", "yaml", "PIL", "pickletools")
"""Whose branches guide it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Start from the target's seeds and from what the corpus holds; does not return."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_process", description=__doc__)
    parser.add_argument("target", help="see bench.fuzz")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of inputs")
    parser.add_argument("--found", type=Path, required=True, help="gets inputs that did what they may not")
    given = parser.parse_args(arguments)
    import atheris

    with atheris.instrument_imports(include=list(WATCHED)):
        from bench.fuzz_targets import TARGETS, run_target
    target = TARGETS[given.target]
    for number, seed in enumerate(target.seeds):
        (given.corpus / f"seed_{number}").write_bytes(seed)
    flags = [f"-max_total_time={given.seconds}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MOST_MEMORY}"]
    flags += [f"-artifact_prefix={given.found}/", "-print_final_stats=1", str(given.corpus)]
    with tempfile.TemporaryDirectory() as folder:
        atheris.Setup([sys.argv[0], *flags], lambda content: run_target(target, content, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
