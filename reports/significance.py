"""Which differences between two models are more than the choice of test images: `python -m metrics compare A B`.

Letters: F folds, N images, M captions, S resamples, C cutoffs (1, 5, 10).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from data.embeddings import FORMAT
from metrics import Ranks, Ties, hit_chances
from metrics.bootstrap import Difference, compare_hits, image_hits
from reports.export import RANKS_FORMAT, TIES
from runtime.untrusted import hdf5_data
from utils import InputError, as_json, first_line, markdown, write_text_atomic

RULES: dict[Ties, str] = {
    "random": "equal scores in random order",
    "last": "the match behind equal scores, since one of the files does not tell them",
}


@dataclass(frozen=True)
class QueryRanks:
    """Where every query of a test list found its match, in each fold.

    Attributes:
        path: the file that they were read from.
        image_names: N file names.
        captions: M captions.
        caption_image: [M] row of each caption's image.
        folds: F ranks of N images and M captions.
        knows_ties: whether they say which scores are equal; older files do not.
    """

    path: Path
    image_names: list[str]
    captions: list[str]
    caption_image: NDArray[np.int64]
    folds: list[Ranks]
    knows_ties: bool = True


def read_ranks(path: Path) -> QueryRanks:
    """Read the ranks of an experiment.

    Args:
        path: an experiment's folder or its `test.json` (`ranks.h5` there is read), or a `test.py --export` file.

    Raises:
        InputError: there are none.
    """
    if path.is_dir() or path.name == "test.json":
        path = (path if path.is_dir() else path.parent) / "ranks.h5"
    try:
        with h5py.File(path) as archive:
            if archive.attrs.get("format") not in (FORMAT, RANKS_FORMAT):
                raise InputError(f"{path}: neither an export nor the ranks of test.py.")
            inside = [archive[key] for key in archive if isinstance(archive.get(key, getlink=True), h5py.HardLink)]
            folds = [group for group in inside if isinstance(group, h5py.Group)]
            return QueryRanks(
                path,
                list(hdf5_data(archive, "image_names", any_width=True).asstr()[:]),
                list(hdf5_data(archive, "captions", any_width=True).asstr()[:]),
                hdf5_data(archive, "caption_image")[:],
                [_ranks_of(fold) for fold in folds],
                all(TIES[0] in fold for fold in folds),
            )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as fault:
        raise InputError(
            f"{path}: no ranks to read ({first_line(fault)}). python test.py --path_opt ... writes ranks.h5 beside "
            "test.json when it scores all folds, and ranks into every --export file."
        ) from fault


def _ranks_of(fold: h5py.Group) -> Ranks:
    names = ("image_ranks", "caption_ranks", *(name for name in TIES if name in fold))
    return Ranks(*(torch.from_numpy(hdf5_data(fold, name)[:]) for name in names))


def rule_of(first: QueryRanks, second: QueryRanks) -> Ties:
    """How equal scores count in a comparison: as in the tables, or as older files tell them."""
    return "random" if first.knows_ties and second.knows_ties else "last"


def compare(first: QueryRanks, second: QueryRanks, resamples: int, seed: int) -> dict[str, Difference]:
    """`metrics.bootstrap.compare_hits` of two models A and B, with ties by `rule_of` both.

    Raises:
        InputError: they are not of the same test list.
    """
    check_same_list(first, second)
    captions = np.bincount(first.caption_image, minlength=len(first.image_names))  # [N]
    hits = []
    for ranks in (first, second):
        images, texts = zip(*(hit_chances(fold, rule_of(first, second)) for fold in ranks.folds), strict=True)
        hits.append(image_hits(torch.stack(images).numpy(), torch.stack(texts).numpy(), ranks.caption_image))
    return compare_hits(hits[0], hits[1], captions.astype(float), resamples, seed)


def check_same_list(first: QueryRanks, second: QueryRanks) -> None:
    """Two models can be compared query by query only on the same list.

    Raises:
        InputError: the lists differ; the message says where.
    """
    for kind, left, right in (
        ("image", first.image_names, second.image_names),
        ("caption", first.captions, second.captions),
        ("image number of caption", first.caption_image.tolist(), second.caption_image.tolist()),
    ):
        if left == right:
            continue
        row = next((i for i, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
        where = f"{len(left)} and {len(right)} of them" if row is None else f"{kind} {row} differs"
        raise InputError(
            f"{first.path} and {second.path} are not of the same test list ({kind}s: {where}): "
            "score both models on one list."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the recalls of two models, their differences and how sure these are."""
    parser = argparse.ArgumentParser(prog="python -m metrics", description="Statistics on finished tests.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="which differences between two models are real")
    for name in ("first", "second"):
        command.add_argument(name, type=Path, help="experiment folder, its test.json or ranks.h5, or an --export file")
    command.add_argument("--resamples", type=int, default=10_000, help="bootstrap resamples (default: 10000)")
    command.add_argument("--seed", type=int, default=0, help="of the resamples (default: 0)")
    command.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args(arguments)
    if given.resamples < 1:
        command.error(f"--resamples must be at least 1, got {given.resamples}")
    first, second = read_ranks(given.first), read_ranks(given.second)
    differences = compare(first, second, given.resamples, given.seed)
    print(f"A: {first.path}, {len(first.folds)} folds\nB: {second.path}, {len(second.folds)} folds\n")
    print(markdown(table(differences)))
    print(
        f"\nPaired bootstrap over {len(first.image_names)} test images with their {len(first.captions)} captions, "
        f"{given.resamples} resamples, seed {given.seed}; queries averaged over folds, "
        f"{RULES[rule_of(first, second)]}. It covers the choice of test images; what a training's seed or fold changes "
        "is the standard deviation that test.py prints."
    )
    if given.json is not None:
        content = {name: vars(difference) for name, difference in differences.items()}
        write_text_atomic(given.json, as_json(content))


def table(differences: dict[str, Difference]) -> list[list[str]]:
    """One row per recall."""
    rows = [["", "A", "B", "B - A", "95 % interval", "p"]]
    for name, d in differences.items():
        interval = f"{d.low:+.2f} .. {d.high:+.2f}"
        label = "mR" if name == "mR" else f"{'I→T' if name.startswith('i2t') else 'T→I'} {name.split('_')[1]}"
        rows.append([label, f"{d.first:.2f}", f"{d.second:.2f}", f"{d.second - d.first:+.2f}", interval, f"{d.p:.4f}"])
    return rows
