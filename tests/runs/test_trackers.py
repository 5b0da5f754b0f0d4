"""MLflow and Weights & Biases get what TensorBoard gets, go on where a run goes on, and never hold a run up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import option
import pretrain as pretrain_entry
import test as test_entry
import train as train_entry
from option.schema import Logs
from preflight import check_training
from runs import trackers
from runs.events import EventLog
from runs.trackers import Background, Tracker, backgrounds, require_trackers
from runtime.locks import LOCK
from tests.portable import skip_without
from tests.small_model import use_small_model
from tests.tiny import make_precomp, write_experiment
from utils import Gate, InputError

IMAGE = Image.new("RGB", (8, 8), "green")
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class FakeMLflow(ModuleType):
    """Stands for the package: a store of runs, in which names are checked as MLflow does."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.uris: list[str] = []
        self.made_meanwhile = False
        self.locked: list[bool] = []
        self.experiments: dict[str, str | None] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.tracking = SimpleNamespace(MlflowClient=self.client)
        self.entities = SimpleNamespace(
            Param=lambda key, value: (key, value), Metric=lambda key, value, _, step: (key, step, value)
        )

    def client(self, uri: str) -> FakeMLflow:
        self.uris.append(uri)
        file = Path(uri.removeprefix("sqlite:///"))
        self.locked.append(uri != str(file) and file.with_name(f".{file.name}{LOCK}").exists())
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str, artifacts: str | None) -> str:
        if self.made_meanwhile:
            self.experiments[name] = artifacts
        assert name not in self.experiments
        self.experiments[name] = artifacts
        return name

    def search_runs(self, experiments: list[str], query: str) -> list[Any]:
        return [self.get_run(key) for key in self.runs if query == f"attributes.run_id = '{key}'"]

    def get_run(self, key: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=key), data=SimpleNamespace(params=self.runs[key]["params"]))

    def create_run(self, experiment: str, run_name: str) -> Any:
        key = f"run{len(self.runs)}"
        self.runs[key] = {"experiment": experiment, "name": run_name, "params": {}, "metrics": [], "kept": []}
        return self.get_run(key)

    def update_run(self, key: str, status: str) -> None:
        self.runs[key]["status"] = status

    set_terminated = update_run

    def log_batch(self, key: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) + len(params) <= 100
        assert not any("@" in name for name, *_ in metrics)
        assert not dict(params).keys() & self.runs[key]["params"].keys()
        self.runs[key]["metrics"] += metrics
        self.runs[key]["params"] |= dict(params)

    def log_text(self, run: str, text: str, file: str) -> None:
        self.runs[run]["kept"].append((file, text))

    def log_image(self, run: str, image: Image.Image, key: str, step: int) -> None:
        self.runs[run]["kept"].append((key, step, image.size))


