"""Faults in flight: each ends in one clear message, the state before stays whole, and a resumed run goes on from it."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

import dataloader
import train as train_entry
from batches.batch import Batch
from data import image_store
from data.images import load_square
from option import Options
from option.images import ImageRule
from runs.checkpoints import refuse_diverged, save_checkpoint
from runs.events import EventLog, write_table
from runtime.entry_point import run_entry_point
from runtime.log import log_to
from runtime.machine import explain, is_out_of_memory
from runtime.weights import read_checkpoint
from tests.criteria import triplet_criterion
from tests.small_model import CPU_FAULT, CUDA_FAULT, SmallModel, out_of_memory_above, use_small_model
from tests.tiny import make_precomp, write_experiment
from training import epoch
from training.memory import backward_in_memory, parts_of
from training.state import TrainingState, optimiser_step
from utils import InputError, RunFault, logger, write_atomic

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Run:
    """One fold of an experiment that is trained for one epoch, saved, and then gone on with until something happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = make_precomp(folder / "data")
        self.path = write_experiment(folder, self.data)
        self.last = folder / "checkpoint" / "tiny" / "0" / "last.pth"
        self.train(1)
        self.saved = self.last.read_bytes()

    def train(self, epochs: int, *overrides: str) -> None:
        given = ["--path_opt", str(self.path), "--folds", "0"]
        train_entry.main([*given, "--set", f"optim.epochs={epochs}", "dataset.cache=off", *overrides])

    def fails(self, *overrides: str) -> str:
        """Go on into the fault; returns its message, with the old state found whole."""
        with pytest.raises(RunFault) as caught:
            self.train(3, *overrides)
        assert self.last.read_bytes() == self.saved
        assert read_checkpoint(self.last)["epoch"] == 1
        assert not list(self.last.parent.glob(".*.unfinished"))  # no temporary file is left
        message = str(caught.value)
        assert message.endswith(
            f"{self.last} is whole, as it was saved last: once that is mended, the same command goes on from there."
        )
        return message

    def goes_on(self) -> dict[str, Any]:
        """The fault is mended: the run must reach its end."""
        self.train(3)
        content = read_checkpoint(self.last)
        assert content["epoch"] == 3
        return content


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    use_small_model(monkeypatch)
    return Run(tmp_path)


class TestImages:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_image_that_can_not_be_read_any_more_is_named(self, run: Run, workers: int) -> None:
        image = run.data / "images" / (run.last.parent / "split" / "train.txt").read_text().split()[3]
        content = image.read_bytes()
        image.write_bytes(content[:200])
        message = run.fails(f"dataset.workers={workers}")
        assert f"{image}: the image is damaged or cut short" in message
        image.write_bytes(content)
        run.goes_on()

    def test_a_folder_that_vanishes(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = iter(range(10**6))

        def vanish(path: Path, size: int, rule: ImageRule) -> object:
            if next(calls) == 20:
                (run.data / "images").rename(run.data / "away")
            return load_square(path, size, rule)

        monkeypatch.setattr(image_store, "load_square", vanish)
        assert "its folder is not there either: is the disk mounted?" in run.fails()
        (run.data / "away").rename(run.data / "images")
        run.goes_on()


class Dying(Dataset[Tensor]):
    """A data set whose worker is killed, as the system does when memory is short."""

    def __init__(self, store: object) -> None:
        self.store = store

    def __getitem__(self, indices: Tensor) -> Tensor:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)
        return indices


