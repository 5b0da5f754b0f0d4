"""Which images of a data set are train and which are val: the strategies, and the record that a run keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from data.annotations import Annotations, list_files, read_annotations
from data.lists import first_faults, read_names, refuse_faults, repeated_names, shown, write_lines
from data.scenes import scene_classes
from utils import InputError

Strategy = Literal["random", "kfold", "stratified", "blocks", "captions", "all", "fixed"]

_LEAST_BLOCKS = 5


def recorded_or_new(
    folder: Path,
    run_folder: Path,
    strategy: Strategy,
    fold: int,
    folds: int,
    seed: int,
    resume: bool,
    audio_folder: Path | None = None,
) -> tuple[Annotations, Annotations]:
    """The train and val lists of one fold, see `fold_annotations`; the split is recorded in the fold's `run_folder`.

    With `resume`, a split that is recorded there is taken, whatever the other arguments would give.

    Raises:
        InputError: as `fold_annotations` and `read_split`.
    """
    lists = _lists(folder, strategy, audio_folder)
    recorded = read_split(run_folder, *lists, held_out=strategy != "all") if resume else None
    if recorded is not None:
        return recorded
    train, val = fold_annotations(folder, strategy, fold, folds, seed, audio_folder)
    write_split(run_folder, train, val)
    return train, val


def fold_annotations(
    folder: Path, strategy: Strategy, fold: int, folds: int, seed: int, audio_folder: Path | None = None
) -> tuple[Annotations, Annotations]:
    """The train and val lists of one fold, by any strategy of `split_images`.

    Or by "fixed": the split that the folder ships in its `*_verify.txt` files, the same for every fold.

    Raises:
        InputError: as `read_annotations` and `split_images`; or a file of the fixed split is missing, or an image is
            on both of its sides.
    """
    train, val = _lists(folder, strategy, audio_folder)
    if strategy == "fixed":
        return train, val
    train_images, val_images = split_images(train, strategy, fold, folds, seed)
    return train.subset(train_images), val.subset(val_images)


def deciding(k_fold: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options `k_fold` decides the split of a fold: equal values give equal splits.

    What a stored block lacks is left out.
    """
    strategy = k_fold.get("strategy")
    kept: dict[str, Any] = {"strategy": strategy}
    if strategy not in ("blocks", "fixed") and "seed" in k_fold:
        kept["seed"] = k_fold["seed"]
    if strategy in ("kfold", "blocks") and "nums" in k_fold:
        kept["nums"] = k_fold["nums"] if strategy == "kfold" else max(k_fold["nums"], _LEAST_BLOCKS)
    return kept


