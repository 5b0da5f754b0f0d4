"""The page: its head, its sections about numbers, and its foot; `reports.html.sights` has the sections of images."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch

import option
from reports.history import VALIDATION_SCORES, duration, read_history, training_time, validation_score
from reports.html.captions import captions_section, misses_section
from reports.html.charts import Line, bar_chart, line_chart, matrix
from reports.html.collect import Fold, Gallery
from reports.html.document import Section, document
from reports.html.findings import (
    DIRECTIONS,
    chance_curve,
    class_recalls,
    confusion,
    cutoffs,
    histogram,
    recall_curve,
)
from reports.html.markup import Markup, join, tag
from reports.html.sights import examples_section, plane_section, queries_section
from reports.html.tables import framed, recall_row, table
from reports.tables import Table
from runs.record import read_record
from runs.scoring import TestSet

TILES = {
    "mR": "mR, mean of the six recalls",
    "i2t_R@10": "image → text, R@10",
    "t2i_R@10": "text → image, R@10",
    "t2i_scene_recall@1": "text → image, right scene first",
    "audio_mR": "mR of spoken captions",
    "image_mR": "mR of other views",
}
CONFUSIONS = 6  # named in words


@dataclass(frozen=True)
class Outcome:
    """All that a page is made of.

    Attributes:
        subject: what was tested on.
        folds: one or more checkpoints.
        gallery: of the first of them.
        result: what `reports.results.summary` gives.
        tables: recall tables.
        command: that made the report.
    """

    subject: TestSet
    folds: Sequence[Fold]
    gallery: Gallery
    result: Mapping[str, Any]
    tables: Sequence[Table]
    command: str


def page(outcome: Outcome) -> str:
    """The whole HTML document."""
    options = outcome.subject.options
    title = f"{options.model.name} on {options.dataset.title}"
    sections = [section for section in _sections(outcome) if section is not None]
    return document(title, [_tiles(outcome.result), tag("p", _size(outcome))], sections)


def _sections(outcome: Outcome) -> list[Section | None]:
    """Name, heading and content of each section; None for what there is nothing to show of."""
    gallery, subject, shown = outcome.gallery, outcome.subject, outcome.folds[0].label
    return [
        ("scores", "Scores", _tables(outcome)),
        ("ranks", "Where the matches are found", _rank_charts(outcome)),
        _training(outcome.folds),
        ("queries", "Best and worst queries", queries_section(subject, gallery, shown)),
        ("misses", "All misses", misses_section(subject, gallery, shown)),
        _classes(outcome),
        ("captions", "Captions", captions_section(subject, outcome.folds)),
        ("space", "The common space", plane_section(subject, gallery, shown)),
        ("weighed", "What the model weighed", examples_section(subject, gallery, shown)) if gallery.examples else None,
        ("made", "How it was made", _made(outcome)),
    ]


def _tiles(result: Mapping[str, Any]) -> Markup:
    mean, spread, chance = result["mean"], result["standard_deviation"], result["chance"]
    several = len(result["rows"]) > 1
    shown = [
        tag(
            "li",
            tag("small", label),
            tag("b", f"{mean[name]:.2f}", tag("small", f" ± {spread[name]:.2f}") if several else ""),
            tag("small", f"chance {chance[name]:.2f}"),
        )
        for name, label in TILES.items()
        if name in mean
    ]
    return tag("ul", *shown, class_="tiles")


def _tables(outcome: Outcome) -> list[Markup]:
    content = []
    for title, cells in outcome.tables:
        content += [tag("h3", title)] if title else []
        content.append(table(cells))
    return [*content, tag("p", outcome.result["protocol"])]


def _rank_charts(outcome: Outcome) -> list[Markup]:
    """For each direction recall over K and the histogram of ranks."""
    annotations, folds = outcome.subject.annotations, outcome.folds
    charts = []
    for number, name in enumerate(folds[0].ranks):
        to_texts = name in ("i2t", "i2a")
        items = len(annotations.captions if to_texts else annotations.image_names)
        at = cutoffs(items)
        curves = [recall_curve(fold.ranks[name], at) for fold in folds]
        counts = torch.from_numpy(annotations.caption_counts)
        chance = chance_curve(items, counts if to_texts else torch.ones(1, dtype=torch.int64), at)
        lines = [Line("chance", list(zip(at, chance, strict=True)), "chance")]
        if len(folds) > 1:
            lines += [Line("", list(zip(at, curve, strict=True)), f"c{number} faint") for curve in curves]
        mean = [fmean(values) for values in zip(*curves, strict=True)]
        lines.append(
            Line("mean of the folds" if len(folds) > 1 else "model", list(zip(at, mean, strict=True)), f"c{number}")
        )
        charts.append(
            line_chart(f"{DIRECTIONS[name]}: recall over K", lines, f"K, of {items} items", "R@K, %", log_x=True)
        )
        ranks = torch.cat([fold.ranks[name] for fold in folds])
        bins = histogram(ranks, items)
        middle = f"median {int(ranks.double().quantile(0.5)) + 1}"
        label = f"place of the match ({middle} of {items})"
        charts.append(bar_chart(f"{DIRECTIONS[name]}: ranks", list(bins), list(bins.values()), label, f"c{number}"))
    return [tag("div", *charts, class_="grid")]


def _training(folds: Sequence[Fold]) -> Section | None:
    """Loss and validation score of every fold whose checkpoint has a history beside it."""
    histories = _histories(folds)
    if not histories:
        return None
    score = validation_score(next(iter(histories.values())))
    charts = []
    for title, name in (("Loss per item", "loss"), (VALIDATION_SCORES[score], score)):
        lines = [
            Line(label, [(row["epoch"], row[name]) for row in history if name in row], f"c{number % 6}")
            for number, (label, history) in enumerate(histories.items())
        ]
        lines = [line for line in lines if line.points]
        if lines:
            charts.append(line_chart(title, lines, "epoch", ""))
    return "training", "Training", [tag("div", *charts, class_="grid")]


def _classes(outcome: Outcome) -> Section | None:
    """Recalls of each scene class, and which class the first image found shows."""
    names, scenes = outcome.subject.scene_names, outcome.subject.scenes
    if scenes is None:
        return None
    text_image = outcome.subject.loader.text_image
    tables = [class_recalls(fold.ranks, text_image, scenes) for fold in outcome.folds]
    recalls = {
        scene: [fmean(values) for values in zip(*(each[scene] for each in tables), strict=True)] for scene in names
    }
    shares = torch.stack(
        [confusion(fold.first, text_image, scenes) for fold in outcome.folds if fold.first is not None]
    ).mean(dim=0)
    drawn = matrix(
        "Class of a caption (row) and of the first image that it finds (column), % of the row",
        list(names.values()),
        shares.tolist(),
        "found",
        "caption",
    )
    counts = {scene: int((scenes == scene).sum()) for scene in names}
    averaged = "; means of the folds" if len(outcome.folds) > 1 else ""
    note = f"Recalls in % of the queries of a class{averaged}, the best class first."
    return (
        "classes",
        "Scene classes",
        [tag("p", note), _class_table(names, counts, recalls), drawn, _confused(list(names.values()), shares)],
    )


def _class_table(names: Mapping[int, str], counts: Mapping[int, int], recalls: Mapping[int, Sequence[float]]) -> Markup:
    heads = ["class", "images", "I→T R@1", "R@5", "R@10", "T→I R@1", "R@5", "R@10"]
    order = sorted(names, key=lambda scene: (-fmean(recalls[scene]), scene))
    return framed(heads, [recall_row(names[scene], [counts[scene]], recalls[scene]) for scene in order])


def _confused(names: Sequence[str], shares: torch.Tensor) -> Markup:
    """The most frequent confusions in words."""
    classes = range(len(names))
    pairs = [(row, column) for row in classes for column in classes if row != column and shares[row, column] > 0]
    most = islice(sorted(pairs, key=lambda pair: (-float(shares[pair]), pair)), CONFUSIONS)
    said = [tag("li", f"{names[row]} found as {names[column]}: {shares[row, column]:.0f} %") for row, column in most]
    return join([tag("p", "Most often confused:"), tag("ul", *said)]) if said else tag("p", "No class was confused.")


def _histories(folds: Sequence[Fold]) -> dict[str, list[dict[str, float]]]:
    """The epochs of every fold whose checkpoint has a history beside it."""
    return {
        fold.label: read_history(fold.checkpoint.parent)
        for fold in folds
        if (fold.checkpoint.parent / "history.csv").is_file()
    }


def _size(outcome: Outcome) -> str:
    """Parameters of a model and how long its training took, as far as that is known."""
    trained, held = (outcome.result["parameters"][key] for key in ("trained", "all"))
    times = [training_time(history) for history in _histories(outcome.folds).values()]
    each = " per fold" if len(times) > 1 else ""
    took = f"; trained for {duration(fmean(times))}{each}" if times and all(times) else ""
    return f"{held:,} parameters, of which {trained:,} are trained{took}."


def _trained(fold: Fold) -> str:
    """When a fold was trained and at which commits, as far as its run's record says."""
    entries = read_record(fold.checkpoint.parent)
    dates = sorted({str(entry["started"])[:10] for entry in entries if "started" in entry})
    commits = dict.fromkeys(str(entry["commit"]) for entry in entries if "commit" in entry)
    return "".join(f", {word} {', '.join(said)}" for word, said in (("trained", dates), ("commit", commits)) if said)


def _took(history: Sequence[Mapping[str, float]]) -> str:
    """Epochs of a training and their time, where the history has it."""
    seconds = training_time(history)
    return f", {len(history)} epochs" + (f" in {duration(seconds)}" if seconds else "")


def _made(outcome: Outcome) -> list[Markup]:
    """Checkpoints, command, environment and options."""
    device = outcome.subject.loader.device
    gpu = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    took = {label: _took(history) for label, history in _histories(outcome.folds).items()}
    facts = {
        "command": outcome.command,
        **{
            fold.label: f"{fold.checkpoint}, epoch {fold.epoch}{_trained(fold)}{took.get(fold.label, '')}"
            for fold in outcome.folds
        },
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "device": f"{device}{gpu}",
    }
    listed = [part for name, value in facts.items() for part in (tag("dt", name), tag("dd", value))]
    options = tag("details", tag("summary", "All options"), tag("pre", option.to_yaml(outcome.subject.options)))
    return [tag("dl", *listed), options]
