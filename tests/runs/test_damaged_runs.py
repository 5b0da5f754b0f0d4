"""Run folders that lost a file or hold another thing in its place: no weights are written over, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train as train_entry
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
