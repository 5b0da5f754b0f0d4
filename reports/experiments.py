"""Finished experiments side by side: `python -m reports.experiments checkpoint/A checkpoint/B ... [--out TABLE.md]`."""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.history import best_epoch, read_history, validation_score
from reports.significance import check_same_list, read_ranks
from reports.tables import RECALLS, with_deviation
from runs.checkpoints import flat_options
from runs.scoring import WORST_TIES
from runtime.entry_point import run_entry_point
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, first_line, markdown, write_text_atomic

NAMES_ONLY = ("k_fold.experiment_name", "logs.ckpt_save_path")
"""Options that say where a run lies, not what it is."""

TIED = f"{WORST_TIES}mR"
_BEFORE = "random_ties_"
"""Before the names of today's scores in results of the time when a match stood behind all that score as high."""


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
        return [best_epoch(history) for history in self.histories]

    @property
    def validation(self) -> list[float]:
        """Best validation score of each fold."""
        return [epoch[validation_score([epoch])] for epoch in self.best_epochs]

    def fold_folder(self, label: str) -> Path:
        """Where a fold of `folds` lies."""
        return self.folder / label.removeprefix("fold ")


def read_experiment(folder: Path, tables: Sequence[str] = ()) -> Experiment:
    """Read an experiment's `test.json`, with recalls under these keys, too, and its folds' `history.csv`.

    Raises:
        InputError: it has not been tested yet, or a file is damaged.
    """
    path = folder / "test.json"
    try:
        content = _in_terms_of_today(parse_json(read_bytes(path)))
        options = flat_options(content["options"])
        for scores in [*content["rows"].values(), *(content[table] for table in tables)]:
            if scores and (missing := RECALLS.keys() - scores.keys()):
                raise ValueError(f"no {min(missing)}")
        experiment = Experiment(folder, options, content, ())
        histories = [read_history(experiment.fold_folder(label)) for label in experiment.folds]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(
            f"{path}: not the result of a test ({first_line(fault)}). Make it: python test.py --path_opt ..."
        ) from fault
    return replace(experiment, histories=histories)


def _in_terms_of_today(content: dict[str, Any]) -> dict[str, Any]:
    """A result in which equal scores count by the expectation over their orders, whenever it was written."""
    if "ties" in content:
        return content
    tied = any(name.startswith(_BEFORE) for scores in content["rows"].values() for name in scores)
    turned = {label: _turned(scores) for label, scores in content["rows"].items()}
    tables = ("mean", "standard_deviation", "chance", "scene_class_alone")
    today = content | {"rows": turned} | {name: _turned(content[name]) for name in tables if name in content}
    return today | ({"ceiling": {}} if tied else {})  # which is not told of that rule


