"""What the published data sets must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.prepare.captions import Entry
from data.prepare.lists import list_digest


@dataclass(frozen=True)
class KnownSet:
    """Counts of a published data set, and its lists where these were at hand.

    Attributes:
        images: in all.
        captions: of each image.
        published: images of the train and test lists that published results rest on, and the digests of both.
    """

    images: int
    captions: int = 5
    published: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def known_name(folder_name: str) -> str | None:
    """Which published data set a folder is named for (`rsicd_precomp`: "rsicd"), or None."""
    name = folder_name.lower().removesuffix("_precomp")
    return name if name in KNOWN else None


KNOWN = {
    "rsicd": KnownSet(
        images=10921,
        published={
            "train": (9828, "ae2c25df3d951603d170a840671d21671aaa223507611fd1414e9e543d39de69"),
            "test": (1093, "92006c934e8bb13ac1433995d93e7ba674007fe10f50be97ac3f2f9d5a88c4d4"),
        },
    ),
    "rsitmd": KnownSet(
        images=4743,
        published={
            "train": (4291, "42be79a3a17237a3a0f675ef5b486b8ac8a860af2f3c0142fea822797442659b"),
            "test": (452, "86a779ca995c02c48bc80e159687fc159375a4331add8532622735ba07474b52"),
        },
    ),
    "ucm": KnownSet(
        images=2100,
        published={
            "train": (1680, "25d342bc5f848bfba69f64a890e9b13dc6eafbe38d354f912c78bf7b71e94884"),
            "test": (210, "7beb6819473c5fc930d8094c7c855396315dfc92872f1c10bdb9fa6291729105"),
        },
    ),
    "sydney": KnownSet(images=613),
    "nwpu": KnownSet(images=31500),
}


def compare_known(folder: Path, train: Sequence[Entry], test: Sequence[Entry]) -> str:
    """`compare` with the published set that a folder is named for; "" where it is none."""
    name = known_name(folder.resolve().name)
    return "" if name is None else "\n".join(compare(KNOWN[name], train, test))


def compare(known: KnownSet, train: Sequence[Entry], test: Sequence[Entry]) -> list[str]:
    """A line on each thing in which the lists (val is in train) agree with the published data set or don't."""
    total, listed = len(train) + len(test), sum(count for count, _ in known.published.values())
    lists = f", {listed:,} in the lists that results rest on" if listed not in (0, known.images) else ""
    verdict = "" if total in (known.images, listed) else ": NOT THE SAME"
    lines = [f"{total:,} images; published: {known.images:,} in all{lists}{verdict}"]
    for side, entries in (("train", train), ("test", test)):
        if side in known.published:
            count, digest = known.published[side]
            if digest_of(entries) == digest:
                verdict = "the published list, to the letter (SHA-256)"
            elif len(entries) == count:
                verdict = "as many as in the published list, but not the same names and captions in the same order"
            else:
                verdict = f"the published list has {count:,}: NOT THE SAME"
            lines.append(f"{side}: {len(entries):,} images, {verdict}")
    odd = sum(len(entry.captions) != known.captions for entry in [*train, *test])
    return [*lines, f"{odd:,} images don't have {known.captions} captions: NOT THE SAME"] if odd else lines


def digest_of(entries: Sequence[Entry]) -> str:
    """SHA-256 of a list's file names (without their endings, which copies of a set differ in) and captions."""
    return list_digest(
        [f"{entry.name.rpartition('.')[0]}\t{caption}" for entry in entries for caption in entry.captions]
    )
