"""What a data set's folder says: its lists of images and captions."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from utils import InputError

Split = Literal["train", "test", "train_verify", "val_verify"]

_FAULTS_SHOWN = 5
_NAME_CHARACTERS_SHOWN = 80


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


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, blank ones included, without a byte-order mark at its start.

    Only a line feed ends a line, with or without a carriage return before it: a caption may hold the other characters
    at which Python would cut.

    Raises:
        InputError: the file can't be read, or some lines are not UTF-8; the message names them.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); check the data set's folder (dataset.data_path or --data_path)"
        ) from error
    rows = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not rows[-1]:
        rows.pop()
    lines, faults = [], []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(row.rstrip(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"line {number}: byte {row[error.start]:#04x} at byte {error.start + 1} is not UTF-8")
    refuse_faults(path, faults, "Save the file in the encoding UTF-8.")
    return lines


def list_files(folder: Path, split: Split) -> tuple[Path, Path]:
    """The file of image names and the file of captions of one list."""
    side, _, verify = split.partition("_")
    suffix = f"_{verify}.txt" if verify else ".txt"
    return folder / f"{side}_filename{suffix}", folder / f"{side}_caps{suffix}"


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
    names_file, captions_file = list_files(folder, split)
    names, captions = read_names(names_file), read_lines(captions_file)
    starts, repeats = _group_names(names, names_file, len(captions), captions_file)
    side, _, verify = split.partition("_")
    return Annotations(
        folder=folder,
        name=f"{side} (verify)" if verify else side,
        image_names=tuple(names[start] for start in starts),
        captions=tuple(captions),
        caption_image=np.repeat(np.arange(len(starts), dtype=np.int64), repeats),
        names_file=names_file,
        image_lines=np.asarray(starts, dtype=np.int64) + 1,
    )


def read_names(path: Path) -> list[str]:
    """The file names that a text lists, each checked to stay in the image folder."""
    names = [line.strip() for line in read_lines(path)]
    faults = [f"line {number}: {fault}" for number, name in enumerate(names, 1) if (fault := _name_fault(name))]
    refuse_faults(path, faults, "Each line is one image's file name, relative to the image folder.")
    return names


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
            faults.append(f"line {line}: {shown(name)} is not there")
        elif not inside:
            faults.append(f"line {line}: {shown(name)} leads outside of the folder by a symbolic link")
    if faults:
        raise InputError(
            f"{annotations.names_file}: {len(faults)} of {len(annotations.image_names)} images can't be taken from "
            f"{image_folder}:{first_faults(faults)}\n"
            "Put the files themselves there, or set dataset.image_path to the folder that holds them."
        )


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


def first_faults(faults: Sequence[str]) -> str:
    """The first five faults, each on an indented line of its own, and the number of those not shown."""
    lines = list(faults[:_FAULTS_SHOWN])
    if len(faults) > _FAULTS_SHOWN:
        lines.append(f"... and {len(faults) - _FAULTS_SHOWN} more")
    return "".join(f"\n  {line}" for line in lines)


def refuse_faults(path: Path, faults: Sequence[str], advice: str) -> None:
    """Raise an InputError if a file has faults."""
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise InputError(f"{path}: {count}:{first_faults(faults)}\n{advice}")


def repeated_names(names: Sequence[str], starts: Sequence[int]) -> list[str]:
    """A fault for each name that begins more than once at the given places."""
    first: dict[str, int] = {}
    return [
        f"line {start + 1}: {shown(names[start])} comes again, it was already on line {first[names[start]] + 1}"
        for start in starts
        if first.setdefault(names[start], start) != start
    ]


def shown(name: str) -> str:
    """A file name for a message: quoted, unprintable characters escaped, not longer than a line."""
    return repr(name[:_NAME_CHARACTERS_SHOWN]) + ("..." if len(name) > _NAME_CHARACTERS_SHOWN else "")


def _name_fault(name: str) -> str | None:
    """What is wrong with a file name, or None."""
    if not name:
        return "blank file name"
    if "\\" in name or "\0" in name:
        return f"{shown(name)} holds a backslash or a NUL character; folders are separated by /"
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return f"{shown(name)} leaves the image folder"
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
