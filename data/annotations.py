"""What a data set's folder says: image and caption lists, scene classes, and the splits into train and val."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from utils import InputError, write_text_atomic

Split = Literal["train", "test", "train_verify", "val_verify"]
Strategy = Literal["random", "kfold", "stratified", "fixed"]

_FILES: dict[Split, tuple[str, str, str]] = {
    "train": ("train", "train_filename.txt", "train_caps.txt"),
    "test": ("test", "test_filename.txt", "test_caps.txt"),
    "train_verify": ("train (verify)", "train_filename_verify.txt", "train_caps_verify.txt"),
    "val_verify": ("val (verify)", "val_filename_verify.txt", "val_caps_verify.txt"),
}
_FAULTS_SHOWN = 5
_NAME_CHARACTERS_SHOWN = 80
_IMAGES_PER_NUMBERED_CLASS = 100


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of one list and their captions.

    Every image has the same number of captions, and they stand together in the order of the images.

    Attributes:
        folder: the data set's folder.
        name: what to call the list in a message ("train", "test", "train (verify)").
        image_names: N file names, relative to the image folder, each once.
        captions: M captions as written in the file; a blank one is kept.
        caption_image: [M] int64, the index of each caption's image.
        names_file: the file that names the images.
        image_lines: [N] int64, the line of `names_file` (from 1) that first names each image.
    """

    folder: Path
    name: str
    image_names: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: np.ndarray
    names_file: Path
    image_lines: np.ndarray

    @property
    def captions_per_image(self) -> int:
        """How many captions every image has."""
        return len(self.captions) // max(len(self.image_names), 1)

    def subset(self, images: Sequence[int] | np.ndarray, name: str | None = None) -> Annotations:
        """Some of the images, in the order given, each with all its captions.

        Args:
            images: indices of the images, each in [0, N).
            name: what to call the subset; the list's own name if None.
        """
        chosen = np.asarray(images, dtype=np.int64)
        repeats = self.captions_per_image
        captions = (chosen[:, None] * repeats + np.arange(repeats)).reshape(-1)
        return Annotations(
            folder=self.folder,
            name=name or self.name,
            image_names=tuple(self.image_names[image] for image in chosen),
            captions=tuple(self.captions[caption] for caption in captions),
            caption_image=np.repeat(np.arange(len(chosen), dtype=np.int64), repeats),
            names_file=self.names_file,
            image_lines=self.image_lines[chosen],
        )


def read_annotations(folder: Path, split: Split) -> Annotations:
    """Read one list of a data set's folder.

    Two conventions for the file of names occur, and both are read: one line per image, or one line per caption (each
    name as many times in a row as its image has captions). As many names as captions means the second.

    Args:
        folder: the data set's folder, which is only read.
        split: "train", "test", or one half of a shipped split ("train_verify", "val_verify").

    Raises:
        InputError: a file is missing or not UTF-8, a name is blank, leaves the image folder or comes twice, or the
            captions are not a whole multiple of the images; the message names file and line.
    """
    name, names_file, captions_file = _FILES[split]
    names = _read_names(folder / names_file)
    captions = _read_lines(folder / captions_file)
    starts, repeats = _group_names(names, folder / names_file, len(captions), folder / captions_file)
    return Annotations(
        folder=folder,
        name=name,
        image_names=tuple(names[start] for start in starts),
        captions=tuple(captions),
        caption_image=np.repeat(np.arange(len(starts), dtype=np.int64), repeats),
        names_file=folder / names_file,
        image_lines=np.asarray(starts, dtype=np.int64) + 1,
    )


def first_faults(faults: Sequence[str]) -> str:
    """The first five faults, each on an indented line of its own, and the number of those not shown."""
    lines = list(faults[:_FAULTS_SHOWN])
    if len(faults) > _FAULTS_SHOWN:
        lines.append(f"... and {len(faults) - _FAULTS_SHOWN} more")
    return "".join(f"\n  {line}" for line in lines)


