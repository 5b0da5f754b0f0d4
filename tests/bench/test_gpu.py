"""The check of a GPU: its small form on the CPU gives a whole report, and what is wrong is found and told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import encode, machine
from bench.gpu.__main__ import PARTS, main
from bench.gpu.report import Outcome
from bench.gpu.scores import CPU, TOLERANCE, Scorer, equality
from bench.gpu.setting import AMFMN, DUAL, Section, Setting, enlarge, make_data, real_data
from bench.gpu.training import Fixed, Limited, compiled, out_of_memory
from data.annotations import read_annotations
from data.toy.dataset import make_toy
from tests import ROOT
from tests.layers.test_layers import random_batch
from utils import InputError, RunFault

Tables = dict[str, list[dict[str, str]]]


def tables(report: str) -> Tables:
    """The rows of each section's table, by the names of its columns."""
    found: Tables = {}
    for text in report.split("\n## ")[1:]:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        found[text.split("\n")[0]] = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    return found


def numbers(row: dict[str, str]) -> list[float]:
    """Those of a row, without its units."""
    return [float(cell.rstrip("%")) for cell in row.values() if re.fullmatch(r"-?[\d.]+(e-?\+?\d+)?%?", cell)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The small form with its data."""
    made = Setting(CPU, True, tmp_path_factory.mktemp("gpu"))
    make_data(made)
    return made


def status_of(part: str, folder: Path) -> int:
    """Do a part in its small form; the exit status that it would have."""
    try:
        main([part, "--work", str(folder), "--small", "--device", "cpu"])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_small_form_writes_a_whole_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(machine.GEMM_SIDES, "cpu", 256)
    monkeypatch.setattr(machine, "COPY_BYTES", 2**24)
    out = tmp_path / "new" / "report.md"
    outcomes = [f"{part} {status_of(part, tmp_path)} 1 {limit}\n" for part, (limit, _) in PARTS.items()]
    (tmp_path / "outcomes.txt").write_text("".join(outcomes))
    main(["report", "--work", str(tmp_path), "--out", str(out)])
    report = out.read_text()
    found = tables(report)
    assert list(found) == [*PARTS, "Summary"]
    results = {row["part"]: row["result"] for row in found["Summary"]}
    cuda = "passed" if torch.cuda.is_available() else "skipped"
    assert results == dict.fromkeys(PARTS, "passed") | {"tests": cuda}
    assert f"| tests       | {cuda} |" in capsys.readouterr().out  # the last lines are printed, too
    rates = {row["what"]: row for row in found["machine"]}
    assert numbers(rates["GEMM, bf16, GFLOP/s"])[0] > 1
    assert [row["captions"] for row in found["data"]] == ["160", "80"]
    for part, pairs in (("epoch-amfmn", 160), ("epoch-dual", 32)):
        (row,) = found[part]
        assert row["batches"] == f"{pairs // 16} of {pairs // 16}"
        assert row["pairs"] == str(pairs)
        assert float(row["pairs/s"]) == pytest.approx(pairs / float(row["s"]), rel=0.1)
        assert 0 <= float(row["waiting for data"].rstrip("%")) < 100
        assert 0 < float(row["share of GEMM"].rstrip("%")) < 100
        assert 100 < float(row["peak MiB"]) < 10_000
        assert 0 < float(row["mean loss"]) < 100
    assert "A batch of 8 fits: --set dataset.batch_size=8" in report
    assert "batches of 16 were worked off in 2 parts" in report
    assert len(found["scores"]) == 6
    for row in found["scores"]:
        assert float(row["greatest difference"]) <= float(row["allowed"]) < 0.2
        assert float(row["spread of scores"]) > 1e-4
    assert "random weights, as no epoch" not in report
    assert [row["optim.compile"] for row in found["compile"]] == ["off", "on"] * 2
    assert all(float(row["ms/step"]) > 0 for row in found["compile"])
    assert [row["same 10 best as the CPU"] for row in found["search"]] == ["100.00%"] * 2
    known, unknown = found["encoding"]
    assert len(numbers(known)) == 5
    assert min(numbers(known)) > 0
    assert "skipped: architecture timm/no_such_network" in unknown[encode.HEAD[-1]]


def run_script(folder: Path, python: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the script in a tree without an environment, with a Python of these lines of bash."""
    program, tree = folder / "bin" / "python", folder / "tree"
    for name in ("bench/gpu_check.sh", "exec/common.sh"):
        (tree / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tree / name)
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\n{python}")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(tree / "bench" / "gpu_check.sh"), "--device", "cpu", "--small", "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_part_that_fails_or_hangs_does_not_end_the_check(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.md"
    python = f"""case "$3" in
  list) printf '%s\\n' 'fails 9' 'hangs 1' 'lacks 9' 'search 900' ;;
  fails) echo 'the reason'; exit 3 ;;
  hangs) echo 'so far' >"$5/hangs.md"; sleep 60 ;;
  lacks) echo 'Skipped: nothing here.' >"$5/lacks.md"; exit 77 ;;
  search | report) cd {ROOT} && exec {sys.executable} "$@" ;;
esac
"""
    done = run_script(tmp_path, python, out)
    assert done.returncode == 1, done.stderr
    report = out.read_text()
    assert ": 1 passed, 2 failed, 1 skipped." in report
    sections = dict(zip(*[iter(re.split(r"\n## (\w+)\n\n", report)[1:])] * 2, strict=True))
    assert sections["fails"].strip() == "Failed with exit status 3.\n\n```\nthe reason\n```"
    assert sections["hangs"].startswith("so far\n\nFailed: not done within its 1 s.")
    assert sections["lacks"].strip() == "Skipped: nothing here."
    assert "2000 vectors of 512 numbers" in sections["search"]
    assert f"`bash bench/gpu_check.sh --device cpu --small --out {out}`" in report
    assert re.search(r"\| hangs +\| +failed \| +\d+ \| +1 \|", sections["Summary"])


def test_a_fault_in_what_was_typed_ends_the_check_at_once(tmp_path: Path) -> None:
    done = run_script(tmp_path, "echo 'no such device' >&2; exit 2", tmp_path / "report.md")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "no such device\n")


def test_a_missing_gpu_is_told_before_anything_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="CUDA devices are visible on this machine; try --device cpu"):
        main(["list", "--device", "cuda:99"])
    main(["list", "--device", "cpu"])
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in listed] == list(PARTS)
    assert sum(limit for limit, _ in PARTS.values()) == 480
    assert sum(int(limit) for _, limit in listed) == 20 * 480  # nothing hurries on the CPU


