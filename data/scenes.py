"""The scene classes of images, which lists or their file names tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from data.annotations import Annotations
from data.lists import read_lines, refuse_faults, refuse_outside, shown
from utils import InputError

UNNAMED_SCENE = "noneclass"
SCENES = "scenes.txt"
CLASS_LISTS = "txtclasses*"
_IMAGES_PER_NUMBERED_CLASS = 100


def scene_classes(annotations: Annotations) -> tuple[str, ...]:
    """The scene class of each of the N images.

    It is that of the folder's list, see `listed_scenes`; images that are not in it share the class `noneclass`. Without
    a list it is the file name up to the first `_`; names that begin with a digit share the class `noneclass`. Where the
    folder has a `classes.txt` and all names are plain numbers, image k is of class (k - 1) // 100 of that file.

    Raises:
        InputError: a list is damaged or names none of the images, or a number is beyond the classes of `classes.txt`.
    """
    listed = listed_scenes(annotations.folder)
    if listed is not None:
        found = scenes_in(listed, annotations.image_names)
        if set(found) == {UNNAMED_SCENE}:
            raise InputError(
                f"{annotations.folder}: its list of scene classes ({SCENES} or {CLASS_LISTS}/) names no image of "
                f"{annotations.names_file}, whose first is {shown(annotations.image_names[0])}; mend or remove it"
            )
        return found
    classes_file = annotations.folder / "classes.txt"
    numbers = _numbers(annotations.image_names)
    if numbers is not None and classes_file.exists():
        return _numbered_classes(annotations, numbers, classes_file)
    return tuple(_named_class(name) for name in annotations.image_names)


def listed_scenes(folder: Path) -> dict[str, str] | None:
    """Image name -> class, of the lists in a data set's folder; None where it has none.

    They are a `scenes.txt`, see `read_scenes`, or else the folder `txtclasses_rsicd` that RSICD is published with (or
    another whose name begins so), see `read_class_lists`.

    Raises:
        InputError: a list is damaged.
    """
    if (folder / SCENES).is_file():
        return read_scenes(folder / SCENES)
    lists = next((path for path in sorted(folder.glob(CLASS_LISTS)) if path.is_dir()), None)
    return None if lists is None else read_class_lists(lists)


def read_scenes(path: Path, given_by: str = "") -> dict[str, str]:
    """Read a text whose lines are an image's name, a tab and its class.

    Raises:
        InputError: it can't be read (check `given_by`), a line is of another form, or an image has two classes.
    """
    found: dict[str, str] = {}
    faults = []
    for number, line in enumerate(read_lines(path, given_by), start=1):
        name, _, scene = (part.strip() for part in line.partition("\t"))
        if name and scene:
            faults += two_classes(found, name, scene, f"line {number}")
        elif line.strip():
            faults.append(f"line {number}: {shown(line)} is no name, a tab and a class")
    refuse_faults(path, faults, "Each line is an image's name, a tab, its scene class.")
    return found


def read_class_lists(folder: Path) -> dict[str, str]:
    """Read the texts of a folder, each of which names the images of a class, one a line: `Airport.txt`.

    Raises:
        InputError: there is none, one can't be read, or an image is in two.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise InputError(f"{folder}: no list of a scene class is there; expected texts such as Airport.txt")
    refuse_outside(files, folder)
    found: dict[str, str] = {}
    faults = []
    for file in files:
        for name in filter(None, map(str.strip, read_lines(file))):
            faults += two_classes(found, name, file.stem, file.name)
    refuse_faults(folder, faults, "Each image has one scene class.")
    return found


def two_classes(found: dict[str, str], name: str, scene: str, place: str) -> list[str]:
    """Put an image's class among those that were found; the fault, if another stands there."""
    before = found.setdefault(name, scene)
    return [] if before == scene else [f"{place}: {shown(name)} is of class {scene}, before it was of {before}"]


def scenes_in(listed: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """The class of each image in a list, by its name or else its name without folder and ending; else `noneclass`."""
    by_stem = {PurePosixPath(name).stem: scene for name, scene in listed.items()}
    return tuple(listed.get(name) or by_stem.get(PurePosixPath(name).stem, UNNAMED_SCENE) for name in names)


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
