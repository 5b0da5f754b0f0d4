"""What a person looks at after training: recall tables, and `python report.py EXPERIMENT --out PNG` for the curves."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from metrics import NAMED_ONLY
from untrusted import read_bytes
from utils import InputError, run_entry_point, write_atomic

RERANKED = "reranked_"
"""Before the name of a score that was taken after reranking."""
RANDOM_TIES = "random_ties_"
"""Before the name of a score that counts ties as `ties.random_tie_recalls` does."""
RECALLS = {
    "i2t_R@1": "I→T R@1",
    "i2t_R@5": "R@5",
    "i2t_R@10": "R@10",
    "t2i_R@1": "T→I R@1",
    "t2i_R@5": "R@5",
    "t2i_R@10": "R@10",
    "mR": "mR",
}
AUDIO_RECALLS = {
    "i2a_R@1": "I→A R@1",
    "i2a_R@5": "R@5",
    "i2a_R@10": "R@10",
    "a2i_R@1": "A→I R@1",
    "a2i_R@5": "R@5",
    "a2i_R@10": "R@10",
    "audio_mR": "mR",
}
IMAGE_RECALLS = {
    "i2i_R@1": "I→I R@1",
    "i2i_R@5": "R@5",
    "i2i_R@10": "R@10",
    "image_mR": "mR",
    "mean_of_15": "mean of all 15",
}
SCENE_RECALLS = {
    "i2t_scene_recall@1": "I→T scene@1",
    "i2t_scene_recall@5": "@5",
    "i2t_scene_recall@10": "@10",
    "t2i_scene_recall@1": "T→I scene@1",
    "t2i_scene_recall@5": "@5",
    "t2i_scene_recall@10": "@10",
}
VALIDATION_SCORES = {
    "val_tasks_mR": "mean mR of all tasks on val, %",
    "val_mR": "mR on val, %",
    "val_accuracy": "accuracy on val, %",
}
"""Column of `history.csv` that the best epoch was chosen by -> what it says."""


LIMITS = {"chance": "chance", "scene_class_alone": "scene class alone", "ceiling": "ceiling"}
"""Key in `test.json` of what recalls are compared with -> label of its row."""
Table = tuple[str, list[list[str]]]
"""A title ("" for the first table) and rows of cells, the first its head."""


def score_tables(
    rows: Mapping[str, Mapping[str, float]],
    mean: Mapping[str, tuple[float, float]],
    limits: Mapping[str, Mapping[str, float]],
    reranked: str = "",
) -> list[Table]:
    """Tables of all that the rows have scores for: recalls, MCRN's other tasks, reranking, scene recall.

    Args:
        rows: label -> scores in percent, see `metrics`.
        mean: score -> mean and standard deviation over the rows.
        limits: label -> what to compare the rows with, for the same names or some of them.
        reranked: how the reranking was done, for the title of its table.
    """
    scene = "Scene recall in %, share of the first 1, 5, 10 that show the query's scene class"
    groups = (
        ("", RECALLS),
        ("Spoken captions", AUDIO_RECALLS),
        ("Other views of the images, and the mean of the 15 recalls of the three tables", IMAGE_RECALLS),
        (
            "Ties broken at random, as by the sort of published code",
            {RANDOM_TIES + name: head for name, head in RECALLS.items()},
        ),
        (f"After reranking ({reranked})", {RERANKED + name: head for name, head in RECALLS.items()}),
        (scene, SCENE_RECALLS),
        (f"{scene}, queries without a class left out", {n + NAMED_ONLY: h for n, h in SCENE_RECALLS.items()}),
    )
    return [
        (title, recall_table(rows, mean, limits, columns)) for title, columns in groups if columns.keys() <= mean.keys()
    ]


def recall_table(
    rows: Mapping[str, Mapping[str, float]],
    mean: Mapping[str, tuple[float, float]],
    limits: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, str] = RECALLS,
) -> list[list[str]]:
    """Cells: headlines, a row per fold, mean ± standard deviation over them, and the limits that have the columns.

    Args:
        rows: label -> scores in percent, see `metrics`.
        mean: score -> mean and standard deviation over the rows.
        limits: label -> what to compare the rows with.
        columns: score -> headline.
    """
    cells = [["", *columns.values()]]
    cells += [[label, *(f"{scores[name]:.2f}" for name in columns)] for label, scores in rows.items()]
    if len(rows) > 1:
        cells.append(["mean ± sd", *(f"{mean[name][0]:.2f} ± {mean[name][1]:.2f}" for name in columns)])
    for label, scores in limits.items():
        if columns.keys() <= scores.keys():
            cells.append([label, *(f"{scores[name]:.2f}" for name in columns)])
    return cells


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables under each other, with their titles."""
    return "\n\n".join((f"{title}:\n\n" if title else "") + markdown(cells) for title, cells in tables)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text as an aligned Markdown table, the first row its head; numbers right, labels left."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """One line per row at full precision; what a row has no value for stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_history(folder: Path) -> list[dict[str, float]]:
    """The epochs of one fold from its `history.csv`; a column that an epoch has no value for is left out of its row.

    Raises:
        InputError: the file is missing or is not such a table.
    """
    path = folder / "history.csv"
    try:
        text = io.StringIO(read_bytes(path).decode("utf-8"), newline="")
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(text)]
        if not all({"epoch", "loss"} <= row.keys() for row in rows):
            raise ValueError("a row without epoch or loss")
        return rows
    except (OSError, ValueError, TypeError, csv.Error) as fault:
        raise InputError(f"{path}: not a training history ({fault}). train.py writes one after each epoch.") from fault


def validation_score(history: Sequence[Mapping[str, float]]) -> str:
    """The one of `VALIDATION_SCORES` that a history has values of."""
    return next((name for name in VALIDATION_SCORES if any(name in row for row in history)), "val_mR")


def draw_curves(experiment: Path, out: Path) -> None:
    """Draw the loss and the validation score of every fold over the epochs as a PNG.

    Args:
        experiment: folder whose numbered folders are the folds, or the folder of one pretraining.
        out: the picture's file.

    Raises:
        InputError: no fold has a history, or matplotlib (extra `plot`) is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise InputError("drawing needs matplotlib: bash exec/environment.sh plot") from fault
    runs = [experiment, *experiment.glob("*")]
    folds = sorted((run for run in runs if (run / "history.csv").is_file()), key=lambda run: run.name)
    if not folds:
        raise InputError(f"{experiment}: no fold with a history.csv. Train first: python train.py --path_opt ...")
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    for fold in folds:
        history = read_history(fold)
        label = fold.name if fold == experiment else f"fold {fold.name}"
        loss_axes.plot([row["epoch"] for row in history], [row["loss"] for row in history], label=label)
        score = validation_score(history)
        validated = [row for row in history if score in row]
        score_axes.plot([row["epoch"] for row in validated], [row[score] for row in validated], marker=".")
        score_axes.set(ylabel=VALIDATION_SCORES[score])
    loss_axes.set(xlabel="epoch", ylabel="training loss per item", ylim=(0, None))
    score_axes.set(xlabel="epoch", ylim=(0, None))
    loss_axes.legend()
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
    write_atomic(out, lambda file: figure.savefig(file, format="png", dpi=110))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the training curves of an experiment."""
    parser = argparse.ArgumentParser(description="Draw the training curves of all folds of an experiment.")
    parser.add_argument("experiment", type=Path, help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    given = parser.parse_args(arguments)
    draw_curves(given.experiment, given.out)


if __name__ == "__main__":
    run_entry_point(main)
