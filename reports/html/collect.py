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
from reports.html.findings import Miss, Query, answers, extremes, margins, misses, principal_plane
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
    """What the model weighed in an image and in captions of it.

    Attributes:
        image: its number.
        attention: [H, W] over it.
        regions: the image with its regions drawn.
        captions: number of each, and its words as the model reads them (`<unk>` for an unknown one) with their shares.
    """

    image: int
    attention: Tensor | None
    regions: Image.Image | None
    captions: list[tuple[int, list[tuple[str, float]] | None]]


@dataclass(frozen=True)
class Gallery:
    """What is shown of one fold: best and worst queries of both directions, the plane, examples.

    Attributes:
        captions: best and worst captions as queries.
        images: best and worst images as queries.
        image_points: [N, 2].
        caption_points: [U, 2].
        plane_shares: of the variance on each axis, in percent.
        examples: images with what the model weighed in them; none where it has nothing to show.
        missed_captions: that don't find their image, see `findings.misses`.
        missed_images: that don't find a caption of theirs.
    """

    captions: tuple[list[Query], list[Query]]
    images: tuple[list[Query], list[Query]]
    image_points: Tensor
    caption_points: Tensor
    plane_shares: list[float]
    examples: list[Example]
    missed_captions: list[Miss]
    missed_images: list[Miss]


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
        missed_captions=misses(scores.T, own.T, ranks["t2i"]),
        missed_images=misses(scores, own, ranks["i2t"]),
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
    images = subject.loader.text_image[ids].tolist()
    drawn = _drawn_regions(subject, images)
    if maps is None and shares is None and not drawn:
        return []
    return [
        Example(
            images[rows[0]],
            None if maps is None else maps[rows[0]].float().cpu(),
            drawn[rows[0]] if drawn else None,
            [
                (captions[row], None if shares is None else _words(subject, captions[row], shares[row].tolist()))
                for row in rows
            ],
        )
        for rows in _alike(images, maps)
    ]


def _alike(images: Sequence[int], maps: Tensor | None) -> list[list[int]]:
    """Rows of one image stand together, but for those that have another map [B, H, W] than the first of them."""
    groups: list[list[int]] = []
    for row, image in enumerate(images):
        same = (
            group
            for group in groups
            if images[group[0]] == image and (maps is None or torch.allclose(maps[group[0]], maps[row], atol=1e-3))
        )
        found = next(same, None)
        if found is None:
            groups.append([row])
        else:
            found.append(row)
    return groups


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
