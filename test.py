"""Score every fold's best checkpoint on the test split: python test.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import metrics
import option
from data.annotations import read_annotations
from dataloader import EvaluationLoader
from engine import evaluate
from experiment import (
    PictureLibrary,
    best_checkpoint,
    command,
    entry_parser,
    evaluation_loader,
    experiment_folder,
    load_weights,
    parse_folds,
    place,
    read_vocabulary,
    run_folder,
)
from layers import build_model
from option import Options
from report import as_csv, recall_table
from utils import InputError, choose_device, logger, run_entry_point, write_text_atomic
from vocab import Vocabulary


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and write the recall table of an experiment, or of one checkpoint."""
    parser = entry_parser("Score every fold's best checkpoint on the test split.")
    parser.add_argument("--checkpoint", type=Path, help="score this file alone: ours, or one published by the authors")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    given = parser.parse_args(arguments)
    options = option.load_options(given.path_opt, given.set)
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    checkpoints = {f"fold {fold}": best_checkpoint(options, fold) for fold in folds}
    if given.checkpoint is not None:
        checkpoints = {given.checkpoint.name: given.checkpoint}
    _refuse_missing(checkpoints, given.path_opt, given.set)
    vocabulary = read_vocabulary(options)
    annotations = read_annotations(Path(options.dataset.data_path), "test")
    loader = evaluation_loader(
        options, annotations, vocabulary, PictureLibrary(options, annotations.image_names, device), device
    )
    rows = {label: score_checkpoint(options, vocabulary, path, loader, device) for label, path in checkpoints.items()}
    result = summary(options, rows, loader, device)
    table = result.pop("table")
    print(f"\n{options.model.name} on {options.dataset.data_path}\n\n{table}\n\n{result['protocol']}")
    if given.json is not None:
        write_text_atomic(given.json, _json(result))
    if given.checkpoint is not None:
        return
    for fold in folds:
        write_text_atomic(run_folder(options, fold) / "test.json", _json(rows[f"fold {fold}"]))
    if given.folds is None:
        folder = experiment_folder(options)
        write_text_atomic(folder / "test.json", _json(result))
        write_text_atomic(folder / "test.csv", as_csv([{"row": label, **scores} for label, scores in rows.items()]))
        write_text_atomic(folder / "test.md", f"{table}\n\n{result['protocol']}\n")
        print(f"\nWritten to {folder}/test.json, test.csv and test.md.")


def score_checkpoint(
    options: Options, vocabulary: Vocabulary, path: Path, loader: EvaluationLoader, device: torch.device
) -> dict[str, float]:
    """Scores of one checkpoint on the loader's split, see `metrics.recalls`."""
    model = build_model(options, vocabulary, load_weights=False)
    content = load_weights(model, path, options, vocabulary)
    logger.info("%s: epoch %s", path, content.get("epoch", "unknown"))
    return evaluate(place(model, device), loader, device, options.optim.amp)


def summary(
    options: Options, rows: Mapping[str, Mapping[str, float]], loader: EvaluationLoader, device: torch.device
) -> dict[str, Any]:
    """Everything that a reader of the table needs, as plain values."""
    mean = metrics.mean_and_deviation(list(rows.values()))
    chance = metrics.chance(loader.text_image)
    protocol = (
        f"Protocol: test split, {len(loader.picture_ids)} images, {len(loader.text_image)} captions; {len(rows)} "
        f"{'fold' if len(rows) == 1 else 'folds'}, split strategy {options.k_fold.strategy}, each fold's best epoch by "
        "mR on val; an item that is no match and scores equal to the match counts as ranked before it; mean ± sample "
        f"standard deviation over folds; pictures of {options.dataset.image_size} pixels, "
        f"amp {options.optim.amp}, {device.type}, torch {torch.__version__}."
    )
    return {
        "table": recall_table(rows, mean, chance),
        "protocol": protocol,
        "rows": rows,
        "mean": {name: value for name, (value, _) in mean.items()},
        "standard_deviation": {name: value for name, (_, value) in mean.items()},
        "chance": chance,
        "options": option.dump(options),
    }


def _refuse_missing(checkpoints: Mapping[str, Path], path_opt: str, overrides: Sequence[str]) -> None:
    """Name the command that makes a missing checkpoint; random weights are never scored."""
    missing = {label: path for label, path in checkpoints.items() if not path.is_file()}
    if not missing:
        return
    folds = ",".join(label.removeprefix("fold ") for label in missing if label.startswith("fold "))
    train = command("train.py", path_opt, overrides, "--folds", folds, "--resume")
    advice = f" Train it: {train}" if folds else ""
    raise InputError(f"no checkpoint {', '.join(map(str, missing.values()))}.{advice}")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


if __name__ == "__main__":
    run_entry_point(main)
