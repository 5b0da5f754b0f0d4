"""Makes a data set in the precomp format from a published or an own one, or checks one: `python -m data.prepare`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from data.annotations import SIDES, read_annotations
from data.images import DEFAULT_RULE, image_names
from data.lists import first_faults
from data.prepare.captions import Entry, Keys
from data.prepare.checks import DROPS, Findings, describe, examine, leave_out
from data.prepare.classes import put_classes
from data.prepare.folders import holds_images
from data.prepare.known_sets import compare_known
from data.prepare.lists import Lists, counts, equal_counts, split_entries
from data.prepare.sources import FORMS, Source, find_images, images_folder, open_source
from data.prepare.writer import compare_record, new_folder, put_images, refuse_taken, write_lists
from option import load_image_rule
from option.images import MOST_PIXELS, ImageRule
from runtime.arguments import add_image_settings
from runtime.entry_point import run_entry_point
from utils import InputError

IMAGE_FILES = ("copy", "link", "none")


@dataclass(frozen=True)
class Request:
    """What is to be made.

    Attributes:
        source: file or folder of the captions, or `owner/name` on the Hugging Face hub; None where `by_split` has them.
        out: the new data set's folder.
        images: folder of the images; None for the one that belongs to the source.
        image_files: "copy" or "link" (hard links) them into the set, or "none" to make the lists alone.
        test_share: share of the images that become test where the source names none, between 0 and 1.
        seed: of that choice, 0 or more.
        drop: what to leave out, see `data.prepare.checks.leave_out`.
        rule: how images are read; larger ones than it allows count as unreadable.
        train: the source of the train images alone; the same for `val` and `test`.
        image_key: column or key of the file names, None for the first that is known; the same for `caption_key`.
        classes: scene classes, see `data.prepare.classes`; None for those beside the source.
    """

    source: str | None
    out: Path
    images: Path | None = None
    image_files: str = "copy"
    test_share: float = 0.2
    seed: int = 0
    drop: tuple[str, ...] = ()
    rule: ImageRule = DEFAULT_RULE
    train: str | None = None
    val: str | None = None
    test: str | None = None
    image_key: str | None = None
    caption_key: str | None = None
    classes: Path | None = None

    @property
    def sources(self) -> list[tuple[str, str | None]]:
        """Every source, with the split of all that is in it."""
        by_split = {None: self.source, "train": self.train, "val": self.val, "test": self.test}
        return [(given, side) for side, given in by_split.items() if given is not None]


def prepare(request: Request) -> str:
    """Make a data set; what exists is never written into, and a run that fails leaves nothing.

    Returns:
        The report.

    Raises:
        InputError: something is wrong with the source, its images, or the place of the new set.
    """
    refuse_taken(request.out)
    source = open_source(request.sources, Keys(request.image_key, request.caption_key), request.images)
    lists, note = split_entries(source.entries, request.test_share, request.seed, "val" not in request.drop)
    report = [f"{source.words}\nsplit: {note}", compare_known(request.out, **lists)]
    with new_folder(request.out) as folder:
        lists, paths = _with_images(request, source, lists, folder)
        findings = examine(lists, paths, request.rule)
        report.append(describe(lists, findings))
        lists, left_out = leave_out(lists, findings, request.drop)
        _refuse_unreadable(source, lists, findings)
        lists, repeated = equal_counts(lists)
        if paths is not None:
            put_images(lists, paths, folder, "link" if request.image_files == "link" else "copy")
        classes = put_classes(request.classes, source.beside, lists, folder)
        made_from = {"source": source.path.name, "split": note, "left_out": list(request.drop)}
        write_lists(lists, folder, made_from)
    report += ["\n".join(filter(None, [*left_out, *repeated, classes])), f"{request.out}: {counts(lists)}"]
    return "\n\n".join(filter(None, report))


def check(folder: Path, images: Path | None = None, rule: ImageRule = DEFAULT_RULE) -> str:
    """Report on a data set in the precomp format, whose images are in `images/` unless given; nothing is written.

    Raises:
        InputError: the lists can't be read, or the folder of images is not there.
    """
    lists: Lists = {}
    for side in SIDES:
        listed = read_annotations(folder, side)
        lists[side] = [Entry(name, listed.captions_of(image)) for image, name in enumerate(listed.image_names)]
    place = images_folder(images, [folder / "images"])
    names = [entry.name for entries in lists.values() for entry in entries]
    paths = None if place is None else {name: place / name for name in names if (place / name).is_file()}
    findings = examine(lists, paths, rule)
    return "\n\n".join(
        filter(None, [compare_known(folder, **lists), compare_record(folder), describe(lists, findings)])
    )


def _with_images(request: Request, source: Source, lists: Lists, folder: Path) -> tuple[Lists, dict[str, Path] | None]:
    """The file of each image by name, and the lists with the endings that the files have.

    Images inside of parquet files are written into the new set.
    """
    if request.image_files == "none":
        return lists, None
    if source.packed:
        source.write_images(folder / "images")
        return lists, {entry.name: folder / "images" / entry.name for entry in source.entries}
    found: dict[str, Path] = {}
    names = [entry.name for entry in source.entries]
    for place in source.places(request.images):
        found |= find_images(place, [name for name in names if name not in found])
    if not found:
        there = f"its first image is {image_names(place)[0]}" if holds_images(place) else "it holds no image"
        raise InputError(
            f"{source.path}: none of its {len(names):,} images, such as {names[0]}, is in {place}: {there}. Check "
            "--images"
        )
    actual = {name: str(PurePosixPath(name).with_suffix(path.suffix)) for name, path in found.items()}
    renamed = {
        side: [replace(entry, name=actual.get(entry.name, entry.name)) for entry in entries]
        for side, entries in lists.items()
    }
    return renamed, {actual[name]: path for name, path in found.items()}


def _refuse_unreadable(source: Source, lists: Lists, findings: Findings) -> None:
    """Raise an InputError if images of the lists have no sound file."""
    left = {(side, entry.name) for side, entries in lists.items() for entry in entries}
    faults = [fault for place, fault in findings.unreadable.items() if place in left]
    if faults:
        raise InputError(
            f"{source.path}: {len(faults)} of {len(left)} images are missing or can't be read:"
            f"{first_faults(faults)}\nCheck --images, mend the images, or leave them out: --drop unreadable."
        )


def _drops(text: str) -> tuple[str, ...]:
    """The value of --drop."""
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in DROPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {','.join(DROPS)}")
    return names


def next_command(folder: Path) -> str:
    """What to type once a set is made."""
    name = folder.resolve().name.removesuffix("_precomp")
    words = ["--data_path", str(folder), "--data_name", name, "--out", str(folder / "vocab.json")]
    return shlex.join(["python", "-m", "vocab", *words])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make or check a data set."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    parser.add_argument("source", nargs="?", help=f"{FORMS}; or owner/name on the Hugging Face hub")
    for side in ("train", "val", "test"):
        parser.add_argument(f"--{side}", metavar="SOURCE", help=f"instead of SOURCE: the {side} images alone")
    parser.add_argument("--image_key", metavar="NAME", help="column or key of the file names (default: the usual ones)")
    parser.add_argument("--caption_key", metavar="NAME", help="column or key of the captions (likewise)")
    parser.add_argument("--classes", type=Path, metavar="PATH", help="scene classes: CLASS.txt lists, a table, folders")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="the new data set, such as data/rsicd_precomp")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only report on a data set that is there")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the images (default: images/ of the source)")
    parser.add_argument(
        "--image_files", "--pictures", choices=IMAGE_FILES, default="copy", help="copy, hard-link or leave out images"
    )
    parser.add_argument("--test_share", type=float, default=0.2, help="where the source has no test split (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="of that split (0)")
    parser.add_argument("--drop", type=_drops, default=(), metavar="WHAT", help=f"some of {','.join(DROPS)}")
    parser.add_argument("--max_pixels", type=int, default=MOST_PIXELS, help="refuse larger images (1e8)")
    add_image_settings(parser)
    given = parser.parse_args(arguments)
    rule = load_image_rule([f"dataset.max_pixels={given.max_pixels}", *given.set])
    if given.check is not None and given.source is None and given.out is None:
        print(check(given.check, given.images, rule))
    elif given.check is None and given.out is not None and (given.source is None) == bool(given.train or given.test):
        options = {name: value for name, value in vars(given).items() if name not in ("check", "max_pixels", "set")}
        print(prepare(Request(rule=rule, **options)))
        print(f"\nnext: {next_command(given.out)}")
    else:
        parser.error("give SOURCE, or --train and --test, and --out FOLDER to make a set; or --check FOLDER alone")


if __name__ == "__main__":
    run_entry_point(main)
