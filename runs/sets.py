"""Several training sets of one experiment (`dataset.data_path` as a list): joined to train on, tested one by one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.join import ANOTHER, has_test
from data.joined import kept_join
from data.prepare.writer import RECORD, read_record
from option import Options
from option.dataset import Dataset, set_name
from utils import InputError, logger

SETS = "sets"
"""Key of a checkpoint and of a run's record: what `joined_sets` gives."""
Sets = dict[str, dict[str, Any]]


def with_joined(options: Options) -> Options:
    """Options whose several sets are joined, which is done where they are not yet; as they are for a single one.

    Raises:
        InputError: a set can't be read, or nothing can be written to `dataset.feature_path`.
    """
    dataset = options.dataset
    if not dataset.sets:
        return options
    folder = kept_join(dataset.sets, dataset.feature_path, dataset.rule)
    return options.model_copy(update={"dataset": dataset.joined_at(folder)})


def tested_alone(options: Options) -> list[Options]:
    """Options for the test list of each set that has one, the first set first; as they are for a single one."""
    dataset = options.dataset
    if not dataset.sets:
        return [options]
    parts = [part for place, part in enumerate(dataset.sets) if place == 0 or has_test(part.path)]
    return [options.model_copy(update={"dataset": dataset.alone(part)}) for part in parts]


def joined_sets(dataset: Dataset) -> Sets:
    """What is trained on of each set of a joined folder, by name; nothing where the folder is a single set.

    Each has its `weight`, the `images` of its train list, how many were `left_out` for which reason, and the digest of
    that `train_list`.
    """
    if not (dataset.folder / RECORD).is_file():
        return {}
    try:
        record = read_record(dataset.folder)
        return {
            str(name): {
                "weight": dataset.weights.get(name, 1),
                "images": int(record["images"][name]),
                "left_out": {str(reason): int(count) for reason, count in record["left_out"][name].items()},
                "train_list": str(record["train_lists"][name]),
            }
            for name in record.get("joined", ())
        }
    except (InputError, KeyError, TypeError, ValueError, AttributeError):  # of an earlier version, or damaged
        return {}


def noted(sets: Sets) -> dict[str, Sets]:
    """The entry of a checkpoint, or of a run's record; none for a single set."""
    return {SETS: sets} if sets else {}


def tell_sets(sets: Sets) -> None:
    """Log what is taken of each set; a warning for one that shares images with others."""
    for facts, line in zip(sets.values(), describe_sets(sets), strict=True):
        shared = any(reason.startswith(ANOTHER) for reason in facts["left_out"])
        logger.log(logging.WARNING if shared else logging.INFO, "%s", line)


def describe_sets(sets: Sets) -> list[str]:
    """A sentence on what is taken of each set and what is left out, and why."""
    lines = []
    for name, facts in sets.items():
        reasons = facts["left_out"]
        dropped = "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        more = " It shares images with the other sets." if any(each.startswith(ANOTHER) for each in reasons) else ""
        taken = f"{_taken(facts):,} of {facts['images']:,} train images"
        lines.append(f"{name}: {taken}{dropped if reasons else ''}.{more}")
    return lines


def sets_of(content: Mapping[str, Any]) -> Sets:
    """What a checkpoint says of the sets that it was trained on; nothing where that can't be read."""
    sets = content.get(SETS)
    return sets if isinstance(sets, dict) and all(map(_is_known, sets.values())) else {}


def sets_in_words(content: Mapping[str, Any]) -> str:
    """The sets that a checkpoint was trained on: `rsicd (9,826 of 9,828 images) + 2 x ucm (...)`; "" for one alone."""
    return " + ".join(
        f"{facts['weight']} x ".removeprefix("1 x ") + f"{name} ({_taken(facts):,} of {facts['images']:,} images)"
        for name, facts in sets_of(content).items()
    )


def place_of(content: Mapping[str, Any], folder: Path) -> str:
    """The folder of results on a set, beside those on the first of the sets that were trained on; "" for that one."""
    sets, name = list(sets_of(content)), set_name(folder)
    return f"on_{name}" if name in sets[1:] else ""


def _is_known(facts: Any) -> bool:
    """Whether these are facts of a set as `joined_sets` gives them."""
    if not isinstance(facts, dict) or not isinstance(facts.get("left_out"), dict):
        return False
    numbers = [facts.get("weight"), facts.get("images"), *facts["left_out"].values()]
    return all(isinstance(number, int) for number in numbers) and isinstance(facts.get("train_list"), str)


def _taken(facts: Mapping[str, Any]) -> int:
    taken: int = facts["images"] - sum(facts["left_out"].values())
    return taken
