"""What a data set's folder says: its lists of images and captions."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data.lists import (
    absent_files,
    first_faults,
    first_names,
    read_lines,
    read_names,
    refuse_faults,
    repeated_names,
    shown,
)
from utils import InputError

Split = Literal["train", "test", "train_verify", "val_verify"]
SIDES: tuple[Literal["train"], Literal["test"]] = ("train", "test")
"""The lists that every data set has."""
FOLDER = "the data set's folder (in an option file: dataset.data_path)"
"""What says where a list is, for `data.lists.read_lines`."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of one list and their captions.

    Every image has a caption, and those of an image stand together, in the order of the images. Captions that the files
    repeat to give each image as many are left out, where `data.prepare` recorded them.

    Attributes:
        folder: the data set's folder.
        name: what to call the list in a message ("train", "test", "train (verify)").
        image_names: N file names, relative to the image folder, each once.
        captions: M captions as written in the file; a blank one is kept.
        caption_image: [M] int64, the index of each caption's image.
        names_file: the file that names the images.
        image_lines: [N] int64, the line of `names_file` (from 1) that first names each image.
        audio_names: M spectrogram images of the spoken captions, relative to the spectrogram folder; None if they
            were not asked for.
    """

    folder: Path
    name: str
    image_names: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: np.ndarray
    names_file: Path
    image_lines: np.ndarray
    audio_names: tuple[str, ...] | None = None

    @property
    def caption_counts(self) -> np.ndarray:
        """How many captions each image has, [N] int64."""
        return np.bincount(self.caption_image, minlength=len(self.image_names))

    def captions_of(self, image: int) -> tuple[str, ...]:
        """The captions of one image, by its index."""
        start, stop = np.searchsorted(self.caption_image, [image, image + 1])
        return self.captions[start:stop]

    def subset(self, images: Sequence[int] | np.ndarray, name: str | None = None) -> Annotations:
        """Some of the images, by indices in [0, N) and in their order, with all captions; `name` renames the list."""
        chosen = np.asarray(images, dtype=np.int64)
        counts = self.caption_counts
        starts = counts.cumsum() - counts
        captions = [c for image in chosen for c in range(starts[image], starts[image] + counts[image])]
        return Annotations(
            folder=self.folder,
            name=name or self.name,
            image_names=tuple(self.image_names[image] for image in chosen),
            captions=tuple(self.captions[caption] for caption in captions),
            caption_image=np.repeat(np.arange(len(chosen), dtype=np.int64), counts[chosen]),
            names_file=self.names_file,
            image_lines=self.image_lines[chosen],
            audio_names=self.audio_names and tuple(self.audio_names[caption] for caption in captions),
        )


def list_digest(annotations: Annotations) -> str:
    """SHA-256 (hexadecimal) of a list's image names and captions, in their order: what training learns from."""
    content = json.dumps([annotations.image_names, annotations.captions, annotations.caption_image.tolist()])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def list_files(folder: Path, split: Split) -> tuple[Path, Path]:
    """The file of image names and the file of captions of one list."""
    return folder / _file_name(split, "filename"), folder / _file_name(split, "caps")


def copies_file(folder: Path, split: Split) -> Path:
    """The record of the captions of one list that are copies, see `read_copies`."""
    return folder / _file_name(split, "copies")


def _file_name(split: Split, kind: str) -> str:
    side, _, verify = split.partition("_")
    return f"{side}_{kind}_{verify}.txt" if verify else f"{side}_{kind}.txt"


def read_annotations(folder: Path, split: Split, audio_folder: Path | None = None) -> Annotations:
    """Read one list of a data set's folder.

    Two conventions for the file of names occur, and both are read: one line per image, or one line per caption (each
    name as many times in a row as its image has captions). As many names as captions means the second. Captions that
    are recorded as copies are left out, with their spectrograms.

    Args:
        folder: the data set's folder, which is only read.
        split: "train", "test", or one half of a shipped split ("train_verify", "val_verify").
        audio_folder: of the captions' spectrograms, whose names are read, too; see `read_audio_names`.

    Raises:
        InputError: a file is missing or not UTF-8, a name is blank, leaves the image folder or comes twice, the
            captions are not a whole multiple of the images, or the record of copies does not fit them; the message
            names file and line.
    """
    names_file, captions_file = list_files(folder, split)
    names, captions = read_names(names_file, given_by=FOLDER), read_lines(captions_file, FOLDER)
    starts, repeats = _group_names(names, names_file, len(captions), captions_file)
    caption_image = np.repeat(np.arange(len(starts), dtype=np.int64), repeats)
    audio_names = read_audio_names(folder, split, audio_folder, len(captions)) if audio_folder else None
    kept = np.flatnonzero(~read_copies(folder, split, captions, caption_image))
    side, _, verify = split.partition("_")
    return Annotations(
        folder=folder,
        name=f"{side} (verify)" if verify else side,
        image_names=tuple(names[start] for start in starts),
        captions=tuple(captions[line] for line in kept),
        caption_image=caption_image[kept],
        names_file=names_file,
        image_lines=np.asarray(starts, dtype=np.int64) + 1,
        audio_names=audio_names and tuple(audio_names[line] for line in kept),
    )


