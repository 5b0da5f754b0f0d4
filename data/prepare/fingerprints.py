"""Finds images that are in a data set more than once: equal files, and different files of the same scene."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import decode
from option.images import ImageRule
from runtime.progress import progress_bar
from utils import InputError

ROWS, COLUMNS = 16, 17  # of the thumbnail: a bit per pair of neighbours, 256 in all
# Chosen by the distances found in UCM and in RSICD's AID images: between the few pairs within both (encoded twice, or
# shifted by some pixels) and the next ones there is a gap.
MAX_BITS = 32
MAX_GREY = 4.0
BLOCK = 512

Place = tuple[str, str]
"""A list ("train" or "test") and a file name in it."""


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What N images are compared by.

    Attributes:
        digests: SHA-256 of each file, hexadecimal.
        thumbnails: [N, 16, 17] uint8, grey.
    """

    digests: tuple[str, ...]
    thumbnails: np.ndarray


def take_fingerprints(paths: Mapping[Place, Path], rule: ImageRule) -> tuple[Fingerprints, dict[Place, str]]:
    """Decode every image once.

    Returns:
        The fingerprints of the images that can be read, in the order given, and what is wrong with the others.
    """
    digests, thumbnails = [], []
    faults: dict[Place, str] = {}
    for place, path in progress_bar(paths.items(), desc="images", unit="image", total=len(paths)):
        try:
            grey = decode(path, rule).convert("L").resize((COLUMNS, ROWS), Image.Resampling.BOX)
            digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
            thumbnails.append(np.asarray(grey))
        except InputError as fault:
            faults[place] = str(fault)
    stacked = np.stack(thumbnails) if thumbnails else np.zeros((0, ROWS, COLUMNS), np.uint8)
    return Fingerprints(tuple(digests), stacked), faults


def same_scene(prints: Fingerprints) -> list[tuple[int, int, bool]]:
    """Pairs of images that show the same.

    Two files of the same bytes, or two images whose difference hashes (is a thumbnail's pixel brighter than its left
    neighbour?) differ in at most 32 of 256 bits and whose thumbnails differ by at most 4 of 255 on average. A turned or
    mirrored copy is not found.

    Returns:
        (earlier, later, whether the files are equal), ascending.
    """
    thumbnails = prints.thumbnails.astype(np.float32)
    signs = np.where(thumbnails[:, :, 1:] > thumbnails[:, :, :-1], 1, -1).reshape(len(thumbnails), ROWS * (COLUMNS - 1))
    signs = signs.astype(np.float32)
    pairs = []
    for start in range(0, len(signs), BLOCK):
        differing = (signs.shape[1] - signs[start : start + BLOCK] @ signs.T) / 2  # [BLOCK, N] bits
        for row, later in np.argwhere(differing <= MAX_BITS):
            earlier = start + int(row)
            if earlier >= later:
                continue
            equal = prints.digests[earlier] == prints.digests[later]
            if equal or np.abs(thumbnails[earlier] - thumbnails[later]).mean() <= MAX_GREY:
                pairs.append((earlier, int(later), equal))
    return sorted(pairs)
