"""Going on with a run: what was begun, whether these options may go on with it, and what is saved for that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

import option
from data.splits import deciding
from option.dataset import set_name
from option.parameters import Parameters
from runs.checkpoints import FORMAT, flat_options, refuse_incomplete, save_checkpoint
from runs.events import write_table
from runs.provenance import start_of
from runs.ranges import begun_with
from runtime.distributed import World
from runtime.untrusted import read_bytes
from runtime.weights import read_checkpoint
from training.fitting import read_progress
from training.state import RANDOM, TrainingState
from utils import InputError, as_csv, first_line, logger

FREE = (
    *("logs.", "rerank.", "k_fold.", "optim.epochs", "optim.patience", "optim.resume", "optim.on_oom"),
    *("dataset.datatype", "dataset.workers", "dataset.batch_size_val", "dataset.cache", "dataset.test_views"),
    *("dataset.max_pixels", "dataset.missing_regions", "model.init_from"),
)
"""How options begin that a run may go on with other values of: they change no step of it, or only how many there are,
or only what it started from. Of `k_fold` counts what `data.splits.deciding` says."""
BEST = ("*_best.pth.tar", "backbone.pth", "pretrained.pth.tar")
"""Files of the weights that a training or a pretraining keeps."""


def begun_run(folder: Path, options: Parameters, resume: bool, name_key: str) -> dict[str, Any] | None:
    """The last checkpoint of a run's folder, None where nothing was begun.

    Args:
        folder: the run's folder.
        options: to go on with.
        resume: go on with what was begun.
        name_key: the option that names the folder, for the message.

    Raises:
        InputError: something was begun and `resume` does not say to go on with it, or it can't be read, or it was begun
            with other options.
    """
    last = folder / "last.pth"
    if not last.is_file():
        _refuse_remains(folder, last, name_key)
        return None
    if not resume:
        raise InputError(
            f"{folder} already holds a run. Go on with it (without --resume never), or train under another name "
            f"(--set {name_key}=NAME), or delete that folder."
        )
    content = read_checkpoint(last)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{last} was not written by this version of the project (format {FORMAT}): it can't be resumed."
        )
    refuse_incomplete(last, content)
    try:
        progress = read_progress(content)
    except ValueError as fault:
        raise InputError(
            f"{last} is damaged: it does not say how far it has come ({first_line(fault)}). Delete {folder} to begin "
            "anew."
        ) from fault
    _refuse_other_options(content["options"], begun_with(options, content), folder, name_key)
    return content | dict(progress)


def _refuse_remains(folder: Path, last: Path, name_key: str) -> None:
    """Raise an InputError where a new run would write over the weights of one whose `last.pth` is gone."""
    if os.path.lexists(last):
        raise InputError(f"{last} is no file (a folder, or a link to nothing). Move it away, and start again.")
    if best := sorted(path for name in BEST for path in folder.glob(name)):
        raise InputError(
            f"{folder} holds the weights of a run ({best[0].name}), but its last.pth is gone: it can't be gone on "
            "with, and a new run would write over them. Put last.pth back, or train under another name (--set "
            f"{name_key}=NAME), or delete that folder."
        )


def _refuse_other_options(stored: dict[str, Any], options: Parameters, folder: Path, name_key: str) -> None:
    """Raise an InputError if a run would go on with other options than it was begun with."""
    try:
        before, now = (_that_matter(tree) for tree in (_with_defaults(stored, options), option.dump(options)))
    except (TypeError, AttributeError, LookupError) as fault:
        raise InputError(
            f"{folder / 'last.pth'} is damaged: its options can't be read ({first_line(fault)}). Delete {folder} to "
            "begin anew."
        ) from fault
    lines = [
        f"\n  {key}: {before[key]} when it was begun, {now[key]} now"
        for key in sorted(before.keys() & now.keys())
        if before[key] != now[key]
    ]
    if lines:
        raise InputError(
            f"{folder} was begun with other options:{''.join(lines)}\nGo on with those (all of them are in "
            f"{folder / 'options.yaml'}), or choose another {name_key}."
        )


def _with_defaults(stored: dict[str, Any], options: Parameters) -> dict[str, Any]:
    """Options that any version stored (`option.dump`), with the defaults of these options for what it did not know."""
    known = _shared(option.dump(options), stored)
    try:
        model = getattr(options, "model", None)
        if model is not None and "model" in known:  # its class is that of the registered model
            known["model"] = type(model).model_validate(known["model"])
        defaults = option.dump(type(options).model_validate(known))
    except ValidationError:  # of another model, or without something that has no default: there is nothing to fill in
        return stored
    return _filled(stored, defaults)


def _shared(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A tree without the keys that another one lacks."""
    return {
        key: _shared(value, other[key]) if isinstance(value, dict) and isinstance(other[key], dict) else value
        for key, value in tree.items()
        if key in other
    }


