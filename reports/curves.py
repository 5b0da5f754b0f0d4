"""The command `python -m reports.curves EXPERIMENT --out PNG`: loss and validation score of every fold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reports.history import VALIDATION_SCORES, read_history, validation_score
from runtime.entry_point import run_entry_point
from utils import InputError, import_extra, write_atomic


def draw_curves(experiment: Path, out: Path) -> None:
    """Draw the loss and the validation score of every fold over the epochs as a PNG.

    Args:
        experiment: folder whose numbered folders are the folds, or the folder of one pretraining.
        out: the image's file.

    Raises:
        InputError: no fold has a history, or matplotlib (extra `plot`) is missing.
    """
    matplotlib = import_extra("matplotlib.figure", "drawing needs matplotlib", "plot")
    runs = [experiment, *experiment.glob("*")]
    folds = sorted((run for run in runs if (run / "history.csv").is_file()), key=lambda run: run.name)
    if not folds:
        raise InputError(f"{experiment}: no fold with a history.csv. Train first: python train.py --path_opt ...")
    figure = matplotlib.Figure(figsize=(10, 4), layout="constrained")
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
    parser = argparse.ArgumentParser(
        prog="python -m reports.curves", description="Draw the training curves of all folds of an experiment."
    )
    parser.add_argument("experiment", type=Path, help="its folder, e.g. checkpoint/ucm_amfmn")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    given = parser.parse_args(arguments)
    draw_curves(given.experiment, given.out)


if __name__ == "__main__":
    run_entry_point(main)
