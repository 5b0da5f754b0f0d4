"""Score every fold's best checkpoint on the test split: python test.py --path_opt option/RSITMD_AMFMN.yaml."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runtime.arguments import add_folds, add_force, command, entry_parser

RERANKS = ("multivariate", "simple")
BESIDE = Path("report.html")
"""Of `--report` without a name: this file in the experiment's folder, or beside the checkpoint. What counts is this
very object, since an equal path may be typed."""


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed."""
    parser = entry_parser("Score every fold's best checkpoint on the test split.")
    add_folds(parser)
    add_force(parser)
    parser.add_argument("--checkpoint", type=Path, help="score this file alone: ours, or one published by the authors")
    parser.add_argument("--json", type=Path, help="write the result here, too")
    parser.add_argument(
        "--rerank", nargs="?", const="multivariate", choices=RERANKS, help="show the table after it, too"
    )
    parser.add_argument(
        "--rerank-path_opt", metavar="YAML", help="options of a second model, which puts the first items in order"
    )
    parser.add_argument(
        "--rerank-checkpoint", type=Path, metavar="FILE", help="its weights; default: those of the same fold"
    )
    parser.add_argument("--rerank-top", type=int, default=50, metavar="K", help="items that it orders (default 50)")
    parser.add_argument(
        "--ensemble", action="store_true", help="score the models of all folds as one, too: the mean of their scores"
    )
    parser.add_argument(
        "--scenes", action="store_true", help="tell scene classes apart, too: by prompts, neighbours, a linear probe"
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


if __name__ == "__main__":
    read_arguments()  # before PyTorch is imported, so that --help and misspelt flags are answered at once

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import metrics
import option
from engine import encode, rank_tasks, score_source
from layers.packaged import count_line
from option import Options
from option.dataset import set_name
from reports.export import Embeddings, write_embeddings, write_ranks
from reports.html import Report
from reports.results import Scores, parameters_of, results_folder, summary, write_results
from reports.scenes import matrix_tables, scene_tables, scene_values
from reports.tables import as_markdown
from reports.two_stage import stage_tables, stage_values
from runs.events import note_test
from runs.features import list_features, test_views
from runs.folders import best_checkpoint, experiment_folder, parse_folds
from runs.resume import unfinished
from runs.scene_probes import SceneTask, open_scene_task, scene_confusions
from runs.scoring import TestSet, load_scored, more_scores, open_test_set
from runs.sets import SETS, tested_alone
from runs.two_stage import SecondStage, first_costs, open_second_stage, second_scores
from runtime.devices import choose_device
from runtime.distributed import refuse_torchrun
from runtime.entry_point import run_entry_point
from utils import Gate, InputError, as_json, logger, named_by, write_text_atomic


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and write the recall table of an experiment, or of one checkpoint; of several sets one after the other."""
    given = read_arguments(arguments)
    refuse_torchrun("test.py")
    typed = sys.argv[1:] if arguments is None else arguments
    first, *others = tested_alone(option.load_options(given.path_opt, given.set))
    test_on(given, first, typed)
    for options in others:
        test_on(_beside(given, set_name(options.dataset.folder)), options, typed)


def test_on(given: argparse.Namespace, options: Options, typed: Sequence[str]) -> None:
    """Score the folds, or one checkpoint, on one test list; `typed` is the command line."""
    device = choose_device(given.device)
    folds = parse_folds(given.folds, options.k_fold.nums)
    checkpoints = {f"fold {fold}": best_checkpoint(options, fold) for fold in folds}
    if given.checkpoint is not None:
        checkpoints = {given.checkpoint.name: given.checkpoint}
    _refuse_missing(checkpoints, given.path_opt, given.set)
    _settle_targets(given, options)
    test_set = open_test_set(options, device, next(iter(checkpoints.values())))
    task = open_scene_task(test_set, device) if given.scenes else None
    stage = _second_stage(given, test_set, folds, device)
    test = Test(given, test_set, task, stage, device, Gate(given.force), Scores(), Report(test_set))
    for label, path in checkpoints.items():
        test.score(label, path)
    test.write(folds, shlex.join(["python", "test.py", *typed]))


@dataclass(frozen=True)
class Test:
    """What is asked of each checkpoint, and what was found so far.

    Attributes:
        given: the command line.
        test_set: what is scored on.
        task: the scene classes to tell apart, where that was asked for.
        stage: the second model, where there is one.
        device: where models compute.
        gate: whether the user insists on a mismatch.
        scores: of the checkpoints so far.
        report: the page about them.
    """

    given: argparse.Namespace
    test_set: TestSet
    task: SceneTask | None
    stage: SecondStage | None
    device: torch.device
    gate: Gate
    scores: Scores
    report: Report

    def score(self, label: str, path: Path) -> None:
        """Score one checkpoint; where a page is to be written, it takes it in."""
        given, test_set, device, scores = self.given, self.test_set, self.device, self.scores
        options, loader = test_set.options, test_set.loader
        fold = int(label.removeprefix("fold ")) if given.checkpoint is None else None
        model, content = load_scored(options, test_set.vocabulary, path, device, self.gate, fold)
        scores.parameters, scores.adapters = parameters_of(model), count_line(model)
        views = test_views(options)
        features = list_features(model, options, test_set.annotations, test_set.vocabulary, views, device)
        images, texts = encode(model, loader.reading(features), device, options.optim.amp, options.dataset.test_views)
        blocks = score_source(model, images, texts, loader.caption_row)
        tasks = rank_tasks(model, loader, images, blocks, device, options.optim.amp, options.dataset.test_views)
        scores.rows[label] = metrics.task_recalls(tasks)
        scores.rows[label] |= more_scores(blocks, tasks[0], loader, test_set.scenes, given.rerank, options.rerank)
        if self.stage is not None:
            found, second = second_scores(self.stage, fold, blocks, tasks[0], device, self.gate)
            scores.rows[label] |= found
            scores.costs[label] = first_costs(model, test_set, images, texts, self.stage.top, device), second
        if self.task is not None:
            scores.confusions[label] = scene_confusions(model, self.task, test_set, images, device)
        if given.ensemble:
            scores.blocks[label] = blocks
        scores.ranks[label] = tasks[0]
        scores.origins[label] = {key: content[key] for key in ("epoch", "fold", "options", SETS) if key in content}
        if (reached := unfinished(path.parent)) is not None:
            logger.warning("%s: the training is unfinished, after %s.", path, reached)
            scores.unfinished[label] = reached
        if given.export is not None:
            captions = texts.cpu()[loader.caption_row]  # [M, D]
            group = label if given.checkpoint is None else "checkpoint"
            scores.embeddings[group] = Embeddings(images.cpu(), captions, tasks[0], path, content.get("fold"))
        if given.report is not None:
            self.report.add(label, path, content.get("epoch", "unknown"), model, images, texts, blocks, tasks)

    def write(self, folds: Sequence[int], typed: str) -> None:
        """Print the tables and write all that was asked for; `typed` is the command."""
        given, test_set, scores = self.given, self.test_set, self.scores
        options = test_set.options
        result = summary(test_set, scores, self.device, given.rerank, given.checkpoint, self.gate.passed)
        tables, matrices = result.pop("tables"), []
        if self.task is not None:
            result["scenes"] = scene_values(self.task, scores.confusions)
            tables += scene_tables(self.task, scores.confusions)
            matrices = matrix_tables(self.task, scores.confusions)
        if self.stage is not None:
            result["two_stage"] = stage_values(self.stage, scores.costs)
            tables += stage_tables(self.stage, options.model.name, scores.rows, scores.costs)
        shown = as_markdown(tables)
        print(f"\n{options.model.name} on {options.dataset.data_path}\n\n{shown}\n\n{result['protocol']}")
        if given.checkpoint is None:
            self._keep(folds, result, shown)
        if given.json is not None:
            with named_by("--json", given.json):
                write_text_atomic(given.json, as_json(result))
        if given.export is not None:
            with named_by("--export", given.export):
                parts = test_set.annotations, options, test_set.vocabulary
                write_embeddings(given.export, *parts, scores.embeddings)
            print(f"\nEmbeddings written to {given.export}.")
        if given.report is not None:
            with named_by("--report", given.report):
                self.report.write(given.report, result, tables + matrices, typed)
            print(f"\nReport written to {given.report}; open it in a browser.")

    def _keep(self, folds: Sequence[int], result: Mapping[str, Any], shown: str) -> None:
        """Write the results into the experiment's folder."""
        options, scores, whole = self.test_set.options, self.scores, self.given.folds is None
        folder = results_folder(options, next(iter(scores.origins.values())))
        write_results(folder, folds, result, shown, whole)
        for fold in folds:
            note_test(options, folder, fold, scores.rows[f"fold {fold}"])
        if whole:
            write_ranks(folder / "ranks.h5", self.test_set.annotations, options, scores.ranks)


def _second_stage(
    given: argparse.Namespace, test_set: TestSet, folds: list[int], device: torch.device
) -> SecondStage | None:
    """The second model, where one was asked for."""
    if given.rerank_path_opt is None:
        if given.rerank_checkpoint is not None:
            raise InputError("--rerank-checkpoint: give --rerank-path_opt, too: the options of the second model.")
        return None
    scored = folds if given.checkpoint is None else None
    path_opt, top = given.rerank_path_opt, given.rerank_top
    return open_second_stage(path_opt, given.rerank_checkpoint, top, test_set, scored, device)


def _beside(given: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments for a further set: its files lie beside those of the first set, with its name at their ends."""
    moved = vars(given).copy()
    for flag in ("json", "export", "report"):
        path = moved[flag]
        if path is not None:
            moved[flag] = path.with_stem(f"{path.stem}_{name}")
    return argparse.Namespace(**moved)


def _settle_targets(given: argparse.Namespace, options: Options) -> None:
    """Decide before the work where a report without a name goes, and find out what can't be done or written after it.

    Raises:
        InputError: one model is no ensemble, or the name of a file to write is that of a folder.
    """
    if given.ensemble and (given.checkpoint is not None or len(parse_folds(given.folds, options.k_fold.nums)) < 2):
        raise InputError(
            "--ensemble: expected two folds or more to join; leave out --checkpoint, and name more --folds."
        )
    if given.report is BESIDE:
        beside = experiment_folder(options) if given.checkpoint is None else given.checkpoint.parent
        given.report = beside / BESIDE
    for flag, file in (("--json", "test.json"), ("--export", "test.h5"), ("--report", "report.html")):
        path = getattr(given, flag.removeprefix("--"))
        if path is not None and path.is_dir():
            raise InputError(f"{flag} {path}: this is a folder; give the name of the file to write, e.g. {path / file}")


def _refuse_missing(checkpoints: Mapping[str, Path], path_opt: str, overrides: Sequence[str]) -> None:
    """Name the command that makes a missing checkpoint; random weights are never scored."""
    missing = {label: path for label, path in checkpoints.items() if not path.is_file()}
    if not missing:
        return
    folds = ",".join(label.removeprefix("fold ") for label in missing if label.startswith("fold "))
    train = command("train.py", path_opt, overrides, "--folds", folds)
    advice = f" Train it: {train}" if folds else ""
    raise InputError(f"no checkpoint {', '.join(map(str, missing.values()))}.{advice}")


if __name__ == "__main__":
    run_entry_point(main)
