"""Reads the caption files of UCM and Sydney, which name images by number."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from data.lists import read_lines, refuse_faults, shown
from data.prepare.captions import Captions, Row

DESCRIBED_ENDING = ".tif"  # of the images that the description files of UCM and Sydney number


def read_descriptions(path: Path) -> Captions:
    """Read `descriptions_UCM.txt` or `descriptions_SYDNEY.txt`: an image's number, a blank, a sentence, on each line.

    The split is taken from `filenames_train.txt`, `filenames_val.txt` and `filenames_test.txt` beside it, where these
    files exist: one file name a line, which also gives the ending.

    Raises:
        InputError: a file can't be read, or a line is faulty; the message names it.
    """
    listed: dict[str, tuple[str, str]] = {}
    for side in ("train", "val", "test"):
        companion = path.with_name(f"filenames_{side}.txt")
        if companion.is_file():
            names = [line.strip() for line in read_lines(companion)]
            listed |= {PurePosixPath(name).stem: (name, side) for name in names if name}
    rows, faults = [], []
    for line, text in enumerate(read_lines(path), 1):
        number, _, sentence = text.strip().partition(" ")
        if not number:
            continue
        if not (number.isascii() and number.isdigit()):
            faults.append(f"line {line}: expected a number, a blank and a sentence, found {shown(text)}")
        elif listed and number not in listed:
            faults.append(f"line {line}: image {number} is in none of the filenames_*.txt beside this file")
        else:
            name, given = listed.get(number, (number + DESCRIBED_ENDING, None))
            rows.append(Row(f"line {line}", name, [sentence], given))
    refuse_faults(path, faults, "Expected lines such as: 12 There are two planes on the ground .")
    return Captions(rows, "each line is an image's number and a caption")
