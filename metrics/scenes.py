"""Scene recall: how much of what a query finds first shows its own scene (SWAN)."""

# Letters: N images, M texts, n images of one block, Q queries.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.ranks import CUTOFFS, Blocks, check_form, sound_blocks

NO_SCENE = -1
NAMED_ONLY = "_without_noneclass"


@dataclass(frozen=True)
class SceneShares:
    """How much of what each query finds first shows the query's own scene, in 0..1, one column for each of `CUTOFFS`.

    Attributes:
        image_to_text: [N, 3] float64.
        text_to_image: [M, 3] float64.
    """

    image_to_text: Tensor
    text_to_image: Tensor


@torch.no_grad()
def scene_shares(blocks: Blocks, text_image: Tensor, scenes: Tensor) -> SceneShares:
    """Share of the first r items of each query that are of its scene class.

    Ties count against the model: among items of equal score those of another class come first. Where there are fewer
    than r items, the share is taken of all. Of the scores only the best few of each query are kept.

    Args:
        blocks: called once.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1.
        scenes: scene class of each image, [N] int64 from 0, or `NO_SCENE`, which is a class like any other here.

    Raises:
        ValueError: a score is NaN or infinite, or shapes don't fit.
    """
    check_form(text_image)
    image_to_text: list[Tensor] = []
    alike = others = torch.empty(0)
    end = 0
    for start, block in sound_blocks(blocks, len(text_image)):
        end = start + len(block)
        if end > len(scenes):
            break
        scenes, text_image = scenes.to(block.device), text_image.to(block.device)
        same = scenes[start:end, None] == scenes[text_image]  # [n, M]
        own, foreign = (block.masked_fill(hidden, float("-inf")) for hidden in (~same, same))
        image_to_text.append(_shares(_best(own), _best(foreign), len(text_image)))
        alike, others = (
            _best(new.T if start == 0 else torch.cat([kept, new.T], dim=1))
            for kept, new in ((alike, own), (others, foreign))
        )
    if end != len(scenes) or end == 0:
        raise ValueError(f"scenes must hold one class per image: {len(scenes)} classes, {end} or more rows of scores")
    return SceneShares(torch.cat(image_to_text), _shares(alike, others, len(scenes)))


def scene_recalls(shares: SceneShares, text_image: Tensor, scenes: Tensor) -> dict[str, float]:
    """Scene recall of both directions: the mean share over the queries, in percent (SWAN).

    Returns:
        `i2t_scene_recall@1`, `@5`, `@10`, then `t2i_...`. Where some images have no scene (`NO_SCENE`), the same once
        more with the suffix `_without_noneclass`: their queries are left out; as items they stay, and never fit.
    """
    named = scenes != NO_SCENE
    table: dict[str, float] = {}
    for suffix in ("", NAMED_ONLY) if 0 < int(named.sum()) < len(named) else ("",):
        for direction, rows, known in (
            ("i2t", shares.image_to_text, named),
            ("t2i", shares.text_to_image, named[text_image]),
        ):
            means = 100.0 * (rows[known] if suffix else rows).mean(dim=0)
            table |= {f"{direction}_scene_recall@{r}{suffix}": float(x) for r, x in zip(CUTOFFS, means, strict=True)}
    return table


def _best(scores: Tensor) -> Tensor:
    """The highest scores of each row in falling order, no more than the largest cutoff asks for."""
    return scores.topk(min(max(CUTOFFS), scores.shape[1]), dim=1).values


def _shares(alike: Tensor, others: Tensor, items: int) -> Tensor:
    """Share of each query's first r items that are of its class, [Q, 3], from the best scores of either kind [Q, r]."""
    before = (others[:, None, :] >= alike[:, :, None]).sum(dim=2)
    place = before + torch.arange(alike.shape[1], device=alike.device)
    found = [((place < cutoff) & alike.isfinite()).sum(dim=1).double() / min(cutoff, items) for cutoff in CUTOFFS]
    return torch.stack(found, dim=1)
