"""A sweep tries values within their ranges, goes on where it was stopped, and says what it found."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

import option
from runs.folders import run_folder
from sweep.plan import Range, read_plan
from sweep.trials import IMPORTANCE, TABLE, TRIALS, search
from tests.portable import skip_without
from tests.tiny import write_experiment
from utils import InputError

PLAN = """
path_opt: {path}
trials: 4
set: [optim.epochs=7]
ranges:
  optim:
    lr: {{low: 1e-4, high: 1e-1, log: true}}
    accumulate: {{low: 1, high: 4, integer: true}}
  model:
    embed:
      embed_dim: [16, 32]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}_caps.txt").write_text("a red roof\n")
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN.format(path=write_experiment(tmp_path, data)))
    return path


class Trainer:
    """Stands for train.py: the score rises with the learning rate, two validations each."""

    def __init__(self, stop_at: int = -1) -> None:
        self.calls: list[list[str]] = []
        self.stop_at = stop_at

    def __call__(self, arguments: Sequence[str]) -> int:
        self.calls.append(list(arguments))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        options = option.load_options(arguments[1], arguments[arguments.index("--set") + 1 :])
        assert options.optim.epochs == 7
        folder = run_folder(options, 0)
        folder.mkdir(parents=True)
        score = 1000 * options.optim.lr
        (folder / "history.csv").write_text(f"epoch,loss,val_mR\n1,1.0,{score}\n2,0.5,{score / 2}\n")
        return 0


def test_the_plan_is_typed(plan: Path) -> None:
    read = read_plan(plan)
    assert read.ranges["optim.lr"] == Range(low=1e-4, high=0.1, log=True)
    assert read.ranges["model.embed.embed_dim"] == ["16", "32"]
    assert (read.trials, read.fold, read.settings) == (4, 0, ["optim.epochs=7"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low: 1e-4", "low: 1", r"ranges.optim.lr.*low must be below high"),
        ("low: 1, high: 4", "low: 0.5, high: 4", r"ranges.optim.accumulate.*must be whole numbers"),
        ("[16, 32]", "[]", r"ranges.model.embed.embed_dim.*at least 1 item"),
        ("trials: 4", "trials: 0", r"trials: .*greater than or equal to 1"),
        ("trials: 4", "trails: 4", r"trails: Extra inputs are not permitted"),
    ],
)
def test_faults_of_a_plan_are_named(plan: Path, old: str, new: str, message: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_plan(plan)


def test_the_best_stands_first_and_a_stopped_sweep_goes_on(plan: Path, tmp_path: Path) -> None:
    skip_without("optuna", "matplotlib")
    read, out = read_plan(plan), tmp_path / "out"
    stopped = Trainer(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        search(read, out, stopped)
    going_on = Trainer()
    table = search(read, out, going_on)
    assert going_on.calls[0] == stopped.calls[2]  # the very trial that was stopped
    assert len(going_on.calls) == 2
    with (out / TRIALS).open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4
    for row in rows:
        assert float(row["val"]) == pytest.approx(1000 * float(row["optim.lr"]))
        assert 1e-4 <= float(row["optim.lr"]) <= 0.1
        assert row["optim.accumulate"] in "1234"
        assert row["model.embed.embed_dim"] in ("16", "32")
    assert table in (out / TABLE).read_text()
    assert search(read, out, going_on) == table
    assert len(going_on.calls) == 2
    assert not (out / IMPORTANCE).exists() or (out / IMPORTANCE).stat().st_size > 1000


@pytest.mark.parametrize(
    ("old", "new", "other"),
    [("[16, 32]", "[16, 64]", "ranges"), ("accumulate", "patience", "ranges"), ("=7]", "=7, optim.lr=1]", "settings")],
)
def test_a_folder_holds_one_plan(plan: Path, tmp_path: Path, old: str, new: str, other: str) -> None:
    skip_without("optuna", "matplotlib")
    search(read_plan(plan).model_copy(update={"trials": 1}), tmp_path / "out", Trainer())
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(InputError, match=rf"out holds a sweep that was begun with other {other}: choose another --out"):
        search(read_plan(plan), tmp_path / "out", Trainer())


def test_a_failed_training_ends_the_sweep(plan: Path, tmp_path: Path) -> None:
    skip_without("optuna")
    with pytest.raises(InputError, match=r"the training of trial \w+ ended with status 3; once it is mended"):
        search(read_plan(plan), tmp_path / "out", lambda arguments: 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accumulate", "acumulate", r"optim.acumulate: unknown key"),
        ("low: 1,", "low: 0,", r"optim.accumulate: given '0'"),
        ("[16, 32]", "[16, wide]", r"model.embed.embed_dim: given 'wide'"),
    ],
)
def test_a_wrong_option_is_named_before_any_training(
    plan: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    skip_without("optuna")
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        search(read_plan(plan), tmp_path / "out", Trainer())
    assert not (tmp_path / "out").exists()
