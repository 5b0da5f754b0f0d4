"""Which data set, fold and split a checkpoint was trained with, and whether they are those that are given now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.annotations import list_digest, read_annotations
from data.splits import deciding
from layers.installed import INSTALLED
from runs.checkpoints import flat_options
from runs.sets import sets_in_words, sets_of
from utils import Gate, InputError, first_line, refuse

LIST_DIGEST = "train_list"
"""Key of a checkpoint: `train_digest` of the data set that it was trained on."""
OF_TRAINING = (
    *(".init_from", ".resnet_ckpt", ".glove", ".dir_st", ".fixed_emb", ".freeze", ".is_finetune", ".freeze_statistics"),
    *(".block_mib", ".keywords.mode", ".train", ".train.last", ".lr", ".layer_decay"),
)
"""How options of a model end that change nothing of what it has learned to compute: where it started, what was frozen,
how much memory it takes, and the query mode, all of which share one set of weights."""


def train_digest(data_path: Path) -> str | None:
    """`list_digest` of a data set's train list; None where there is none that can be read."""
    try:
        return list_digest(read_annotations(data_path, "train"))
    except InputError:
        return None


def check_data_set(
    content: Mapping[str, Any], path: Path, data_path: Path, gate: Gate | None, one_of_several: bool = False
) -> None:
    """Refuse a checkpoint of another data set, see `utils.refuse`; one that does not say its own is let through.

    Args:
        content: the checkpoint.
        path: its file.
        data_path: the data set's folder.
        gate: see `utils.refuse`.
        one_of_several: where it was trained on joined sets, each of them will do.
    """
    trained = content.get("options", {}).get("dataset", {}).get("data_path")
    stored = content.get(LIST_DIGEST)
    if trained is None:
        return
    digest, several = train_digest(data_path), isinstance(trained, list)
    if stored is not None and digest is not None:
        parts = sets_of(content).values() if one_of_several else ()
        same = digest in {stored, *(facts["train_list"] for facts in parts)}
    else:  # checkpoints that do not know their list at least know their folder, which may lie elsewhere by now
        same = not several and Path(trained).name == data_path.name
    if not same:
        said = sets_in_words(content) or "several sets" if several else trained
        refuse(
            gate,
            f"{path} was trained on {said}, whose train list is another than that of {data_path}",
            "Its scores there would be those of another data set, or test images may have been learned. Give the "
            "data set that it was trained on (--set dataset.data_path=FOLDER).",
        )


def check_model(content: Mapping[str, Any], path: Path, options: Mapping[str, Any], gate: Gate | None) -> None:
    """Refuse a checkpoint whose options compute something else than those given, even where its tensors fit.

    Args:
        content: the checkpoint; keys that its version did not know are passed over.
        path: its file.
        options: all of them, as `option.dump` gives them.
        gate: see `utils.refuse`.
    """
    stored, given = flat_options(content.get("options", {})), flat_options(dict(options))
    differing = [key for key in given if key in stored and _computes_otherwise(key, stored[key], given[key])]
    if differing:
        lines = "".join(f"\n  {key}: {stored[key]} in the checkpoint, {given[key]} now" for key in differing)
        refuse(
            gate,
            f"{path} was trained to compute something else:{lines}",
            "Its scores would be neither those of its training nor those of a model of these options. Give the same "
            "--set as in training.",
        )


def _computes_otherwise(key: str, stored: object, given: object) -> bool:
    """Whether two values of an option differ in what a trained model computes, not only in its training or start."""
    if key.endswith(".pretrained"):
        return start_of(stored) != start_of(given)
    computes = key == "dataset.image_size" or (
        key.startswith("model.") and "drop" not in key.lower() and not key.endswith(OF_TRAINING)
    )
    return computes and stored != given


def start_of(pretrained: object) -> str:
    """Of a `pretrained` what a trained model still depends on: images are normalised as installed weights expect it."""
    return INSTALLED if pretrained == INSTALLED else "another source"


def check_fold(
    content: Mapping[str, Any], path: Path, fold: int | None, k_fold: Mapping[str, Any], gate: Gate | None
) -> None:
    """Refuse a checkpoint of another fold or another split than the options describe.

    Args:
        content: the checkpoint; one that does not say its split is let through.
        path: its file.
        fold: the one that it should be of; None: any.
        k_fold: the block of the options.
        gate: see `utils.refuse`.

    Raises:
        InputError: the block of its options is damaged, or see `utils.refuse`.
    """
    stored = content.get("options", {}).get("k_fold")
    if stored is None:
        return
    if fold is not None and content.get("fold", fold) != fold:
        refuse(
            gate,
            f"{path} is of fold {content['fold']}, expected fold {fold}",
            "The mean would count one training twice. Put each fold's own checkpoint into its folder.",
        )
    try:
        trained, given = deciding(stored), deciding(k_fold)
    except (TypeError, AttributeError) as fault:
        raise InputError(
            f"{path} is damaged: the block k_fold of its options can't be read ({first_line(fault)}). Copy it again, "
            "or train anew."
        ) from fault
    if differing := [key for key in trained if key in given and trained[key] != given[key]]:
        pairs = ", ".join(f"k_fold.{key} {stored[key]} (now {k_fold[key]})" for key in differing)
        refuse(
            gate,
            f"{path} was trained on another split: {pairs}",
            "The table would name a split that its folds do not have. Give the same --set as in training.",
        )
