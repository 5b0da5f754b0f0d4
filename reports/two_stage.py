"""What a second stage changed and what it costs: tables, and plain values for `test.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import option
from metrics.ranks import mean_and_deviation
from reports.tables import RECALLS, Table, recall_table
from runs.two_stage import IN_FIRST, TWO_STAGE, Costs, SecondStage

COLUMNS = {
    "i2t_encode_ms": "I→T encode ms",
    "i2t_rank_ms": "rank ms",
    "i2t_pairs": "pairs",
    "t2i_encode_ms": "T→I encode ms",
    "t2i_rank_ms": "rank ms",
    "t2i_pairs": "pairs",
}
StageCosts = Mapping[str, tuple[Costs, Costs]]
"""Label of a row -> costs of the first stage and of the second."""


def stage_values(stage: SecondStage, costs: StageCosts) -> dict[str, Any]:
    """Everything that a reader of the tables needs, as plain values; times are milliseconds."""
    return {
        "model": stage.options.model.name,
        "path_opt": stage.path_opt,
        "checkpoint": None if stage.checkpoint is None else str(stage.checkpoint),
        "top": stage.top,
        "cost": {label: dict(zip(("first", "second"), both, strict=True)) for label, both in costs.items()},
        "options": option.dump(stage.options),
    }


def stage_tables(
    stage: SecondStage, first: str, rows: Mapping[str, Mapping[str, float]], costs: StageCosts
) -> list[Table]:
    """Recalls after the second stage, and the mean cost of a query in both.

    Args:
        stage: the second model.
        first: name of the first model.
        rows: label -> scores, with those of `runs.two_stage.second_scores`.
        costs: of both stages.
    """
    columns = {TWO_STAGE + name: head for name, head in RECALLS.items()}
    columns |= {f"{IN_FIRST}i2t": f"I→T in first {stage.top}", f"{IN_FIRST}t2i": f"T→I in first {stage.top}"}
    mean, second = mean_and_deviation(list(rows.values())), stage.options.model.name
    cells = [["", *COLUMNS.values()]]
    for place, name in enumerate((first, second)):
        of_stage = mean_and_deviation([both[place] for both in costs.values()])
        cells.append([f"{place + 1}. {name}", *(_shown(key, of_stage[key][0]) for key in COLUMNS)])
    return [
        (
            f"After the second stage: the first {stage.top} of {first} in the order of {second}",
            recall_table(rows, mean, {}, columns),
        ),
        ("Cost of a query, one at a time, whose items are encoded already", cells),
    ]


def _shown(key: str, value: float) -> str:
    return f"{value:.0f}" if key.endswith("pairs") else f"{value:.2f}"
