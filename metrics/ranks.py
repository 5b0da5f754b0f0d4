"""Ranks and recalls of a retrieval, from a score matrix and a text -> image mapping: pure functions on tensors."""

# Letters: N images, M texts, n images of one block.

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
Blocks = Callable[[], Iterable[Tensor]]
"""Gives the consecutive blocks of rows [n, M] of a score matrix, images in order, anew each time it is called."""
CACHED_SCORES = 2**20
"""Scores that are looked at together on the CPU, so that they stay in its cache from one look to the next."""


Ties = Literal["random", "last"]
"""What counts where others score as high as the match: the expectation over all their orders, as the sorts of published
code give it in effect, or the order in which the match comes last."""


@dataclass(frozen=True)
class Ranks:
    """Where each query found its match, 0 being the best place, with whatever scores as high placed before it.

    Attributes:
        image_to_text: rank of the best own text of each image, [N] int64 in 0..M-1.
        text_to_image: rank of each text's image, [M] int64 in 0..N-1.
        image_ties: how many other images' texts score as high as the best own one, [N] int64; None: none do.
        text_ties: how many other images score as high as the own one, [M] int64; None: none do.
        own_texts: how many own texts share the best score, [N] int64; None: one each.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    image_ties: Tensor | None = None
    text_ties: Tensor | None = None
    own_texts: Tensor | None = None


def rank(scores: Tensor, text_image: Tensor) -> Ranks:
    """Ranks from a whole score matrix, see `rank_blocks`.

    Args:
        scores: score of every image with every text, [N, M], higher is more alike.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has at least one text.
    """
    return rank_blocks(lambda: [scores], text_image)


@torch.no_grad()
def rank_blocks(blocks: Blocks, text_image: Tensor) -> Ranks:
    """Ranks from a score matrix that streams through in blocks of rows and is never held as a whole.

    An image is ranked by its best own text.

    Args:
        blocks: called twice: the first pass collects the scores of the matches, the second counts what scores higher,
            or as high.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has at least one text.

    Raises:
        ValueError: a score is NaN or infinite, an image has no text, or shapes don't fit.
    """
    check_form(text_image)
    match, images = match_scores(blocks, text_image)
    text_image = text_image.to(match.device)
    count_texts(text_image, images)
    best = match.new_empty(images).scatter_reduce_(0, text_image, match, "amax", include_self=False)  # [N]

    # How many others score at least as high as the match (row 0), or higher (row 1).
    of_images = torch.zeros(2, images, dtype=torch.int64, device=match.device)
    of_texts = torch.zeros(2, len(text_image), dtype=torch.int64, device=match.device)
    own_texts = torch.zeros(images, dtype=torch.int64, device=match.device)
    end = 0
    for start, block in sound_blocks(blocks, len(text_image)):
        end = start + len(block)
        if end > images:
            break
        rows, texts = _own_pairs(text_image, start, end)
        own, of_block = block[rows, texts], best[start:end]
        own_texts.index_add_(0, rows + start, (own >= of_block[rows]).long())
        for kind, before in enumerate((torch.ge, torch.gt)):
            # The matches are counted as well, and taken off as they were counted: a second pass whose scores differ in
            # the last bit (as on a GPU) can then never give a rank below 0.
            of_images[kind, start:end] = _count(before, block, of_block[:, None], dim=1)
            of_images[kind].index_add_(0, rows + start, -before(own, of_block[rows]).long())
            of_texts[kind] += _count(before, block, match, dim=0)
            of_texts[kind].index_add_(0, texts, -before(own, match[texts]).long())
    if end != images:
        raise ValueError(
            f"the first pass over the blocks gave {images} rows, the second {'more' if end > images else end}; "
            "blocks() must start anew each time it is called (return a new generator, not the same one)"
        )
    ties = [(counts[0] - counts[1]).clamp(min=0) for counts in (of_images, of_texts)]
    return Ranks(of_images[0], of_texts[0], ties[0], ties[1], own_texts.clamp(min=1))


def hit_chances(ranks: Ranks, ties: Ties = "random") -> tuple[Tensor, Tensor]:
    """Probability that each query has its match among the first 1, 5, 10: [N, 3] and [M, 3] float64."""
    return (
        _found(ranks.image_to_text, ranks.image_ties, ranks.own_texts, ties),
        _found(ranks.text_to_image, ranks.text_ties, None, ties),
    )


def _found(worst: Tensor, tied: Tensor | None, own: Tensor | None, ties: Ties) -> Tensor:
    """`hit_chances` of one direction.

    In a random order of t others and m matches, all of the first k are others with probability
    C(t, k) / C(t + m, k).
    """
    if ties == "last" or tied is None:
        return torch.stack([(worst < cutoff).double() for cutoff in CUTOFFS], dim=1)
    own = torch.ones_like(worst) if own is None else own
    drawn = torch.arange(max(CUTOFFS), device=worst.device)
    # Probability that the next drawn one is another as well, given that all before it were.
    misses = (tied[:, None] - drawn).clamp(min=0).double() / (tied + own)[:, None].sub(drawn).clamp(min=1)
    columns = []
    for cutoff in CUTOFFS:
        places = cutoff - (worst - tied)  # that are left for the match and its equals
        columns.append(1.0 - misses.masked_fill(drawn >= places[:, None], 1.0).prod(dim=1))
    return torch.stack(columns, dim=1)


def recalls(
    ranks: Ranks, directions: tuple[str, str] = ("i2t", "t2i"), mean: str = "mR", ties: Ties = "random"
) -> dict[str, float]:
    """The recall table of both directions, image to text (`i2t_`) before text to image (`t2i_`).

    Args:
        ranks: of both directions.
        directions: their names, where something else than texts is searched.
        mean: the name of the mean of the six recalls.
        ties: how equal scores count.

    Returns:
        For each direction `R@1`, `R@5`, `R@10` (queries whose match is among the first K, in percent), `medr` (median
        rank rounded down) and `meanr` (mean rank), these two counted from 1 and of expected ranks; at the end `mR`,
        the mean of the six recalls.
    """
    table: dict[str, float] = {}
    places = (
        _expected(ranks.image_to_text, ranks.image_ties, ranks.own_texts, ties),
        _expected(ranks.text_to_image, ranks.text_ties, None, ties),
    )
    for direction, found, place in zip(directions, hit_chances(ranks, ties), places, strict=True):
        ordered, queries = place.sort().values, len(place)
        for cutoff, hits in zip(CUTOFFS, found.T, strict=True):
            table[f"{direction}_R@{cutoff}"] = 100.0 * float(hits.sum()) / queries
        # The two middle elements are the same one where the number of queries is odd.
        table[f"{direction}_medr"] = float(ordered[(queries - 1) // 2] + ordered[queries // 2]) // 2 + 1
        table[f"{direction}_meanr"] = float(ordered.sum()) / queries + 1.0
    return table | {mean: mean_recall(table)}


def _expected(worst: Tensor, tied: Tensor | None, own: Tensor | None, ties: Ties) -> Tensor:
    """Expected rank of the first match: t others and m matches in random order put t / (m + 1) before it."""
    if ties == "last" or tied is None:
        return worst.double()
    return (worst - tied).double() + tied.double() / (1 if own is None else own + 1) / (2 if own is None else 1)


class Tasks(NamedTuple):
    """Ranks of all that a model is scored by; None for a task that it does not have.

    Attributes:
        text: of images and captions.
        audio: of images and spoken captions.
        view: of images and a second view of each.
    """

    text: Ranks
    audio: Ranks | None = None
    view: Ranks | None = None


def task_recalls(tasks: Tasks, ties: Ties = "random") -> dict[str, float]:
    """The recall table of image-text and, where there are any, image-audio and image-image retrieval.

    Returns:
        What `recalls` gives for the captions; the same for the spoken ones (`i2a_`, `a2i_`, `audio_mR`); `i2i_R@1`,
        `i2i_R@5`, `i2i_R@10`, each the mean of both directions, and their mean `image_mR`. Of several tasks also
        `tasks_mR`, the mean of their mR, by which MCRN's best epoch is chosen; of all three `mean_of_15`, the mean of
        all 15 recalls.
    """
    table = recalls(tasks.text, ties=ties)
    means = [table["mR"]]
    if tasks.audio is not None:
        table |= recalls(tasks.audio, ("i2a", "a2i"), "audio_mR", ties)
        means.append(table["audio_mR"])
    if tasks.view is not None:
        both = recalls(tasks.view, ("forth", "back"), ties=ties)
        images = {f"i2i_R@{cutoff}": (both[f"forth_R@{cutoff}"] + both[f"back_R@{cutoff}"]) / 2 for cutoff in CUTOFFS}
        table |= images | {"image_mR": mean_recall(images)}
        means.append(table["image_mR"])
    if len(means) == len(tasks):
        table["mean_of_15"] = mean_recall(table)
    return table if len(means) == 1 else table | {"tasks_mR": statistics.fmean(means)}


def mean_and_deviation(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation (n - 1; 0.0 for a single fold) of each figure over the folds.

    Args:
        rows: one table per fold, all with the same keys; at least one.

    Raises:
        ValueError: there is no row, or the keys differ.
    """
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"expected one or more rows with the same keys, got {[list(row) for row in rows]}")
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: (statistics.fmean(column), statistics.stdev(column) if len(column) > 1 else 0.0)
        for key, column in columns.items()
    }


