"""A data set's results to cite: `python -m reports.reproduction A B ... --published ucm`.

Each experiment beside its published row, which differences between experiments are real, and with what each was made:
options, seeds, commit, machine, time, memory.
"""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layers.registry import registered
from reports.experiments import (
    NAMES_ONLY,
    TIED,
    Experiment,
    differing,
    experiments_parser,
    read_experiment,
    short,
    show,
)
from reports.history import training_time
from reports.significance import compare, read_ranks
from reports.tables import LIMITS, RECALLS, numbers, with_deviation
from runs.checkpoints import dotted
from runs.record import UNKNOWN, read_record
from runs.scoring import WORST_TIES
from runtime.entry_point import run_entry_point
from utils import InputError, markdown

PUBLISHED = Path(__file__).parents[1] / "docs" / "published.csv"
VARIANT = "model.cross_attention.att_type"
TABLES = ("mean", "standard_deviation", "chance", "ceiling")
SEEDS = ("optim.seed", "k_fold.seed")
RESAMPLES = 10_000
REAL = 0.05
"""A difference stands in bold if its p is below this."""
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
        raise InputError(f"--published {data_set}: no published rows of this data set; there are some of {known}.")
    return found


def name_of(experiment: Experiment) -> tuple[str, str]:
    """The model's name, and which of its variants it is, "" where there are none."""
    options = experiment.options
    return str(options.get("model.name", UNKNOWN)), str(options.get(VARIANT, ""))


def label_of(experiment: Experiment) -> str:
    """Model and variant."""
    return " ".join(name_of(experiment)).rstrip()


def recall_rows(experiments: Sequence[Experiment], published: Sequence[Published]) -> list[list[str]]:
    """Cells: a row per experiment, under it its worst order of ties and what was published of it, last the limits."""
    cells = [["", *RECALLS.values()]]
    for experiment in experiments:
        cells.append([f"**{label_of(experiment)}**", *_over_folds(experiment)])
        if TIED in experiment.test["mean"]:
            cells.append(["worst order of ties", *_over_folds(experiment, WORST_TIES)])
        model, variant = name_of(experiment)
        cells += [
            [f"{row.source}{' (any attention)' if variant and not row.variant else ''}", *numbers(row.scores)]
            for row in published
            if row.fits(model, variant)
        ]
    for limit, label in LIMITS.items():
        known = [experiment.test[limit] for experiment in experiments if experiment.test.get(limit)]
        cells += [[label, *kind] for kind in dict.fromkeys(tuple(numbers(scores)) for scores in known)]
    return cells


def _over_folds(experiment: Experiment, prefix: str = "") -> list[str]:
    """Mean of each recall, and where there are several folds ± its deviation."""
    mean, deviation = experiment.test["mean"], experiment.test["standard_deviation"]
    names = [prefix + name for name in RECALLS]
    several = len(experiment.folds) > 1
    return [with_deviation(mean[name], deviation[name] if several else None) for name in names]


def difference_rows(experiments: Sequence[Experiment]) -> list[list[str]]:
    """Cells: mR of each experiment minus that of each one above it, with its p, see `reports.significance.compare`.

    Raises:
        InputError: the experiments were tested on different lists, or before ranks were kept.
    """
    ranks = [read_ranks(experiment.folder) for experiment in experiments]
    cells = [["", *(label_of(experiment) for experiment in experiments[:-1])]]
    cells += [[label_of(experiment), *[""] * (len(experiments) - 1)] for experiment in experiments[1:]]
    for above, below in itertools.combinations(range(len(experiments)), 2):
        found = compare(ranks[above], ranks[below], RESAMPLES, seed=0)["mR"]
        p = "p < 0.001" if found.p < 0.001 else f"p {found.p:.3f}"
        shown = f"{found.second - found.first:+.2f} ({p})"
        cells[below][above + 1] = f"**{shown}**" if found.p < REAL else shown
    return cells


