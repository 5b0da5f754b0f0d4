"""`--help` of the entry points answers before PyTorch is loaded, which takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import ROOT

PROGRAMS = ("train.py", "test.py", "pretrain.py", "search.py", "localize.py")
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sorted({"torch", "numpy", "PIL"} & sys.modules.keys()), file=sys.stderr)
"""
FIRST_CAPTION = """
import sys, engine, runs.loaders, vocab
before = "nltk" in sys.modules
print(before, vocab.tokenize("A river."), {"scipy", "sklearn", "pandas"} & sys.modules.keys())
import scipy
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_loads_nothing_heavy(program: str) -> None:
    command = [sys.executable, "-c", RUN, program, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: {program}")
    assert done.stderr.split() == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_misspelt_flag_is_refused_as_early(program: str) -> None:
    command = [sys.executable, "-c", RUN, program, "--hepl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {program}")
    assert done.stderr.splitlines()[-1] == ""


def test_the_rooms_leave_nltk_to_the_first_caption() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CAPTION], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False ['a', 'river'] set()\n"
