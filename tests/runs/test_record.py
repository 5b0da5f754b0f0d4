"""What a run is made with: entries of sound and of killed processes, damaged records, the commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runs import record
from runs.record import FILE, commit, read_record, recorded
from tests import ROOT

CPU = torch.device("cpu")


def test_each_process_adds_an_entry(tmp_path: Path) -> None:
    with recorded(tmp_path, CPU):
        assert "ended" not in json.loads((tmp_path / FILE).read_text())[0]  # what a killed process leaves
    with pytest.raises(KeyError), recorded(tmp_path, CPU):
        raise KeyError
    first, second = read_record(tmp_path)
    assert first["threads"] == torch.get_num_threads()
    assert first["torch"] == torch.__version__
    assert first["started"] <= first["ended"] <= second["started"] <= second["ended"]
    assert 0 < first["peak_memory_mib"] <= second["peak_memory_mib"]


def test_the_peak_counts_what_was_freed() -> None:
    code = """
import torch
from runs.record import peak_memory
before = peak_memory(torch.device("cpu"))
block = torch.ones(int(before) + 64, 2**18)  # as many MiB, and 64
del block
assert peak_memory(torch.device("cpu")) >= before + 64
"""  # in a process of its own, where before is little
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("content", ["", "[1", "7", "[7]", '{"a": 1}'])
def test_a_damaged_record_is_begun_anew(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_record(tmp_path) == []
    with recorded(tmp_path, CPU):
        pass
    assert len(read_record(tmp_path)) == 1


def test_the_commit_and_what_was_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(record, "_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    git("init", "--quiet")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "-m", "first")
    digest = git("rev-parse", "HEAD")[:10]
    assert commit() == digest
    (tmp_path / "new").write_text("1")  # untracked: not part of the project
    assert commit() == digest
    (tmp_path / "a").write_text("2")
    assert commit() == f"{digest}+"
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(record, "_ROOT", tmp_path / "copy")
    assert commit() == "unknown"  # another project's commit says nothing of this one
