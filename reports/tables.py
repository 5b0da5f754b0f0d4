"""Recall tables: which scores they show under which headlines, and how a score is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from metrics.scenes import NAMED_ONLY
from runs.scoring import RERANKED, WORST_TIES
from utils import markdown

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
LIMITS = {"chance": "chance", "scene_class_alone": "scene class alone", "ceiling": "ceiling"}
"""Key in `test.json` of what recalls are compared with -> label of its row."""
Table = tuple[str, list[list[str]]]
"""A title ("" for the first table) and rows of cells, the first its head."""


def numbers(scores: Mapping[str, float], names: Iterable[str] = RECALLS) -> list[str]:
    """Scores as cells, in percent."""
    return [f"{scores[name]:.2f}" for name in names]


def with_deviation(mean: float, deviation: float | None) -> str:
    """A mean as a cell, with its standard deviation where there is one."""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def score_tables(
    rows: Mapping[str, Mapping[str, float]],
    mean: Mapping[str, tuple[float, float]],
    limits: Mapping[str, Mapping[str, float]],
    reranked: str = "",
) -> list[Table]:
    """Tables of all that the rows have scores for: recalls, MCRN's other tasks, reranking, scene recall.

    Args:
        rows: label -> scores in percent, see `metrics.ranks`.
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
            "With the match behind all items of equal score, the lower bound",
            {WORST_TIES + name: head for name, head in RECALLS.items()},
        ),
        (
            f"After reranking ({reranked}; ties count against the match)",
            {RERANKED + name: head for name, head in RECALLS.items()},
        ),
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

    Arguments as of `score_tables`; `columns` is score -> headline.
    """
    cells = [["", *columns.values()]]
    cells += [[label, *numbers(scores, columns)] for label, scores in rows.items()]
    if len(rows) > 1:
        cells.append(["mean ± sd", *(with_deviation(*mean[name]) for name in columns)])
    cells += [[label, *numbers(scores, columns)] for label, scores in limits.items() if columns.keys() <= scores.keys()]
    return cells


def as_markdown(tables: Sequence[Table]) -> str:
    """Tables under each other, with their titles."""
    return "\n\n".join((f"{title}:\n\n" if title else "") + markdown(cells) for title, cells in tables)
