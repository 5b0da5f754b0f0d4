"""The scene classes of an archive's images, by which a page filters what was found. Letters: N images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archive.searcher import Searcher, printable
from data.lists import read_lines, shown
from data.scenes import UNNAMED_SCENE, listed_scenes, numbered_scenes, scene_of, scenes_in
from data.scenes import read_scenes as read_scene_list
from utils import InputError

MOST_SCENES = 1000
"""Most classes that a person still chooses from; file names that say no class tend to give more."""


@dataclass(frozen=True)
class Scenes:
    """Which image shows which scene.

    Attributes:
        counts: class -> images of it, in alphabetical order.
        codes: [N] place of each image's class in `counts`, -1 where it has none.
    """

    counts: dict[str, int]
    codes: NDArray[np.int32]

    def keep(self, scene: str) -> NDArray[np.bool_]:
        """Which images are of a class, [N].

        Raises:
            KeyError: there is no such class.
        """
        places = {name: place for place, name in enumerate(self.counts)}
        return self.codes == places[scene]

    def of(self, row: int) -> str | None:
        """The class of an image; None where it has none."""
        code = int(self.codes[row])
        return None if code < 0 else list(self.counts)[code]


def no_scenes(count: int) -> Scenes:
    """Of N images whose classes are not known."""
    return Scenes({}, np.full(count, -1, np.int32))


def scenes_of(searcher: Searcher, file: Path | None) -> Scenes:
    """The scene classes of an index: of a file, see `read_scenes`, or else what the names say, see `find_scenes`.

    Raises:
        InputError: a file is given for an index in a vector store, which can't be filtered; or it can't be read.
    """
    if searcher.kind == "store":
        if file is not None:
            raise InputError("--scenes: an index in a vector store can't be searched in part; leave it out.")
        return no_scenes(len(searcher))
    names = searcher.index.names()
    return find_scenes(names, searcher.images) if file is None else read_scenes(file, names)


def find_scenes(names: Sequence[str], images: Path) -> Scenes:
    """The scene classes that the images' names say.

    It is that of a list in the folder above the images, see `data.scenes.listed_scenes`; or the sub-folder, or else the
    file name up to the first `_`, as in scene pretraining. Where all names are plain numbers and the folder above the
    images has a `classes.txt`, image k is of class (k - 1) // 100 of that file.
    Names that give one class alone, more than `MOST_SCENES`, or less than two images to a class on average say none.

    Args:
        names: of the N images, relative to their folder.
        images: that folder.

    Raises:
        InputError: a list or `classes.txt` can't be read.
    """
    classes_file = images.parent / "classes.txt"
    listed = listed_scenes(images.parent)
    found: Sequence[str] | None = None if listed is None else scenes_in(listed, names)
    if listed is None and classes_file.is_file():
        found = numbered_scenes(names, [line.strip() for line in read_lines(classes_file)])
    found = found or [scene_of(name) for name in names]
    scenes = _scenes([None if scene == UNNAMED_SCENE else scene for scene in found])
    plausible = 2 <= len(scenes.counts) <= min(MOST_SCENES, len(names) // 2)
    return scenes if plausible else no_scenes(len(names))


def read_scenes(file: Path, names: Sequence[str]) -> Scenes:
    """The scene classes that a text gives: an image's name, a tab, its class on each line.

    Images that it does not name have no class; names that the index lacks are passed over.

    Args:
        file: the text, UTF-8.
        names: of the N images.

    Raises:
        InputError: it can't be read, is of another form, or names no image of the index.
    """
    if not file.is_file():
        raise InputError(f"--scenes {file}: no such file.")
    scene_by_name = read_scene_list(file, "--scenes")
    found = [scene_by_name.get(name) for name in names]
    if not any(found):
        raise InputError(f"--scenes {file}: names no image of the index, whose first is {shown(names[0])}.")
    return _scenes(found)


def _scenes(found: Sequence[str | None]) -> Scenes:
    labels = [None if scene is None else printable(scene) for scene in found]
    counted = Counter(label for label in labels if label is not None)
    counts = {scene: counted[scene] for scene in sorted(counted)}
    places = {scene: place for place, scene in enumerate(counts)}
    codes = [-1 if label is None else places[label] for label in labels]
    return Scenes(counts, np.array(codes, np.int32))