def _count(before: Callable[..., Tensor], scores: Tensor, bound: Tensor, dim: int) -> Tensor:
    """How many scores of each row or column are ranked before its bound, int64; `before` is torch.ge or torch.gt."""
    # Written and summed as floats, which is several times as fast as booleans are; exact up to 2^24 of them.
    exact = torch.promote_types(scores.dtype, torch.float32)
    return before(scores, bound, out=torch.empty_like(scores, dtype=exact)).sum(dim).long()


def mean_recall(table: Mapping[str, float]) -> float:
    """The mean of all recalls in a table."""
    return statistics.fmean(value for key, value in table.items() if "_R@" in key)


def match_scores(blocks: Blocks, text_image: Tensor) -> tuple[Tensor, int]:
    """The score of each text with its image [M], and the number of images; for `blocks` see `rank_blocks`."""
    match: Tensor | None = None
    images = 0
    for start, block in sound_blocks(blocks, len(text_image)):
        if match is None:
            match = block.new_empty(len(text_image))
        images = start + len(block)
        rows, texts = _own_pairs(text_image.to(block.device), start, images)
        match[texts] = block[rows, texts]
    if match is None or images == 0:
        raise ValueError("the score matrix has no rows; at least one image is needed")
    return match, images


def mean_scores(sources: Sequence[Blocks]) -> Blocks:
    """Scores of an ensemble: for each pair the mean of what several models give it, whose blocks have the same rows."""
    return lambda: (torch.stack(blocks).mean(0) for blocks in zip(*(source() for source in sources), strict=True))


