"""Joined sets that are kept: made once for the same sources, complete or not there, whoever else makes them."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.annotations import SIDES, list_files, read_annotations
from data.join import has_test, join_sets
from data.lists import absent_files, read_names
from data.prepare.writer import changed_lists
from data.scenes import CLASS_LISTS
from option.dataset import TrainingSet
from option.images import ImageRule
from runtime.locks import waiting_lock
from runtime.untrusted import read_bytes
from utils import InputError, first_line, logger

RULE = 1
"""Of joining: another number where the same sources would be joined otherwise."""
LONGEST_TITLE = 40  # characters of the names of the sets in a folder's name; a file system takes 255 bytes


def kept_join(sets: Sequence[TrainingSet], cache: Path, rule: ImageRule) -> Path:
    """The folder of joined sets, which is made where it is not there or no longer whole.

    Args:
        sets: two or more, of different names.
        cache: folder of all that is kept.
        rule: how images are read.

    Raises:
        InputError: a set can't be read, or nothing can be written to the cache.
    """
    names = "+".join(each.name for each in sets)
    folder = cache / "joined" / f"{names[:LONGEST_TITLE]}-{sources_digest(sets, rule)[:12]}"
    if _is_whole(folder):
        return folder
    try:
        with waiting_lock(folder):  # of two that join at once, the second one finds it made
            if not _is_whole(folder):
                _clear(folder)
                logger.info("Joining %s in %s, once; all images are compared.", names, folder)
                logger.info("%s", join_sets(sets, folder, "either", rule))
    except OSError as fault:
        raise InputError(f"dataset.feature_path: {folder}: can't be written ({first_line(fault)})") from fault
    return folder


def sources_digest(sets: Sequence[TrainingSet], rule: ImageRule) -> str:
    """SHA-256 (hexadecimal) of the lists of sets, of the size and date of each image, and of how images are read.

    Raises:
        InputError: a list can't be read.
    """
    content: list[Any] = [RULE, rule.deciding()]
    for each in sets:
        read_annotations(each.path, "train")  # says what is wrong with a folder that is none
        found = [*each.path.glob("*.txt"), *each.path.glob(f"{CLASS_LISTS}/*.txt")]
        lists = sorted(file for file in found if file.is_file())
        digests = [(str(file.relative_to(each.path)), hashlib.sha256(read_bytes(file)).hexdigest()) for file in lists]
        sides = [side for side in SIDES if side == "train" or has_test(each.path)]
        names = {name: None for side in sides for name in read_names(list_files(each.path, side)[0])}
        content.append([each.name, digests, [_state(each.image_folder / name) for name in names]])
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()


def _state(image: Path) -> list[int]:
    """Bytes and date of a file; nothing where it is not there, which whoever reads it says."""
    try:
        status = image.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _is_whole(folder: Path) -> bool:
    """Whether a joined set has its lists as they were made, and all images."""
    if not folder.is_dir():
        return False
    try:
        sound = not changed_lists(folder)
        for side in SIDES:
            listed = read_annotations(folder, side)
            sound = sound and not absent_files(listed.image_names, listed.image_lines, folder / "images")
    except InputError:
        return False
    return sound


def _clear(folder: Path) -> None:
    """Remove what a killed run, or whoever took files out of the cache, has left."""
    if folder.exists():
        logger.warning("%s is no longer whole: it is made anew.", folder)
        shutil.rmtree(folder)
    for remains in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(remains)