def check_images(annotations: Annotations, image_folder: Path) -> None:
    """Check that every image of a list is a file in the image folder, with one listing of each folder.

    Args:
        annotations: the list.
        image_folder: where its file names start from.

    Raises:
        InputError: the folder or some images are missing, or lie outside of it behind a symbolic link; the message
            names the first lines and counts the rest.
    """
    if not image_folder.is_dir():
        raise InputError(f"{image_folder}: no such folder of images; set dataset.image_path to where the images are")
    root = image_folder.resolve()
    listings: dict[PurePosixPath, dict[str, bool]] = {}
    faults = []
    for name, line in zip(annotations.image_names, annotations.image_lines, strict=True):
        place = PurePosixPath(name)
        if place.parent not in listings:
            listings[place.parent] = _list_files(image_folder / place.parent, root)
        inside = listings[place.parent].get(place.name)
        if inside is None:
            faults.append(f"line {line}: {_shown(name)} is not there")
        elif not inside:
            faults.append(f"line {line}: {_shown(name)} leads outside of the folder by a symbolic link")
    if faults:
        raise InputError(
            f"{annotations.names_file}: {len(faults)} of {len(annotations.image_names)} images can't be taken from "
            f"{image_folder}:{first_faults(faults)}\n"
            "Put the files themselves there, or set dataset.image_path to the folder that holds them."
        )


def scene_classes(annotations: Annotations) -> tuple[str, ...]:
    """The scene class of every image.

    It is the file name up to the first `_`; names that begin with a digit share the class `noneclass`. Where the
    folder has a `classes.txt` and all names are plain numbers, image k is of class (k - 1) // 100 of that file.

    Returns:
        N class names.

    Raises:
        InputError: a number is beyond the classes of `classes.txt`.
    """
    stems = [PurePosixPath(name).stem for name in annotations.image_names]
    classes_file = annotations.folder / "classes.txt"
    if classes_file.exists() and all(stem.isascii() and stem.isdigit() for stem in stems):
        return _numbered_classes(annotations, [int(stem) for stem in stems], classes_file)
    return tuple("noneclass" if stem[:1].isdigit() else stem.split("_")[0] for stem in stems)


def split_images(
    annotations: Annotations, strategy: Strategy, fold: int, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the images of a list into train and val; the captions of an image stay together.

    Args:
        annotations: the list, N images.
        strategy: "random": 80 % train, shuffled with seed + fold; "kfold": fold number `fold` of a partition into
            `folds` parts, shuffled once with seed, is val; "stratified": 80 % (to the nearest image) of every scene
            class, shuffled with seed + fold.
        fold: which fold, in [0, folds).
        folds: how many folds.
        seed: 0 or more.

    Returns:
        The indices of the train and of the val images, int64, both ascending; together each image once.

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
    else:
        raise InputError(f"k_fold.strategy {strategy!r} does not split a list: expected random, kfold or stratified")
    val = np.sort(val)
    train = np.setdiff1d(np.arange(count, dtype=np.int64), val)
    if not len(train) or not len(val):
        raise InputError(
            f"{annotations.names_file}: {count} images are too few for k_fold.strategy {strategy!r} with {folds} folds:"
            f" {len(train)} would be train and {len(val)} val; add images or choose another strategy"
        )
    return train, val


def fold_annotations(
    folder: Path, strategy: Strategy, fold: int, folds: int, seed: int
) -> tuple[Annotations, Annotations]:
    """The train and val lists of one fold, by any strategy.

    Args:
        folder: the data set's folder, which is only read.
        strategy: as in `split_images`, or "fixed": the split that the folder ships in its `*_verify.txt` files, the
            same for every fold.
        fold: which fold, in [0, folds).
        folds: how many folds.
        seed: 0 or more.

    Raises:
        InputError: as `read_annotations` and `split_images`; or a file of the fixed split is missing, or an image is
            on both of its sides.
    """
    if strategy != "fixed":
        every = read_annotations(folder, "train")
        train, val = split_images(every, strategy, fold, folds, seed)
        return every.subset(train, "train"), every.subset(val, "val")
    needed = [*_FILES["train_verify"][1:], *_FILES["val_verify"][1:]]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder}: k_fold.strategy 'fixed' reads the split from {', '.join(needed)}; missing: "
            f"{', '.join(missing)}. Add them, or choose random, kfold or stratified"
        )
    fixed_train, fixed_val = read_annotations(folder, "train_verify"), read_annotations(folder, "val_verify")
    _refuse_overlap(fixed_train.image_names, fixed_val.image_names, fixed_train.names_file, fixed_val.names_file)
    return fixed_train, fixed_val


