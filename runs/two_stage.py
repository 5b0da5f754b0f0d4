"""Two stages: the first items of a model's search, in the order of a second model's score, and what a query costs.

Letters: N images, M captions, U different captions, K candidates, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import option
from batches.batch import Batch
from data.regions.file import region_fields
from dataloader import EvaluationLoader
from engine import embed, encode, image_verb, with_folded_norms
from layers.base import RetrievalModel
from metrics import Blocks, Ranks, recalls
from metrics.shortlists import shortlists
from metrics.two_stage import candidates_of, ranks_after
from option import Options
from runs.features import list_features, test_views
from runs.folders import best_checkpoint
from runs.scoring import TestSet, load_scored, open_test_set, renamed
from runs.sets import tested_alone
from runtime.progress import progress_bar
from utils import Gate, InputError

TWO_STAGE = "two_stage_"
"""Before the name of a score that was taken after the second stage."""
IN_FIRST = "in_first_"
"""Before the name of the share of queries whose match is among the candidates, in percent."""
TIMED = 50
"""Queries that a cost is the mean of."""
Costs = dict[str, float]
"""Of one stage, both directions: `i2t_encode_ms`, `i2t_rank_ms`, `i2t_pairs`, and of `t2i_` the same."""
DIRECTIONS = ("i2t", "t2i")


@dataclass(frozen=True)
class SecondStage:
    """The model that has the last word, and how much it is asked.

    Attributes:
        test_set: the same list as the first model's, as the second reads it.
        path_opt: its options' file.
        checkpoint: its weights; None: those of the fold that is scored.
        top: candidates per query, K.
    """

    test_set: TestSet
    path_opt: str
    checkpoint: Path | None
    top: int

    @property
    def options(self) -> Options:
        """Of the second model."""
        return self.test_set.options

    def checkpoint_of(self, fold: int | None) -> Path:
        """The weights that go with a fold of the first model; None: with its one checkpoint."""
        if self.checkpoint is not None or fold is None:
            assert self.checkpoint is not None
            return self.checkpoint
        return best_checkpoint(self.options, fold)


def open_second_stage(
    path_opt: str, checkpoint: Path | None, top: int, first: TestSet, folds: list[int] | None, device: torch.device
) -> SecondStage:
    """Read the options of a second model, and the test list as it reads it.

    Args:
        path_opt: its options' file.
        checkpoint: its weights; None: those of each fold.
        top: candidates per query, K.
        first: the first model's test set.
        folds: that are scored; None: one checkpoint.
        device: where the models are.

    Raises:
        InputError: weights are missing, the lists are not the same, or what the model needs can't be read.
    """
    if top < 1:
        raise InputError(f"--rerank-top {top}: expected 1 or more.")
    if checkpoint is None and folds is None:
        raise InputError(
            "--rerank-path_opt: with --checkpoint give --rerank-checkpoint, too: the second model's weights."
        )
    own = tested_alone(option.load_options(path_opt))  # of several sets that which the first model is tested on
    options = next((each for each in own if each.dataset.folder == first.options.dataset.folder), own[0])
    needed = [checkpoint] if checkpoint is not None else [best_checkpoint(options, fold) for fold in folds or ()]
    if missing := [str(path) for path in needed if not path.is_file()]:
        raise InputError(
            f"--rerank-path_opt {path_opt}: no checkpoint {', '.join(missing)}. Train it: "
            f"python train.py --path_opt {path_opt}, or give its weights by --rerank-checkpoint."
        )
    test_set = open_test_set(options, device, needed[0])
    theirs, ours = test_set.annotations, first.annotations
    if (theirs.image_names, theirs.captions) != (ours.image_names, ours.captions):
        raise InputError(
            f"--rerank-path_opt {path_opt}: its test list, {theirs.names_file}, is not that of the first model, "
            f"{ours.names_file}; both stages search the same images and captions."
        )
    return SecondStage(test_set, path_opt, checkpoint, top)


def second_scores(
    stage: SecondStage, fold: int | None, blocks: Blocks, before: Ranks, device: torch.device, gate: Gate
) -> tuple[dict[str, float], Costs]:
    """What a fold scores after the second stage, and what that costs.

    Args:
        stage: the second model.
        fold: of the first model; None: its one checkpoint.
        blocks: scores of the first model, see `engine.score_source`.
        before: ranks of the first model.
        device: where the models are.
        gate: whether the user insists on a mismatch.

    Returns:
        What `metrics.recalls` gives under `two_stage_<name>`, and the shares `in_first_i2t` and `in_first_t2i` of
        queries whose match is among the K candidates, beyond which no second stage goes; in percent.

    Raises:
        InputError: the checkpoint can't be read or belongs to something else, or an embedding is not finite.
    """
    options, loader, test_set = stage.options, stage.test_set.loader, stage.test_set
    path = stage.checkpoint_of(fold)
    model, _ = load_scored(options, test_set.vocabulary, path, device, gate, fold)
    model = model.reranker()
    features = list_features(model, options, test_set.annotations, test_set.vocabulary, test_views(options), device)
    images, texts = encode(model, loader.reading(features), device, options.optim.amp, options.dataset.test_views)
    lists = shortlists(blocks, stage.top)
    scorers = pair_scorers(model, images, texts, loader.caption_row.to(device))
    costs, found = encoding_costs(model, stage.test_set, device), []
    for direction, shortlist, scorer in zip(DIRECTIONS, lists, scorers, strict=True):
        scores, pairs, seconds = rescored(shortlist.items.to(device), scorer, direction)
        found.append(scores.to(shortlist.items.device))
        costs |= {f"{direction}_pairs": pairs, f"{direction}_rank_ms": 1000 * seconds}
    candidates = candidates_of(lists, loader.text_image, stage.top)
    after = recalls(ranks_after((found[0], found[1]), candidates, before))
    shares = [100.0 * float(each.found().double().mean()) for each in candidates]
    return renamed(TWO_STAGE, after) | renamed(IN_FIRST, dict(zip(DIRECTIONS, shares, strict=True))), costs


Scorer = Callable[[int, Tensor], tuple[Tensor, int]]
"""Scores [K] of a query's candidates, and how many pairs that took; of a query and the candidates' numbers [K]."""


@torch.no_grad()
def pair_scorers(model: RetrievalModel, images: Tensor, texts: Tensor, caption_row: Tensor) -> tuple[Scorer, Scorer]:
    """How an image scores its captions, and a caption its images. Equal captions have one score, to the last bit.

    Args:
        model: any registered model.
        images: [N, D].
        texts: [U, D], each different caption once.
        caption_row: [M] row of each caption in `texts`.
    """

    def of_image(query: int, items: Tensor) -> tuple[Tensor, int]:
        rows, place = caption_row[items].unique(return_inverse=True)
        return model.score(images[query : query + 1], texts[rows])[0, place], len(rows)

    def of_caption(query: int, items: Tensor) -> tuple[Tensor, int]:
        row = caption_row[query]
        return model.score(images[items], texts[row : row + 1])[:, 0], len(items)

    return of_image, of_caption


@torch.no_grad()
def rescored(items: Tensor, scorer: Scorer, name: str) -> tuple[Tensor, float, float]:
    """New scores of the candidates [Q, K] of one direction, query by query as in a search.

    Returns:
        The scores [Q, K], pairs that were scored and seconds that it took per query.
    """
    started, scores, pairs = time.perf_counter(), [], 0
    for query, row in enumerate(progress_bar(items, desc=f"second stage ({name})", unit="query")):
        mine, count = scorer(query, row)
        scores.append(mine)
        pairs += count
    whole = torch.stack(scores)
    if not whole.isfinite().all():  # waits for the device, too
        raise InputError("the second model gives scores that are not finite: its weights have diverged.")
    return whole, pairs / len(items), (time.perf_counter() - started) / len(items)


def first_costs(
    model: RetrievalModel, test_set: TestSet, images: Tensor, texts: Tensor, top: int, device: torch.device
) -> Costs:
    """What a query costs in the first stage, one at a time: it is encoded, scored with all items, and they are ordered.

    Args:
        model: of the first stage.
        test_set: as it reads it.
        images: [N, D].
        texts: [U, D].
        top: candidates per query, K.
        device: where the model is.
    """

    def of_image(query: int) -> Tensor:
        return model.score(images[query : query + 1], texts)[0].topk(min(top, len(texts))).indices

    def of_caption(query: int) -> Tensor:
        return model.score(images, texts[query : query + 1])[:, 0].topk(min(top, len(images))).indices

    return encoding_costs(model, test_set, device) | {
        "i2t_pairs": len(texts),
        "i2t_rank_ms": milliseconds(of_image, len(images)),
        "t2i_pairs": len(images),
        "t2i_rank_ms": milliseconds(of_caption, len(texts)),
    }


def encoding_costs(model: RetrievalModel, test_set: TestSet, device: torch.device) -> Costs:
    """What it costs to encode an image, and a caption of the list, one at a time and from its pixels or words."""
    options, loader = test_set.options, test_set.loader
    black = black_image(loader).to(device)
    quick, verb, _ = with_folded_norms(model, lambda network: image_verb(network, options.dataset.test_views), [black])
    amp = options.optim.amp

    def image(query: int) -> Tensor:
        return embed(quick, verb, [black], "image", device, amp)

    def caption(query: int) -> Tensor:
        batch = loader.distinct.batch(torch.tensor([query])).to(device)
        return embed(model, model.encode_text, [batch], "caption", device, amp)

    count = len(loader.distinct.lengths)
    return {"i2t_encode_ms": milliseconds(image, TIMED), "t2i_encode_ms": milliseconds(caption, count)}


def black_image(loader: EvaluationLoader) -> Batch:
    """A black image with the regions of the first one, where the model reads any."""
    side = loader.store.size
    return Batch(
        images=torch.zeros(1, 3, side, side), **region_fields(loader.regions, torch.zeros(1, dtype=torch.long))
    )


@torch.no_grad()
def milliseconds(act: Callable[[int], Tensor], queries: int) -> float:
    """Mean time of some queries, spread evenly over all, one after the other; the first is done once before."""
    chosen = np.linspace(0, queries - 1, min(queries, TIMED)).round().astype(int).tolist()
    act(chosen[0]).cpu()
    started = time.perf_counter()
    for query in chosen:
        act(query).cpu()  # waits for the device
    return 1000 * (time.perf_counter() - started) / len(chosen)
