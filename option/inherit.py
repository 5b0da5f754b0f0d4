"""YAML inheritance: a file that `extends` another one states only what differs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from option.read import Tree, read_file, shown
from utils import InputError

EXTENDS = "extends"
MOST_FILES = 10


@dataclass(frozen=True)
class Layer:
    """One file of a chain: its path as messages name it, what it gives, and the problems in it by line."""

    source: str
    tree: Tree
    problems: list[str]


def read_chain(path: str | Path) -> list[Layer]:
    """A file and all that it extends, the furthest one first.

    `extends: NAME.yaml` at the top of a file is a path as seen from that file.

    Raises:
        InputError: one of them can't be read, or they extend each other in a circle.
    """
    chain: list[Layer] = []
    file: Path | None = Path(path)
    seen: list[Path] = []
    while file is not None:
        try:
            tree, problems = read_file(file)
        except InputError as fault:
            raise InputError(f"{chain[0].source}: {EXTENDS}: {fault}" if chain else str(fault)) from fault
        if file.resolve() in seen:
            circle = " extends ".join([*(layer.source for layer in reversed(chain)), str(file)])
            raise InputError(f"{circle}: a circle; take the key `{EXTENDS}` out of one of them")
        if len(seen) == MOST_FILES:
            raise InputError(f"{path}: more than {MOST_FILES} files extend each other; join some of them")
        seen.append(file.resolve())
        parent = _parent(file, tree)
        chain.insert(0, Layer(str(file), tree, problems))
        file = parent
    return chain


def _parent(file: Path, tree: Tree) -> Path | None:
    """The file that another one extends; its key is taken out of the tree."""
    if EXTENDS not in tree:
        return None
    name = tree.pop(EXTENDS)
    if not isinstance(name, str):
        raise InputError(
            f"{file}: {EXTENDS}: given {shown(name)}; allowed: the path of one YAML file, from this one's folder"
        )
    return Path(os.path.normpath(file.parent / Path(name).expanduser()))
