"""How alike captions are: of one image, of images of one class, of images of different classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.imports import import_nltk

Score = Callable[[list[str], list[str]], float]
wordnet = import_nltk("corpus").wordnet
bleu_score = import_nltk("translate.bleu_score")
single_meteor_score = import_nltk("translate.meteor_score").single_meteor_score
KINDS = ("same image", "same class", "other class")
_SMOOTHING = bleu_score.SmoothingFunction().method1  # short captions often share no 4-gram, which would make BLEU 0


def bleu(reference: list[str], hypothesis: list[str]) -> float:
    """BLEU-4 of two token lists in [0, 1], smoothed; 1 for equal ones of any length (Papineni et al. 2002)."""
    return float(bleu_score.sentence_bleu([reference], hypothesis, smoothing_function=_SMOOTHING, auto_reweigh=True))


def meteor(reference: list[str], hypothesis: list[str]) -> float:
    """METEOR of two token lists in [0, 1]; needs NLTK's wordnet (Banerjee and Lavie 2005)."""
    return float(single_meteor_score(reference, hypothesis))


def scores_at_hand() -> dict[str, Score]:
    """BLEU, and METEOR where NLTK's wordnet is installed."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return {"BLEU": bleu}
    return {"BLEU": bleu, "METEOR": meteor}


def mean_similarity(
    tokens: Sequence[list[str]], image: np.ndarray, scene: np.ndarray, score: Score, pairs: int, seed: int
) -> dict[str, float]:
    """Mean score of sampled pairs of captions.

    Args:
        tokens: M captions, each with at least one token.
        image: [M] int64, the image of each caption; ascending.
        scene: [M] int64, the class of each caption's image.
        score: of two captions.
        pairs: how many to sample of each kind.
        seed: of the sample.

    Returns:
        A mean for each of `KINDS`, in [0, 1]; NaN where there is no such pair.
    """
    means = {}
    random = np.random.default_rng(seed)
    # A pair is a caption and another of the same outer group that is not of the same inner group.
    everything, each = np.zeros_like(image), np.arange(len(image))
    for kind, outer, inner in zip(KINDS, (image, scene, everything), (each, image, scene), strict=True):
        first, second = _sample(outer, inner, pairs, random)
        values = [score(tokens[one], tokens[other]) for one, other in zip(first, second, strict=True)]
        means[kind] = float(np.mean(values)) if values else float("nan")
    return means


def _sample(
    outer: np.ndarray, inner: np.ndarray, pairs: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of places that agree in `outer` and differ in `inner`, which refines it; every such partner alike likely.

    In the order of both, the partners of a place are all of its outer group but the run of its inner group.

    Returns:
        Two arrays [pairs]; empty where there is no pair at all.
    """
    order = np.lexsort((inner, outer))
    groups, blocks = outer[order], np.stack([outer, inner])[:, order]
    outer_start, outer_size = _runs(np.flatnonzero(np.diff(groups)), len(order))
    inner_start, inner_size = _runs(np.flatnonzero(np.any(np.diff(blocks, axis=1), axis=0)), len(order))
    able = np.flatnonzero(outer_size > inner_size)
    if not len(able):
        return able, able
    first = random.choice(able, pairs)
    step = random.integers(0, outer_size[first] - inner_size[first])
    second = inner_start[first] + inner_size[first] + step - outer_start[first]
    return order[first], order[outer_start[first] + second % outer_size[first]]


def _runs(ends: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and size of the run that each of `count` places lies in, from the last places of all runs but one."""
    starts = np.concatenate([[0], ends + 1])
    sizes = np.diff([*starts, count])
    return np.repeat(starts, sizes), np.repeat(sizes, sizes)
