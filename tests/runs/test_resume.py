"""A run that is killed, or asked to stop, goes on to where it would have ended; two runs do not share a folder."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import option
import train as train_entry
from batches.batch import Batch
from data.image_store import ImageStore
from dataloader import stored_batches
from engine import fit
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from option import Options
from option.images import ImageRule
from runs.models import start_state
from runs.resume import Keeper, _refuse_other_options, save_best
from runtime.entry_point import run_entry_point
from runtime.interruption import Watch, stopped_at_once, termination_held
from runtime.locks import LOCK, run_lock
from runtime.weights import read_checkpoint
from tests import ROOT
from tests.criteria import triplet_criterion
from tests.interrupted import TIMED, asked_to_stop, assert_equal, comparable
from tests.layers.test_layers import random_batch
from tests.tiny import make_precomp, write_experiment
from training import epoch
from training.epoch import Plan
from training.state import TrainingState
from utils import RUN_AGAIN, InputError, remove_unfinished
from vocab import Vocabulary

CPU = torch.device("cpu")


class Silent:
    """A writer that writes nothing."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Nothing is kept."""

    def flush(self) -> None:
        """Nothing is held back."""


class Drawn:
    """Three batches of random pairs, which follow from the epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        for batch in range(skip, 3):
            yield random_batch(2, seed=10 * number + batch)


@pytest.mark.parametrize("name", registered())
def test_every_model_goes_on_inside_an_epoch(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    options = tiny_options(name, {"optim.warmup_steps": 2})
    saved: list[bytes] = []  # the first state only

    def start(seed: int) -> tuple[RetrievalModel, TrainingState]:
        torch.manual_seed(seed)
        model = build_model(options, vocabulary)
        return model, start_state(model, model.parameter_groups(options), options.optim, CPU)

    places: list[tuple[int, int]] = []

    def train(model: RetrievalModel, state: TrainingState) -> None:
        def save(state: TrainingState, is_best: bool) -> None:
            places.append((state.epoch, state.batch))
            if not saved:
                stored = io.BytesIO()
                torch.save(state.state_dict(), stored)
                saved.append(stored.getvalue())

        def validate() -> dict[str, float]:
            return {"mR": float(state.epoch)}

        criterion = triplet_criterion(0.2, hardest=False)
        plan = Plan(epochs=2, accumulate=2, save_minutes=1e-9)
        fit(state, Drawn(), lambda batch: model.training_loss(batch, criterion), validate, plan, CPU, Silent(), save)

    whole = start(seed=1)
    train(*whole)
    assert places == [(0, 2), (0, 3), (1, 0), (1, 2), (1, 3), (2, 0)]
    begun = torch.load(io.BytesIO(saved[0]), weights_only=True)
    assert (begun["epoch"], begun["batch"], begun["meter"]["items"]) == (0, 2, 4)
    torch.manual_seed(3)
    resumed = start(seed=2)
    resumed[1].load_state_dict(begun)
    train(*resumed)
    assert_equal(comparable(whole[1].state_dict()), comparable(resumed[1].state_dict()))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of an experiment of one fold: two epochs of five batches, of which two make a step."""
    folder = tmp_path_factory.mktemp("tiny")
    return write_experiment(folder, make_precomp(folder / "data"), accumulate=2, seed=1)


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Path:
    """The folder of its run without interruption."""
    train_entry.main(arguments(tiny, "whole"))
    return tiny.parent / "checkpoint" / "whole" / "0"