class FakeWandb(ModuleType):
    """Stands for the package: every run that was begun."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[FakeWandbRun] = []

    def init(self, **given: Any) -> FakeWandbRun:
        self.begun.append(FakeWandbRun(given))
        return self.begun[-1]

    @staticmethod
    def Settings(**given: Any) -> dict[str, Any]:
        return given

    @staticmethod
    def Image(image: Image.Image, file_type: str) -> tuple[int, int]:
        return image.size


class FakeWandbRun:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.dir = given["dir"]
        self.options: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda new, allow_val_change: self.options.update(new))
        self.summary: dict[str, float] = {}
        self.logged: list[tuple[str, int, Any]] = []
        self.saved: list[str] = []
        self.exit_code = -1

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.logged += [(name, step, value) for name, value in values.items()]

    def save(self, path: str, base_path: str, policy: str) -> None:
        self.saved.append(Path(path).read_text())

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeMLflow, FakeWandb]:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in trackers.QUIET:
        monkeypatch.setenv(name, "set")
    fakes = FakeMLflow(), FakeWandb()
    for fake in fakes:
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fakes


def log_of(root: Path, *names: str, group: str | None = None, options: Mapping[str, Any] | None = None) -> EventLog:
    folder = root / "ucm" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    logs = Logs.model_validate({"ckpt_save_path": root, "trackers": names, "group": group})
    return EventLog(folder, 1, backgrounds(logs, folder, options or {"optim.lr": 0.1, "optim.resume": None}))


def note(log: EventLog, *steps: int) -> None:
    with log as events:
        events.add_text("options", "optim:\n  lr: 0.1\n")
        for step in steps:
            events.add_scalar("val/i2t_R@1", step / 2, step)
        events.add_image("val/examples", IMAGE, steps[-1])


def test_names_and_steps_are_the_same_everywhere(tmp_path: Path, packages: tuple[FakeMLflow, FakeWandb]) -> None:
    note(log_of(tmp_path, "mlflow", "wandb"), 5, 10)
    mlflow, wandb = packages
    assert mlflow.uris == [f"sqlite:///{tmp_path / 'mlflow.db'}"]
    assert mlflow.experiments == {"ucm": (tmp_path / "mlflow").as_uri()}
    assert mlflow.locked == [True]
    assert mlflow.runs == {
        "run0": {
            "experiment": "ucm",
            "name": "ucm/0",
            "params": {"optim.lr": "0.1", "optim.resume": "None"},
            "metrics": [("val/i2t_R_at_1", 5, 2.5), ("val/i2t_R_at_1", 10, 5.0)],
            "kept": [("options.txt", "optim:\n  lr: 0.1\n"), ("val/examples", 10, (8, 8))],
            "status": "FINISHED",
        }
    }
    (run,) = wandb.begun
    assert run.given["settings"]["mode"] == "offline"
    assert {key: run.given[key] for key in ("project", "group", "name", "dir", "resume")} == {
        "project": "rsretrieval",
        "group": "ucm",
        "name": "ucm/0",
        "dir": str(tmp_path / "ucm" / "0"),
        "resume": None,
    }
    assert run.options == {"optim.lr": 0.1, "optim.resume": None}
    assert run.logged == [("val/i2t_R@1", 5, 2.5), ("val/i2t_R@1", 10, 5.0), ("val/examples", 10, (8, 8))]
    assert run.saved == ["optim:\n  lr: 0.1\n"]
    assert run.exit_code == 0


def test_a_run_goes_on_in_the_same_run(tmp_path: Path, packages: tuple[FakeMLflow, FakeWandb]) -> None:
    mlflow, wandb = packages
    with pytest.raises(KeyboardInterrupt), log_of(tmp_path, "mlflow", "wandb", group="sweep"):
        raise KeyboardInterrupt
    assert mlflow.runs["run0"]["status"] == "FAILED"
    note(log_of(tmp_path, "mlflow", "wandb", group="sweep", options={"optim.lr": 0.2, "optim.epochs": 3}), 1)
    assert list(mlflow.runs) == ["run0"]
    assert mlflow.runs["run0"]["params"] == {"optim.lr": "0.1", "optim.resume": "None", "optim.epochs": "3"}
    assert mlflow.runs["run0"]["experiment"] == wandb.begun[0].given["group"] == "sweep"
    assert wandb.begun[0].given["id"] == wandb.begun[1].given["id"]
    assert [run.exit_code for run in wandb.begun] == [1, 0]
    assert wandb.begun[1].options["optim.lr"] == 0.2
    mlflow.runs.clear()  # as if its database were another one
    note(log_of(tmp_path, "mlflow"), 1)
    assert list(mlflow.runs) == ["run0"]
    (tmp_path / "ucm" / "0" / trackers.FILE).write_text("[]")
    note(log_of(tmp_path, "mlflow"), 1)
    assert list(mlflow.runs) == ["run0", "run1"]


def test_trainings_that_begin_an_experiment_together(tmp_path: Path, packages: tuple[FakeMLflow, FakeWandb]) -> None:
    mlflow = packages[0]
    mlflow.made_meanwhile = True
    note(log_of(tmp_path, "mlflow"), 1)
    assert mlflow.runs["run0"]["experiment"] == "ucm"
    assert mlflow.runs["run0"]["status"] == "FINISHED"


def test_training_and_test_tell_the_trackers(
    tmp_path: Path, packages: tuple[FakeMLflow, FakeWandb], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow, wandb = packages
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    monkeypatch.setenv("WANDB_MODE", "online")
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data", train=5, test=3), epochs=1)
    use_small_model(monkeypatch)
    arguments = ["--path_opt", str(path), "--folds", "1", "--set", "logs.trackers=[mlflow, wandb]"]
    train_entry.main(arguments)
    monkeypatch.setattr(trackers, "PATIENCE", 0)  # which is not what a test has
    test_entry.main(arguments)
    assert mlflow.uris == ["http://here"] * 2
    assert mlflow.experiments == {"tiny": None}
    (run,) = mlflow.runs.values()
    trained, tested = wandb.begun
    assert (run["name"], trained.given["name"], trained.given["resume"]) == ("tiny/1", "tiny/1", "allow")
    assert run["params"]["optim.loss"] == trained.options["optim.loss"] == "triplet"
    scores = {name: value for name, _, value in run["metrics"]}
    assert {"train/loss", "val/mR", "val/i2t_R_at_1", "test/mR"} <= scores.keys()
    table = json.loads((tmp_path / "checkpoint" / "tiny" / "1" / "test.json").read_text())
    assert scores["test/mR"] == tested.summary["test/mR"] == table["mR"]
    assert trained.given["id"] == tested.given["id"]
    assert run["kept"][0][1] == trained.saved[0] == (tmp_path / "checkpoint/tiny/1/options.yaml").read_text()
    assert [kept[:2] for kept in run["kept"][1:]] == [("val/examples", 1)]


def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, packages: tuple[FakeMLflow, FakeWandb], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data", train=5, test=3))
    settings = ["logs.trackers=[mlflow, wandb]"]
    said = r"logs\.trackers: wandb is not installed: bash exec/environment\.sh wandb"
    with pytest.raises(InputError, match=said):
        train_entry.main(["--path_opt", str(path), "--set", *settings])
    assert not (tmp_path / "checkpoint").exists()
    with pytest.raises(InputError, match=said):
        pretrain_entry.main(["--path_opt", "option/UCM_MCRN_PRETRAIN.yaml", "--set", *settings])
    use_small_model(monkeypatch)
    options = option.load_options(str(path), settings)
    with pytest.raises(InputError, match=rf"Trackers\n  1\. {said}"):
        check_training(str(path), options, [0], torch.device("cpu"), True, Gate())
    require_trackers(["mlflow"])


class Broken:
    """A tracker that fails, or hangs, where it is told to."""

    id = "x"

    def __init__(self, where: str, fault: Callable[[], object]) -> None:
        self.where, self.fault = where, fault

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *_: self.fault() if name == self.where else None


def no_room() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["begin", "add_scalar", "flush", "close"])
def test_a_tracker_that_fails_is_said_once(where: str, caplog: pytest.LogCaptureFixture) -> None:
    def begin() -> Tracker:
        if where == "begin":
            no_room()
        return Broken(where, no_room)  # type: ignore[return-value]

    tracker = Background("run: wandb", begin)
    tracker.open()
    for step in range(5):
        tracker.add_scalar("loss", 1.0, step)
    tracker.close(failed=False)
    tracker.add_scalar("loss", 1.0, 6)
    (said,) = caplog.messages
    assert said == "run: wandb gets no more figures ([Errno 28] No space left on device); all else goes on."


def test_a_tracker_that_hangs_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    monkeypatch.setattr(trackers, "MOST_WAITING", 20)
    released = threading.Event()
    hanging: Any = Broken("add_scalar", released.wait)
    for notes, why in ((3, "not finished after 0.05 seconds"), (30, "20 notes wait for it")):
        caplog.clear()
        tracker = Background("run: mlflow", lambda: hanging)
        began = time.perf_counter()
        tracker.open()
        for step in range(notes):
            tracker.add_scalar("loss", 1.0, step)
        tracker.close(failed=False)
        assert time.perf_counter() - began < 5
        assert caplog.messages == [f"run: mlflow gets no more figures ({why}); all else goes on."]
    released.set()


def test_the_real_packages_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("mlflow", "wandb")
    # MLflow's folders of text files: it takes seconds to make the tables of a database.
    uri = (tmp_path / "mlruns").as_uri()
    settings = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_MODE": "offline"}
    for name, value in (settings | trackers.QUIET).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trackers, "PATIENCE", 600)
    require_trackers(["mlflow", "wandb"])
    before = torch.get_rng_state()
    note(log_of(tmp_path, "mlflow", "wandb"), 5, 10)
    note(log_of(tmp_path, "mlflow", "wandb"), 15)
    assert torch.equal(torch.get_rng_state(), before)

    client = trackers.import_tracker("mlflow").tracking.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("ucm").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["optim.lr"]) == ("ucm/0", "FINISHED", "0.1")
    points = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "val/i2t_R_at_1")]
    assert points == [(5, 2.5), (10, 5.0), (15, 7.5)]
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == {"images", "options.txt"}

    core = Path(trackers.import_tracker("wandb").__file__).parent / "bin" / "wandb-core"
    records = []
    for file in sorted(tmp_path.glob("ucm/0/wandb/offline-run-*/run-*.wandb")):
        read = subprocess.run(
            [core, "leet", "inspect", "--json", "--no-observability", "--run-file", file],
            capture_output=True,
            text=True,
            check=True,
        )
        records += [json.loads(line) for line in read.stdout.splitlines()]
    begun = [record["run"] for record in records if record["type"] == "run"]
    assert {(run["run_group"], run["display_name"]) for run in begun} == {("ucm", "ucm/0")}
    assert len({run["run_id"] for run in begun}) == 1
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["_step"], row["val/i2t_R@1"]) for row in history] == [(5, 2.5), (10, 5.0), (15, 7.5)]
    assert len([*tmp_path.glob("ucm/0/wandb/offline-run-*/files/media/images/val/examples_*.jpg")]) == 2