def _turned(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of one row, those of ties at random first; as they are where no captions were equal."""
    random = {name.removeprefix(_BEFORE): value for name, value in scores.items() if name.startswith(_BEFORE)}
    others = {name: value for name, value in scores.items() if not name.startswith(_BEFORE)}
    return others | random | {WORST_TIES + name: scores[name] for name in random}


def check_test_lists(experiments: Sequence[Experiment]) -> None:
    """Scores of different test lists say nothing about the models.

    Raises:
        InputError: an experiment was not tested on the list of the first: by their `ranks.h5`, or where one has none,
            by the numbers of images and captions.
    """
    first = experiments[0]
    for other in experiments[1:]:
        ranks = [one.folder / "ranks.h5" for one in (first, other)]
        if all(file.is_file() for file in ranks):
            check_same_list(*map(read_ranks, ranks))
            continue
        left, right = (re.search(r"\d+ images, \d+ captions", str(one.test.get("protocol"))) for one in (first, other))
        if left and right and left[0] != right[0]:
            raise InputError(
                f"{first.folder} and {other.folder} are not of the same test list ({left[0]}; {right[0]}): make a "
                "table of each."
            )


def differing(experiments: Sequence[Experiment], but: Sequence[str] = NAMES_ONLY) -> list[str]:
    """Dotted keys of the options in which the experiments differ, in the order of the schema, but for `but`."""
    given = [experiment.options for experiment in experiments]
    keys = list(dict.fromkeys(key for options in given for key in options))
    return [key for key in keys if key not in but and len({str(options.get(key)) for options in given}) > 1]


def spread_over_folds(experiments: Sequence[Experiment]) -> float:
    """Standard deviation of mR over the folds of one experiment, pooled over all of them.

    Raises:
        InputError: every experiment has a single fold.
    """
    columns = [[scores["mR"] for scores in experiment.folds.values()] for experiment in experiments]
    freedom = sum(len(column) - 1 for column in columns)
    if freedom == 0:
        raise InputError("all these experiments have one fold: the spread of mR needs an experiment of two or more.")
    squares = sum(statistics.variance(column) * (len(column) - 1) for column in columns if len(column) > 1)
    return (squares / freedom) ** 0.5


def table(experiments: Sequence[Experiment], spread: float | None) -> list[list[str]]:
    """Cells: a row per experiment, with the options that differ, val, the recalls, and mR against the first row.

    Where captions are equal word for word, also mR with the worst order of ties. Differences that are real by `spread`
    (see `spread_over_folds`; None: unknown) are in bold.

    Raises:
        InputError: they were tested on different lists.
    """
    check_test_lists(experiments)
    keys = differing(experiments)
    tied = any(TIED in scores for experiment in experiments for scores in experiment.folds.values())
    cells = [["experiment", *(key.rsplit(".", 1)[-1] for key in keys), "val mR", *RECALLS.values()]]
    cells[0] += ["against the first", *(["mR, worst order of ties"] if tied else [])]
    first = experiments[0]
    for experiment in experiments:
        row = [experiment.folder.resolve().name, *(short(experiment.options.get(key)) for key in keys)]
        row.append(f"{statistics.fmean(experiment.validation):.2f}")
        row += [_mean(experiment, name) for name in RECALLS if name != "mR"] + [_mean(experiment, "mR", spread=True)]
        row.append("" if experiment is first else _against(experiment, first, spread))
        cells.append([*row, *([_mean(experiment, TIED, spread=True)] if tied else [])])
    return cells


def _values(experiment: Experiment, name: str) -> list[float]:
    return [scores[name] for scores in experiment.folds.values() if name in scores]


def _mean(experiment: Experiment, name: str, spread: bool = False) -> str:
    """The mean of a score over the folds that have it, with its deviation if they are several; else an empty cell."""
    values = _values(experiment, name)
    deviation = statistics.stdev(values) if spread and len(values) > 1 else None
    return with_deviation(statistics.fmean(values), deviation) if values else ""


def _against(experiment: Experiment, first: Experiment, spread: float | None) -> str:
    """The difference in mR; in bold where it is more than twice its standard error."""
    means = [statistics.fmean(_values(one, "mR")) for one in (experiment, first)]
    difference = f"{means[0] - means[1]:+.2f}"
    if spread is None:
        return difference
    error = spread * sum(1 / len(one.folds) for one in (experiment, first)) ** 0.5
    return f"**{difference}**" if abs(means[0] - means[1]) > 2 * error else difference


def short(value: Any) -> str:
    """An option as a cell: a file by its name."""
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def text(experiments: Sequence[Experiment]) -> str:
    """The table as Markdown, with a line on how to read its last column."""
    folds, spread = sorted({len(experiment.folds) for experiment in experiments}), spread_over_folds(experiments)
    return (
        f"{markdown(table(experiments, spread))}\n\nTest split, means over "
        f"{' or '.join(map(str, folds))} folds in percent; val mR chose each fold's "
        "epoch. The spread of mR over folds, pooled over all rows, is "
        f"{spread:.2f}; a difference to the first row that is more than twice its standard "
        "error (by that spread) is in bold.\n"
    )


def experiments_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The arguments of a command that tells of some experiments."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("experiment", type=Path, nargs="+", help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--out", type=Path, help="write what is printed here, too")
    return parser


def show(shown: str, out: Path | None) -> None:
    """Print a text, and write it if a file was given."""
    print(shown, end="")
    if out is not None:
        write_text_atomic(out, shown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of some experiments."""
    given = experiments_parser("reports.experiments", "Put finished experiments side by side.").parse_args(arguments)
    show(text([read_experiment(folder) for folder in given.experiment]), given.out)


if __name__ == "__main__":
    run_entry_point(main)