def sound_blocks(blocks: Blocks, texts: int) -> Iterator[tuple[int, Tensor]]:
    """Each block with the number of its first image, once its shape and its scores are checked; on the CPU in parts."""
    start = 0
    for whole in blocks():
        if whole.ndim != 2 or whole.shape[1] != texts:
            raise ValueError(
                f"scores must have the shape [images, {texts}], one column for each text in text_image; "
                f"got {list(whole.shape)} at image {start}"
            )
        for block in whole.split(max(1, CACHED_SCORES // texts)) if whole.device.type == "cpu" else (whole,):
            _check_finite(block, start)
            yield start, block
            start += len(block)


def _check_finite(block: Tensor, start: int) -> None:
    """ValueError unless all scores of a block are finite, whose first row is image `start`."""
    if block.sum().isfinite():  # one look; only a sum that is not finite, which large scores can give, needs another
        return
    faults = (~block.isfinite()).nonzero()  # [faults, 2], in reading order
    if len(faults):
        image, text = faults[0].tolist()
        raise ValueError(
            f"{len(faults)} of {block.numel()} scores of images {start} to {start + len(block) - 1} are NaN or "
            f"infinite, the first at image {start + image}, text {text}; a model that has diverged can't be ranked"
        )


def _own_pairs(text_image: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Row in the block and column of every text whose image is one of start..end-1."""
    texts = ((text_image >= start) & (text_image < end)).nonzero().squeeze(1)
    return text_image[texts] - start, texts


def check_form(text_image: Tensor) -> None:
    """ValueError unless the mapping is a non-empty [M] int64."""
    if text_image.ndim != 1 or text_image.dtype != torch.int64 or text_image.numel() == 0:
        raise ValueError(
            "text_image must hold one image number per text, shape [M] of int64 with M > 0; "
            f"got shape {list(text_image.shape)} of {text_image.dtype}"
        )


def count_texts(text_image: Tensor, images: int) -> Tensor:
    """Number of texts of each image, [N]; ValueError unless every text has an image and every image a text."""
    lowest, highest = int(text_image.min()), int(text_image.max())
    if lowest < 0 or highest >= images:
        wrong = lowest if lowest < 0 else highest
        position = int((text_image == wrong).nonzero()[0])
        raise ValueError(f"text_image must be in 0..{images - 1}; text {position} is given to image {wrong}")
    present, counts = text_image.unique(return_counts=True)
    if len(present) < images:
        gaps = (present != torch.arange(len(present), device=present.device)).nonzero()
        missing = int(gaps[0]) if len(gaps) else len(present)
        raise ValueError(
            f"{images - len(present)} of {images} images have no text, the first is image {missing}; "
            "leave images without captions out of the ranking"
        )
    return counts
