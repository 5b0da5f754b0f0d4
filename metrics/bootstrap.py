"""Which differences between two models are more than the choice of test images: a paired bootstrap.

Letters: F folds, N images, M captions, S resamples, C cutoffs (1, 5, 10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metrics.ranks import CUTOFFS

RESAMPLES_AT_ONCE = 1000
"""Bounds the memory: a thousand resamples of a thousand images are 8 MiB."""
NAMES = (*(f"{direction}_R@{cutoff}" for direction in ("i2t", "t2i") for cutoff in CUTOFFS), "mR")


@dataclass(frozen=True)
class Difference:
    """One recall of two models A and B, in percent.

    Attributes:
        first: of A.
        second: of B.
        low: lower end of the 95 % interval of B - A.
        high: its upper end.
        p: two-sided; the smallest that S resamples can show is 2 / (S + 1).
    """

    first: float
    second: float
    low: float
    high: float
    p: float


def compare_hits(
    first: NDArray[np.float64], second: NDArray[np.float64], captions: NDArray[np.float64], resamples: int, seed: int
) -> dict[str, Difference]:
    """Paired bootstrap over the test images, each drawn with all its captions.

    The captions of one image stand or fall together, so they are no independent queries: images are drawn, N with
    replacement, the same for both models. Each query counts with its mean over the model's folds.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13 (percentile interval).

    Args:
        first: `image_hits` of model A, [N, 2C].
        second: of model B, on the same list.
        captions: [N] how many captions each image has.
        resamples: S, at least 1.
        seed: of the draws.

    Returns:
        `i2t_R@1` ... `t2i_R@10`, and `mR`, the mean of the six.
    """
    images = len(captions)
    whole = [recalls_of(hit, captions, np.ones((1, images)))[0] for hit in (first, second)]  # 2 x [2C + 1]
    random, drawn = np.random.default_rng(seed), []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, resamples - start)
        weights = random.multinomial(images, np.full(images, 1 / images), size=count).astype(float)  # [S, N]
        drawn.append(recalls_of(second, captions, weights) - recalls_of(first, captions, weights))
    differences = np.concatenate(drawn)  # [S, 2C + 1]
    low, high = np.quantile(differences, [0.025, 0.975], axis=0)
    tail = 1 + np.minimum((differences <= 0).sum(axis=0), (differences >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * tail / (resamples + 1))
    columns = zip(NAMES, *whole, low, high, p, strict=True)
    return {name: Difference(*map(float, values)) for name, *values in columns}


def image_hits(
    images: NDArray[np.float64], captions: NDArray[np.float64], caption_image: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Per image, averaged over folds: whether it found a caption, and how many of its captions found it, [N, 2C].

    Args:
        images: [F, N, C] `metrics.hit_chances` of each image.
        captions: [F, M, C] of each caption.
        caption_image: [M] row of each caption's image.
    """
    mean = images.mean(axis=0)  # [N, C]
    summed = np.zeros_like(mean)
    np.add.at(summed, caption_image, captions.mean(axis=0))
    return np.concatenate([mean, summed], axis=1)


def recalls_of(
    hits: NDArray[np.float64], captions: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The six recalls and their mean in percent, [S, 7], of images that count `weights` [S, N] times."""
    counted = weights @ hits  # [S, 2C]
    queries = np.repeat(np.stack([weights.sum(axis=1), weights @ captions], axis=1), len(CUTOFFS), axis=1)
    recalls = 100 * counted / queries
    return np.concatenate([recalls, recalls.mean(axis=1, keepdims=True)], axis=1)
