"""What recalls must be compared with: what a random order would get, and what no model can exceed."""

# Letters: N images, M texts, U different texts, K first places.

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from metrics.ranks import CUTOFFS, Ranks, Ties, check_form, count_texts, hit_chances, mean_recall
from metrics.scenes import NO_SCENE, SceneShares


def chance(text_image: Tensor) -> dict[str, float]:
    """Expected recalls of a model that ranks at random: what a score has to be compared with.

    A text finds its image among the first K of N with probability K / N; an image with t texts finds one of them among
    the first K of M unless all K are others: 1 - C(M - t, K) / C(M, K), averaged over the images.

    Args:
        text_image: the image that each text belongs to, [M] int64; every image up to the largest number has a text.

    Returns:
        The six recalls and `mR` in percent, under the keys of `recalls`.

    Raises:
        ValueError: an image has no text, or `text_image` isn't [M] int64.
    """
    check_form(text_image)
    texts = len(text_image)
    counts = count_texts(text_image, int(text_image.max()) + 1).double()  # [N]
    images = len(counts)
    table: dict[str, float] = {}
    for cutoff in CUTOFFS:
        drawn = torch.arange(min(cutoff, texts), dtype=torch.float64, device=counts.device)
        # Probability that the next drawn text is another image's as well, given that all before it were. Where fewer
        # than K are others' one factor is exactly 0, so the negative ones behind it do no harm.
        misses = (texts - counts[:, None] - drawn) / (texts - drawn)  # [N, K]
        table[f"i2t_R@{cutoff}"] = 100.0 * float((1.0 - misses.prod(dim=1)).mean())
    for cutoff in CUTOFFS:
        table[f"t2i_R@{cutoff}"] = 100.0 * min(cutoff, images) / images
    return table | {"mR": mean_recall(table)}


def source_chance(text_image: Tensor) -> dict[str, float]:
    """`chance` for the names of `metrics.ranks.task_recalls` of all three tasks."""
    text = chance(text_image)
    table = text | {name.replace("t", "a"): value for name, value in text.items() if name != "mR"}
    images = int(text_image.max()) + 1
    alone = {f"i2i_R@{cutoff}": 100.0 * min(cutoff, images) / images for cutoff in CUTOFFS}
    table |= alone | {"audio_mR": text["mR"], "image_mR": mean_recall(alone)}
    tasks = statistics.fmean((table["mR"], table["audio_mR"], table["image_mR"]))
    return table | {"mean_of_15": mean_recall(table), "tasks_mR": tasks}


def scene_chance(text_image: Tensor, scenes: Tensor) -> SceneShares:
    """Expected shares of a model that ranks at random: how common each query's class is among the items."""
    shares = []
    for queries, items in ((scenes, scenes[text_image]), (scenes[text_image], scenes)):
        counts = (items - NO_SCENE).bincount(minlength=int(scenes.max()) - NO_SCENE + 1).double()
        shares.append((counts / len(items))[queries - NO_SCENE, None].expand(-1, len(CUTOFFS)))
    return SceneShares(*shares)


def scene_knowledge(text_image: Tensor, scenes: Tensor) -> dict[str, float]:
    """Expected recalls of a model that knows every item's scene class and nothing else.

    It ranks the items of the query's class first, in random order, which is `chance` within each class. A score above
    it shows that images of one class are told apart, too.

    Args:
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has a text.
        scenes: the class of each image, [N] int64; those without one count as a class.

    Returns:
        The six recalls and `mR` in percent, under the keys of `metrics.ranks.recalls`.

    Raises:
        ValueError: as `chance`.
    """
    check_form(text_image)
    table: dict[str, float] = {}
    for scene in scenes.unique():
        images = scenes == scene  # [N]
        texts = images[text_image]  # [M]
        number = images.cumsum(0) - 1  # of each image among those of the class
        share = {"i2t": float(images.double().mean()), "t2i": float(texts.double().mean())}
        for name, value in chance(number[text_image[texts]]).items():
            if name != "mR":
                table[name] = table.get(name, 0.0) + share[name[:3]] * value
    return table | {"mR": mean_recall(table)}


def ceiling(text_image: Tensor, text_row: Tensor, ties: Ties = "random") -> dict[str, float]:
    """The highest recalls that any model can get where texts are equal word for word.

    Equal texts have one embedding, so that they tie. An image finds its best own text among the copies of it elsewhere.
    A text and its copies find the same order of images, in which only one of their own can be first.

    Args:
        text_image: the image that each text belongs to, [M] int64 in 0..N-1; every image has at least one text.
        text_row: a number for each different text, [M] int64 in 0..U-1.
        ties: how equal scores count.

    Returns:
        The six recalls and `mR` in percent, under the keys of `metrics.ranks.recalls`; each is a bound of its own.
    """
    check_form(text_image)
    pairs, copies = torch.stack([text_row, text_image]).unique(dim=1, return_counts=True)  # [2, P], [P]
    rows, images = pairs
    elsewhere = copies.new_zeros(int(rows.max()) + 1).index_add(0, rows, copies)[rows] - copies  # [P]
    number = len(count_texts(text_image, int(text_image.max()) + 1))
    # A text that is ranked first, with its copies before it: what an image gets by each of its texts, [P, 3].
    chances, _ = hit_chances(Ranks(elsewhere, elsewhere, elsewhere, elsewhere, copies), ties)
    # Within each text the images with most copies come first: that finds the most captions early.
    order = copies.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    starts = rows[order].bincount().cumsum(0) - rows[order].bincount()
    places = torch.arange(len(order), device=order.device) - starts[rows[order]]
    table: dict[str, float] = {}
    for cutoff, found in zip(CUTOFFS, chances.T, strict=True):
        best = found.new_zeros(number).scatter_reduce(0, images, found, "amax")  # [N]
        table[f"i2t_R@{cutoff}"] = 100.0 * float(best.mean())
    for cutoff in CUTOFFS:
        table[f"t2i_R@{cutoff}"] = 100.0 * int(copies[order][places < cutoff].sum()) / len(text_image)
    return table | {"mR": mean_recall(table)}
