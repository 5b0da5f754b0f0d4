"""How commands end."""

from __future__ import annotations

import subprocess
import sys

from runtime.entry_point import CUT_OFF
from tests import ROOT

TALKER = "from runtime.entry_point import run_entry_point; run_entry_point(lambda: print('line\\n' * 200_000))"


def test_output_that_is_cut_off_is_no_fault() -> None:
    talker = subprocess.Popen(
        [sys.executable, "-c", TALKER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert talker.stdout is not None
    assert talker.stderr is not None
    assert talker.stdout.readline() == "line\n"
    talker.stdout.close()
    assert talker.stderr.read() == ""
    assert talker.wait() == CUT_OFF