def run_rows(experiments: Sequence[Experiment]) -> list[list[str]]:
    """Cells: with what each experiment was made."""
    keys = differing(experiments, NOT_SHOWN)
    shared = set(keys).intersection(*(experiment.options for experiment in experiments))
    head = ["", "folds", "seeds: weights, split", "best epochs", "min per fold", "peak MiB", "commit"]
    cells = [[*head, "options that differ between the rows"]]
    for experiment in experiments:
        options, entries = experiment.options, _entries(experiment)
        minutes = [training_time(history) / 60 for history in experiment.histories]
        peaks = [entry["peak_memory_mib"] for entry in entries if "peak_memory_mib" in entry]
        commits = dict.fromkeys(str(entry.get("commit", UNKNOWN)) for entry in entries)
        cells.append(
            [
                label_of(experiment),
                str(len(experiment.folds)),
                ", ".join(str(options.get(key, UNKNOWN)) for key in SEEDS),
                " ".join(f"{epoch['epoch']:.0f}" for epoch in experiment.best_epochs),
                f"{statistics.fmean(minutes):.0f}",
                f"{max(peaks):,}" if peaks else UNKNOWN,
                " ".join(commits) or UNKNOWN,
                _told(options, keys, shared),
            ]
        )
    return cells


def _told(options: Mapping[str, Any], keys: Sequence[str], shared: Collection[str]) -> str:
    """Some options of a row: of those that not all models have, only what is not the model's default."""
    defaults = _own_defaults(str(options.get("model.name")))
    own = {key: options[key] for key in keys if options.get(key) is not None}
    told = [key for key in own if key in shared or str(defaults.get(key)) != str(own[key])]
    return ", ".join(f"{key}={short(own[key])}" for key in told)


def _own_defaults(model: str) -> dict[str, Any]:
    """Defaults of a model's parameters by dotted key, without those that must be given."""
    if model not in registered():
        return {}
    parameters = registered()[model].parameters.model_construct(name=model)
    return dotted({"model": parameters.model_dump(mode="json")})


def _entries(experiment: Experiment) -> list[dict[str, Any]]:
    """What `runs.record` kept of all folds."""
    return [entry for label in experiment.folds for entry in read_record(experiment.fold_folder(label))]


def machines(experiments: Sequence[Experiment]) -> str:
    """The machines that the runs were made on, in words."""
    kinds = dict.fromkeys(
        "{}, {} processors, threads per training: {}, torch {}".format(
            *(entry.get(key, UNKNOWN) for key in ("device", "processors", "threads", "torch"))
        )
        for experiment in experiments
        for entry in _entries(experiment)
    )
    return "; ".join(kinds) or UNKNOWN


def text(experiments: Sequence[Experiment], published: Sequence[Published]) -> str:
    """All tables as Markdown, with what is common to all rows."""
    protocol = "\n".join(dict.fromkeys(str(experiment.test["protocol"]) for experiment in experiments))
    parts = [markdown(recall_rows(experiments, published)), protocol]
    if len(experiments) > 1:
        parts += [
            markdown(difference_rows(experiments)),
            "mR of the row minus mR of the column; in bold where p is below "
            f"{REAL}: paired bootstrap over the test images, {RESAMPLES:,} resamples, p of each pair by itself.",
        ]
    parts += [
        markdown(run_rows(experiments)),
        f"Machine: {machines(experiments)}. All options of a run: `options.yaml` in its folder.",
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of some experiments."""
    parser = experiments_parser(
        "reports.reproduction", "The results of some experiments with all that a citation needs."
    )
    parser.add_argument("--published", metavar="SET", help="data set whose published rows to show: ucm, rsitmd, rsicd")
    given = parser.parse_args(arguments)
    published = read_published(given.published) if given.published is not None else []
    show(text([read_experiment(folder, TABLES) for folder in given.experiment], published), given.out)


if __name__ == "__main__":
    run_entry_point(main)