@pytest.fixture(params=[False, True], ids=["alone", "with_a_thread"])
def thread_at_fork(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether a library starts a thread in every forked process, as gRPC does."""
    wanted = [request.param]

    def start() -> None:
        if any(wanted):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    os.register_at_fork(after_in_child=start)  # for ever
    yield
    wanted.clear()


def arguments(path: Path, name: str, *overrides: str) -> list[str]:
    given = [f"k_fold.experiment_name={name}", "logs.print_freq=1", *overrides]
    return ["--path_opt", str(path), "--folds", "0", "--set", *given]


def points(run: Path) -> set[tuple[str, int, float | bytes]]:
    events = EventAccumulator(str(run))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.split("/")[1] not in TIMED]
    drawn = {("val/examples", event.step, event.encoded_image_string) for event in events.Images("val/examples")}
    return drawn | {(tag, event.step, event.value) for tag in tags for event in events.Scalars(tag)}


def test_sigterm_saves_the_step_and_the_same_command_goes_on(
    tiny: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = whole.parents[1] / "parts" / "0"
    (run / "split").mkdir(parents=True)
    leftover = run / ".last.pth.abc.unfinished"
    leftover.touch()
    with asked_to_stop(monkeypatch, epoch, "optimiser_step", 2):
        train_entry.main(arguments(tiny, "parts"))
    last = read_checkpoint(run / "last.pth")
    assert (last["epoch"], last["batch"]) == (0, 4)
    assert not leftover.exists()
    assert "Stopped by SIGTERM; all steps so far are saved. Run the same command again" in caplog.text
    # As if it had been killed after the next batch, which was logged but not saved.
    shutil.copy(run / "last.pth", run.parent / "before.pth")
    with asked_to_stop(monkeypatch, epoch, "optimiser_step", 1):
        train_entry.main(arguments(tiny, "parts"))
    assert read_checkpoint(run / "last.pth")["batch"] == 5
    shutil.move(run.parent / "before.pth", run / "last.pth")
    train_entry.main(arguments(tiny, "parts"))
    for file in ("last.pth", "AMFMN_best.pth.tar"):
        one, other = (read_checkpoint(folder / file) for folder in (whole, run))
        if file == "last.pth":
            assert_equal(comparable(one), comparable(other))
        assert_equal(one["model"], other["model"])
    assert points(whole) == points(run)
    steps = {tag: [step for found, step, _ in points(run) if found == tag] for tag in ("val/examples", "val/mR")}
    assert sorted(steps["val/examples"]) == sorted(steps["val/mR"])


def test_what_a_kill_left_unwritten_is_made_up_from_the_last_checkpoint(whole: Path, tiny: Path) -> None:
    run = whole.parents[1] / "unsettled" / "0"
    shutil.copytree(whole, run)
    best = run / "AMFMN_best.pth.tar"
    expected, table = read_checkpoint(best), (run / "history.csv").read_text()
    last = read_checkpoint(run / "last.pth")
    assert expected["epoch"] == last["best_epoch"] == 2  # else this shows nothing: choose another seed
    best.unlink()
    (run / "history.csv").write_text(table[: table.rindex("2.0")])
    before = (run / "last.pth").stat().st_mtime_ns
    train_entry.main(arguments(tiny, "unsettled"))
    assert_equal(read_checkpoint(best)["model"], expected["model"])
    assert read_checkpoint(best)["scores"] == expected["scores"]
    assert (run / "history.csv").read_text() == table
    assert (run / "last.pth").stat().st_mtime_ns == before


def test_best_weights_that_are_gone_are_told(whole: Path, tiny: Path) -> None:
    run = whole.parents[1] / "lost" / "0"
    shutil.copytree(whole, run)
    best = run / "AMFMN_best.pth.tar"
    last = read_checkpoint(run / "last.pth")
    last["best_epoch"] = last["epoch"] - 1
    torch.save(last, run / "last.pth")
    best.unlink()
    with pytest.raises(
        InputError, match=r"best\.pth\.tar is gone: the weights of epoch 1, the best so far.*begin anew"
    ):
        train_entry.main(arguments(tiny, "lost"))
    assert not best.exists()


def test_the_last_checkpoint_is_written_before_the_best(
    tmp_path: Path, tiny_options: Callable[..., Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tiny_options("AMFMN")
    model = torch.nn.Linear(2, 2)
    state = start_state(model, [{"params": list(model.parameters()), "lr": 0.1}], options.optim, CPU)
    state.epoch = state.best_epoch = 1
    state.history.append({"epoch": 1.0})
    monkeypatch.setattr("utils.os.replace", lambda source, target: written.append(Path(target).name))
    written: list[str] = []
    best = tmp_path / "best.pth"
    keeper = Keeper(tmp_path, best, options, lambda: save_best(best, state, options, {}))
    keeper.save(state, True)
    assert written == ["last.pth", "history.csv", "best.pth"]


def test_never_refuses_what_was_begun_and_other_options_are_named(whole: Path, tiny: Path) -> None:
    with pytest.raises(InputError, match=r"already holds a run\. Go on with it \(without --resume never\)"):
        train_entry.main([*arguments(tiny, "whole"), "--resume", "never"])
    other = ["optim.lr=0.5", "dataset.batch_size=9", "logs.eval_step=2", "dataset.workers=1"]
    with pytest.raises(InputError) as fault:
        train_entry.main(arguments(tiny, "whole", *other))
    assert str(fault.value).splitlines()[1:3] == [
        "  dataset.batch_size: 8 when it was begun, 9 now",
        "  optim.lr: 0.001 when it was begun, 0.5 now",
    ]
    assert "logs.eval_step" not in str(fault.value)
    with pytest.raises(SystemExit):
        train_entry.main([*arguments(tiny, "whole"), "--resume", "sometimes"])


class TestSignals:
    def test_outside_of_the_steps_a_signal_ends_the_run_with_its_own_status(self) -> None:
        def run() -> None:
            with stopped_at_once():
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()

        with pytest.raises(SystemExit) as end:
            run_entry_point(run)
        assert end.value.code == RUN_AGAIN == 75

    def test_inside_they_wait_and_the_same_one_again_does_not(self) -> None:
        child = os.fork()
        if not child:
            watch = Watch(minutes=0)
            with watch.signals():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)  # what a launcher sends after the keyboard's
                if watch.due and watch.received == [signal.SIGINT, signal.SIGTERM]:
                    os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

    def test_handlers_are_put_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with Watch(0).signals(), stopped_at_once():
            pass
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

    @pytest.mark.parametrize("waits", [True, False])
    def test_workers_hold_the_signal_only_where_they_can_wait_for_it(
        self, monkeypatch: pytest.MonkeyPatch, waits: bool
    ) -> None:
        if not waits:
            monkeypatch.delattr(signal, "sigwaitinfo")  # as on macOS
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.SIGTERM not in before
        with termination_held():
            assert (signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())) == hasattr(signal, "sigwaitinfo")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before

    def test_saves_are_due_by_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr("runtime.interruption.time.monotonic", lambda: now[0])
        watch, never = Watch(minutes=2), Watch(minutes=0)
        for seconds, due in ((119, False), (1, True)):
            now[0] += seconds
            assert watch.due == due
        watch.saved()
        assert not watch.due
        now[0] += 1e6
        assert watch.due
        assert not never.due

    @pytest.mark.usefixtures("thread_at_fork")
    def test_a_worker_obeys_its_parent_alone(self, tiny: Path) -> None:
        paths = sorted((tiny.parent / "data" / "images").glob("*.png"))[:4]
        store = ImageStore(paths, 32, "off", None, CPU, ImageRule())
        batches = stored_batches(store, [torch.tensor([place]) for place in (0, 1, 2, 3)] * 5, workers=1)
        next(batches)
        (worker,) = multiprocessing.active_children()
        for name in ("TERM", "INT"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        assert len(list(islice(batches, 18))) == 18
        assert worker.is_alive()
        worker.terminate()
        worker.join(timeout=60)
        assert worker.exitcode == 0

    def test_a_script_passes_them_on_and_waits(self, tmp_path: Path) -> None:
        training = tmp_path / "training.sh"
        training.write_text("trap 'sleep 0.3; echo saved; exit 75' TERM\necho ready\nsleep 30 >/dev/null 2>&1 & wait\n")
        (tmp_path / "exec").mkdir()
        shutil.copy(ROOT / "exec" / "common.sh", tmp_path / "exec")
        script = tmp_path / "exec" / "script.sh"
        script.write_text(f"set -euo pipefail\nsource {tmp_path}/exec/common.sh\nstep training bash {training}\n")
        with subprocess.Popen(["bash", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if line == "ready\n":
                    break
            running.send_signal(signal.SIGTERM)
            out, err = running.communicate(timeout=60)
        assert running.returncode == RUN_AGAIN
        assert "saved" in out
        assert "Run the same command again to go on" in err


HOLD = """
import fcntl, json, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(json.dumps({"host": "node7", "process": 4711, "since": "2031-05-06 07:08:09", "command": "python train.py"}))
file.flush()
print("held", flush=True)
sys.stdin.readline()
"""


class TestLocks:
    def test_a_second_run_is_refused_until_the_first_is_dead(self, tmp_path: Path) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        named = "in use by another run: host node7, process 4711, since 2031-05-06 07:08:09, command python train.py"
        with pytest.raises(InputError, match=named), run_lock(tmp_path, "k_fold.experiment_name"):
            pass
        holder.kill()
        holder.communicate()
        with run_lock(tmp_path, "k_fold.experiment_name"):
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
        assert (tmp_path / LOCK).read_text() == ""

    def test_train_takes_it(self, tmp_path: Path, tiny: Path) -> None:
        run = tmp_path / "locked" / "0"
        run.mkdir(parents=True)
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, run / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(InputError, match="in use by another run"):
                train_entry.main(arguments(tiny, "locked", f"logs.ckpt_save_path={tmp_path}"))
            holder.communicate("\n")
        assert not (run / "train.log").exists()

    def test_runs_that_begin_at_once_share_one_image_cache(self, tiny: Path, tmp_path: Path) -> None:
        paths = sorted((tiny.parent / "data" / "images").glob("*.png"))

        def store() -> ImageStore:
            return ImageStore(paths, 32, "disk", tmp_path, CPU, ImageRule())

        (tmp_path / f".{'0' * 16}.uint8.abc.unfinished").touch()  # of another list: its writer may live
        children = []
        for number in range(3):
            child = os.fork()
            if not child:
                store().load(torch.arange(number, len(paths), 3))
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        shared = store()
        every = torch.arange(len(paths))
        shared.load(every)
        assert shared.decoded == 0
        alone = ImageStore(paths, 32, "ram", None, CPU, ImageRule())
        assert torch.equal(shared.batch(every), alone.batch(every))
        assert len(list(tmp_path.glob("*.uint8"))) == 1


def test_leftovers_of_one_file_or_of_all(tmp_path: Path) -> None:
    names = [".last.pth.a.unfinished", ".other.b.unfinished", "kept.unfinished", ".lock"]
    for name in names:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "other")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(set(names) - {names[1]})
    remove_unfinished(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names[2:])


STORM = """
from bench import storm, storm_trainings
storm_trainings.SMALL["backbone.architecture"] = "timm/test_efficientnet"
storm.main()
"""


def test_a_short_storm_loses_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "storm.json"
    command = [sys.executable, "-c", STORM, "--kills", "2", "--only", "AMFMN", "--json", str(figures)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())["AMFMN"]
    assert found["kills"] == 2
    assert found["runs"] >= 1
    assert found["faults"] == []


class TestOlderOptions:
    """A checkpoint of a version that did not know some keys."""

    def refusal(self, tiny: Path, change: str, *forgotten: str) -> str:
        given = ["k_fold.experiment_name=older", "optim.loss=triplet"]
        stored = option.dump(option.load_options(tiny, given))
        for key in forgotten:
            *blocks, name = key.split(".")
            tree = stored
            for block in blocks:
                tree = tree[block]
            del tree[name]
        try:
            _refuse_other_options(stored, option.load_options(tiny, [*given, change]), Path("run"), "the key")
        except InputError as fault:
            return str(fault)
        return ""

    @pytest.mark.parametrize(
        ("key", "default", "other"),
        [
            ("dataset.smallest_part", "1.0", "0.3"),
            ("dataset.augmentation", "published", "overhead"),
            ("model.backbone.architecture", "resnet18", "resnet34"),
            ("optim.accumulate", "2", "3"),
        ],
    )
    def test_what_it_did_not_know_has_its_default(self, tiny: Path, key: str, default: str, other: str) -> None:
        forgotten = () if key == "optim.accumulate" else (key,)
        assert self.refusal(tiny, f"{key}={default}", *forgotten) == ""
        assert f"\n  {key}: {default} when it was begun, {other} now\n" in self.refusal(
            tiny, f"{key}={other}", *forgotten
        )

    @pytest.mark.parametrize(
        ("loss", "named"),
        [
            ("dynamic", "dynamic"),
            ("contrastive", "contrastive"),
            ("{triplet: 1, contrastive: 0.5}", "0.5 contrastive + triplet"),
            ("{triplet: 0.5}", "0.5 triplet"),
            ("{triplet: 1.0000001}", "1.0000001 triplet"),
        ],
    )
    def test_another_loss_is_another_run(self, tiny: Path, loss: str, named: str) -> None:
        assert f"\n  optim.loss: triplet when it was begun, {named} now\n" in self.refusal(tiny, f"optim.loss={loss}")

    @pytest.mark.parametrize(
        ("strategy", "nums", "refused"),
        [("random", 2, False), ("blocks", 2, False), ("blocks", 6, True), ("kfold", 4, True)],
    )
    def test_folds_may_be_added_where_the_split_stays(
        self, tiny: Path, strategy: str, nums: int, refused: bool
    ) -> None:
        given = [f"k_fold.strategy={strategy}", "k_fold.nums=3"]
        stored = option.dump(option.load_options(tiny, given))
        now = option.load_options(tiny, [*given, f"k_fold.nums={nums}"])
        if refused:
            with pytest.raises(InputError, match=f"k_fold.nums: [35] when it was begun, {nums} now"):
                _refuse_other_options(stored, now, Path("run"), "the key")
        else:
            _refuse_other_options(stored, now, Path("run"), "the key")

    def test_damaged_options_are_named(self, tiny: Path) -> None:
        given = option.load_options(tiny)
        with pytest.raises(InputError, match=r"last.pth is damaged: its options can't be read"):
            _refuse_other_options(option.dump(given) | {"k_fold": ["3"]}, given, Path("run"), "the key")

    def test_a_damaged_weight_is_named(self, tiny: Path) -> None:
        given = option.load_options(tiny, ["optim.loss=triplet"])
        stored = option.dump(given)
        stored["optim"]["loss"] = {"triplet": ["much"]}
        with pytest.raises(InputError, match=r"optim.loss: \['much'\] triplet when it was begun, triplet now"):
            _refuse_other_options(stored, given, Path("run"), "the key")

    def test_without_a_block_for_the_model_the_rest_is_compared(self, tiny: Path) -> None:
        assert "optim.seed" in self.refusal(tiny, "optim.seed=7", "model")