class TestWorkers:
    def test_a_killed_worker(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(dataloader, "_Images", Dying)
            message = run.fails("dataset.workers=1")
        assert message.startswith("a process that reads images died (DataLoader worker (pid")
        assert "Use fewer of them (--set dataset.workers=1; 0: the main process reads)" in message
        run.goes_on()

    @pytest.mark.parametrize(
        "text",
        [
            "DataLoader worker (pid 8) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            "Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared memory(shm) for file "
            "</torch_8_1_0>: Resource temporarily unavailable (11)",
            "unable to write to file </torch_8_1_0>: No space left on device (28)",
        ],
    )
    def test_too_little_shared_memory(self, text: str) -> None:
        message = explain(RuntimeError(text))
        assert message is not None
        assert "ran out of shared memory" in message
        assert "--shm-size" in message

    def test_a_batch_that_can_not_be_shared_does_not_hang(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(tensor: Tensor) -> Tensor:
            raise RuntimeError("unable to allocate shared memory(shm) for file </torch_8_1_0>: No space left (28)")

        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "share_memory_", full)
            patch.setattr(dataloader, "get_worker_info", lambda: 0)  # as in a worker
            message = run.fails("dataset.workers=0")
        assert message.startswith("the processes that read images ran out of shared memory (")
        run.goes_on()

    def test_a_worker_that_exits(self) -> None:
        message = explain(RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"))
        assert message is not None
        assert "(DataLoader worker (pid(s) 12, 13) exited unexpectedly)" in message

    def test_other_errors_are_not_explained_away(self) -> None:
        assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        assert explain(KeyError("x")) is None


class TestMemory:
    @pytest.mark.parametrize("fault", [CUDA_FAULT, CPU_FAULT, MemoryError()], ids=["cuda", "cpu", "python"])
    def test_the_message_names_a_batch_that_fits(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, fault: Exception
    ) -> None:
        with monkeypatch.context() as patch:
            use_small_model(patch, out_of_memory_above(5, fault))
            message = run.fails()
        assert message.startswith("out of memory in epoch 2 at a batch of 8 (")
        assert "enforce fail" not in message
        assert "A batch of 5 fits: --set dataset.batch_size=5" in message
        assert "optim.on_oom=halve" in message
        run.goes_on()

    def test_batches_are_halved_for_the_rest_of_the_run(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        sizes: list[int] = []

        def note(batch: Batch) -> None:
            sizes.append(len(batch))
            if len(batch) > 5:
                raise CUDA_FAULT

        use_small_model(monkeypatch, note)
        run.train(2, "optim.on_oom=halve")
        # 38 captions: four batches of 8 and one of 6
        assert sizes == [8, *[4] * 8, 3, 3]
        assert "Each batch is now worked off in 2 parts" in caplog.text
        assert "only its own 4 items as negatives" in caplog.text
        assert read_checkpoint(run.last)["parts"] == 2
        run.train(3, "optim.on_oom=halve")
        assert sizes[11:] == [*[4] * 8, 3, 3]  # a resumed run does not try the whole batch again

    def test_nothing_is_left_to_halve(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        use_small_model(monkeypatch, out_of_memory_above(0, CUDA_FAULT))
        message = run.fails("optim.on_oom=halve")
        assert "at a batch of 2 (CUDA out of memory). Lower dataset.batch_size" in message

    def test_another_error_of_a_step_stays_itself(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        use_small_model(monkeypatch, out_of_memory_above(0, RuntimeError("shapes do not fit")))
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            run.train(2, "optim.on_oom=halve")

    def test_parts_give_the_sum_of_their_gradients(self) -> None:
        torch.manual_seed(0)
        model = SmallModel(20, out_of_memory_above(4, CPU_FAULT))
        state = state_of(model)
        batch = random_batch(7)

        def backward(part: Batch) -> dict[str, Tensor]:
            losses = model.training_loss(part, triplet_criterion(0.2, hardest=False))
            losses["loss"].backward()
            return losses

        losses = backward_in_memory(state, batch, backward, "halve")
        assert state.parts == 2
        found = model.colours.weight.grad
        assert found is not None
        state.optimizer.zero_grad()
        model.before_loss = None
        assert batch.images is not None
        assert batch.tokens is not None
        assert batch.lengths is not None
        expected = 0.0
        for rows in (slice(0, 4), slice(4, 7)):
            part = Batch(images=batch.images[rows], tokens=batch.tokens[rows], lengths=batch.lengths[rows])
            expected += float(backward(part)["loss"].detach())
        torch.testing.assert_close(found, model.colours.weight.grad)
        assert float(losses["loss"]) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("items", "parts", "sizes"), [(8, 1, [8]), (8, 4, [2] * 4), (9, 4, [3] * 3), (5, 4, [2, 3])]
    )
    def test_no_part_has_a_single_item(self, items: int, parts: int, sizes: list[int]) -> None:
        batch = random_batch(items)
        cut = parts_of(batch, parts)
        assert [len(part) for part in cut] == sizes
        assert torch.equal(torch.cat([part.need("images") for part in cut]), batch.need("images"))
        assert all(part.need("tokens").shape[1] == int(part.need("lengths").max()) for part in cut) or parts == 1

    def test_what_counts_as_out_of_memory(self) -> None:
        assert all(map(is_out_of_memory, [CUDA_FAULT, CPU_FAULT, MemoryError()]))
        assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
        assert not is_out_of_memory(ValueError("out of memory"))
        message = explain(CUDA_FAULT)
        assert message is not None
        assert "dataset.batch_size_val" in message


def random_batch(items: int) -> Batch:
    lengths = torch.randint(1, 6, (items,))
    tokens = torch.randint(1, 21, (items, 5)) * (torch.arange(5) < lengths[:, None])
    return Batch(images=torch.rand(items, 3, 4, 4), tokens=tokens, lengths=lengths)


def state_of(model: SmallModel) -> TrainingState:
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return TrainingState(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))


class TestDivergence:
    def test_the_first_step_at_fault_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = iter(range(10**6))

        def poison(state: TrainingState, clip: float) -> None:
            optimiser_step(state, clip)
            if next(steps) == 1:
                with torch.no_grad():
                    next(state.model.parameters()).fill_(float("nan"))

        with monkeypatch.context() as patch:
            patch.setattr(epoch, "optimiser_step", poison)
            message = run.fails()
        assert message.startswith("the loss became nan in epoch 2 at step 3. Try a lower optim.lr")
        run.goes_on()

    def test_weights_that_break_in_the_last_step_are_not_saved(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = iter(range(10**6))

        def poison(state: TrainingState, clip: float) -> None:
            optimiser_step(state, clip)
            if next(steps) == 4:  # the last of five, after which the loss is not computed again
                with torch.no_grad():
                    next(state.model.parameters())[0, 0] = float("inf")

        with monkeypatch.context() as patch:
            patch.setattr(epoch, "optimiser_step", poison)
            message = run.fails("logs.eval_step=9")
        assert f"{run.last} was not written: 1 tensors of the run hold numbers that are not finite" in message
        assert "(model.colours.weight)" in message
        run.goes_on()

    def test_a_diverged_optimiser_counts(self) -> None:
        state = {"optimizer": {"state": {0: {"exp_avg": torch.tensor([1.0, float("nan")])}}}, "epoch": 1}
        with pytest.raises(InputError, match=r"\(optimizer\.state\.0\.exp_avg\)"):
            refuse_diverged(Path("x"), state)
        refuse_diverged(Path("x"), {"model": {"a": torch.ones(2)}, "best": float("-inf"), "ids": torch.arange(3)})


class TestDisk:
    def test_a_full_disk_keeps_the_last_checkpoint(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(handle: int) -> None:
            raise FULL

        with monkeypatch.context() as patch:
            # options.yaml is written before the training
            patch.setattr("runs.fold.write_text_atomic", lambda path, text: None)
            patch.setattr(os, "fsync", full)
            message = run.fails("logs.eval_step=9")
        assert message.startswith(f"{run.last} can't be written: No space left on device, ")
        assert re.search(r"[\d.]+ [GMK]iB free at ", message)
        run.goes_on()

    def test_a_disk_that_fills_within_a_write(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode:
            pytest.skip("only root can mount a small disk")
        try:
            path, options = disk / "last.pth", tiny_options("AMFMN")
            save_checkpoint(path, {"model": {"a": torch.zeros(100_000)}}, options)
            before = path.read_bytes()
            with pytest.raises(OSError, match="No space left on device") as caught:
                save_checkpoint(path, {"model": {"a": torch.zeros(200_000)}}, options)
            assert caught.value.filename == str(path)
            assert [file.name for file in disk.iterdir()] == ["last.pth"]
            assert path.read_bytes() == before
            assert len(read_checkpoint(path)["model"]["a"]) == 100_000
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_the_file_that_could_not_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "folder" / "below.txt"
        with pytest.raises(OSError, match="Not a directory") as caught:
            write_atomic(path, lambda file: file.write(b"x"))
        assert caught.value.filename == str(path)

    def test_events_that_can_not_be_written_are_one_warning(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(writer: object, content: bytes) -> None:
            raise FULL

        hook = threading.excepthook
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
        content = run.goes_on()
        assert len(content["history"]) == 3
        warnings = [record.getMessage() for record in caplog.records if "TensorBoard's events" in record.getMessage()]
        assert len(warnings) == 1
        assert "(No space left on device); the training goes on" in warnings[0]
        assert threading.excepthook is hook

    def test_a_disk_that_fills_at_the_end_of_the_events(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        refused = []

        def full(writer: object) -> None:
            refused.append(writer)
            raise FULL

        with EventLog(tmp_path, purge_step=1) as events:
            events.add_scalar("train/loss", 1.0, 1)
            monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.flush", full)
        assert refused  # and nothing was raised here
        events.add_scalar("train/loss", 1.0, 2)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_a_log_that_can_not_be_written_is_one_warning(
        self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with log_to(Path("/dev/full")):
            logger.info("first")
            logger.info("second")
        heard = [record.getMessage() for record in caplog.records]
        assert sorted(heard[:2])[0].startswith("/dev/full can't be written any more ([Errno 28]")
        assert sorted(heard[:2])[1:] + heard[2:] == ["first", "second"]
        assert "Traceback" not in capsys.readouterr().err

    def test_a_table_can_be_done_without(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "file").touch()
        write_table(tmp_path / "file" / "folder" / "history.csv", "epoch\n")
        assert "history.csv can't be written (Not a directory); the training goes on" in caplog.text


def status_of(fault: BaseException) -> int | str | None:
    def fail() -> None:
        raise fault

    with pytest.raises(SystemExit) as caught:
        run_entry_point(fail)
    return caught.value.code


class TestExitStatus:
    def test_what_the_user_gave_and_what_stopped_the_work_differ(self) -> None:
        assert status_of(InputError("x")) == 2
        assert status_of(RunFault("x")) == 3
        assert status_of(KeyboardInterrupt()) == 130

    @pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.EACCES])
    def test_a_fault_of_the_machine_is_a_message(self, number: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert status_of(OSError(number, os.strerror(number), "/no/folder/train.log")) == 3
        assert "/no/folder/train.log" in (shown := capsys.readouterr().err)
        assert os.strerror(number) in shown
        assert "Traceback" not in shown

    def test_a_fault_of_ours_keeps_its_traceback(self) -> None:
        with pytest.raises(RuntimeError, match="shapes"):
            run_entry_point(raising(RuntimeError("shapes")))


def raising(fault: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise fault

    return fail


def test_nothing_saved_yet_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_model(monkeypatch, out_of_memory_above(0, CUDA_FAULT))
    with pytest.raises(RunFault, match="Nothing was saved yet: once that is mended, the same command begins anew"):
        Run(tmp_path)


def test_a_folder_that_can_not_be_written_is_named(run: Run) -> None:
    (run.folder / "file").touch()
    with pytest.raises(OSError, match="Not a directory") as caught:
        run.train(1, f"logs.ckpt_save_path={run.folder / 'file'}")
    message = explain(caught.value)
    assert message is not None
    assert f"{run.folder / 'file'}" in message
    assert "Something else has that name: move it away, or choose another" in message
