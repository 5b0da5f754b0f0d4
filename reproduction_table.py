"""A data set's results to cite: `python reproduction_table.py checkpoint/A checkpoint/B ... --published ucm`.

Each experiment beside its published row, and with what it was made: options, seeds, commit, machine, time, memory.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment_table import NAMES_ONLY, differing_keys, flat_options, short
from report import RECALLS, markdown, read_history, validation_score
from run_record import UNKNOWN, read_record
from untrusted import parse_json, read_bytes
from utils import InputError, first_line, run_entry_point, write_text_atomic

PUBLISHED = Path(__file__).parent / "docs" / "published.csv"
VARIANT = "model.cross_attention.att_type"
NOT_SHOWN = (*NAMES_ONLY, "model.name", VARIANT)


@dataclass(frozen=True)
class Published:
    """A row of the literature: six recalls and their mean in percent; one without a variant fits every variant."""

    model: str
    variant: str
    source: str
    scores: Mapping[str, float]

    def fits(self, model: str, variant: str) -> bool:
        """Whether the row is of this model."""
        return self.model == model and self.variant in ("", variant)


@dataclass(frozen=True)
class Result:
    """What `train.py` and `test.py` left of one experiment.

    Attributes:
        folder: of the experiment.
        options: dotted key -> value.
        test: content of its `test.json`.
        best_epochs: of each fold.
        minutes: of training and validation, of each fold.
        records: what `run_record` kept of each fold.
    """

    folder: Path
    options: Mapping[str, Any]
    test: Mapping[str, Any]
    best_epochs: Sequence[int]
    minutes: Sequence[float]
    records: Sequence[Sequence[Mapping[str, Any]]]

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.options["model.name"])

    @property
    def variant(self) -> str:
        """Which of the model's variants it is, "" where there are none."""
        return str(self.options.get(VARIANT, ""))


def read_result(folder: Path) -> Result:
    """Read a tested experiment.

    Raises:
        InputError: it was not tested yet, or a file is damaged.
    """
    path = folder / "test.json"
    try:
        test = parse_json(read_bytes(path))
        options = flat_options(test["options"])
        folds = [folder / label.removeprefix("fold ") for label in test["rows"]]
        complete = all(RECALLS.keys() <= test[part].keys() for part in ("mean", "chance", "ceiling"))
        if not complete or "model.name" not in options:
            raise ValueError("recalls or options are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(
            f"{path}: not the result of a test ({first_line(fault)}). Make it: python test.py --path_opt ..."
        ) from fault
    histories = [read_history(fold) for fold in folds]
    return Result(
        folder,
        options,
        test,
        [_best_epoch(history) for history in histories],
        [sum(row.get("seconds", 0.0) for row in history) / 60 for history in histories],
        [read_record(fold) for fold in folds],
    )


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    score = validation_score(history)
    return int(max((row for row in history if score in row), key=lambda row: row[score])["epoch"])


def read_published(data_set: str, path: Path = PUBLISHED) -> list[Published]:
    """The published rows of a data set.

    Raises:
        InputError: there are none.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [
        Published(row["model"], row["variant"], row["source"], {name: float(row[name]) for name in RECALLS})
        for row in rows
        if row["set"] == data_set
    ]
    if not found:
        known = ", ".join(dict.fromkeys(row["set"] for row in rows))
        raise InputError(f"--published {data_set}: no rows of it; there are some of {known}.")
    return found


def recall_rows(results: Sequence[Result], published: Sequence[Published]) -> list[list[str]]:
    """Cells: a row per experiment, under it what was published of its model, at the end chance and ceiling."""
    cells = [["", *RECALLS.values()]]
    for result in results:
        mean, deviation, folds = result.test["mean"], result.test["standard_deviation"], len(result.best_epochs)
        several = folds > 1
        scores = [f"{mean[name]:.2f} ± {deviation[name]:.2f}" if several else f"{mean[name]:.2f}" for name in RECALLS]
        cells.append([f"**{result.model} {result.variant}".rstrip() + "**", *scores])
        cells += [
            [f"{row.source}{' (any attention)' if result.variant and not row.variant else ''}", *_plain(row.scores)]
            for row in published
            if row.fits(result.model, result.variant)
        ]
    for limit in ("chance", "ceiling"):
        kinds = list(dict.fromkeys(tuple(_plain(result.test[limit])) for result in results))
        cells += [[limit, *kind] for kind in kinds]
    return cells


def _plain(scores: Mapping[str, float]) -> list[str]:
    return [f"{scores[name]:.2f}" for name in RECALLS]


def run_rows(results: Sequence[Result]) -> list[list[str]]:
    """Cells: with what each experiment was made."""
    keys = differing_keys([result.options for result in results], NOT_SHOWN)
    head = ["", "folds", "seeds: weights, split", "best epochs", "min per fold", "peak MiB", "commit"]
    cells = [[*head, "options that differ between the rows"]]
    for result in results:
        entries = [entry for record in result.records for entry in record]
        peaks = [entry["peak_memory_mib"] for entry in entries if "peak_memory_mib" in entry]
        commits = dict.fromkeys(str(entry.get("commit", UNKNOWN)) for entry in entries)
        differing = [f"{key}={short(result.options[key])}" for key in keys if result.options.get(key) is not None]
        cells.append(
            [
                f"{result.model} {result.variant}".rstrip(),
                str(len(result.best_epochs)),
                f"{result.options['optim.seed']}, {result.options['k_fold.seed']}",
                " ".join(map(str, result.best_epochs)),
                f"{statistics.fmean(result.minutes):.0f}",
                f"{max(peaks):,}" if peaks else UNKNOWN,
                " ".join(commits) or UNKNOWN,
                ", ".join(differing),
            ]
        )
    return cells


def machines(results: Sequence[Result]) -> str:
    """The machines that the runs were made on, in words."""
    entries = [entry for result in results for record in result.records for entry in record]
    kinds = dict.fromkeys(
        "{}, {} processors, threads per training: {}, torch {}".format(
            *(entry.get(key, UNKNOWN) for key in ("device", "processors", "threads", "torch"))
        )
        for entry in entries
    )
    return "; ".join(kinds) or UNKNOWN


def text(results: Sequence[Result], published: Sequence[Published]) -> str:
    """Both tables as Markdown, with what is common to all rows."""
    protocol = "\n".join(dict.fromkeys(str(result.test["protocol"]) for result in results))
    return (
        f"{markdown(recall_rows(results, published))}\n\n{protocol}\n\n{markdown(run_rows(results))}\n\n"
        f"Machine: {machines(results)}. All options of a run: `options.yaml` in its folder.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of some experiments."""
    parser = argparse.ArgumentParser(description="The results of some experiments with all that a citation needs.")
    parser.add_argument("experiment", type=Path, nargs="+", help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--published", metavar="SET", help="data set whose published rows to show: ucm, rsitmd, rsicd")
    parser.add_argument("--out", type=Path, help="write the tables here, too")
    given = parser.parse_args(arguments)
    published = read_published(given.published) if given.published is not None else []
    shown = text([read_result(folder) for folder in given.experiment], published)
    print(shown, end="")
    if given.out is not None:
        write_text_atomic(given.out, shown)


if __name__ == "__main__":
    run_entry_point(main)
