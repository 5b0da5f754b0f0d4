"""What is wrong with a captioned set of images: said and, where asked, left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.lists import first_faults
from data.prepare.captions import Entry
from data.prepare.fingerprints import Place, same_scene, take_fingerprints
from data.prepare.lists import Lists, captions_of
from data.rasters.survey import settled
from option.images import ImageRule
from utils import markdown
from vocab import tokenize

DROPS = ("unreadable", "duplicates", "leaks", "blank", "val")


@dataclass(frozen=True)
class Findings:
    """What was found about the images; about captions the lists tell everything.

    Attributes:
        looked_at: whether the images were decoded and compared.
        unreadable: what is wrong with an image's file.
        same: pairs that show the same, the earlier one first (train stands before test), and whether the files are
            equal.
    """

    looked_at: bool
    unreadable: Mapping[Place, str]
    same: tuple[tuple[Place, Place, bool], ...]


def examine(lists: Lists, paths: Mapping[str, Path] | None, rule: ImageRule) -> Findings:
    """Decode and compare the images of both lists.

    Args:
        lists: both lists.
        paths: the file of each name; names without a file are missing. None to look at no image.
        rule: how images are read.
    """
    places = [(side, entry.name) for side, entries in lists.items() for entry in entries]
    in_train = {entry.name for entry in lists["train"]}
    same = {(("train", name), (side, name), True) for side, name in places if side == "test" and name in in_train}
    if paths is None:
        return Findings(False, {}, tuple(sorted(same)))
    files = {place: paths[place[1]] for place in places if place[1] in paths}
    prints, faults = take_fingerprints(files, settled(rule, list(files.values())))
    unreadable = {place: f"{place[1]}: there is no such image" for place in places if place not in files} | faults
    read = [place for place in files if place not in faults]
    same |= {(read[earlier], read[later], equal) for earlier, later, equal in same_scene(prints)}
    order = {place: index for index, place in enumerate(places)}
    return Findings(True, unreadable, tuple(sorted(same, key=lambda pair: (order[pair[0]], order[pair[1]]))))


def describe(lists: Lists, findings: Findings) -> str:
    """A table of both lists, then what was found, in words."""
    counts: dict[str, Callable[[list[Entry]], int]] = {
        "images": len,
        "captions": lambda entries: len(captions_of(entries)),
        "different captions": lambda entries: len(set(captions_of(entries))),
        "images with one sentence for all their captions": lambda entries: sum(_monotonous(e) for e in entries),
        "blank captions": lambda entries: sum(not tokenize(caption) for caption in captions_of(entries)),
    }
    cells = [["", *lists]] + [
        [label, *(f"{count(side):,}" for side in lists.values())] for label, count in counts.items()
    ]
    within = {side: [pair for pair in findings.same if pair[0][0] == pair[1][0] == side] for side in lists}
    across = [pair for pair in findings.same if pair[0][0] != pair[1][0]]
    if findings.looked_at:
        broken = [sum(place[0] == side for place in findings.unreadable) for side in lists]
        cells.append(["images that are missing or can't be read", *(f"{count:,}" for count in broken)])
        cells.append(["pairs of images that show the same", *(f"{len(pairs):,}" for pairs in within.values())])
    known, asked = set(captions_of(lists["train"])), captions_of(lists["test"])
    leaked = sum(caption in known for caption in asked)
    share = 100 * leaked / max(len(asked), 1)
    images = f"{len({later for _, later, _ in across}):,} of {len(lists['test']):,} test images"
    lines = [
        markdown(cells),
        f"\nLeaks: {leaked:,} of {len(asked):,} test captions ({share:.1f} %) stand word for word in train; {images} "
        f"are in train{'' if findings.looked_at else ' by their names; the images were not looked at'}.",
        *_named("missing or can't be read", [fault.partition("\n")[0] for fault in findings.unreadable.values()]),
    ]
    for title, pairs in (*((f"the same in {side}", within[side]) for side in lists), ("in train and test", across)):
        lines += _named(title, [f"{first[1]} {'=' if equal else '~'} {then[1]}" for first, then, equal in pairs])
    if findings.same:
        lines.append("(= the files are equal, ~ other files of the same scene)")
    return "\n".join(lines)


def leave_out(lists: Lists, findings: Findings, what: Collection[str]) -> tuple[Lists, list[str]]:
    """The lists without what is asked to go, and a line on each thing that was left out.

    "unreadable": images without a sound file; "duplicates": images that show the same as an earlier one of their list;
    "leaks": train images that show the same as a test image, and train captions that stand in test (test stays as it
    is); "blank": captions without a word. An image left without captions goes, too. "val" is nothing to this function:
    see `data.prepare.lists.split_entries`.
    """
    gone: set[Place] = set()
    if "unreadable" in what:
        gone |= findings.unreadable.keys()
    if "duplicates" in what:
        gone |= {later for earlier, later, _ in findings.same if earlier[0] == later[0]}
    if "leaks" in what:
        gone |= {earlier for earlier, later, _ in findings.same if earlier[0] != later[0]}
    kept: Lists = {}
    shown = set(captions_of(lists["test"])) if "leaks" in what else set[str]()
    for side, entries in lists.items():
        left = [entry for entry in entries if (side, entry.name) not in gone]
        leaked = shown if side == "train" else ()
        thinned = [replace(entry, captions=_kept(entry, leaked, "blank" in what)) for entry in left]
        kept[side] = [entry for entry in thinned if entry.captions]
    report = []
    for side, entries in lists.items():
        images = len(entries) - len(kept[side])
        captions = len(captions_of(entries)) - len(captions_of(kept[side]))
        if images or captions:
            report.append(f"left out of {side}: {images:,} images, {captions:,} captions")
    return kept, report


def _kept(entry: Entry, leaked: Container[str], no_blanks: bool) -> tuple[str, ...]:
    """The captions that stay."""
    return tuple(
        caption for caption in entry.captions if caption.strip() not in leaked and (not no_blanks or tokenize(caption))
    )


def _monotonous(entry: Entry) -> bool:
    return len(entry.captions) > 1 and len({caption.strip() for caption in entry.captions}) == 1


def _named(title: str, things: Sequence[str]) -> list[str]:
    """A headline and the first things below it; nothing where there are none."""
    return [f"{title} ({len(things):,}):{first_faults(things)}"] if things else []
