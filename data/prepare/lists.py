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
MOST_REPEATED = 10_000_000
"""Captions of a list whose images had unequal numbers of them."""


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
    """Each list with as many captions for each image as its richest has, since the format holds no other number.

    The captions of the others are repeated in their order, as RSICD's authors did, and counted as copies. A list alone
    decides its number: an image of train adds nothing to test.

    Returns:
        The lists, and a line on each that was filled up.

    Raises:
        InputError: a list is empty, or would become too large.
    """
    if not all(lists.values()):
        raise InputError(f"{counts(lists)}: both lists need at least one image; leave less out (--drop)")
    filled: Lists = {}
    notes = []
    for side, entries in lists.items():
        richest = max(entries, key=lambda entry: len(entry.captions))
        most, images = len(richest.captions), len(entries)
        fewer = sum(len(entry.captions) < most for entry in entries)
        if fewer and most * images > MOST_REPEATED:
            raise InputError(
                f"{side}: {richest.name} has {most:,} captions, so those of all {images:,} images would be repeated "
                f"until there are {most * images:,}, at most {MOST_REPEATED:,} are made; take some of its captions out"
            )
        filled[side] = [
            replace(entry, captions=(entry.captions * most)[:most], copies=most - len(entry.captions))
            for entry in entries
        ]
        if fewer:
            notes.append(
                f"{side}: {fewer:,} images have fewer than {most} captions: theirs are repeated to {most}; the copies, "
                f"recorded in {side}_copies.txt, are neither trained on nor scored"
            )
    return filled, notes


def captions_of(entries: Sequence[Entry]) -> list[str]:
    """All captions of a list, without blanks around them."""
    return [caption.strip() for entry in entries for caption in entry.captions]


def counts(lists: Lists) -> str:
    """Images and captions of both lists, copies left out, in words."""
    return ", ".join(
        f"{side} {len(entries):,} images with {sum(len(entry.own) for entry in entries):,} captions"
        for side, entries in lists.items()
    )


def list_digest(lines: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of a text's lines, whatever its line ends."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode("utf-8")).hexdigest()