def read_copies(folder: Path, split: Split, captions: Sequence[str], caption_image: np.ndarray) -> np.ndarray:
    """Which captions of a list only fill up their image's to as many as the others have, [M] bool.

    The record has one line for each: the number, from 1, of its line in the file of captions. Without a record there
    are none: sentences that the authors of a data set repeated are theirs.

    Args:
        folder: the data set's folder.
        split: the list.
        captions: all M of the file.
        caption_image: [M] index of each caption's image.

    Raises:
        InputError: a line is no such number, or no earlier caption of the image says the same.
    """
    path, copies = copies_file(folder, split), np.zeros(len(captions), dtype=bool)
    if not os.path.lexists(path):
        return copies
    owned = list(zip(caption_image.tolist(), captions, strict=True))
    first: dict[tuple[int, str], int] = {}
    repeated = [first.setdefault(pair, line) != line for line, pair in enumerate(owned)]
    faults, captions_file = [], list_files(folder, split)[1].name
    for line, text in enumerate(map(str.strip, read_lines(path, FOLDER)), 1):
        if not text:
            continue
        number = int(text) if text.isdecimal() and len(text) <= len(str(len(captions))) else 0
        if not 1 <= number <= len(captions):
            faults.append(f"line {line}: {shown(text)} is not the number of a line of {captions_file}")
        elif not repeated[number - 1]:
            faults.append(f"line {line}: {captions_file}, line {number} repeats no caption of its image before it")
        else:
            copies[number - 1] = True
    advice = (
        f"It lists the lines of {captions_file} that are copies: make the data set anew, with python -m data.prepare."
    )
    refuse_faults(path, faults, advice)
    return copies


def read_audio_names(folder: Path, split: Split, audio_folder: Path, count: int) -> tuple[str, ...]:
    """The spectrogram image, below `audio_folder`, of each of the `count` captions of a list; captions may share one.

    Raises:
        InputError: no list, another number of lines than captions, a name that leaves the folder, or an image that
            is not there; the message names file and line.
    """
    places = (folder, audio_folder)
    # Older copies of the published sets have a train_audio.txt.
    lists = [place / _file_name(split, kind) for place in places for kind in ("audios", "audio")]
    found = [path for path in lists if path.is_file()]
    if not found:
        raise InputError(
            f"{folder}: nothing says which spectrogram belongs to which caption; looked for "
            f"{', '.join(map(str, lists))}. Make spectrograms and lists with python -m data.audio (docs/audio.md) and "
            "set dataset.audio_path to their folder."
        )
    names = read_names(found[0], "spectrogram", "dataset.data_path and dataset.audio_path")
    if len(names) != count:
        raise InputError(
            f"{found[0]}, line {len(names)}: the file ends after {len(names)} spectrograms, but "
            f"{list_files(folder, split)[1]} has {count} captions. Expected one spectrogram per caption."
        )
    if not audio_folder.is_dir():
        raise InputError(f"{audio_folder}: no such folder of spectrograms; set dataset.audio_path to where they are.")
    faults = absent_files(names, range(1, count + 1), audio_folder)
    if faults:
        other = next((path for path in found if path.parent == audio_folder != found[0].parent), None)
        raise InputError(
            f"{found[0]}: {len(faults)} of {count} spectrograms can't be taken from {audio_folder}:"
            f"{first_faults(faults)}\nPut the files themselves there, or set dataset.audio_path to the folder that "
            "holds them." + (f" {other} is not read as long as the data set's folder has a list." if other else "")
        )
    return tuple(names)


def check_images(annotations: Annotations, image_folder: Path) -> None:
    """Check that every image of a list is a file in the image folder, with one listing of each folder.

    Raises:
        InputError: the folder or some images are missing, or lie outside of it behind a symbolic link; the message
            names the first lines and counts the rest.
    """
    if not image_folder.is_dir():
        raise InputError(f"{image_folder}: no such folder of images; set dataset.image_path to where the images are")
    faults = absent_files(annotations.image_names, annotations.image_lines, image_folder)
    if faults:
        raise InputError(
            f"{annotations.names_file}: {len(faults)} of {len(annotations.image_names)} images can't be taken from "
            f"{image_folder}:{first_faults(faults)}\n"
            "Put the files themselves there, or set dataset.image_path to the folder that holds them."
        )


def blank_captions(annotations: Annotations, tokenize: Callable[[str], list[str]]) -> np.ndarray:
    """Which captions hold no token, [M] bool."""
    blank = {caption: not tokenize(caption) for caption in set(annotations.captions)}
    return np.array([blank[caption] for caption in annotations.captions], dtype=bool)


def describe_blank(annotations: Annotations, blank: np.ndarray) -> str:
    """A line that counts the captions that are `blank` [M] and names at most five of their images; "" for none."""
    if not blank.any():
        return ""
    images = np.unique(annotations.caption_image[blank])
    names = first_names([annotations.image_names[image] for image in images])
    return (
        f"{annotations.name}: {int(blank.sum())} of {len(blank)} captions have no token: left out of training, read as "
        f"<unk> in evaluation; images: {names}"
    )


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
    refuse_faults(
        names_file,
        repeated_names(names, starts),
        "Each image is named on one line, or on consecutive lines, as many as it has captions.",
    )
    if not per_caption:
        return starts, caption_count // len(names)
    runs = np.diff([*starts, len(names)]).tolist()
    usual = Counter(runs).most_common(1)[0][0]
    faults = [
        f"line {start + 1}: {shown(names[start])} stands {run} times in a row, expected {usual}"
        for start, run in zip(starts, runs, strict=True)
        if run != usual
    ]
    refuse_faults(names_file, faults, f"Every image needs the same number of captions: most have {usual}.")
    return starts, usual