def write_split(run_folder: Path, train: Annotations, val: Annotations) -> None:
    """Record a fold's split in its run folder: `split/train.txt` and `split/val.txt`, one file name a line."""
    for side, images in (("train", train), ("val", val)):
        write_text_atomic(_split_file(run_folder, side), "".join(f"{name}\n" for name in images.image_names))


def read_split(run_folder: Path, train_annotations: Annotations) -> tuple[Annotations, Annotations] | None:
    """Read back the split that `write_split` recorded, so that a resumed run goes on with it.

    Args:
        run_folder: the fold's folder.
        train_annotations: the train list that was split. (A fixed split has its own lists: read those again.)

    Returns:
        Train and val, or None where no whole split was recorded.

    Raises:
        InputError: a recorded name is not in the list any more, is there twice, or is on both sides.
    """
    files = [_split_file(run_folder, side) for side in ("train", "val")]
    if not all(file.exists() for file in files):
        return None
    index = {name: image for image, name in enumerate(train_annotations.image_names)}
    sides = []
    for file, side in zip(files, ("train", "val"), strict=True):
        names = _read_names(file)
        faults = [
            f"line {line}: {_shown(name)} is not in {train_annotations.names_file}"
            for line, name in enumerate(names, 1)
            if name not in index
        ]
        faults += _repeated_names(names, range(len(names)))
        _refuse(file, faults, "The data set has changed since this run began: restore it, or start in a new folder.")
        sides.append(train_annotations.subset([index[name] for name in names], side))
    _refuse_overlap(sides[0].image_names, sides[1].image_names, *files)
    return sides[0], sides[1]


def blank_captions(annotations: Annotations, tokenize: Callable[[str], list[str]]) -> np.ndarray:
    """Which captions hold no token.

    Args:
        annotations: the list, M captions.
        tokenize: the token rule.

    Returns:
        [M] bool.
    """
    blank = {caption: not tokenize(caption) for caption in set(annotations.captions)}
    return np.array([blank[caption] for caption in annotations.captions], dtype=bool)


def describe_blank(annotations: Annotations, blank: np.ndarray) -> str:
    """A one-line warning that counts the blank captions and names at most five of their images; "" if there are none.

    Args:
        annotations: the list, M captions.
        blank: [M] bool, as from `blank_captions`.
    """
    if not blank.any():
        return ""
    images = np.unique(annotations.caption_image[blank])
    names = ", ".join(annotations.image_names[image] for image in images[:_FAULTS_SHOWN])
    if len(images) > _FAULTS_SHOWN:
        names += f" and {len(images) - _FAULTS_SHOWN} more"
    return (
        f"{annotations.name}: {int(blank.sum())} of {len(blank)} captions have no token: left out of training, read as "
        f"<unk> in evaluation; images: {names}"
    )


