"""Joins data sets to train on: `python -m data.join data/rsicd_precomp data/rsitmd_precomp --out data/joined_precomp`.

The first set gives the test list. What any of the sets tests on, and what one set has twice, is left out of train.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.annotations import Annotations, list_digest, list_files, read_annotations
from data.images import DEFAULT_RULE
from data.keywords.file import Keyword, keyword_list, read_keywords, write_keywords
from data.lists import first_names, write_lines
from data.prepare.captions import Entry, Side
from data.prepare.fingerprints import Place, same_scene, take_fingerprints
from data.prepare.lists import counts, equal_counts
from data.prepare.writer import ImageFiles, new_folder, put_images, write_lists
from data.rasters.survey import settled
from data.scenes import SCENES, UNNAMED_SCENE, scene_classes
from option import load_image_rule
from option.dataset import TrainingSet, set_name
from option.images import ImageRule
from runtime.arguments import add_image_settings
from runtime.entry_point import run_entry_point
from utils import InputError, markdown

SIDES = ("test", "val", "train")
"""Of two images that show the same, that of the earlier side stays."""
ANOTHER = "in another set's "
"""Begins the reason for which an image is left out that two sets share."""


@dataclass(frozen=True)
class Member:
    """An image of one of the sets.

    Attributes:
        origin: number of its set.
        side: of its list there; val for those of train that are in the set's `val_filename_verify.txt`.
        path: its file.
        entry: its captions, under its name in the joined set.
        scene: its class.
        keywords: its own, where its set has them.
    """

    origin: int
    side: str
    path: Path
    entry: Entry
    scene: str = UNNAMED_SCENE
    keywords: tuple[Keyword, ...] | None = None


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
    """`join_sets` of data sets whose images are in their folders."""
    names = list(map(set_name, folders))
    if len(set(names)) < max(2, len(names)):
        raise InputError(f"expected two or more folders of different names; found {', '.join(names) or 'none'}")
    return join_sets([TrainingSet(path=folder) for folder in folders], out, "link" if link else "copy", rule)


def join_sets(sets: Sequence[TrainingSet], out: Path, image_files: ImageFiles, rule: ImageRule) -> str:
    """Make the joined set; what exists is never written into, and a run that fails leaves nothing.

    Args:
        sets: two or more, of different names; their weights don't count.
        out: the joined set's folder.
        image_files: see `data.prepare.writer.put_images`.
        rule: how images are read.

    Returns:
        What was taken from each set, and what was left out, as Markdown.

    Raises:
        InputError: a set can't be read, or nothing of it is left to train on.
    """
    names = [each.name for each in sets]
    members = [member for origin, each in enumerate(sets) for member in members_of(each, origin)]
    kept, left_out = without_repeats(members, rule)
    _refuse_empty(sets, kept)
    chosen = {
        "train": [member for member in kept if member.side != "test"],
        "test": [member for member in kept if member.side == "test" and member.origin == 0],
    }
    lists, notes = equal_counts({side: [member.entry for member in found] for side, found in chosen.items()})
    record = {
        "joined": names,
        "test": names[0],
        "images": {name: _trained(members, origin) for origin, name in enumerate(names)},
        "left_out": {names[origin]: dict(reasons) for origin, reasons in enumerate(left_out)},
        "train_lists": {each.name: list_digest(read_annotations(each.path, "train")) for each in sets},
    }
    with new_folder(out) as folder:
        put_images(lists, {member.entry.name: member.path for member in kept}, folder, image_files)
        notes += [_put_scenes(chosen, folder), *(_put_keywords(names, chosen[side], side, folder) for side in chosen)]
        write_lists(lists, folder, record)
    return "\n\n".join(filter(None, [_table(names, members, left_out), *notes, f"{out}: {counts(lists)}"]))


def members_of(part: TrainingSet, origin: int) -> list[Member]:
    """The images of a set, under its name and their names there; test before train. Only the first set needs a test.

    Raises:
        InputError: a list can't be read, or an image is missing.
    """
    found: list[Member] = []
    if origin == 0 or has_test(part.path):
        found += _members(part, origin, read_annotations(part.path, "test"), "test", ())
    val = list_files(part.path, "val_verify")[0]
    held_out = read_annotations(part.path, "val_verify").image_names if val.is_file() else ()
    train = read_annotations(part.path, "train")
    if strangers := sorted(set(held_out) - set(train.image_names)):
        raise InputError(
            f"{val}: {len(strangers)} images are not in {train.names_file}: {first_names(strangers)}. Val images are "
            "joined as a part of train: add them there, with their captions."
        )
    return found + _members(part, origin, train, "train", held_out)


def has_test(folder: Path) -> bool:
    """Whether a data set has a test list."""
    return any(file.exists() for file in list_files(folder, "test"))


def _members(part: TrainingSet, origin: int, listed: Annotations, side: Side, held_out: Sequence[str]) -> list[Member]:
    # The test of another set than the first only says what to leave out.
    scenes = scene_classes(listed) if side == "train" or origin == 0 else [UNNAMED_SCENE] * len(listed.image_names)
    file = keyword_list(part.path, side)
    keywords = read_keywords(file, len(listed.image_names)) if file.is_file() else None
    val: Side = "val"
    found, held = [], set(held_out)
    for image, name in enumerate(listed.image_names):
        path, own = part.image_folder / name, val if name in held else side
        if not path.is_file():
            raise InputError(f"{path}: no such image, which {listed.names_file} names")
        entry = Entry(f"{part.name}/{name}", tuple(listed.captions_of(image)), side=own)
        found.append(Member(origin, own, path, entry, scenes[image], None if keywords is None else keywords[image]))
    return found


def without_repeats(members: Sequence[Member], rule: ImageRule) -> tuple[list[Member], list[Counter[str]]]:
    """Leave out of train what shows the same as a test image of any set, or as an earlier train image; val is earlier.

    Two images show the same if their files are equal, or by `data.prepare.fingerprints.same_scene`.

    Args:
        members: of all sets.
        rule: how images are read.

    Returns:
        Those that stay, and for each set how many of its train images were left out for which reason.

    Raises:
        InputError: an image can't be read.
    """
    ordered = sorted(members, key=lambda member: SIDES.index(member.side))  # of all sets
    files: Mapping[Place, Path] = {(member.side, member.entry.name): member.path for member in ordered}
    prints, faults = take_fingerprints(files, settled(rule, list(files.values())))
    if faults:
        raise InputError(f"{len(faults)} images can't be read, the first: {next(iter(faults.values()))}")
    left_out: list[Counter[str]] = [Counter() for _ in {member.origin for member in members}]
    gone: set[int] = set()
    for earlier, later, _ in same_scene(prints):
        first, second = ordered[earlier], ordered[later]
        if second.side == "test" or earlier in gone or later in gone:
            continue
        gone.add(later)
        same = "in its own " if first.origin == second.origin else ANOTHER
        left_out[second.origin][same + first.side] += 1
    dropped = {id(ordered[place]) for place in gone}
    return [member for member in members if id(member) not in dropped], left_out


def _refuse_empty(sets: Sequence[TrainingSet], kept: Sequence[Member]) -> None:
    """Raise an InputError for a set that adds nothing."""
    left = {member.origin for member in kept if member.side != "test"}
    if empty := [part for origin, part in enumerate(sets) if origin not in left]:
        raise InputError(
            f"{empty[0].path}: nothing of it is left to train on: other sets have or test on all its train images. "
            "Leave this set out."
        )


def _trained(members: Sequence[Member], origin: int) -> int:
    """How many images of a set are in its train list."""
    return sum(member.origin == origin and member.side != "test" for member in members)


def _put_scenes(chosen: Mapping[str, Sequence[Member]], folder: Path) -> str:
    """Write the scene classes of all sets as one list, in small letters: `BareLand` and `bareland` are one class."""
    found = [member for members in chosen.values() for member in members if member.scene != UNNAMED_SCENE]
    if not found:
        return ""
    write_lines(folder / SCENES, [f"{member.entry.name}\t{member.scene.casefold()}" for member in found])
    classes = {member.scene.casefold() for member in found}
    return f"{SCENES}: {len(classes):,} scene classes of {len(found):,} of {sum(map(len, chosen.values())):,} images"


def _put_keywords(names: Sequence[str], members: Sequence[Member], side: str, folder: Path) -> str:
    """Write the keywords of a list, where each set has them."""
    lacking = {names[member.origin] for member in members if member.keywords is None}
    if not lacking:
        write_keywords(keyword_list(folder, side), [member.keywords or () for member in members])
    elif len(lacking) < len({member.origin for member in members}):
        return f"{keyword_list(folder, side).name}: left out, since {', '.join(sorted(lacking))} has none"
    return ""


def _table(names: Sequence[str], members: Sequence[Member], left_out: Sequence[Counter[str]]) -> str:
    sides = [side for side in SIDES if any(member.side == side for member in members)]
    reasons = [f"{whose}{side}" for side in sides for whose in ("in its own ", ANOTHER)]
    cells = [["set", "train images", *(f"left out: {reason}" for reason in reasons), "taken"]]
    for origin, name in enumerate(names):
        images, dropped = _trained(members, origin), [left_out[origin][reason] for reason in reasons]
        cells.append([name, f"{images:,}", *(f"{count:,}" for count in dropped), f"{images - sum(dropped):,}"])
    return markdown(cells)


if __name__ == "__main__":
    run_entry_point(main)