def split_images(
    annotations: Annotations, strategy: Strategy, fold: int, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the images of a list into train and val; the captions of an image stay together.

    Args:
        annotations: the list, N images.
        strategy: "random": 80 % train, shuffled with seed + fold; "kfold": fold number `fold` of a partition into
            `folds` parts, shuffled once with seed, is val; "stratified": 80 % (to the nearest image) of every scene
            class, shuffled with seed + fold; "blocks": every scene class, in the order of the numbers in its file
            names, is cut into `folds` runs, at least 5, and run number `fold` is val, whatever the seed; "captions":
            about 80 % train, shuffled with seed + fold, images that share a caption word for word on one side; "all":
            every image is train, and the val of "captions" is among them.
        fold: which fold, in [0, folds).
        folds: how many folds.
        seed: 0 or more.

    Returns:
        The indices of the train and of the val images, int64, both ascending; together each image once, but for "all".

    Raises:
        InputError: the strategy is another, the fold is out of range, or a side would be empty.
    """
    count = len(annotations.image_names)
    if not 0 <= fold < folds:
        raise InputError(f"fold {fold} is out of range: k_fold.nums is {folds}, so folds are 0 to {folds - 1}")
    if strategy == "random":
        val = np.random.default_rng(seed + fold).permutation(count)[count * 4 // 5 :]
    elif strategy == "kfold":
        if folds < 2:
            raise InputError("k_fold.strategy 'kfold' needs k_fold.nums of 2 or more, found 1; or choose 'random'")
        val = np.array_split(np.random.default_rng(seed).permutation(count), folds)[fold]
    elif strategy == "stratified":
        val = _stratified_val(scene_classes(annotations), np.random.default_rng(seed + fold))
    elif strategy == "blocks":
        val = _block_val(annotations, fold, max(folds, _LEAST_BLOCKS))
    elif strategy in ("captions", "all"):
        val = _unshared_val(annotations, np.random.default_rng(seed + fold))
    else:
        expected = "random, kfold, stratified, blocks, captions or all"
        raise InputError(f"k_fold.strategy {strategy!r} does not split a list: expected {expected}")
    val = np.sort(val)
    every = np.arange(count, dtype=np.int64)
    train = every if strategy == "all" else np.setdiff1d(every, val)
    if not len(train) or not len(val):
        raise InputError(
            f"{annotations.names_file}: {count} images are too few for k_fold.strategy {strategy!r} with {folds} folds:"
            f" {len(train)} would be train and {len(val)} val; add images or choose another strategy"
        )
    return train, val


def write_split(run_folder: Path, train: Annotations, val: Annotations) -> None:
    """Record a fold's split in its run folder: `split/train.txt` and `split/val.txt`, one file name a line."""
    for side, images in (("train", train), ("val", val)):
        write_lines(_split_file(run_folder, side), images.image_names)


def read_split(
    run_folder: Path, train_source: Annotations, val_source: Annotations, held_out: bool = True
) -> tuple[Annotations, Annotations] | None:
    """Read back the split of lists that `write_split` recorded, so that a resumed run goes on with it.

    Args:
        run_folder: of the fold.
        train_source: the list of the train images.
        val_source: the list of the val images.
        held_out: whether no image may be on both sides.

    Returns:
        Train and val, or None where no whole split was recorded.

    Raises:
        InputError: a recorded name is not in its list any more, is there twice, or is on both sides where it must not.
    """
    train_file, val_file = _split_file(run_folder, "train"), _split_file(run_folder, "val")
    if not (train_file.exists() and val_file.exists()):
        return None
    train, val = _pick(train_file, train_source), _pick(val_file, val_source)
    if held_out:
        _refuse_overlap(train.image_names, val.image_names, train_file, val_file)
    return train, val


def _pick(file: Path, source: Annotations) -> Annotations:
    """The images of a list that a recorded file names, in the file's order."""
    index = {name: image for image, name in enumerate(source.image_names)}
    names = read_names(file)
    faults = [
        f"line {line}: {shown(name)} is not in {source.names_file}"
        for line, name in enumerate(names, 1)
        if name not in index
    ]
    faults += repeated_names(names, range(len(names)))
    refuse_faults(
        file,
        faults,
        "The data set or k_fold.strategy has changed since this run began: restore it, or start in a new folder.",
    )
    return source.subset([index[name] for name in names])


def _lists(folder: Path, strategy: Strategy, audio_folder: Path | None) -> tuple[Annotations, Annotations]:
    """The lists that train and val images are taken from: the shipped halves, or twice the whole train list."""
    if strategy != "fixed":
        every = read_annotations(folder, "train", audio_folder)
        return every, replace(every, name="val")
    needed = [*list_files(folder, "train_verify"), *list_files(folder, "val_verify")]
    missing = [file.name for file in needed if not file.is_file()]
    if missing:
        raise InputError(
            f"{folder}: k_fold.strategy 'fixed' reads the split from {', '.join(file.name for file in needed)}; "
            f"missing: {', '.join(missing)}. Add them, or choose random, kfold, stratified, blocks or captions"
        )
    train = read_annotations(folder, "train_verify", audio_folder)
    val = read_annotations(folder, "val_verify", audio_folder)
    _refuse_overlap(train.image_names, val.image_names, train.names_file, val.names_file)
    return train, val


def _stratified_val(classes: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """Indices of a fifth of every class's images, to the nearest image."""
    labels = np.asarray(classes)
    parts = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        parts.append(members[(4 * len(members) + 2) // 5 :])
    return np.concatenate(parts)


def _block_val(annotations: Annotations, fold: int, blocks: int) -> np.ndarray:
    """Indices of run number `fold` of every class's images, in the order of the last number in their names.

    Neighbouring numbers are often cut from one large image (whole runs of them in UCM), so a random val shows places
    that were trained on, which a test split of other numbers does not.
    """
    labels = np.asarray(scene_classes(annotations))
    numbers = [int((re.findall(r"[0-9]+", PurePosixPath(name).stem) or [0])[-1]) for name in annotations.image_names]
    parts = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label), key=numbers.__getitem__)
        parts.append(np.array_split(np.array(members, dtype=np.int64), blocks)[fold])
    return np.concatenate(parts)


def _unshared_val(annotations: Annotations, generator: np.random.Generator) -> np.ndarray:
    """Indices of about a fifth of the images, none of which has a caption, word for word, that an image outside has.

    Of RSICD's train captions 38 % of a random fifth stand under images of the rest, of its test captions 12 %: a random
    val rewards learning sentences by heart. Groups of images that share captions are shuffled and taken while there is
    room.

    Raises:
        InputError: each of the groups is larger than a fifth.
    """
    count = len(annotations.image_names)
    groups = _groups(annotations.caption_image, annotations.captions, count)
    val: list[int] = []
    for place in generator.permutation(len(groups)):
        if len(val) + len(groups[place]) <= count - count * 4 // 5:
            val += groups[place]
    if not val:
        raise InputError(
            f"{annotations.names_file}: can't hold out a fifth of {count} images: equal captions join each with "
            f"{min(map(len, groups)) - 1} others or more; choose another k_fold.strategy (random, stratified, blocks)"
        )
    return np.array(val, dtype=np.int64)


def _groups(caption_image: np.ndarray, captions: Sequence[str], count: int) -> list[list[int]]:
    """The images joined by equal captions, directly or over others; blank captions join nothing."""
    group = [[image] for image in range(count)]  # of each image, shared by all of one group
    first: dict[str, int] = {}
    for caption, image in zip(captions, caption_image.tolist(), strict=True):
        small, large = sorted((group[image], group[first.setdefault(caption, image)]), key=len)
        if small is not large and caption.strip():
            large += small
            for member in small:
                group[member] = large
    return list({id(members): sorted(members) for members in group}.values())


def _refuse_overlap(train: Sequence[str], val: Sequence[str], train_file: Path, val_file: Path) -> None:
    """Raise an InputError if an image is on both sides of a split: its val score would say nothing."""
    seen = set(train)
    faults = [shown(name) for name in val if name in seen]
    if faults:
        raise InputError(
            f"{val_file}: {len(faults)} images are also in {train_file}:{first_faults(faults)}\nKeep each on one side."
        )


def _split_file(run_folder: Path, side: str) -> Path:
    """Where one side of a fold's split is recorded."""
    return run_folder / "split" / f"{side}.txt"