def _filled(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A tree with what it lacks of another one, but for the losses: one that is not in it has no weight."""
    filled = dict(tree)
    for key, value in defaults.items():
        if key not in tree:
            filled[key] = value
        elif key != "loss" and isinstance(value, dict) and isinstance(tree[key], dict):
            filled[key] = _filled(tree[key], value)
    return filled


def _that_matter(tree: dict[str, Any]) -> dict[str, Any]:
    """The options by dotted key that must be as they were."""
    options = flat_options(tree)
    kept = {key: value for key, value in options.items() if not key.startswith(FREE)}
    for key in kept:
        if isinstance(kept[key], list) and key == "dataset.data_path":  # several sets, which may have moved, too
            kept[key] = " + ".join(f"{each['weight']} x {set_name(Path(each['path']))}" for each in kept[key])
        elif key.endswith(("_path", ".exclude", ".dir_st", ".glove", ".resnet_ckpt")):
            kept[key] = "null" if kept[key] is None else "a path"  # files may have moved
        if key.endswith("pretrained"):
            kept[key] = start_of(kept[key])
    if options.get("optim.schedule") == "cosine":
        kept["optim.schedule_epochs"] = options["optim.schedule_epochs"] or options["optim.epochs"]
    if "k_fold" in tree:
        kept |= {f"k_fold.{key}": value for key, value in deciding(tree["k_fold"]).items()}
    return kept


def is_finished(begun: dict[str, Any], epochs: int, patience: int = 0) -> bool:
    """Whether a run has all its epochs, or has stopped early."""
    return bool(begun["epoch"] >= epochs or 0 < patience <= begun["validations_since_best"])


def unfinished(folder: Path) -> str | None:
    """How far the run of a folder has come, if that is not its end; None also where no `last.pth` says so."""
    last = folder / "last.pth"
    if not last.is_file():
        return None
    try:
        content = read_checkpoint(last)
        optim, progress = content["options"]["optim"], dict(read_progress(content))
        if is_finished(progress, optim["epochs"], optim.get("patience", 0)):
            return None
        return f"{progress['epoch']} of {optim['epochs']} epochs"
    except (InputError, LookupError, TypeError, AttributeError, ValueError):
        return None


def is_settled(begun: dict[str, Any], folder: Path, best: Path) -> bool:
    """Whether a run's other files are of its last checkpoint; not so if it was killed before it wrote them all.

    Raises:
        InputError: the weights of the best epoch are gone, and the last checkpoint is of another one.
    """
    at_best = begun["best_epoch"] == begun["epoch"] and begun["batch"] == 0
    if begun["best_epoch"] and not at_best and not best.is_file():
        raise InputError(
            f"{best} is gone: the weights of epoch {begun['best_epoch']}, the best so far. {folder / 'last.pth'} is of "
            f"epoch {begun['epoch']} and can't make up for them. Put the file back, or delete {folder} to begin anew."
        )
    history = folder / "history.csv"
    table = read_bytes(history) if history.is_file() else b""  # not as text: a damaged one is written anew
    if begun["history"] and table != as_csv(begun["history"]).encode():
        return False
    return not at_best or (best.is_file() and read_checkpoint(best)["epoch"] == begun["epoch"])


class Resumable(Protocol):
    """What a checkpoint is made of and gone on from."""

    @property
    def history(self) -> list[dict[str, float]]:
        """A row of figures for each whole epoch."""

    @property
    def at_best(self) -> bool:
        """Whether these are the weights to keep."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""


def carry_on(state: Resumable, begun: dict[str, Any], folder: Path, name_key: str) -> None:
    """Bring a new state to where a checkpoint was; the folder and the option that names it are for the message.

    Raises:
        InputError: the run was begun with another network, optimiser, loss or moving average.
    """
    try:
        state.load_state_dict(begun)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as fault:
        raise InputError(
            f"{folder / 'last.pth'} was begun with another network, optimiser, loss or moving average "
            f"({first_line(fault)}): go on with the options in {folder / 'options.yaml'}, or choose another {name_key}."
        ) from fault
    logger.info("Going on after epoch %d, batch %d.", begun["epoch"], begun.get("batch", 0))


def own_random_states(begun: dict[str, Any], world: World, folder: Path) -> dict[str, Any]:
    """A checkpoint as this rank goes on from it: with the random states that this rank had.

    Raises:
        InputError: it was written by another number of ranks; names the run's folder.
    """
    stored = begun.get("ranks", [{}])
    if len(stored) != world.size:
        raise InputError(
            f"{folder} was begun with {len(stored)} {'rank' if len(stored) == 1 else 'ranks'}, each with its own "
            f"random states and its share of a batch, and now there are {world.size}: go on with as many (torchrun's "
            "--nproc_per_node times --nnodes), or train under another name (--set k_fold.experiment_name=NAME)."
        )
    return begun | {key: value for key, value in stored[world.rank].items() if key in RANDOM}


def save_best(path: Path, state: TrainingState, options: Parameters, extra: dict[str, Any]) -> None:
    """Write the weights that are scored, with the figures of their epoch."""
    weights = {"model": state.scored.state_dict(), "epoch": state.epoch, "scores": state.history[-1]}
    save_checkpoint(path, weights | extra, options)


@dataclass(frozen=True)
class Keeper:
    """Saves a run.

    `last.pth` is written first: no other file is ever of an epoch that it does not know, and `settle` makes up from it
    what a killed run had still to write.

    Attributes:
        folder: the run's folder.
        best: the file of the best epoch's weights.
        options: stored in the checkpoint.
        keep_best: writes the files that are kept of the best epoch, `best` as the last of them.
        extra: stored in the checkpoint, too.
    """

    folder: Path
    best: Path
    options: Parameters
    keep_best: Callable[[], None]
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, state: Resumable, is_best: bool) -> None:
        """Save what to go on from and the history as a table; with `is_best` what is kept of the best epoch, too."""
        save_checkpoint(self.folder / "last.pth", state.state_dict() | self.extra, self.options)
        self._write_history(state)
        if is_best:
            self.keep_best()

    def settle(self, state: Resumable, begun: dict[str, Any] | None) -> None:
        """Write what follows from the checkpoint that a run goes on from, where it is not there."""
        if begun is not None and not is_settled(begun, self.folder, self.best):
            self._write_history(state)
            if state.at_best:
                self.keep_best()

    def _write_history(self, state: Resumable) -> None:
        if state.history:
            write_table(self.folder / "history.csv", as_csv(state.history))
