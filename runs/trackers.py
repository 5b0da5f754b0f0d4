"""MLflow and Weights & Biases by their own packages, offline unless told otherwise (`logs.trackers`)."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from PIL import Image

from option.schema import Logs
from runtime.locks import waiting_lock
from runtime.untrusted import parse_json, read_bytes
from utils import as_json, first_line, import_extra, logger, write_text_atomic

FILE = "trackers.json"
"""In the run's folder: tracker -> its name for the run, by which a resumed run goes on there."""
PROJECT = "rsretrieval"
"""Of Weights & Biases; its own WANDB_PROJECT says another one."""
AT_ONCE = 100
"""Values that MLflow takes in one call, the least of its limits."""
MOST_WAITING = 10_000
"""Notes that wait for a tracker before it counts as stuck."""
PATIENCE = 60
"""Seconds that the end of a run waits for a tracker."""
LONG_PATIENCE = 600
"""Seconds that test.py waits for one, which has only just begun to import its package."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # offline is offline
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "WANDB_ERROR_REPORTING": "false",
}
"""Settings of the packages, where the user has none."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        folder: of the run.
        root: of all runs.
        group: what it belongs to: MLflow's experiment, the group of Weights & Biases.
        name: of the run.
        options: by dotted key.
    """

    folder: Path
    root: Path
    group: str
    name: str
    options: Mapping[str, Any]


class Tracker(Protocol):
    """A run in a tracker. All methods may wait and raise anything; `Background` is what bears with it."""

    @property
    def id(self) -> str:
        """Its name for the run."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Record one number, at the latest with the next `flush`."""

    def add_text(self, tag: str, text: str) -> None:
        """Record a text as a file."""

    def add_image(self, tag: str, image: Image.Image, step: int) -> None:
        """Record an RGB image."""

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """Record what the run came to."""

    def flush(self) -> None:
        """Hand over what was recorded."""

    def close(self, failed: bool) -> None:
        """End the run, which may go on later."""


class MLflow:
    """A run of MLflow: where MLFLOW_TRACKING_URI says, else in `mlflow.db` in the folder of all runs."""

    def __init__(self, run: TrackedRun, begun: str | None) -> None:
        """Begin the run, or go on with the one named `begun`."""
        tracking = import_tracker("mlflow").tracking
        uri, root = os.environ.get("MLFLOW_TRACKING_URI"), run.root.resolve()
        self._metrics: list[Any] = []
        # Two processes that made the tables of one database together would break it.
        with nullcontext() if uri else waiting_lock(root / "mlflow.db"):
            self._client = tracking.MlflowClient(uri or f"sqlite:///{root / 'mlflow.db'}")
            place = self._experiment(run.group, None if uri else (root / "mlflow").as_uri())
        known = [] if begun is None else self._client.search_runs([place], f"attributes.run_id = '{begun}'")
        found = known[0] if known else self._client.create_run(place, run_name=run.name)
        self.id: str = found.info.run_id
        self._client.update_run(self.id, status="RUNNING")
        self._add_options(run.options)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """The experiment of a name, made where there is none."""
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name, artifacts))
            except Exception:  # a training beside this one may have made it just now
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def _add_options(self, options: Mapping[str, Any]) -> None:
        """Give the options as parameters, which MLflow never lets change: those of a resumed run stay."""
        given = self._client.get_run(self.id).data.params
        param = import_tracker("mlflow").entities.Param
        new = [param(key, str(value)) for key, value in options.items() if key not in given]
        for start in range(0, len(new), AT_ONCE):
            self._client.log_batch(self.id, params=new[start : start + AT_ONCE])

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """See `Tracker`. MLflow allows no @ in names: R@1 is R_at_1 there."""
        metric = import_tracker("mlflow").entities.Metric
        self._metrics.append(metric(tag.replace("@", "_at_"), value, int(1000 * time.time()), step))

    def add_text(self, tag: str, text: str) -> None:
        """See `Tracker`."""
        self._client.log_text(self.id, text, f"{tag}.txt")

    def add_image(self, tag: str, image: Image.Image, step: int) -> None:
        """See `Tracker`."""
        self._client.log_image(self.id, image, key=tag, step=step)

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in scores.items():
            self.add_scalar(name, value, 0)

    def flush(self) -> None:
        """See `Tracker`."""
        metrics, self._metrics = self._metrics, []
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self.id, metrics=metrics[start : start + AT_ONCE])

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of Weights & Biases below the run's folder, for `wandb sync`; WANDB_MODE=online sends it at once."""

    def __init__(self, run: TrackedRun, begun: str | None) -> None:
        """Begin the run, or go on with the one named `begun`."""
        self._wandb = import_tracker("wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        self.id = begun or uuid4().hex[:12]  # not of wandb's own making, which would draw from Python's generator
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=run.group,
            name=run.name,
            id=self.id,
            resume=None if mode == "offline" else "allow",
            dir=str(run.folder),
            reinit="create_new",
            settings=self._wandb.Settings(mode=mode, console="off", silent=True),
        )
        self._run.config.update(dict(run.options), allow_val_change=True)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """See `Tracker`."""
        self._run.log({tag: value}, step=step)

    def add_text(self, tag: str, text: str) -> None:
        """See `Tracker`."""
        path = Path(self._run.dir) / f"{tag}.txt"
        path.write_text(text, encoding="utf-8")
        self._run.save(str(path), base_path=str(path.parent), policy="now")

    def add_image(self, tag: str, image: Image.Image, step: int) -> None:
        """See `Tracker`."""
        self._run.log({tag: self._wandb.Image(image, file_type="jpg")}, step=step)

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """See `Tracker`. A step of their own would lie before those that the run has."""
        self._run.summary.update(dict(scores))

    def flush(self) -> None:
        """Nothing is held back here."""

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


