"""The two lists of a data set in the making: how they are drawn, filled up and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.prepare.captions import Entry
from utils import InputError

Lists = dict[str, list[Entry]]
"""The entries of "train" (val included) and of "test"."""


def split_entries(entries: Sequence[Entry], test_share: float, seed: int, keep_val: bool = True) -> tuple[Lists, str]:
    """Train and test; test is drawn where the source names no test image. Val stays with train and is never drawn.

    Args:
        entries: as read.
        test_share: share of the images that aren't val; at least one and not all.
        seed: of the choice, 0 or more.
        keep_val: leave val images in train; else they are in neither list.

    Returns:
        Both lists in the order of the entries, and a line that says how they were split.

    Raises:
        InputError: a value is out of its range, or a list would be empty.
    """
    if not 0 < test_share < 1 or seed < 0:
        raise InputError(f"--test_share must be between 0 and 1, --seed at least 0; found {test_share} and {seed}")
    note = "as the source gives it"
    if not any(entry.side == "test" for entry in entries):
        free = [index for index, entry in enumerate(entries) if entry.side != "val"]
        count = max(min(max(round(len(free) * test_share), 1), len(free) - 1), 0)
        chosen = {free[place] for place in np.random.default_rng(seed).permutation(len(free))[:count]}
        entries = [replace(entry, side="test") if index in chosen else entry for index, entry in enumerate(entries)]
        note = f"the source names no test images, so they were drawn (test_share {test_share}, seed {seed})"
    lists = {
        "train": [entry for entry in entries if entry.side != "test" and (keep_val or entry.side != "val")],
        "test": [entry for entry in entries if entry.side == "test"],
    }
    if not lists["train"] or not lists["test"]:
        raise InputError(f"{counts(lists)}: both lists need at least one image")
    val = sum(entry.side == "val" for entry in entries)
    if not val:
        return lists, note
    if not keep_val:
        return lists, f"{note}; {val:,} val images are left out"
    return lists, f"{note}; of train, {val:,} are val, also in the *_verify.txt lists (k_fold.strategy: fixed)"


def equal_counts(lists: Lists) -> tuple[Lists, list[str]]:
    """The lists with as many captions for each image as the richest has, since the format holds no other number.

    The captions of the others are repeated in their order, as RSICD's authors did.

    Raises:
        InputError: a list is empty.
    """
    if not all(lists.values()):
        raise InputError(f"{counts(lists)}: both lists need at least one image; leave less out (--drop)")
    most = max(len(entry.captions) for entries in lists.values() for entry in entries)
    fewer = sum(len(entry.captions) < most for entries in lists.values() for entry in entries)
    filled = {
        side: [replace(entry, captions=(entry.captions * most)[:most]) for entry in entries]
        for side, entries in lists.items()
    }
    note = f"{fewer:,} images have fewer than {most} captions: theirs are repeated until there are {most}"
    return filled, [note] if fewer else []


def captions_of(entries: Sequence[Entry]) -> list[str]:
    """All captions of a list, without blanks around them."""
    return [caption.strip() for entry in entries for caption in entry.captions]


def counts(lists: Lists) -> str:
    """Images and captions of both lists, in words."""
    return ", ".join(
        f"{side} {len(entries):,} images with {sum(len(entry.captions) for entry in entries):,} captions"
        for side, entries in lists.items()
    )


def list_digest(lines: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of a text's lines, whatever its line ends."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8")).hexdigest()
