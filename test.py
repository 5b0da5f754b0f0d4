"""Score every fold's best checkpoint on the test split: python test.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import metrics
import option
from data.annotations import Annotations, read_annotations
from data.scenes import UNNAMED_SCENE, scene_classes
from dataloader import EvaluationLoader
from engine import encode, rank_tasks, score_source
from layers.base import RetrievalModel
from layers.registry import registered
from metrics import limits, ties
from metrics.rerank import Method, rerank
from option import Options
from option.schema import Rerank
from reports.export import Embeddings, write_embeddings, write_ranks
from reports.html import Report, TestSet
from reports.tables import LIMITS, RANDOM_TIES, RERANKED, as_markdown, score_tables
from runs.builders import evaluation_loader, load_model, read_vocabulary
from runs.checkpoints import FORMAT
from runs.folders import best_checkpoint, experiment_folder, parse_folds
from runs.media import Media, audio_folder_of
from runs.provenance import check_data_set, check_fold
from runtime.arguments import add_folds, add_force, command, entry_parser
from runtime.devices import choose_device
from runtime.distributed import refuse_torchrun
from runtime.entry_point import run_entry_point
from utils import Gate, InputError, as_csv, first_line, write_text_atomic
from vocab import Vocabulary

BESIDE = Path("report.html")
"""Of `--report` without a name: this file in the experiment's folder, or beside the checkpoint. What counts is this
very object, since an equal path may be typed."""


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = entry_parser("Score every fold's best checkpoint on the test split.")
    add_folds(parser)
    add_force(parser)
    parser.add_argument("--checkpoint", type=Path, help="score this file alone: ours, or one published by the authors")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument(
        "--rerank", nargs="?", const="multivariate", choices=get_args(Method), help="show the table after it, too"
    )
    parser.add_argument("--export", type=Path, metavar="OUT.h5", help="write all embeddings here (docs/export.md)")
    parser.add_argument(
        "--report",
        nargs="?",
        const=BESIDE,
        type=Path,
        metavar="OUT.html",
        help="write a page to look at (docs/report.md)",
    )
    return parser.parse_args(arguments)


@dataclass
class Scores:
    """What was found of each checkpoint, by its label, `fold 0` or a file's name.

    Attributes:
        rows: recalls and what else was asked for, in percent.
        ranks: of images and captions.
        embeddings: where they are to be exported.
        origins: what the checkpoint says of its `epoch`, `fold` and `options`.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: dict[str, metrics.Ranks] = field(default_factory=dict)
    embeddings: dict[str, Embeddings] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and write the recall table of an experiment, or of one checkpoint."""
    given = _read_arguments(arguments)
    refuse_torchrun("test.py")
    options = option.load_options(given.path_opt, given.set)
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    checkpoints = {f"fold {fold}": best_checkpoint(options, fold) for fold in folds}
    if given.checkpoint is not None:
        checkpoints = {given.checkpoint.name: given.checkpoint}
    _refuse_missing(checkpoints, given.path_opt, given.set)
    _settle_targets(given, options)
    vocabulary = read_vocabulary(options)
    annotations = read_annotations(options.dataset.data_path, "test", audio_folder_of(options))
    media = Media.of(options, [annotations], device)
    loader = evaluation_loader(options, annotations, vocabulary, media, device)
    test_set = TestSet(options, annotations, vocabulary, loader, scene_numbers(annotations))
    report, scores, gate = Report(test_set), Scores(), Gate(given.force)
    for label, path in checkpoints.items():
        score_checkpoint(given, test_set, label, path, device, gate, scores, report)
    result = summary(given, test_set, scores, device, gate.passed)
    tables = result.pop("tables")
    shown = as_markdown(tables)
    print(f"\n{options.model.name} on {options.dataset.data_path}\n\n{shown}\n\n{result['protocol']}")
    if given.checkpoint is None:
        folder = results_folder(options, next(iter(scores.origins.values())))
        _write_results(folder, folds, result, shown, whole=given.folds is None)
        if given.folds is None:
            write_ranks(folder / "ranks.h5", annotations, options, scores.ranks)
    if given.json is not None:
        _write_copy(given.json, result)
    if given.export is not None:
        write_embeddings(given.export, annotations, options, vocabulary, scores.embeddings)
        print(f"\nEmbeddings written to {given.export}.")
    if given.report is not None:
        typed = sys.argv[1:] if arguments is None else arguments
        report.write(given.report, result, tables, shlex.join(["python", "test.py", *typed]))
        print(f"\nReport written to {given.report}; open it in a browser.")


def score_checkpoint(
    given: argparse.Namespace,
    test_set: TestSet,
    label: str,
    path: Path,
    device: torch.device,
    gate: Gate,
    scores: Scores,
    report: Report,
) -> None:
    """Score one checkpoint and add what was found to `scores`, and to `reports.tables` where one is to be written."""
    options, loader = test_set.options, test_set.loader
    fold = int(label.removeprefix("fold ")) if given.checkpoint is None else None
    model, content = load_scored(options, test_set.vocabulary, path, device, gate, fold)
    images, texts = encode(model, loader, device, options.optim.amp, options.dataset.test_views)
    blocks = score_source(model, images, texts, loader.caption_row)
    tasks = rank_tasks(model, loader, images, blocks, device, options.optim.amp, options.dataset.test_views)
    scores.rows[label] = metrics.task_recalls(tasks)
    scores.rows[label] |= more_scores(blocks, tasks[0], loader, test_set.scenes, given.rerank, options.rerank)
    scores.ranks[label] = tasks[0]
    scores.origins[label] = {key: content[key] for key in ("epoch", "fold", "options") if key in content}
    if given.export is not None:
        captions = texts.cpu()[loader.caption_row]  # [M, D]
        group = label if given.checkpoint is None else "checkpoint"
        scores.embeddings[group] = Embeddings(images.cpu(), captions, tasks[0], path, content.get("fold"))
    if given.report is not None:
        report.add(label, path, content.get("epoch", "unknown"), model, images, texts, blocks, tasks)


def _settle_targets(given: argparse.Namespace, options: Options) -> None:
    """Decide before the work where a report without a name goes, and find out what can't be written after it.

    Raises:
        InputError: the name of a file to write is that of a folder.
    """
    if given.report is BESIDE:
        beside = experiment_folder(options) if given.checkpoint is None else given.checkpoint.parent
        given.report = beside / BESIDE
    for flag, file in (("--json", "test.json"), ("--export", "test.h5"), ("--report", "report.html")):
        path = getattr(given, flag.removeprefix("--"))
        if path is not None and path.is_dir():
            raise InputError(f"{flag} {path}: this is a folder; give the name of the file to write, e.g. {path / file}")


def scene_numbers(annotations: Annotations) -> Tensor | None:
    """The scene class of each image as a number, `metrics.scenes.NO_SCENE` where it has none, [N] int64.

    Returns:
        None where the images are not of different classes, so that a scene recall would say nothing.

    Raises:
        InputError: `classes.txt` does not fit the images.
    """
    classes = scene_classes(annotations)
    if len(set(classes)) == 1:
        return None
    number = {name: place for place, name in enumerate(sorted(set(classes) - {UNNAMED_SCENE}))}
    return torch.tensor([number.get(name, metrics.NO_SCENE) for name in classes])


def load_scored(
    options: Options,
    vocabulary: Vocabulary,
    path: Path,
    device: torch.device,
    gate: Gate | None = None,
    fold: int | None = None,
) -> tuple[RetrievalModel, dict[str, Any]]:
    """`runs.builders.load_model` of a checkpoint that belongs to the data set it is scored on.

    Args:
        options: what the model is built from.
        vocabulary: the words whose ids the captions become.
        path: the checkpoint.
        device: where the model goes.
        gate: whether the user insists on a mismatch.
        fold: what the checkpoint should be of; None: any.

    Raises:
        InputError: the checkpoint can't be read, or belongs to something else than the options describe.
    """
    model, content = load_model(options, vocabulary, path, device, gate)
    if content.get("format") == FORMAT:
        check_data_set(content, path, options.dataset.data_path, gate)
        check_fold(content, path, fold, option.dump(options)["k_fold"], gate)
    return model, content


def more_scores(
    blocks: Callable[[], Iterable[Tensor]],
    ranks: metrics.Ranks,
    loader: EvaluationLoader,
    scenes: Tensor | None,
    method: Method | None,
    constants: Rerank,
) -> dict[str, float]:
    """What is asked for beyond the recalls, in percent.

    Args:
        blocks: scores of images and captions, see `engine.score_source`.
        ranks: of images and captions.
        loader: of the data set.
        scenes: see `scene_numbers`.
        method: how to rerank; None: not at all.
        constants: of the rerank.

    Returns:
        Where captions are equal word for word, `metrics.ties.random_tie_recalls` under `random_ties_<name>`; what
        `metrics.ranks.recalls` gives after the rerank, under `reranked_<name>`; and `metrics.scenes.scene_recalls`.
    """
    scores: dict[str, float] = {}
    text_image = loader.text_image
    if _has_equal_captions(loader):
        scores |= _renamed(RANDOM_TIES, ties.random_tie_recalls(blocks, text_image, ranks))
    if method is not None:
        reranked = rerank(blocks, text_image, method, constants.candidates, constants.w1, constants.w2)
        scores |= _renamed(RERANKED, metrics.recalls(reranked))
    if scenes is not None:
        shares = metrics.scene_shares(blocks, text_image, scenes)
        device = shares.image_to_text.device
        scores |= metrics.scene_recalls(shares, text_image.to(device), scenes.to(device))
    return scores


def summary(
    given: argparse.Namespace, test_set: TestSet, scores: Scores, device: torch.device, forced: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that a reader of the table needs, as plain values; `forced` are the mismatches let through."""
    options, loader, scenes = test_set.options, test_set.loader, test_set.scenes
    rows, method = scores.rows, given.rerank
    mean = metrics.mean_and_deviation(list(rows.values()))
    chance = (limits.chance if loader.audio is None else limits.source_chance)(loader.text_image)
    ceiling = limits.ceiling(loader.text_image, loader.caption_row)
    told = {} if scenes is None else limits.scene_knowledge(loader.text_image, scenes)
    alone = dict(told)
    for prefix, shown in ((RANDOM_TIES, _has_equal_captions(loader)), (RERANKED, method is not None)):
        if shown:
            chance |= _renamed(prefix, limits.chance(loader.text_image))
            alone |= _renamed(prefix, told)
    if scenes is not None:
        expected = limits.scene_chance(loader.text_image, scenes)
        chance |= metrics.scene_recalls(expected, loader.text_image, scenes)
    model = registered()[options.model.name].model
    views = "" if options.dataset.test_views == "one" else "each image in 8 right-angle views"
    note = "; ".join(filter(None, [views, model.protocol_note(options), *(f"FORCED: {text}" for text in forced)]))
    protocol = (
        f"Protocol: test split, {len(loader.image_ids)} images, {len(loader.text_image)} captions; "
        f"{_what_was_scored(given, options, scores)}; an item that is no match and scores equal to the match counts as "
        f"ranked before it; images of {options.dataset.image_size} pixels, "
        f"amp {options.optim.amp}, {device.type}, torch {torch.__version__}{f'; {note}' if note else ''}."
    )
    compared = {"chance": chance, "scene_class_alone": alone, "ceiling": ceiling}
    named = {LIMITS[key]: values for key, values in compared.items()}
    return {
        "tables": score_tables(rows, mean, named, _describe(method, options.rerank)),
        "protocol": protocol,
        "rows": rows,
        "mean": {name: value for name, (value, _) in mean.items()},
        "standard_deviation": {name: value for name, (_, value) in mean.items()},
        **compared,
        "rerank": method,
        "options": option.dump(options),
    }