KINDS: dict[str, Callable[[TrackedRun, str | None], Tracker]] = {"mlflow": MLflow, "wandb": WandB}
"""Name of a tracker, its package and the extra that brings it -> what begins a run there."""


class Background:
    """A tracker at work in a thread of its own: nobody waits for it, and its first fault, said once, is its last."""

    def __init__(self, title: str, begin: Callable[[], Tracker]) -> None:
        """Prepare it; `title` names it in messages, `begin` begins its run."""
        self.title = title
        self._begin = begin
        self._todo: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)
        self._given_up = False

    def open(self) -> None:
        """Begin the run."""
        self._thread.start()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record one number."""
        self._put(lambda tracker: tracker.add_scalar(tag, scalar_value, global_step))

    def add_text(self, tag: str, text: str) -> None:
        """Record a text."""
        self._put(lambda tracker: tracker.add_text(tag, text))

    def add_image(self, tag: str, image: Image.Image, global_step: int) -> None:
        """Record an RGB image."""
        self._put(lambda tracker: tracker.add_image(tag, image, global_step))

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """Record what the run came to."""
        self._put(lambda tracker: tracker.add_scores(scores))

    def flush(self) -> None:
        """The thread hands over what it has; nobody waits for it."""

    def close(self, failed: bool, patience: float | None = None) -> None:
        """End the run, for which it has some seconds, by default `PATIENCE`."""
        patience = PATIENCE if patience is None else patience
        self._put(lambda tracker: tracker.flush())
        self._put(lambda tracker: tracker.close(failed))
        self._put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            self._give_up(f"not finished after {patience:g} seconds")

    def _put(self, work: Callable[[Tracker], None] | None) -> None:
        if self._given_up:
            return
        try:
            self._todo.put_nowait(work)
        except queue.Full:
            self._give_up(f"{MOST_WAITING} notes wait for it")

    def _work(self) -> None:
        try:
            tracker = self._begin()
            while not self._given_up and (work := self._todo.get()) is not None:
                work(tracker)
                if self._todo.empty():
                    tracker.flush()
        except Exception as fault:  # whatever a package or its server comes up with
            self._give_up(first_line(fault))

    def _give_up(self, why: str) -> None:
        if not self._given_up:
            self._given_up = True
            logger.warning("%s gets no more figures (%s); all else goes on.", self.title, why)


def import_tracker(name: str) -> Any:
    """The package of a tracker.

    Raises:
        InputError: it is not installed.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    return import_extra(name, f"logs.trackers: {name} is not installed", name)


def require_trackers(names: Collection[str]) -> None:
    """Find out before the work whether the packages of trackers are there.

    Raises:
        InputError: one is not installed; names the command that installs it.
    """
    for name in names:
        import_tracker(name)


def backgrounds(logs: Logs, folder: Path, options: Mapping[str, Any]) -> list[Background]:
    """The trackers of a run.

    Args:
        logs: which, and where all runs are.
        folder: of the run; its place below the folder of all runs is its name, the first part of that its group.
        options: by dotted key.
    """
    root = Path(logs.ckpt_save_path)
    place = folder.relative_to(root)
    run = TrackedRun(folder, root, logs.group or place.parts[0], place.as_posix(), options)
    return [Background(f"{folder}: {name}", partial(begin, name, run)) for name in dict.fromkeys(logs.trackers)]


def begin(name: str, run: TrackedRun) -> Tracker:
    """Begin a run in a tracker, or go on with the one that its folder was begun with."""
    path = run.folder / FILE
    ids = _read_ids(path)
    tracker = KINDS[name](run, ids.get(name))
    with _WRITING:
        write_text_atomic(path, as_json(_read_ids(path) | {name: tracker.id}))
    return tracker


_WRITING = threading.Lock()
"""Of the file that two trackers begin at the same time."""


def _read_ids(path: Path) -> dict[str, str]:
    """The trackers' names for a run; none where there is no readable file."""
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)} if isinstance(content, dict) else {}
