"""A test list, and what a checkpoint scores on it beyond the recalls.

Letters: N images, M captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import metrics
import option
from data.annotations import Annotations, read_annotations
from data.images import decode
from data.scenes import UNNAMED_SCENE, scene_classes
from dataloader import EvaluationLoader
from layers.base import RetrievalModel
from metrics.rerank import Method, rerank
from option import Options
from option.schema import Rerank
from runs.checkpoints import FORMAT
from runs.loaders import evaluation_loader, read_vocabulary
from runs.media import Media, audio_folder_of, image_files
from runs.models import load_model
from runs.provenance import check_data_set, check_fold
from runs.ranges import with_range
from utils import Gate
from vocab import Vocabulary

RERANKED = "reranked_"
"""Before the name of a score that was taken after reranking."""
WORST_TIES = "worst_ties_"
"""Before the name of a score that places a match behind all that score as high, see `metrics.Ties`."""


@dataclass(frozen=True)
class TestSet:
    """What the models are tested on.

    Attributes:
        options: of the experiment.
        annotations: N images, M captions.
        vocabulary: the words that the models read.
        loader: of the same images and captions.
        scenes: class of each image, see `scene_numbers`; None where there are no classes.
    """

    options: Options
    annotations: Annotations
    vocabulary: Vocabulary
    loader: EvaluationLoader
    scenes: Tensor | None

    __test__ = False  # no tests in here, whatever pytest makes of the name

    @property
    def scene_names(self) -> dict[int, str]:
        """Number -> name of the scene classes, in the order of their numbers; none without classes."""
        if self.scenes is None:
            return {}
        return dict(sorted(zip(self.scenes.tolist(), scene_classes(self.annotations), strict=True)))

    def decoded(self, image: int) -> Image.Image:
        """An image as large as its file has it."""
        path = self.options.dataset.image_folder / self.annotations.image_names[image]
        return decode(path, self.options.dataset.rule)


def open_test_set(options: Options, device: torch.device, checkpoint: Path | None = None) -> TestSet:
    """The test list of an experiment, ready to be encoded; images with more than 8 bits as the checkpoint knows them.

    Raises:
        InputError: lists, images, vocabulary or what else the model needs can't be read.
    """
    vocabulary = read_vocabulary(options)
    annotations = read_annotations(options.dataset.folder, "test", audio_folder_of(options))
    options = with_range(options, image_files(options, annotations), checkpoint)
    media = Media.of(options, [annotations], device)
    loader = evaluation_loader(options, annotations, vocabulary, media, device, load=False)
    return TestSet(options, annotations, vocabulary, loader, scene_numbers(annotations))


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
    """`load_model` of a checkpoint that belongs to the data set it is scored on.

    Raises:
        InputError: the checkpoint can't be read, or belongs to something other than the options describe, such as
            another fold than `fold` (None: any will do).
    """
    model, content = load_model(options, vocabulary, path, device, gate, merge=False)
    if content.get("format") == FORMAT:
        check_data_set(content, path, options.dataset.folder, gate, one_of_several=True)
        check_fold(content, path, fold, option.dump(options)["k_fold"], gate)
    return model, content


def more_scores(
    blocks: metrics.Blocks,
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
        Where captions are equal word for word, the recalls with the worst order of ties under `worst_ties_<name>`; what
        `metrics.recalls` gives after the rerank, under `reranked_<name>`; and `metrics.scenes.scene_recalls`.
    """
    scores: dict[str, float] = {}
    text_image = loader.text_image
    if has_equal_captions(loader):
        scores |= renamed(WORST_TIES, metrics.recalls(ranks, ties="last"))
    if method is not None:
        reranked = rerank(blocks, text_image, method, constants.candidates, constants.w1, constants.w2)
        scores |= renamed(RERANKED, metrics.recalls(reranked))
    if scenes is not None:
        shares = metrics.scene_shares(blocks, text_image, scenes)
        device = shares.image_to_text.device
        scores |= metrics.scene_recalls(shares, text_image.to(device), scenes.to(device))
    return scores


def ensemble_scores(
    test_set: TestSet, sources: Sequence[metrics.Blocks], method: Method | None = None
) -> dict[str, float]:
    """Recalls of several models as one, each pair by the mean of their scores, and what `more_scores` gives."""
    loader, blocks = test_set.loader, metrics.mean_scores(sources)
    ranks = metrics.rank_blocks(blocks, loader.text_image)
    return metrics.recalls(ranks) | more_scores(blocks, ranks, loader, test_set.scenes, method, test_set.options.rerank)


def has_equal_captions(loader: EvaluationLoader) -> bool:
    """Whether some captions of a list are equal word for word."""
    return len(loader.distinct.lengths) < len(loader.text_image)


def renamed(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The same scores with a prefix before their names."""
    return {prefix + name: value for name, value in scores.items()}
