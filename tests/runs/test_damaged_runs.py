"""Run folders that lost a file or hold another thing in its place: no weights are written over, no traceback."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import test as test_entry
import train as train_entry
from runs.events import EventLog
from runs.images import FILE
from runs.resume import begun_run
from runtime.entry_point import run_entry_point
from runtime.weights import read_checkpoint
from tests.runs.test_faults import Run
from tests.small_model import use_small_model
from utils import InputError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One epoch of a small model, finished."""
    use_small_model(monkeypatch)
    return Run(tmp_path)


def weights(run: Run) -> bytes:
    (best,) = run.last.parent.glob("*_best.pth.tar")
    return best.read_bytes()


def test_weights_without_their_last_checkpoint_are_not_written_over(run: Run) -> None:
    before = weights(run)
    run.last.unlink()
    for resume in ("auto", "never"):
        given = ["--path_opt", str(run.path), "--folds", "0", "--resume", resume, "--set", "optim.epochs=1"]
        with pytest.raises(InputError, match=r"_best.pth.tar\), but its last.pth is gone: .*Put last.pth back"):
            train_entry.main(given)
    assert weights(run) == before


@pytest.mark.parametrize("name", ["backbone.pth", "pretrained.pth.tar"])
def test_the_same_of_a_pretraining(tmp_path: Path, name: str, run: Run) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    with pytest.raises(InputError, match=r"last.pth is gone"):
        begun_run(tmp_path / "run", None, True, "logs.experiment_name")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"epoch,loss\n1,\xff\n", b"", bytes(range(256))])
def test_a_damaged_history_is_written_anew(run: Run, content: bytes) -> None:
    history = run.last.parent / "history.csv"
    whole = history.read_bytes()
    history.write_bytes(content)
    run.train(1)
    assert history.read_bytes() == whole
    assert run.last.read_bytes() == run.saved or read_checkpoint(run.last)["epoch"] == 1


def replace_by_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def replace_by_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


@pytest.mark.parametrize("replace", [replace_by_folder, replace_by_loop])
@pytest.mark.parametrize(
    "name", ["last.pth", "AMFMN_best.pth.tar", "history.csv", "options.yaml", "record.json", "train.log", ".lock"]
)
def test_something_else_in_the_place_of_a_file(
    run: Run,
    name: str,
    replace: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each ends in a message that names the file, or with a warning in a whole run; never in a traceback."""
    path = run.last.parent / name
    replace(path)
    given = ["--path_opt", str(run.path), "--folds", "0", "--set", "optim.epochs=2", "dataset.cache=off"]
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    with pytest.raises(SystemExit) as ended:
        run_entry_point(lambda: train_entry.main(given))
    assert ended.value.code in (0, 2, 3)


@pytest.mark.parametrize("key", ["logs.ckpt_save_path", "dataset.data_path", "dataset.vocab_path"])
def test_a_loop_of_links(run: Run, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    given = ["--path_opt", str(run.path), "--folds", "0", "--set", f"{key}={loop}"]
    with pytest.raises(SystemExit) as ended:
        run_entry_point(lambda: train_entry.main(given))
    assert ended.value.code in (2, 3)
    assert str(loop) in capsys.readouterr().err


def test_a_clock_set_back_hides_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(second: float, steps: range) -> None:
        monkeypatch.setattr("time.time", lambda: second)
        with EventLog(tmp_path, purge_step=steps.start) as events:
            for step in steps:
                events.add_scalar("loss", step, step)

    log(2e9, range(1, 7))  # a save after step 4; the steps 5 and 6 were lost
    log(1.5e9, range(5, 8))
    log(1.5e9, range(8, 10))  # within the same second
    log(1.4e9, range(10, 12))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == list(range(1, 12))


class TestImages:
    def warned(self, run: Run, caplog: pytest.LogCaptureFixture) -> list[str]:
        """The warnings of one more epoch."""
        caplog.clear()
        run.train(read_checkpoint(run.last)["epoch"] + 1)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    def test_replaced_images_are_named(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        names = (run.last.parent / "split" / "val.txt").read_text().split()
        first, second = (run.data / "images" / name for name in names[:2])
        assert self.warned(run, caplog) == []
        os.utime(first, (10, 10))
        (said,) = self.warned(run, caplog)
        assert f"1 of 24 images have another date than when the run was begun: {first.name}. If" in said
        Image.new("RGB", (9, 9)).save(second)
        for _ in range(2):  # each start says so
            (said,) = self.warned(run, caplog)
            assert re.search(rf"1 of 24 images are others than .*: {second.name} \([\d,]+ bytes then, \d+ now\)", said)

    @pytest.mark.parametrize("content", ["", "[1]", '{"a": 3}', '{"a": ["x", 1]}'])
    def test_a_note_that_can_not_be_read_is_made_anew(
        self, run: Run, content: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        note = run.last.parent / FILE
        whole = note.read_text()
        note.write_text(content)
        assert self.warned(run, caplog) == []
        assert note.read_text() == whole


class TestUnfinished:
    def protocol(self, run: Run) -> str:
        test_entry.main(["--path_opt", str(run.path), "--folds", "0", "--json", str(run.folder / "found.json")])
        return str(json.loads((run.folder / "found.json").read_text())["protocol"])

    def test_a_run_that_is_not_at_its_end_says_so(self, run: Run, caplog: pytest.LogCaptureFixture) -> None:
        assert "UNFINISHED" not in self.protocol(run)  # all of the one epoch that was asked for
        content = torch.load(run.last, weights_only=True)
        content["options"]["optim"]["epochs"] = 3
        torch.save(content, run.last)
        assert "; UNFINISHED: fold 0 after 1 of 3 epochs" in self.protocol(run)
        assert "the training is unfinished, after 1 of 3 epochs" in caplog.text
        content["options"]["optim"]["patience"], content["validations_since_best"] = 2, 2
        torch.save(content, run.last)
        assert "UNFINISHED" not in self.protocol(run)  # it stopped early
        run.last.write_bytes(b"nothing")
        assert "UNFINISHED" not in self.protocol(run)
