"""What a report keeps of each fold, and of the first one the queries, the plane and the examples that it shows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from batches.augmentation import normalise
from batches.batch import Batch
from data.regions.drawing import draw_regions
from data.regions.file import read_regions, region_fields
from dataloader import EvaluationLoader
from layers.base import RetrievalModel
from reports.html.findings import Query, answers, extremes, margins, principal_plane
from runs.scoring import TestSet
from training.epoch import autocast
from vocab import UNKNOWN, tokenize

QUERIES = 4  # best ones and worst ones, of each direction
ANSWERS = 5
EXAMPLES = 3  # best captions and worst ones whose explanation is shown


@dataclass(frozen=True)
class Fold:
    """One checkpoint's outcome.

    Attributes:
        label: its row in the tables.
        checkpoint: its file.
        epoch: that it was saved after, as the file says.
        ranks: direction -> ranks, see `findings.by_direction`.
        first: scene class of the image that each caption finds first, [M]; None without classes.
    """

    label: str
    checkpoint: Path
    epoch: object
    ranks: dict[str, Tensor]
    first: Tensor | None


@dataclass(frozen=True)
class Example:
    """What the model weighed in one pair.

    Attributes:
        caption: its number.
        attention: [H, W] over its image.
        words: its words as the model reads them (`<unk>` for an unknown one), each with its share.
        regions: the image with its regions drawn.
    """

    caption: int
    attention: Tensor | None
    words: list[tuple[str, float]] | None
    regions: Image.Image | None


@dataclass(frozen=True)
class Gallery:
    """What is shown of one fold: best and worst queries of both directions, the plane, examples.

    Attributes:
        captions: best and worst captions as queries.
        images: best and worst images as queries.
        image_points: [N, 2].
        caption_points: [U, 2].
        plane_shares: of the variance on each axis, in percent.
        examples: pairs with what the model weighed in them; none where it has nothing to show.
    """

    captions: tuple[list[Query], list[Query]]
    images: tuple[list[Query], list[Query]]
    image_points: Tensor
    caption_points: Tensor
    plane_shares: list[float]
    examples: list[Example]


@torch.no_grad()
def examine(
    subject: TestSet,
    model: RetrievalModel,
    images: Tensor,
    texts: Tensor,
    scores: Tensor,
    ranks: dict[str, Tensor],
) -> Gallery:
    """All that is shown of a single fold.

    Args:
        subject: what was tested on.
        model: of the fold, on the loader's device.
        images: [N, D] embeddings.
        texts: [U, D] embeddings of the different captions.
        scores: [N, M] on the CPU.
        ranks: see `findings.by_direction`.
    """
    text_image = subject.loader.text_image
    own = torch.arange(len(scores))[:, None] == text_image[None]  # [N, M]
    groups = torch.arange(len(scores)) if subject.scenes is None else subject.scenes
    # Word for word equal captions are different answers where their images' keywords are a part of them.
    wordings = list(zip(subject.annotations.captions, subject.loader.caption_row.tolist(), strict=True))
    captions = _queries(scores.T, own.T, ranks["t2i"], groups[text_image], range(len(scores)))
    image_points, caption_points, shares = principal_plane(images.cpu(), texts.cpu())
    return Gallery(
        captions=captions,
        images=_queries(scores, own, ranks["i2t"], groups, wordings),
        image_points=image_points,
        caption_points=caption_points,
        plane_shares=shares,
        examples=explain(subject, model, [query.number for side in captions for query in side[:EXAMPLES]]),
    )


def _queries(
    scores: Tensor, own: Tensor, ranks: Tensor, groups: Tensor, names: Sequence[Hashable]
) -> tuple[list[Query], list[Query]]:
    """Best and worst rows of scores [Q, K] as queries."""

    def query(number: int) -> Query:
        return Query(number, int(ranks[number]), answers(scores[number], own[number], names, ANSWERS))

    best, worst = extremes(ranks, margins(scores, own), groups.tolist(), QUERIES)
    return [query(number) for number in best], [query(number) for number in worst]


@torch.no_grad()
def explain(subject: TestSet, model: RetrievalModel, captions: Sequence[int]) -> list[Example]:
    """What the model weighed in some captions and their images; nothing if it has nothing to show.

    Raises:
        InputError: an image or the region file can't be read.
    """
    ids = torch.tensor(captions)
    batch = _pairs(subject.loader, ids)
    model.eval()
    with autocast(subject.loader.device, subject.options.optim.amp):
        explanation = model.explain(batch)
    maps, shares = explanation.image_attention, explanation.word_shares
    drawn = _drawn_regions(subject, subject.loader.text_image[ids].tolist())
    if maps is None and shares is None and not drawn:
        return []
    return [
        Example(
            caption,
            None if maps is None else maps[row].float().cpu(),
            None if shares is None else _words(subject, caption, shares[row].tolist()),
            drawn[row] if drawn else None,
        )
        for row, caption in enumerate(captions)
    ]


def _pairs(loader: EvaluationLoader, captions: Tensor) -> Batch:
    """Some captions and the image of each, on the device."""
    images = loader.text_image[captions]
    stored = loader.store.batch(loader.image_ids[images]).to(loader.device)
    batch = replace(loader.distinct.batch(loader.caption_row[captions]), caption_ids=captions, image_ids=images)
    return replace(batch, images=normalise(stored), **region_fields(loader.regions, images)).to(loader.device)


def _words(subject: TestSet, caption: int, shares: Sequence[float]) -> list[tuple[str, float]]:
    """The words of a caption as the model reads them, each with its share."""
    words = tokenize(subject.annotations.captions[caption]) or [UNKNOWN]
    knows = subject.vocabulary.knows
    return [(word if knows(word) else UNKNOWN, share) for word, share in zip(words, shares, strict=False)]


def _drawn_regions(subject: TestSet, images: Sequence[int]) -> list[Image.Image]:
    """The images with their regions, where the model reads regions whose classes are known; else none."""
    regions, path = subject.loader.regions, subject.options.dataset.local_path
    classes = () if regions is None or path is None else read_regions(path).classes
    if regions is None or not classes:
        return []
    return [
        draw_regions(subject.decoded(image), regions.nodes[image].numpy(), regions.adjacency[image].numpy(), classes)
        for image in images
    ]
