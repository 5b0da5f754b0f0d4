"""Recalls where equal scores are brought into a random order, as the sort of the published code does in effect."""

# Letters: N images, M texts, K first places.

from __future__ import annotations

import torch
from torch import Tensor

from metrics.ranks import CUTOFFS, Blocks, Ranks, match_scores, mean_recall, rank_blocks


@torch.no_grad()
def random_tie_recalls(blocks: Blocks, text_image: Tensor, last: Ranks) -> dict[str, float]:
    """Expected recalls if all orders of equally scored items were equally likely.

    Texts that are equal word for word have equal scores, so it is they that tie. `metrics.rank_blocks` lets a tie count
    against the model; published tables were made with a sort, which puts a match among its equals anywhere. To compare
    with such a table, compare these.

    Args:
        blocks: called three times.
        text_image: the image that each text belongs to, [M] int64 in 0..N-1.
        last: what `metrics.ranks.rank_blocks` gives for them.

    Returns:
        The six recalls and `mR` in percent, under the keys of `metrics.ranks.recalls`.

    Raises:
        ValueError: as `metrics.ranks.rank_blocks`.
    """
    first = rank_blocks(blocks, text_image, ties="first")
    match, images = match_scores(blocks, text_image)
    text_image = text_image.to(match.device)
    best = match.new_empty(images).scatter_reduce_(0, text_image, match, "amax", include_self=False)  # [N]
    own = torch.zeros_like(first.image_to_text).index_add_(0, text_image, (match >= best[text_image]).long())  # [N]
    one = torch.ones_like(text_image)
    table: dict[str, float] = {}
    for direction, before, behind, matches in (
        ("i2t", first.image_to_text, last.image_to_text, own),
        ("t2i", first.text_to_image, last.text_to_image, one),
    ):
        for cutoff in CUTOFFS:
            found = _found(cutoff - before, (behind - before).clamp(min=0), matches)
            table[f"{direction}_R@{cutoff}"] = 100.0 * float(found.mean())
    return table | {"mR": mean_recall(table)}


def _found(places: Tensor, others: Tensor, matches: Tensor) -> Tensor:
    """Probability that one of some matches is among the first places of a random order with others, float64.

    All are others with probability C(others, places) / C(others + matches, places); 0 places find nothing.
    """
    drawn = torch.arange(max(CUTOFFS), device=places.device)
    misses = (others[:, None] - drawn).clamp(min=0).double() / (others + matches)[:, None].sub(drawn).clamp(min=1)
    return 1.0 - misses.masked_fill(drawn >= places[:, None], 1.0).prod(dim=1)
