"""The numbers that describe a captioned data set; its images aren't needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.annotations import list_files, read_annotations
from data.scenes import scene_classes
from data.stats.caption_similarity import mean_similarity, scores_at_hand
from vocab import tokenize

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Statistics:
    """A data set in numbers.

    Attributes:
        name: of its folder, without `_precomp`.
        images: by split; val is what the folder ships (`val_filename_verify.txt`), and not counted as train.
        captions: how many.
        different_captions: how many.
        diversity: different captions of an image, mean.
        words: tokens of all captions.
        different_words: how many.
        lengths: [longest + 1], captions by their number of tokens.
        similarity: score -> kind of pair -> mean in [0, 1].
        classes: scene class -> images by split; empty where file names tell no classes.
    """

    name: str
    images: Mapping[str, int]
    captions: int
    different_captions: int
    diversity: float
    words: int
    different_words: int
    lengths: np.ndarray
    similarity: Mapping[str, Mapping[str, float]]
    classes: Mapping[str, Mapping[str, int]]


def statistics(folder: Path, pairs: int = 2000, seed: int = 0) -> Statistics:
    """Read a data set's lists; each mean similarity is that of `pairs` sampled pairs of captions, at least 1.

    Raises:
        InputError: a list can't be read.
    """
    train, test = read_annotations(folder, "train"), read_annotations(folder, "test")
    val = (
        set(read_annotations(folder, "val_verify").image_names)
        if list_files(folder, "val_verify")[0].is_file()
        else set()
    )
    splits = ["val" if name in val else "train" for name in train.image_names] + ["test"] * len(test.image_names)
    scenes = [*scene_classes(train), *scene_classes(test)]
    # Where file names tell no classes, either each makes its own or all make one.
    known = 1 < len(set(scenes)) <= len(scenes) / 2
    labels = np.unique(scenes, return_inverse=True)[1] if known else np.arange(len(scenes))

    captions = [caption.strip() for caption in (*train.captions, *test.captions)]
    image = np.concatenate([train.caption_image, test.caption_image + len(train.image_names)])
    tokens = [tokenize(caption) for caption in captions]
    spoken = np.array([bool(words) for words in tokens])
    pairs_of = np.unique(np.column_stack([image, np.unique(captions, return_inverse=True)[1]]), axis=0)
    return Statistics(
        name=folder.resolve().name.removesuffix("_precomp"),
        images=Counter(splits),
        captions=len(captions),
        different_captions=len(set(captions)),
        diversity=len(pairs_of) / len(splits),
        words=sum(map(len, tokens)),
        different_words=len({word for words in tokens for word in words}),
        lengths=np.bincount([len(words) for words in tokens]),
        similarity={
            label: mean_similarity(
                [words for words in tokens if words], image[spoken], labels[image[spoken]], score, pairs, seed
            )
            for label, score in scores_at_hand().items()
        },
        classes={
            scene: Counter(split for split, other in zip(splits, scenes, strict=True) if other == scene)
            for scene in (sorted(set(scenes)) if known else ())
        },
    )


def moments(lengths: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the number of words, from captions by length [longest + 1]."""
    places = np.arange(len(lengths))
    mean = float(np.average(places, weights=lengths))
    return mean, float(np.sqrt(np.average((places - mean) ** 2, weights=lengths)))
