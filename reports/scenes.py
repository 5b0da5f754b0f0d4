"""How well scene classes are told without training for them: tables, and plain values for `test.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.prompts import TEMPLATES
from metrics.probes import NEIGHBOURS, accuracies
from metrics.ranks import mean_and_deviation
from reports.tables import Table, with_deviation
from runs.scene_probes import METHODS, SceneTask

HEADS = {"zero-shot": "zero-shot", "nearest": f"{NEIGHBOURS} nearest", "linear probe": "linear probe"}
MOST_CONFUSIONS = 5
Confusions = Mapping[str, Mapping[str, Tensor]]
"""Label of a row -> method -> [C, C]."""


def scene_values(task: SceneTask, confusions: Confusions) -> dict[str, Any]:
    """Everything that was found, as plain values; rows of a `confusion` are true classes."""
    return {
        "classes": list(task.names),
        "test_images": int((task.test_classes >= 0).sum()),
        "train_images": int((task.train_classes >= 0).sum()),
        "templates": list(TEMPLATES),
        "neighbours": NEIGHBOURS,
        "rows": {
            label: {name: accuracies(found) | {"confusion": found.tolist()} for name, found in methods.items()}
            for label, methods in confusions.items()
        },
    }


def scene_tables(task: SceneTask, confusions: Confusions) -> list[Table]:
    """Accuracies, and the most frequent confusions of all rows together."""
    scores = {label: _flat(methods) for label, methods in confusions.items()}
    columns = [f"{method} {name}" for method in METHODS for name in ("accuracy", "mean_accuracy")]
    cells = [["", *(text for method in METHODS for text in (HEADS[method], "mean over classes"))]]
    cells += [[label, *(f"{row[name]:.2f}" for name in columns)] for label, row in scores.items()]
    if len(scores) > 1:
        mean = mean_and_deviation(list(scores.values()))
        cells.append(["mean ± sd", *(with_deviation(*mean[name]) for name in columns)])
    images = f"{int((task.test_classes >= 0).sum())} images of {len(task.names)} classes"
    title = f"Scene classes, which the model was not trained for, accuracy in % ({images})"
    return [(title, cells), ("Most frequent confusions, images of all rows", _confused(task, confusions))]


def matrix_tables(task: SceneTask, confusions: Confusions) -> list[Table]:
    """The whole confusion of each method, summed over all rows."""
    tables = []
    for method in METHODS:
        total = _total(confusions, method)
        rows = [[name, *map(str, row)] for name, row in zip(task.names, total.tolist(), strict=True)]
        title = f"Confusions, {HEADS[method]}: true classes by what they were taken for"
        tables.append((title, [["", *task.names], *rows]))
    return tables


def _total(confusions: Confusions, method: str) -> Tensor:
    """A method's confusion, summed over all rows, [C, C]."""
    return torch.stack([methods[method] for methods in confusions.values()]).sum(dim=0)


def _flat(methods: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{method} {name}": value for method in methods for name, value in accuracies(methods[method]).items()}


def _confused(task: SceneTask, confusions: Confusions) -> list[list[str]]:
    """Per method the pairs of classes that most images were confused in."""
    cells: list[list[str]] = [["", *(HEADS[method] for method in METHODS)]]
    columns: list[Sequence[str]] = []
    for method in METHODS:
        wrong = _total(confusions, method).fill_diagonal_(0).flatten()
        best = wrong.argsort(descending=True, stable=True)[:MOST_CONFUSIONS].tolist()
        count = len(task.names)
        pairs = [(place // count, place % count, int(wrong[place])) for place in best]
        columns.append([f"{task.names[a]} as {task.names[b]} ({images})" if images else "" for a, b, images in pairs])
    return cells + [[str(place), *row] for place, row in enumerate(zip(*columns, strict=True), start=1)]
