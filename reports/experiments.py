"""Finished experiments side by side: `python experiment_table.py checkpoint/A checkpoint/B ... [--out TABLE.md]`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.history import read_history, validation_score
from reports.tables import RECALLS
from runs.checkpoints import flat_options
from runs.scoring import RANDOM_TIES
from runtime.entry_point import run_entry_point
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, first_line, markdown, write_text_atomic

NAMES_ONLY = ("k_fold.experiment_name", "logs.ckpt_save_path")
"""Options that say where a run lies, not what it is."""

TIED = f"{RANDOM_TIES}mR"


@dataclass(frozen=True)
class Experiment:
    """What `train.py` and `test.py` left of one experiment.

    Attributes:
        folder: of the experiment.
        options: dotted key -> value, see `runs.checkpoints.flat_options`.
        test: content of its `test.json`.
        histories: the epochs of each fold, see `reports.history.read_history`.
    """

    folder: Path
    options: Mapping[str, Any]
    test: Mapping[str, Any]
    histories: Sequence[Sequence[Mapping[str, float]]]

    @property
    def folds(self) -> Mapping[str, Mapping[str, float]]:
        """Label -> scores of the test list in percent."""
        rows: Mapping[str, Mapping[str, float]] = self.test["rows"]
        return rows

    @property
    def best_epochs(self) -> list[Mapping[str, float]]:
        """The epoch of each fold that validation chose."""
        return [_best(history) for history in self.histories]

    @property
    def validation(self) -> list[float]:
        """Best validation score of each fold."""
        return [epoch[validation_score([epoch])] for epoch in self.best_epochs]

    def fold_folder(self, label: str) -> Path:
        """Where a fold of `folds` lies."""
        return self.folder / label.removeprefix("fold ")


def read_experiment(folder: Path, tables: Sequence[str] = ()) -> Experiment:
    """Read an experiment's `test.json` and its folds' `history.csv`.

    Args:
        folder: of the experiment.
        tables: further keys of `test.json` whose recalls are needed.

    Raises:
        InputError: it was not tested yet, or a file is damaged.
    """
    path = folder / "test.json"
    try:
        content = parse_json(read_bytes(path))
        options = flat_options(content["options"])
        for scores in [*content["rows"].values(), *(content[table] for table in tables)]:
            if missing := RECALLS.keys() - scores.keys():
                raise ValueError(f"no {min(missing)}")
        experiment = Experiment(folder, options, content, ())
        histories = [read_history(experiment.fold_folder(label)) for label in experiment.folds]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(
            f"{path}: not the result of a test ({first_line(fault)}). Make it: python test.py --path_opt ..."
        ) from fault
    return replace(experiment, histories=histories)


def _best(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The epoch of a fold that was best on val."""
    score = validation_score(history)
    return max((row for row in history if score in row), key=lambda row: row[score])


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """Dotted keys of the options in which the experiments differ, in the order of the schema."""
    return differing_keys([experiment.options for experiment in experiments], NAMES_ONLY)


def differing_keys(options: Sequence[Mapping[str, Any]], but: Sequence[str]) -> list[str]:
    """Dotted keys in which some options differ, in the order of the schema, without those in `but`."""
    keys = list(dict.fromkeys(key for given in options for key in given))
    return [key for key in keys if key not in but and len({str(given.get(key)) for given in options}) > 1]


def spread_over_folds(experiments: Sequence[Experiment]) -> float:
    """Standard deviation of mR over the folds of one experiment, pooled over all of them.

    Raises:
        InputError: every experiment has a single fold.
    """
    columns = [[scores["mR"] for scores in experiment.folds.values()] for experiment in experiments]
    freedom = sum(len(column) - 1 for column in columns)
    if freedom == 0:
        raise InputError("all these experiments have one fold: without a second one, no spread can be told.")
    squares = sum(statistics.variance(column) * (len(column) - 1) for column in columns if len(column) > 1)
    return (squares / freedom) ** 0.5


def table(experiments: Sequence[Experiment]) -> list[list[str]]:
    """Cells: a row per experiment, with the options that differ, val, the recalls, and mR against the first row.

    Where captions are equal word for word, also mR with ties at random, see `metrics.ties.random_tie_recalls`.
    """
    keys = differing(experiments)
    spread = spread_over_folds(experiments)
    tied = any(TIED in scores for experiment in experiments for scores in experiment.folds.values())
    cells = [[*(key.rsplit(".", 1)[-1] for key in keys), "val mR", *RECALLS.values()]]
    cells[0] += ["against the first", *(["mR, ties at random"] if tied else [])]
    first = experiments[0]
    for experiment in experiments:
        row = [short(experiment.options.get(key)) for key in keys]
        row.append(f"{statistics.fmean(experiment.validation):.2f}")
        row += [_mean(experiment, name) for name in RECALLS if name != "mR"] + [_with_deviation(experiment, "mR")]
        row.append("" if experiment is first else _against(experiment, first, spread))
        cells.append([*row, *([_with_deviation(experiment, TIED)] if tied else [])])
    return cells


def _values(experiment: Experiment, name: str) -> list[float]:
    return [scores[name] for scores in experiment.folds.values() if name in scores]


def _mean(experiment: Experiment, name: str) -> str:
    return f"{statistics.fmean(values):.2f}" if (values := _values(experiment, name)) else ""


def _with_deviation(experiment: Experiment, name: str) -> str:
    values = _values(experiment, name)
    return _mean(experiment, name) + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _against(experiment: Experiment, first: Experiment, spread: float) -> str:
    """The difference in mR; in bold where it is more than twice its standard error."""
    means = [statistics.fmean(_values(one, "mR")) for one in (experiment, first)]
    error = spread * sum(1 / len(one.folds) for one in (experiment, first)) ** 0.5
    difference = f"{means[0] - means[1]:+.2f}"
    return f"**{difference}**" if abs(means[0] - means[1]) > 2 * error else difference


def short(value: Any) -> str:
    """An option as a cell: a file by its name."""
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def text(experiments: Sequence[Experiment]) -> str:
    """The table as Markdown, with a line on how to read its last column."""
    folds = sorted({len(experiment.folds) for experiment in experiments})
    return (
        f"{markdown(table(experiments))}\n\nTest split, means over {' or '.join(map(str, folds))} folds in percent; "
        "val mR chose each fold's epoch. The spread of mR over folds, pooled over all rows, is "
        f"{spread_over_folds(experiments):.2f}; a difference to the first row that is more than twice its standard "
        "error (by that spread) is in bold.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of some experiments."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.experiments", description="Put finished experiments side by side."
    )
    parser.add_argument("experiment", type=Path, nargs="+", help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--out", type=Path, help="write the table here, too")
    given = parser.parse_args(arguments)
    shown = text([read_experiment(folder) for folder in given.experiment])
    print(shown, end="")
    if given.out is not None:
        write_text_atomic(given.out, shown)


if __name__ == "__main__":
    run_entry_point(main)