def _what_was_scored(given: argparse.Namespace, options: Options, scores: Scores) -> str:
    """One file, or the folds, how they were split and by what each one's epoch was chosen."""
    if given.checkpoint is not None:
        epoch = scores.origins[given.checkpoint.name].get("epoch", "unknown")
        return f"one checkpoint, {given.checkpoint.name} (epoch {epoch})"
    model, count = registered()[options.model.name].model, len(scores.rows)
    selected_by = "mR" if model.selected_by == "mR" else "the mean mR of all tasks"
    return (
        f"{count} {'fold' if count == 1 else 'folds'}, split strategy {options.k_fold.strategy}, each fold's best "
        f"epoch by {selected_by} on val; mean ± sample standard deviation over folds"
    )


def _has_equal_captions(loader: EvaluationLoader) -> bool:
    return len(loader.distinct.lengths) < len(loader.text_image)


def _renamed(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in scores.items()}


def _describe(method: Method | None, constants: Rerank) -> str:
    weights = f", w1 {constants.w1:g}, w2 {constants.w2:g}" if method == "multivariate" else ""
    return f"{method}, {constants.candidates} candidates{weights}"


def results_folder(options: Options, content: Mapping[str, Any]) -> Path:
    """Where results go: into the experiment's folder, or into one there if the queries are others than in training.

    Args:
        options: of the test.
        content: of one of the checkpoints, which was loaded with these options.
    """
    registration, folder = registered()[options.model.name], experiment_folder(options)
    mode = registration.model.query_mode(options.model)
    if mode == "none":  # published checkpoints say nothing of their options
        return folder
    trained = registration.parameters.model_validate(content["options"]["model"])
    return folder if registration.model.query_mode(trained) == mode else folder / f"by_{mode}"


