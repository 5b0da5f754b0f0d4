"""What test.py makes of its scores: the tables, the line of protocol, and the files of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import metrics
import option
from engine import chance_of
from layers.registry import registered
from metrics import limits
from metrics.rerank import Method
from option import Options
from option.schema import Rerank
from reports.export import Embeddings
from reports.tables import LIMITS, score_tables
from runs.folders import experiment_folder
from runs.scoring import RERANKED, WORST_TIES, TestSet, ensemble_scores, has_equal_captions, renamed
from runs.sets import place_of, sets_in_words
from runs.two_stage import Costs
from utils import as_csv, as_json, write_text_atomic


@dataclass
class Scores:
    """What was found of each checkpoint, by its label, `fold 0` or a file's name.

    Attributes:
        rows: recalls and what else was asked for, in percent.
        ranks: of images and captions.
        embeddings: where they are to be exported.
        origins: what the checkpoint says of its `epoch`, `fold`, `options` and `sets`.
        unfinished: how far the trainings have come that are not at their end.
        parameters: of the model, `trained` and `all`.
        adapters: how much of a model with adapters learned, in words.
        confusions: of scene classes by method [C, C], where they were asked for.
        costs: of a query in the first stage and in the second, where there are two.
        blocks: scores of images and captions, where the models are to be scored as one.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: dict[str, metrics.Ranks] = field(default_factory=dict)
    embeddings: dict[str, Embeddings] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    adapters: str = ""
    confusions: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    costs: dict[str, tuple[Costs, Costs]] = field(default_factory=dict)
    blocks: dict[str, metrics.Blocks] = field(default_factory=dict)


def parameters_of(model: nn.Module) -> dict[str, int]:
    """How many parameters a model has: those that are `trained`, and `all`."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return {"trained": sum(size for size, learns in sizes if learns), "all": sum(size for size, _ in sizes)}


def summary(
    test_set: TestSet,
    scores: Scores,
    device: torch.device,
    method: Method | None = None,
    checkpoint: Path | None = None,
    forced: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything that a reader of the table needs, as plain values.

    Args:
        test_set: what was scored on.
        scores: of each checkpoint.
        device: where they were scored.
        method: of the rerank; None: there was none.
        checkpoint: the one file that was scored; None: the folds of the experiment.
        forced: mismatches that were let through.
    """
    rows, mean = scores.rows, metrics.mean_and_deviation(list(scores.rows.values()))
    compared = limits_of(test_set, reranked=method is not None)
    sources = list(scores.blocks.values())
    ensemble = {"ensemble": ensemble_scores(test_set, sources, method)} if sources else {}
    named = ensemble | {LIMITS[key]: values for key, values in compared.items()}
    return {
        "tables": score_tables(rows, mean, named, _describe(method, test_set.options.rerank)),
        "protocol": protocol_of(test_set, scores, device, checkpoint, forced),
        "ties": "random",
        "rows": rows,
        "mean": {name: value for name, (value, _) in mean.items()},
        "standard_deviation": {name: value for name, (_, value) in mean.items()},
        **ensemble,
        **compared,
        "rerank": method,
        "parameters": scores.parameters,
        "options": option.dump(test_set.options),
    }


def limits_of(test_set: TestSet, reranked: bool) -> dict[str, dict[str, float]]:
    """What the scores of a test set are compared with, under the keys of `LIMITS`; see `metrics.limits`."""
    loader, scenes = test_set.loader, test_set.scenes
    chance = chance_of(loader)
    told = {} if scenes is None else limits.scene_knowledge(loader.text_image, scenes)
    alone = dict(told)
    for prefix, shown in ((WORST_TIES, has_equal_captions(loader)), (RERANKED, reranked)):
        if shown:
            chance |= renamed(prefix, limits.chance(loader.text_image))
            alone |= renamed(prefix, told)
    if scenes is not None:
        expected = limits.scene_chance(loader.text_image, scenes)
        chance |= metrics.scene_recalls(expected, loader.text_image, scenes)
    ceiling = limits.ceiling(loader.text_image, loader.caption_row)
    if has_equal_captions(loader):
        ceiling |= renamed(WORST_TIES, limits.ceiling(loader.text_image, loader.caption_row, "last"))
    return {"chance": chance, "scene_class_alone": alone, "ceiling": ceiling}


