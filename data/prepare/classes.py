"""Scene classes for a data set in the making: lists of many forms become its `scenes.txt`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from data.images import image_names
from data.lists import refuse_faults, refuse_outside, write_lines
from data.prepare.folders import holds_images
from data.prepare.lists import Lists
from data.prepare.tables import read_table
from data.scenes import SCENES, UNNAMED_SCENE, listed_scenes, read_class_lists, scenes_in, two_classes
from utils import InputError

CLASS_KEYS = ("class", "class_name", "classname", "scene", "category", "label")


def read_classes(path: Path) -> dict[str, str]:
    """Image name -> class, of a table of both, of a folder of `CLASS.txt`, or of one of a sub-folder for each class.

    Raises:
        InputError: there is none, it is damaged, or an image has two classes.
    """
    if path.is_file():
        found: dict[str, str] = {}
        faults = []
        for row in read_table(path, words=CLASS_KEYS).rows:
            faults += two_classes(found, row.name.strip(), row.captions[0].strip(), row.place)
        refuse_faults(path, faults, "Each image has one scene class.")
        return found
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; check --classes")
    if not holds_images(path):
        return read_class_lists(path)
    return {name: PurePosixPath(name).parent.as_posix() for name in image_names(path) if "/" in name}


def put_classes(given: Path | None, beside: Sequence[Path], lists: Lists, folder: Path) -> str:
    """Write the scene classes of the images into a new set.

    They are those that are given, or else what lies in one of the folders beside the source: a list that
    `data.scenes` knows, or a `classes.txt`.

    Returns:
        A line for the report; "" where there are none.

    Raises:
        InputError: they can't be read, or name none of the images.
    """
    near = (listed for place in beside if (listed := listed_scenes(place)) is not None)
    listed = next(near, None) if given is None else read_classes(given)
    if listed is None:
        return _copy_classes(beside, folder)
    names = [entry.name for entries in lists.values() for entry in entries]
    found = zip(names, scenes_in(listed, names), strict=True)
    scenes = {name: scene for name, scene in found if scene != UNNAMED_SCENE}
    if not scenes:
        raise InputError(f"{given or beside[0]}: the scene classes are of other images; the first here is {names[0]}")
    write_lines(folder / SCENES, [f"{name}\t{scene}" for name, scene in scenes.items()])
    return f"{SCENES}: {len(set(scenes.values())):,} scene classes of {len(scenes):,} of {len(set(names)):,} images"


def _copy_classes(beside: Sequence[Path], folder: Path) -> str:
    """Copy the `classes.txt` of numbered images."""
    for place in beside:
        classes = place / "classes.txt"
        if classes.is_file():
            refuse_outside([classes], place)
            shutil.copyfile(classes, folder / classes.name)
            return ""
    return ""