def test_the_result_of_a_part_follows_from_its_status() -> None:
    results = [Outcome("part", status, 1, 2).result for status in (0, 77, 1, 3, 124, 137)]
    assert results == ["passed", "skipped", "failed", "failed", "failed", "failed"]


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_scores_that_differ_are_a_fault(
    change: float, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, calls = Scorer.scores, []

    def changed(self: Scorer, amp: str) -> Tensor:
        calls.append(amp)
        found = scores(self, amp)
        if len(calls) == 3:  # of the CPU: float32, bf16; then float32 of the device
            found[1, 2] += change
        return found

    monkeypatch.setattr(Scorer, "scores", changed)
    with pytest.raises(RunFault, match=rf"AMFMN, float32: scores differ by .*, allowed are {TOLERANCE:.2e}\.$"):
        equality(setting, Section(tmp_path / "scores.md"))
    assert (
        len(tables("\n## a\n" + (tmp_path / "scores.md").read_text())["a"]) == 6
    )  # the others are measured all the same


def test_a_batch_that_fits_is_a_fault_of_the_memory_part(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu.training._refusing", lambda losses_of, most: losses_of)
    with pytest.raises(RunFault, match="the whole batch fitted: nothing was halved"):
        out_of_memory(setting, Section(tmp_path / "memory.md"))


def test_what_was_measured_before_a_fault_stays(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: object, backend: str) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("bench.gpu.training.compile_encoders", broken)
    with pytest.raises(RuntimeError, match="no compiler"):
        compiled(setting, Section(tmp_path / "compile.md"))
    (row,) = tables("\n## a\n" + (tmp_path / "compile.md").read_text())["a"]
    assert (row["model"], row["optim.compile"]) == (DUAL, "off")


def test_a_table_grows_in_its_place(tmp_path: Path) -> None:
    section = Section(tmp_path / "part.md")
    table = section.table(["a"])
    section.add("Said before the first row.")
    table.row("1")
    section.add("Said between two.")
    table.row("2")
    text = (tmp_path / "part.md").read_text()
    assert [row["a"] for row in tables(f"\n## part\n{text}")["part"]] == ["1", "2"]
    assert text.endswith("\n\nSaid before the first row.\n\nSaid between two.\n")


def test_an_epoch_is_broken_off_after_its_seconds() -> None:
    batches = [random_batch(2) for _ in range(5)]
    assert len(list(Limited(Fixed(batches), 60).epoch(0))) == 5
    broken_off = Limited(Fixed(batches), 0)
    assert len(list(broken_off.epoch(0))) == 1
    assert len(broken_off) == 5


def test_a_train_list_is_enlarged(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", 2, 32)
    before, tested = (read_annotations(tmp_path / "toy", split) for split in ("train", "test"))
    enlarge(tmp_path / "toy", 3)
    after = read_annotations(tmp_path / "toy", "train")
    assert (len(before.image_names), len(after.image_names)) == (16, 48)
    assert after.captions == before.captions * 3
    place = 16 * 2 + 5
    images = tmp_path / "toy" / "images"
    assert (images / after.image_names[place]).read_bytes() == (images / before.image_names[5]).read_bytes()
    assert read_annotations(tmp_path / "toy", "test").image_names == tested.image_names


def test_rsicd_is_taken_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RSR_DATA", raising=False)
    assert real_data() is None
    (tmp_path / "data" / "rsicd_precomp" / "images").mkdir(parents=True)
    assert real_data() == Path("data/rsicd_precomp")
    monkeypatch.setenv("RSR_DATA", str(tmp_path / "elsewhere"))
    assert real_data() == Path("data/rsicd_precomp")
    (tmp_path / "elsewhere" / "rsicd_precomp" / "images").mkdir(parents=True)
    assert real_data() == tmp_path / "elsewhere" / "rsicd_precomp"


def test_without_weights_the_dual_encoder_starts_at_random(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Setting(CPU, False, setting.folder)
    monkeypatch.setattr("bench.gpu.setting.real_data", lambda: None)
    for there, image, text in ((True, "installed", "installed/minilm"), (False, "none", "gru")):
        monkeypatch.setattr("bench.gpu.setting.has_weights", lambda name, there=there: there)
        options = dict(value.split("=", 1) for value in whole.overrides(DUAL))
        assert (options["model.image.pretrained"], options["model.text.encoder"]) == (image, text)
    assert "dataset.image_size=224" in whole.overrides(AMFMN)
    assert "dataset.cache=device" in whole.overrides(AMFMN)


def test_encoding_waits_for_the_device_before_it_reads_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(encode, "wait_for", waited.append)
    rate = encode.images_per_second(torch.nn.Identity(), iter([torch.zeros(2, 3, 4, 4)]), CPU, "off")
    assert rate > 0
    assert waited == [CPU]