def _write_results(folder: Path, folds: Sequence[int], result: Mapping[str, Any], tables: str, whole: bool) -> None:
    """Each fold's scores into its folder, and where all folds were scored the whole result beside them."""
    rows = result["rows"]
    for fold in folds:
        write_text_atomic(folder / str(fold) / "test.json", _json(rows[f"fold {fold}"]))
    if whole:
        write_text_atomic(folder / "test.json", _json(result))
        write_text_atomic(folder / "test.csv", as_csv([{"row": label, **scores} for label, scores in rows.items()]))
        write_text_atomic(folder / "test.md", f"{tables}\n\n{result['protocol']}\n")
        print(f"\nWritten to {folder}/test.json, test.csv and test.md.")


def _write_copy(path: Path, result: Mapping[str, Any]) -> None:
    try:
        write_text_atomic(path, _json(result))
    except OSError as fault:
        raise InputError(f"--json {path}: can't be written ({first_line(fault)}); give another file.") from fault


def _refuse_missing(checkpoints: Mapping[str, Path], path_opt: str, overrides: Sequence[str]) -> None:
    """Name the command that makes a missing checkpoint; random weights are never scored."""
    missing = {label: path for label, path in checkpoints.items() if not path.is_file()}
    if not missing:
        return
    folds = ",".join(label.removeprefix("fold ") for label in missing if label.startswith("fold "))
    train = command("train.py", path_opt, overrides, "--folds", folds)
    advice = f" Train it: {train}" if folds else ""
    raise InputError(f"no checkpoint {', '.join(map(str, missing.values()))}.{advice}")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


if __name__ == "__main__":
    run_entry_point(main)