def _read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, split at line feeds only: a caption may hold other separators of lines."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check dataset.data_path, or make the file") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    rows = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not rows[-1]:
        rows.pop()
    lines, faults = [], []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(row.rstrip(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"line {number}: byte {row[error.start]:#04x} at byte {error.start + 1} is not UTF-8")
    _refuse(path, faults, "Save the file in the encoding UTF-8.")
    return lines


def _read_names(path: Path) -> list[str]:
    """The file names that a text lists, each checked to stay in the image folder."""
    names = [line.strip() for line in _read_lines(path)]
    faults = [f"line {number}: {fault}" for number, name in enumerate(names, 1) if (fault := _name_fault(name))]
    _refuse(path, faults, "Each line is one image's file name, relative to the image folder.")
    return names


def _name_fault(name: str) -> str | None:
    """What is wrong with a file name, or None."""
    if not name:
        return "blank file name"
    if "\\" in name or "\0" in name:
        return f"{_shown(name)} holds a backslash or a NUL character; folders are separated by /"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return f"{_shown(name)} leaves the image folder"
    return None


def _group_names(
    names: Sequence[str], names_file: Path, caption_count: int, captions_file: Path
) -> tuple[list[int], int]:
    """Where each image's name first stands in the list (from 0), and how many captions every image has."""
    if not names or not caption_count:
        raise InputError(f"{captions_file if names else names_file}: no lines; expected one per image or caption")
    if caption_count % len(names):
        raise InputError(
            f"{captions_file}, line {caption_count}: the file ends after {caption_count} captions, but {names_file} "
            f"has {len(names)} names. Expected one name per image and a whole number of captions for each, or one "
            "name per caption: add or remove the lines that one of them has too few or too many"
        )
    per_caption = caption_count == len(names)
    starts = [line for line, name in enumerate(names) if not per_caption or line == 0 or names[line - 1] != name]
    _refuse(
        names_file,
        _repeated_names(names, starts),
        "Each image is named on one line, or on consecutive lines, as many as it has captions.",
    )
    if not per_caption:
        return starts, caption_count // len(names)
    runs = np.diff([*starts, len(names)]).tolist()
    usual = Counter(runs).most_common(1)[0][0]
    faults = [
        f"line {start + 1}: {_shown(names[start])} stands {run} times in a row, expected {usual}"
        for start, run in zip(starts, runs, strict=True)
        if run != usual
    ]
    _refuse(names_file, faults, f"Every image needs the same number of captions: most have {usual}.")
    return starts, usual


def _repeated_names(names: Sequence[str], starts: Sequence[int]) -> list[str]:
    """A fault for each name that begins more than once at the given places."""
    first: dict[str, int] = {}
    return [
        f"line {start + 1}: {_shown(names[start])} comes again, it was already on line {first[names[start]] + 1}"
        for start in starts
        if first.setdefault(names[start], start) != start
    ]


def _list_files(folder: Path, root: Path) -> dict[str, bool]:
    """The files of a folder, each with whether it lies below `root` once symbolic links are followed."""
    try:
        folder_inside = folder.resolve().is_relative_to(root)
        with os.scandir(folder) as entries:
            return {
                entry.name: folder_inside
                and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
                for entry in entries
                if entry.is_file()
            }
    except OSError:
        return {}


def _numbered_classes(annotations: Annotations, numbers: Sequence[int], classes_file: Path) -> tuple[str, ...]:
    """The class of each numbered image, 100 images to a class."""
    classes = [line.strip() for line in _read_lines(classes_file)]
    faults = [
        f"line {line}: {_shown(name)}"
        for name, line, number in zip(annotations.image_names, annotations.image_lines, numbers, strict=True)
        if not 1 <= number <= _IMAGES_PER_NUMBERED_CLASS * len(classes)
    ]
    _refuse(
        annotations.names_file,
        faults,
        f"{classes_file} has {len(classes)} classes of {_IMAGES_PER_NUMBERED_CLASS} images, so names must be 1 to "
        f"{_IMAGES_PER_NUMBERED_CLASS * len(classes)}.",
    )
    return tuple(classes[(number - 1) // _IMAGES_PER_NUMBERED_CLASS] for number in numbers)


def _stratified_val(classes: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """Indices of a fifth of every class's images, to the nearest image."""
    labels = np.asarray(classes)
    parts = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        parts.append(members[(4 * len(members) + 2) // 5 :])
    return np.concatenate(parts)


def _refuse_overlap(train: Sequence[str], val: Sequence[str], train_file: Path, val_file: Path) -> None:
    """Raise an InputError if an image is on both sides of a split: its val score would say nothing."""
    seen = set(train)
    faults = [_shown(name) for name in val if name in seen]
    if faults:
        raise InputError(
            f"{val_file}: {len(faults)} images are also in {train_file}:{first_faults(faults)}\nKeep each on one side."
        )


def _refuse(path: Path, faults: Sequence[str], advice: str) -> None:
    """Raise an InputError if a file has faults."""
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise InputError(f"{path}: {count}:{first_faults(faults)}\n{advice}")


def _split_file(run_folder: Path, side: str) -> Path:
    """Where one side of a fold's split is recorded."""
    return run_folder / "split" / f"{side}.txt"


def _shown(name: str) -> str:
    """A file name for a message: quoted, unprintable characters escaped, not longer than a line."""
    return repr(name[:_NAME_CHARACTERS_SHOWN]) + ("..." if len(name) > _NAME_CHARACTERS_SHOWN else "")
