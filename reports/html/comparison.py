"""Several experiments on one page: their scores, curves, and what each was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import torch

from reports.experiments import Experiment, spread_over_folds, table
from reports.history import VALIDATION_SCORES, duration, training_time, validation_score
from reports.html.charts import COLOURS, Line, line_chart
from reports.html.document import document
from reports.html.findings import DIRECTIONS, chance_curve, cutoffs, recall_curve
from reports.html.markup import Markup, tag
from reports.html.tables import framed
from reports.significance import QueryRanks, read_ranks
from runs.record import read_record


def comparison(experiments: Sequence[Experiment], command: str) -> str:
    """The whole HTML document.

    Args:
        experiments: tested ones; the first is what the others are compared with.
        command: that made the page.

    Raises:
        InputError: they were tested on different lists, or their `ranks.h5` is damaged.
    """
    labels = labels_of(experiments)
    ranks = {
        label: read_ranks(experiment.folder)
        for label, experiment in zip(labels, experiments, strict=True)
        if (experiment.folder / "ranks.h5").is_file()
    }
    sections = [
        ("scores", "Scores", _scores(experiments, labels)),
        ("ranks", "Where the matches are found", _rank_charts(labels, ranks) if ranks else []),
        ("training", "Training", _training(experiments, labels)),
        ("made", "How they were made", [_facts(experiments, labels), tag("pre", command)]),
    ]
    return document(" · ".join(labels), [], [section for section in sections if section[2]])


def labels_of(experiments: Sequence[Experiment]) -> list[str]:
    """The name of each one's folder, or its whole path where another one has the same name."""
    names = [experiment.folder.resolve().name for experiment in experiments]
    return [
        name if names.count(name) == 1 else str(experiment.folder)
        for name, experiment in zip(names, experiments, strict=True)
    ]


def _scores(experiments: Sequence[Experiment], labels: Sequence[str]) -> list[Markup]:
    several = any(len(experiment.folds) > 1 for experiment in experiments)
    head, *rows = table(experiments, spread_over_folds(experiments) if several else None)
    note = "Test split, means over the folds in %; val mR chose each fold's epoch."
    if several:
        note += " A difference in bold is more than twice its standard error, by the spread over folds."
    else:
        note += " Every experiment has one fold: how real a difference is, its spread can't tell."
    return [tag("p", note), framed(head, [_row(label, cells[1:]) for label, cells in zip(labels, rows, strict=True)])]


def _row(name: str, cells: Sequence[str]) -> Markup:
    """A row whose cells in Markdown's bold are bold."""
    shown = [tag("td", tag("b", cell.strip("*")) if cell.startswith("**") else cell) for cell in cells]
    return tag("tr", tag("th", name, scope="row"), *shown)


def _rank_charts(labels: Sequence[str], ranks: Mapping[str, QueryRanks]) -> list[Markup]:
    """Recall over K of both directions, a line per experiment that has ranks: the mean of its folds."""
    first = next(iter(ranks.values()))
    images, captions = len(first.image_names), len(first.captions)
    charts, own_captions = [], torch.from_numpy(first.caption_image).bincount()
    for direction, items, own in (("i2t", captions, own_captions), ("t2i", images, torch.ones(1, dtype=torch.int64))):
        at = cutoffs(items)
        lines = [Line("chance", list(zip(at, chance_curve(items, own, at), strict=True)), "chance")]
        for name, found in ranks.items():
            places = [fold.image_to_text if direction == "i2t" else fold.text_to_image for fold in found.folds]
            curves = [recall_curve(each, at) for each in places]
            mean = [fmean(values) for values in zip(*curves, strict=True)]
            lines.append(Line(name, list(zip(at, mean, strict=True)), f"c{labels.index(name) % COLOURS}"))
        title = f"{DIRECTIONS[direction]}: recall over K"
        charts.append(line_chart(title, lines, f"K, of {items} items", "R@K, %", log_x=True))
    return [tag("div", *charts, class_="grid")]


def _training(experiments: Sequence[Experiment], labels: Sequence[str]) -> list[Markup]:
    """Loss and validation score over the epochs: the mean of the folds that have the epoch."""
    charts = []
    score = validation_score(experiments[0].histories[0])  # column of the first; another kind of model may lack it
    for title, column in (("Loss per item", "loss"), (VALIDATION_SCORES[score], score)):
        lines = [
            Line(label, list(_means(experiment, column)), f"c{number % COLOURS}")
            for number, (label, experiment) in enumerate(zip(labels, experiments, strict=True))
        ]
        lines = [line for line in lines if line.points]
        charts += [line_chart(title, lines, "epoch", "")] if lines else []
    return [tag("div", *charts, class_="grid")]


def _means(experiment: Experiment, column: str) -> Iterator[tuple[float, float]]:
    """Epoch and mean over the folds of a column."""
    rows = [row for history in experiment.histories for row in history if column in row]
    for epoch in sorted({row["epoch"] for row in rows}):
        yield epoch, fmean(row[column] for row in rows if row["epoch"] == epoch)


def _facts(experiments: Sequence[Experiment], labels: Sequence[str]) -> Markup:
    heads = ["experiment", "parameters", "of which trained", "folds", "training per fold", "date", "commit"]
    return framed(heads, [_row(label, _made(one)) for label, one in zip(labels, experiments, strict=True)])


def _made(experiment: Experiment) -> list[str]:
    """Cells; empty for what a result does not tell."""
    sizes = experiment.test.get("parameters") or {}
    entries = [entry for label in experiment.folds for entry in read_record(experiment.fold_folder(label))]
    seconds = fmean(training_time(history) for history in experiment.histories)
    dates = sorted({str(entry["started"])[:10] for entry in entries if "started" in entry})
    return [
        *(f"{sizes[key]:,}" if key in sizes else "" for key in ("all", "trained")),
        str(len(experiment.folds)),
        duration(seconds) if seconds else "",
        ", ".join(dates),
        ", ".join(dict.fromkeys(str(entry["commit"]) for entry in entries if "commit" in entry)),
    ]
