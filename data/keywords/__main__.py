"""Makes keywords from captions: `python -m data.keywords data/ucm_precomp --out data/ucm_keywords`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.annotations import SIDES, Annotations, read_annotations
from data.keywords.extraction import Lexicon, keywords_from_captions, learn_lexicon
from data.keywords.file import NO_WORD, Keyword, keyword_list, write_keywords
from runtime.entry_point import run_entry_point
from utils import InputError, first_line

EXAMPLES = 5
FREQUENT = 15


def describe(annotations: Annotations, keywords: Sequence[Sequence[Keyword]], lexicon: Lexicon) -> str:
    """What was found in a list: counts, the most frequent keywords, some images."""
    counts = Counter(" ".join(keyword) for row in keywords for keyword in row)
    bare = sum(count for keyword, count in counts.items() if keyword.startswith(f"{NO_WORD} "))
    nameless = sum(all(target not in lexicon.targets for _, target in row) for row in keywords)
    lines = [
        f"{annotations.name}: {len(keywords):,} images, {counts.total() / len(keywords):.2f} keywords each, "
        f"{len(counts):,} different; {bare / counts.total():.0%} without a fine-grained word; {nameless:,} images "
        "without a target word",
        "most frequent: " + ", ".join(f"{keyword} ({count:,})" for keyword, count in counts.most_common(FREQUENT)),
    ]
    for image in np.linspace(0, len(keywords) - 1, min(EXAMPLES, len(keywords))).round().astype(int):
        found = ", ".join(map(" ".join, keywords[image]))
        lines.append(f"  {annotations.image_names[image]}: {found} <- {annotations.captions_of(image)[0].strip()} ...")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both files of keywords and print what is in them."""
    parser = argparse.ArgumentParser(
        prog="python -m data.keywords", description="Make keywords from the captions of each image."
    )
    parser.add_argument("folder", type=Path, metavar="DATA_FOLDER", help="the data set; its lists are enough")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the files go (default: the data set's folder)"
    )
    parser.add_argument("--most", type=int, default=5, help="keywords of an image, at most (5)")
    parser.add_argument("--min_images", type=int, default=10, help="train images that a word must occur for (10)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    given = parser.parse_args(arguments)
    if given.most < 1 or given.min_images < 1:
        raise InputError(f"--most and --min_images must be at least 1; found {given.most} and {given.min_images}")
    out = given.out or given.folder
    lists = {side: read_annotations(given.folder, side) for side in SIDES}
    taken = [str(path) for side in lists if (path := keyword_list(out, side)).exists()]
    if taken and not given.force:
        raise InputError(f"{', '.join(taken)}: there already; pass --force to replace, or choose another --out")
    lexicon = learn_lexicon(lists["train"], given.min_images)
    most_frequent = [word for word, _ in Counter(lexicon.targets).most_common(FREQUENT)]
    print(f"{len(lexicon.targets):,} target words: {', '.join(most_frequent)}")
    found = {side: keywords_from_captions(lists[side], lexicon, given.most) for side in SIDES}
    try:
        for side, keywords in found.items():
            write_keywords(keyword_list(out, side), keywords)
            print(f"\n{keyword_list(out, side)}\n{describe(lists[side], keywords, lexicon)}")
    except OSError as fault:
        raise InputError(f"{out}: the keywords can't be written ({first_line(fault)}); give another --out") from fault


if __name__ == "__main__":
    run_entry_point(main)