def protocol_of(
    test_set: TestSet, scores: Scores, device: torch.device, checkpoint: Path | None, forced: Sequence[str]
) -> str:
    """The line of protocol, for the arguments of `summary`."""
    options, loader = test_set.options, test_set.loader
    views = "" if options.dataset.test_views == "one" else "each image in 8 right-angle views"
    model_note = registered()[options.model.name].model.protocol_note(options)
    warnings = [f"UNFINISHED: {label} after {reached}" for label, reached in scores.unfinished.items()]
    warnings += [f"FORCED: {text}" for text in forced]
    together = f"ensemble: the mean of the scores of {len(scores.blocks)} folds" if scores.blocks else ""
    sets = next((sets_in_words(origin) for origin in scores.origins.values()), "")
    several = f"trained on {sets}" if sets else ""
    notes = "; ".join(filter(None, [several, views, model_note, scores.adapters, together, *warnings]))
    return (
        f"Protocol: test split, {len(loader.image_ids)} images, {len(loader.text_image)} captions; "
        f"{what_was_scored(options, scores, checkpoint)}; items of equal score in random order, of which the "
        f"expectation counts; images of {options.dataset.image_size} pixels, amp {options.optim.amp}, "
        f"{device.type}, torch {torch.__version__}{f'; {notes}' if notes else ''}."
    )


def what_was_scored(options: Options, scores: Scores, checkpoint: Path | None) -> str:
    """One file, or the folds, how they were split and by what each one's epoch was chosen."""
    if checkpoint is not None:
        epoch = scores.origins[checkpoint.name].get("epoch", "unknown")
        return f"one checkpoint, {checkpoint.name} (epoch {epoch})"
    model, count = registered()[options.model.name].model, len(scores.rows)
    selected_by = "mR" if model.selected_by == "mR" else "the mean mR of all tasks"
    return (
        f"{count} {'fold' if count == 1 else 'folds'}, split strategy {options.k_fold.strategy}, each fold's best "
        f"epoch by {selected_by} on val; mean ± sample standard deviation over folds"
    )


def _describe(method: Method | None, constants: Rerank) -> str:
    weights = f", w1 {constants.w1:g}, w2 {constants.w2:g}" if method == "multivariate" else ""
    return f"{method}, {constants.candidates} candidates{weights}"


def results_folder(options: Options, content: Mapping[str, Any]) -> Path:
    """Where results go: into the experiment's folder, or into one there if the queries are others than in training.

    Those on another than the first of several sets that were trained on have a folder of their own there, too.

    Args:
        options: of the test.
        content: of one of the checkpoints, which was loaded with these options.
    """
    registration = registered()[options.model.name]
    folder = experiment_folder(options) / place_of(content, options.dataset.folder)
    mode = registration.model.query_mode(options.model)
    if mode == "none":  # published checkpoints say nothing of their options
        return folder
    trained = registration.parameters.model_validate(content["options"]["model"])
    return folder if registration.model.query_mode(trained) == mode else folder / f"by_{mode}"


def write_results(folder: Path, folds: Sequence[int], result: Mapping[str, Any], tables: str, whole: bool) -> None:
    """Each fold's scores into its folder, and where all folds were scored the whole result beside them."""
    rows = result["rows"]
    for fold in folds:
        write_text_atomic(folder / str(fold) / "test.json", as_json(rows[f"fold {fold}"]))
    if whole:
        write_text_atomic(folder / "test.json", as_json(result))
        write_text_atomic(folder / "test.csv", as_csv([{"row": label, **scores} for label, scores in rows.items()]))
        write_text_atomic(folder / "test.md", f"{tables}\n\n{result['protocol']}\n")
        print(f"\nWritten to {folder}/test.json, test.csv and test.md.")
