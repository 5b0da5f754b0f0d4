"""The scene classes of images, which their file names tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data.annotations import Annotations
from data.lists import read_lines, refuse_faults, shown

UNNAMED_SCENE = "noneclass"
_IMAGES_PER_NUMBERED_CLASS = 100


def scene_classes(annotations: Annotations) -> tuple[str, ...]:
    """The scene class of each of the N images.

    It is the file name up to the first `_`; names that begin with a digit share the class `noneclass`. Where the
    folder has a `classes.txt` and all names are plain numbers, image k is of class (k - 1) // 100 of that file.

    Raises:
        InputError: a number is beyond the classes of `classes.txt`.
    """
    classes_file = annotations.folder / "classes.txt"
    numbers = _numbers(annotations.image_names)
    if numbers is not None and classes_file.exists():
        return _numbered_classes(annotations, numbers, classes_file)
    return tuple(_named_class(name) for name in annotations.image_names)


def scene_of(name: str) -> str:
    """The class of an image in a plain folder: its sub-folder, or its file name up to the first `_`."""
    folder = PurePosixPath(name).parent
    return folder.as_posix() if folder.parts else _named_class(name)


def numbered_scenes(names: Sequence[str], classes: Sequence[str]) -> list[str] | None:
    """The class of each image, 100 to a class, where all names are plain numbers of such classes; else None."""
    numbers = _numbers(names)
    if numbers is None or not all(_is_numbered(number, classes) for number in numbers):
        return None
    return [_numbered_class(number, classes) for number in numbers]


def _named_class(name: str) -> str:
    stem = PurePosixPath(name).stem
    return UNNAMED_SCENE if stem[:1].isdigit() else stem.split("_")[0]


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names without folder and ending as numbers, where all are."""
    stems = [PurePosixPath(name).stem for name in names]
    return [int(stem) for stem in stems] if all(stem.isascii() and stem.isdigit() for stem in stems) else None


def _is_numbered(number: int, classes: Sequence[str]) -> bool:
    return 1 <= number <= _IMAGES_PER_NUMBERED_CLASS * len(classes)


def _numbered_class(number: int, classes: Sequence[str]) -> str:
    return classes[(number - 1) // _IMAGES_PER_NUMBERED_CLASS]


def _numbered_classes(annotations: Annotations, numbers: Sequence[int], classes_file: Path) -> tuple[str, ...]:
    """The class of each numbered image, 100 images to a class."""
    classes = [line.strip() for line in read_lines(classes_file)]
    faults = [
        f"line {line}: {shown(name)}"
        for name, line, number in zip(annotations.image_names, annotations.image_lines, numbers, strict=True)
        if not _is_numbered(number, classes)
    ]
    refuse_faults(
        annotations.names_file,
        faults,
        f"{classes_file} has {len(classes)} classes of {_IMAGES_PER_NUMBERED_CLASS} images, so names must be 1 to "
        f"{_IMAGES_PER_NUMBERED_CLASS * len(classes)}.",
    )
    return tuple(_numbered_class(number, classes) for number in numbers)
