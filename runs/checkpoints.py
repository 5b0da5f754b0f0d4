"""Checkpoints: what a run has reached, written whole or not at all, read without running code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import option
from layers.base import RetrievalModel
from layers.registry import registered
from layers.released import load_fitting, load_released
from option import ModalityOptions, Options
from option.parameters import Parameters
from runs.ready import PACKED
from runs.ready.folder import read_packed
from runtime.machine import explain
from runtime.weights import read_checkpoint
from utils import Gate, InputError, RunFault, first_line, logger, refuse, write_atomic
from vocab import Vocabulary

FORMAT = "rsretrieval-1"
LOSS = "optim.loss."
MOST_OPTIONS = 500  # a few times as many as there are, and few enough for a checkpoint that nests or repeats them


def save_checkpoint(path: Path, state: dict[str, Any], options: Parameters) -> None:
    """Write a checkpoint of ours: a state and the options that it was reached with.

    Raises:
        InputError: the state has diverged; see `refuse_diverged`.
        OSError: it can't be written; what was there before stays.
    """
    refuse_diverged(path, state)
    content = {"format": FORMAT, "options": option.dump(options), **state}
    write_atomic(path, lambda file: torch.save(content, file), durable=True)


def refuse_diverged(path: Path, state: dict[str, Any]) -> None:
    """Raise before a state with numbers that are not finite takes the place of a sound one.

    Raises:
        InputError: it has some; the message names the first.
    """
    broken = [name for name, value in dotted(state).items() if isinstance(value, Tensor) and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path} was not written: {len(broken)} tensors of the run hold numbers that are not finite "
            f"({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}): the training has diverged. Try a lower "
            "optim.lr, optim.grad_clip=2, or optim.amp=off, under another name."
        )


@contextmanager
def ending_clearly(folder: Path) -> Iterator[None]:
    """End whatever stops a run that writes this folder in one message that says what happened and what is saved.

    Raises:
        RunFault: for a fault of the machine, or one that the data or the training showed midway.
    """
    try:
        yield
    except Exception as fault:
        text = str(fault) if isinstance(fault, InputError) else explain(fault)
        if text is None:
            raise
        last = folder / "last.pth"
        end = "" if text.endswith((".", "\n")) else "."
        saved = "Nothing was saved yet: once that is mended, the same command begins anew."
        if last.is_file():
            saved = f"{last} is whole, as it was saved last: once that is mended, the same command goes on from there."
        raise RunFault(f"{text}{end}\n{saved}") from fault


def load_weights(
    model: RetrievalModel, path: Path, options: Options, vocabulary: Vocabulary, gate: Gate | None = None
) -> dict[str, Any]:
    """Load a checkpoint, ours, packed (`runs.ready`) or a published one, into a model built from `options`.

    Args:
        model: changed in place.
        path: the checkpoint.
        options: what the model was built from.
        vocabulary: the words whose ids the captions become.
        gate: whether the user insists on a mismatch; None: nobody can.

    Returns:
        The whole checkpoint.

    Raises:
        InputError: see `read_checkpoint`, `read_packed` and `fit_weights`.
    """
    content = read_packed(path, model) if path.suffix == PACKED else read_checkpoint(path)
    if content.get("format") == FORMAT:
        fit_weights(model, content | {"model": scored_weights(content)}, path, options, vocabulary, gate)
    else:
        load_released(model, content["model"], gate)
        logger.info("Loaded the released checkpoint %s.", path)
    return content


def scored_weights(content: dict[str, Any]) -> Any:
    """The weights of a checkpoint of ours that its validation scored: of a `last.pth` with `optim.ema` the average."""
    average = content.get("average")
    if not isinstance(average, dict):
        return content["model"]
    of_model = "module."  # what torch's AveragedModel puts before each name; the number of updates has none
    named = {name: value for name, value in average.items() if isinstance(name, str)}
    return {name.removeprefix(of_model): value for name, value in named.items() if name.startswith(of_model)}


def fit_weights(
    model: RetrievalModel,
    content: dict[str, Any],
    path: Path,
    options: Options | ModalityOptions,
    vocabulary: Vocabulary,
    gate: Gate | None = None,
) -> None:
    """Load the weights of a checkpoint of ours.

    Raises:
        InputError: they do not fit the model or the vocabulary; the message says in which options they differ.
    """
    refuse_incomplete(path, content)
    if content.get("vocabulary") != vocabulary.digest:
        refuse(
            gate,
            f"{path} was trained with another vocabulary than {options.dataset.vocab_path}: its word ids mean other "
            "words",
            "Give the vocabulary that it was trained with (--set dataset.vocab_path=FILE).",
        )
    differences = _differences(content.get("options", {}), option.dump(options))
    load_fitting(model, content["model"], str(path), differences, gate)


def typed_options(tree: Mapping[str, Any], source: str, advice: str) -> Options:
    """Options as `option.dump` gave them, of any version.

    Args:
        tree: the dump.
        source: where it comes from, for the message.
        advice: what to do where it can't be read, a sentence without its first capital and its full stop.

    Raises:
        InputError: this version can't read them.
    """
    try:
        parameters = registered()[tree["model"]["name"]].parameters
        return Options(**{**tree, "model": parameters.model_validate(tree["model"])})
    except (KeyError, TypeError, ValueError) as fault:
        raise InputError(f"{source}: the options can't be read ({first_line(fault)}); {advice}.") from fault


def refuse_incomplete(path: Path, content: dict[str, Any]) -> None:
    """Raise for a checkpoint in our format that lacks the options, or has something else in their place."""
    found, waiting = 0, [content.get("options")]
    while waiting and found <= MOST_OPTIONS:
        found += 1
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not isinstance(content.get("options"), dict) or found > MOST_OPTIONS:
        raise InputError(f"{path} is damaged: it has no options, or far too many. Copy it again, or train anew.")


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """Which options that decide what is built differ between a checkpoint and what is given."""
    lines = [
        f"\n  {key}: {_shown(before)} in the checkpoint, {_shown(now)} now"
        for key, before, now in _differing(_with_defaults(stored), given)
        if key.startswith(("model.", "dataset.image_size", "dataset.local_path"))
    ]
    return "The options differ in:" + "".join(lines) + "\nGive the same --set as in training." if lines else ""


def _differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two nested mappings differ, each with both values; None stands for a missing one."""
    for key in sorted(one.keys() | other.keys(), key=str):
        first, second = one.get(key), other.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _differing(first, second, f"{prefix}{key}.")
        elif first != second:
            yield f"{prefix}{key}", first, second


def _shown(value: Any) -> str:
    """A value as a YAML file has it."""
    if not isinstance(value, dict):
        return str(value)
    return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"


def _with_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """Options as this version names them: what an older one did not know had no effect, as its default has none."""
    try:
        return option.dump(typed_options(tree, "", ""))
    except InputError:
        return tree


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def flat_options(tree: dict[str, Any]) -> dict[str, Any]:
    """Options by dotted key; the losses and their weights as one text, `triplet` or `0.5 contrastive + triplet`."""
    options = dotted(tree)
    if weights := [(key.removeprefix(LOSS), options.pop(key)) for key in sorted(options) if key.startswith(LOSS)]:
        options[LOSS.removesuffix(".")] = " + ".join(_term(name, weight) for name, weight in weights)
    return options


def _term(name: str, weight: Any) -> str:
    if weight == 1:
        return name
    return f"{weight:.12g} {name}" if isinstance(weight, (int, float)) else f"{weight} {name}"  # a damaged file's
