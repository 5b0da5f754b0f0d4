"""Joins data sets to train on: `python -m data.join data/rsicd_precomp data/rsitmd_precomp --out data/joined_precomp`.

The first set gives the test list. What any of the sets tests on, and what one set has twice, is left out of train.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.annotations import read_annotations
from data.images import DEFAULT_RULE
from data.prepare.captions import Entry
from data.prepare.fingerprints import Place, same_scene, take_fingerprints
from data.prepare.lists import Lists, counts, equal_counts
from data.prepare.writer import new_folder, put_images, write_lists
from data.rasters.survey import settled
from option import load_image_rule
from option.images import ImageRule
from runtime.arguments import add_image_settings
from runtime.entry_point import run_entry_point
from utils import InputError, markdown

SIDES: tuple[Literal["test", "train"], ...] = ("test", "train")


@dataclass(frozen=True)
class Member:
    """An image of one of the sets.

    Attributes:
        origin: number of its set.
        side: of its list there.
        path: its file.
        entry: its captions, under its name in the joined set.
    """

    origin: int
    side: str
    path: Path
    entry: Entry


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the joined set and say what was left out."""
    parser = argparse.ArgumentParser(
        prog="python -m data.join", description="Join data sets to train on, each image once (data/README.md)."
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="two or more data sets")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the joined set")
    parser.add_argument("--image_files", choices=("copy", "link"), default="copy", help="copy or hard-link images")
    add_image_settings(parser)
    given = parser.parse_args(arguments)
    print(join(given.folders, given.out, given.image_files == "link", load_image_rule(given.set)))


def join(folders: Sequence[Path], out: Path, link: bool = False, rule: ImageRule = DEFAULT_RULE) -> str:
    """Make the joined set; what exists is never written into, and a run that fails leaves nothing.

    Returns:
        What was taken from each set, and what was left out, as Markdown.

    Raises:
        InputError: a set can't be read, or there are too few of them.
    """
    names = [folder.resolve().name.removesuffix("_precomp") for folder in folders]
    if len(set(names)) < max(2, len(names)):
        raise InputError(f"expected two or more folders of different names; found {', '.join(names) or 'none'}")
    members = [member for place, name in enumerate(names) for member in members_of(folders[place], place, name)]
    kept, left_out = without_repeats(members, rule)
    lists: Lists = {
        "train": [member.entry for member in kept if member.side == "train"],
        "test": [member.entry for member in kept if member.side == "test" and member.origin == 0],
    }
    lists, notes = equal_counts(lists)
    with new_folder(out) as folder:
        put_images(lists, {member.entry.name: member.path for member in kept}, folder, link)
        dropped = {names[origin]: dict(reasons) for origin, reasons in enumerate(left_out)}
        write_lists(lists, folder, {"joined": names, "test": names[0], "left_out": dropped})
    table = _table(names, members, left_out)
    return "\n\n".join([table, *notes, f"{out}: {counts(lists)}"])


def members_of(folder: Path, origin: int, name: str) -> list[Member]:
    """The images of a set, under `name/` and their names there; test before train.

    Raises:
        InputError: a list can't be read, or an image is missing.
    """
    found = []
    for side in SIDES:
        listed = read_annotations(folder, side)
        for image, file in enumerate(listed.image_names):
            path = folder / "images" / file
            if not path.is_file():
                raise InputError(f"{path}: no such image, which {listed.names_file} names")
            entry = Entry(f"{name}/{file}", tuple(listed.captions_of(image)), side=side)
            found.append(Member(origin, side, path, entry))
    return found


def without_repeats(members: Sequence[Member], rule: ImageRule) -> tuple[list[Member], list[Counter[str]]]:
    """Leave out of train what shows the same as a test image of any set, or as an earlier train image.

    Two images show the same if their files are equal, or by `data.prepare.fingerprints.same_scene`.

    Args:
        members: of all sets.
        rule: how their images are read.

    Returns:
        Those that stay, and for each set how many of its train images were left out for which reason.

    Raises:
        InputError: an image can't be read.
    """
    ordered = sorted(members, key=lambda member: SIDES.index(member.side))  # test before train, of all sets
    files: Mapping[Place, Path] = {(member.side, member.entry.name): member.path for member in ordered}
    prints, faults = take_fingerprints(files, settled(rule, list(files.values())))
    if faults:
        raise InputError(f"{len(faults)} images can't be read, the first: {next(iter(faults.values()))}")
    left_out: list[Counter[str]] = [Counter() for _ in {member.origin for member in members}]
    gone: set[int] = set()
    for earlier, later, _ in same_scene(prints):
        first, second = ordered[earlier], ordered[later]
        if second.side != "train" or earlier in gone or later in gone:
            continue
        gone.add(later)
        where = "test" if first.side == "test" else "train"
        same = "its own" if first.origin == second.origin else "another set's"
        left_out[second.origin][f"in {same} {where}"] += 1
    return [member for place, member in enumerate(ordered) if place not in gone], left_out


def _table(names: Sequence[str], members: Sequence[Member], left_out: Sequence[Counter[str]]) -> str:
    reasons = [f"in {whose} {where}" for where in SIDES for whose in ("its own", "another set's")]
    cells = [["set", "train images", *(f"left out: {reason}" for reason in reasons), "taken"]]
    for origin, name in enumerate(names):
        images = sum(member.origin == origin and member.side == "train" for member in members)
        dropped = [left_out[origin][reason] for reason in reasons]
        cells.append([name, f"{images:,}", *(f"{count:,}" for count in dropped), f"{images - sum(dropped):,}"])
    return markdown(cells)


if __name__ == "__main__":
    run_entry_point(main)
