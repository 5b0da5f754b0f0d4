"""Pure functions on tensors: ranks, recalls, ties, limits, rerank, bootstrap. They know no file, option or report."""

from metrics.ranks import (
    CUTOFFS,
    Blocks,
    Ranks,
    Tasks,
    Ties,
    hit_chances,
    mean_and_deviation,
    mean_recall,
    mean_scores,
    rank,
    rank_blocks,
    recalls,
    task_recalls,
)
from metrics.scenes import NAMED_ONLY, NO_SCENE, SceneShares, scene_recalls, scene_shares

__all__ = [
    "CUTOFFS",
    "NAMED_ONLY",
    "NO_SCENE",
    "Blocks",
    "Ranks",
    "SceneShares",
    "Tasks",
    "Ties",
    "hit_chances",
    "mean_and_deviation",
    "mean_recall",
    "mean_scores",
    "rank",
    "rank_blocks",
    "recalls",
    "scene_recalls",
    "scene_shares",
    "task_recalls",
]
