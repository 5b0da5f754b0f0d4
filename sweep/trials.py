"""The trials of a sweep: Optuna proposes values, train.py trains with them, the best val score decides."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import option
from reports.history import best_epoch, read_history, validation_score
from runs.folders import run_folder
from sweep.plan import Plan, Range
from utils import InputError, as_csv, import_extra, logger, markdown, write_text_atomic

STUDY, TABLE, TRIALS, IMPORTANCE = "study.log", "table.md", "trials.csv", "importance.png"
"""The files of a sweep."""
PLAN = "plan"
"""What the study keeps of its plan."""
Train = Callable[[Sequence[str]], int]
"""Trains with the arguments of train.py -> exit status."""


def train(arguments: Sequence[str]) -> int:
    """Run train.py as a user would."""
    return subprocess.run([sys.executable, "train.py", *arguments], check=False).returncode


def search(plan: Plan, out: Path, train: Train = train) -> str:
    """Run the trials that are still to run, and write what was found.

    A trial that was stopped midway is taken up first; its training goes on where it was.

    Returns:
        The table of all trials, the best first.

    Raises:
        InputError: Optuna is missing, the folder holds a sweep of another plan, the options are wrong, or a training
            failed.
    """
    optuna = import_extra("optuna", "a sweep needs Optuna", "sweep")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _refuse_wrong_options(plan)  # before the folder holds anything that a mended plan would be held to
    out.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(out / STUDY)))
    study = optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True, direction="maximize")
    _refuse_other_plan(study, plan, out)
    # Another seed each time it goes on: the sampler begins anew, and would propose the first values once more.
    study.sampler = optuna.samplers.TPESampler(seed=plan.seed + len(study.trials))
    states = optuna.trial.TrialState
    _take_up(study, states, plan.ranges)
    done = len(study.get_trials(states=(states.COMPLETE,)))
    study.optimize(lambda trial: _score(plan, out, _values(plan, trial), train), n_trials=max(0, plan.trials - done))
    return _write(study, states.COMPLETE, out)


def _refuse_wrong_options(plan: Plan) -> None:
    """Read the options at both ends of all ranges."""
    ends = {key: allowed.ends if isinstance(allowed, Range) else allowed for key, allowed in plan.ranges.items()}
    for place in (0, -1):
        option.load_options(plan.path_opt, _settings(plan, {key: values[place] for key, values in ends.items()}))


def _refuse_other_plan(study: Any, plan: Plan, out: Path) -> None:
    """Let a folder hold the trials of one plan, which alone can be compared; more of them may be asked for."""
    asked = plan.model_dump(mode="json", exclude={"trials", "seed"})
    begun = study.user_attrs.get(PLAN, asked)
    if other := [key for key in asked if begun.get(key) != asked[key]]:
        raise InputError(f"{out} holds a sweep that was begun with other {', '.join(other)}: choose another --out.")
    study.set_user_attr(PLAN, asked)


def _take_up(study: Any, states: Any, keys: Collection[str]) -> None:
    """Let the trials that were stopped or failed be the next ones."""
    ended = [trial.params for trial in study.get_trials(states=(states.COMPLETE,))]
    for trial in study.get_trials(states=(states.RUNNING, states.FAIL)):
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
        if trial.params.keys() == set(keys) and trial.params not in ended:
            study.enqueue_trial(trial.params, skip_if_exists=False)
            ended.append(trial.params)


def _values(plan: Plan, trial: Any) -> dict[str, Any]:
    """What Optuna proposes for each option."""
    values: dict[str, Any] = {}
    for key, allowed in plan.ranges.items():
        if not isinstance(allowed, Range):
            values[key] = trial.suggest_categorical(key, allowed)
        elif allowed.integer:
            values[key] = trial.suggest_int(key, *allowed.ends, log=allowed.log)
        else:
            values[key] = trial.suggest_float(key, *allowed.ends, log=allowed.log)
    return values


def _settings(plan: Plan, values: Mapping[str, Any]) -> list[str]:
    """The overrides of a trial."""
    return [*plan.settings, *(f"{key}={value}" for key, value in values.items())]


def _score(plan: Plan, out: Path, values: Mapping[str, Any], train: Train) -> float:
    """The best val score of a training with these values; of one that was begun, it goes on."""
    name = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    place = [f"logs.ckpt_save_path={out}", f"logs.group={out.resolve().name}", f"k_fold.experiment_name={name}"]
    settings = [*_settings(plan, values), *place]
    options = option.load_options(plan.path_opt, settings)
    logger.info("Trial %s: %s", name, ", ".join(f"{key} {value}" for key, value in values.items()))
    status = train(["--path_opt", str(plan.path_opt), "--folds", str(plan.fold), "--set", *settings])
    if status:
        raise InputError(
            f"the training of trial {name} ended with status {status}; once it is mended, the same command goes on."
        )
    history = read_history(run_folder(options, plan.fold))
    return best_epoch(history)[validation_score(history)]


def _write(study: Any, complete: Any, out: Path) -> str:
    """Write table, list and importances of the finished trials."""
    trials = sorted(study.get_trials(states=(complete,)), key=lambda trial: -trial.value)
    rows = [{"trial": trial.number, "val": trial.value, **trial.params} for trial in trials]
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    table = markdown(cells)
    write_text_atomic(out / TABLE, f"{table}\n")
    write_text_atomic(out / TRIALS, as_csv(rows))
    keys = trials[0].params.keys()
    if len(trials) > 1 and all(len({trial.params[key] for trial in trials}) > 1 for key in keys):
        _draw(study, out / IMPORTANCE)
    return table


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw(study: Any, path: Path) -> None:
    """Bars of how much of the differences in score each option explains."""
    optuna = import_extra("optuna", "a sweep needs Optuna", "sweep")
    figures = import_extra("matplotlib.figure", "the plot of importances needs Matplotlib", "plot")
    shares = dict(reversed(optuna.importance.get_param_importances(study).items()))
    figure = figures.Figure(figsize=(7, 1 + 0.4 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(shares), list(shares.values()))
    axes.set_xlabel("share of the differences in the val score")
    figure.savefig(path)
