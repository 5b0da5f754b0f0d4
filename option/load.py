"""Loading an experiment: the file, what it extends, overrides on top, every check, one report of all faults."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from option.fields import allowed, choices, leaves
from option.images import ImageOptions, ImageRule
from option.inherit import Layer, read_chain
from option.parameters import ModelParameters, model_blocks
from option.pretraining import BackboneOptions, ModalityOptions, PretrainingOptions
from option.read import Tree, parse, shown
from option.schema import Options
from option.unread import published_keys, published_without_effect, unread, warn_of_unread
from utils import InputError

OVERRIDES = "--set"
MODEL = "model.name"
MOST_HINTS = 50
Kind = TypeVar("Kind", Options, BackboneOptions, ModalityOptions, ImageOptions)


@dataclass(frozen=True)
class Given:
    """A value as written, and where: the file's path, or `--set`."""

    value: Any
    source: str


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where it was given: the file's path, or `--set`."""

    text: str
    source: str


def load_options(path: str | Path, overrides: Sequence[str] = ()) -> Options:
    """Read one experiment's YAML, apply the overrides and check every value.

    Published keys that the selected model does not have, or that nothing reads any more, are named in one warning.

    Args:
        path: the YAML file.
        overrides: `key=value` with a dotted key and a YAML value, such as `optim.lr=1e-4`; the last one of a key wins.

    Raises:
        InputError: the file can't be read, or something in it or in the overrides is wrong; names all faults at once.
    """
    chain = read_chain(path)
    if _pretrains(chain):
        raise InputError(f"{path}: describes a pretraining, which has no folds: python pretrain.py --path_opt {path}")
    options, given, known = _load(chain, overrides, Options, published_keys())
    valued = {key for key, item in given.items() if item.value is not None}
    published = published_without_effect(valued, known.keys(), options.model.name)
    warn_of_unread(str(path), [*_worth_a_word(chain, options, given, known, published_keys()), *published])
    return options


def load_pretraining_options(path: str | Path, overrides: Sequence[str] = ()) -> PretrainingOptions:
    """`load_options` for a YAML of `pretrain.py`: with a block `backbone` of images, else without pairs."""
    chain = read_chain(path)
    if not _pretrains(chain):
        raise InputError(
            f"{path}: no pretraining: that names its run in logs.experiment_name, as option/AID_RESNET50.yaml does. "
            f"A retrieval model is trained by: python train.py --path_opt {path}"
        )
    if any("backbone" in layer.tree for layer in chain):
        return _pretraining(chain, overrides, BackboneOptions)
    return _pretraining(chain, overrides, ModalityOptions)


def _pretraining(chain: Sequence[Layer], overrides: Sequence[str], kind: type[Kind]) -> Kind:
    options, given, known = _load(chain, overrides, kind, ())
    warn_of_unread(chain[-1].source, _worth_a_word(chain, options, given, known, ()))
    return options


def load_image_rule(overrides: Sequence[str]) -> ImageRule:
    """How images are read by a command without a YAML, from overrides such as `dataset.bands=[3,2,1]` alone.

    Raises:
        InputError: something in them is wrong; names all faults at once.
    """
    return _load([Layer(OVERRIDES, {}, [])], overrides, ImageOptions, ())[0].dataset


def is_pretraining(path: str | Path) -> bool:
    """Whether a YAML is for `load_pretraining_options`.

    Raises:
        InputError: the file can't be read.
    """
    return _pretrains(read_chain(path))


def _pretrains(chain: Iterable[Layer]) -> bool:
    blocks = [layer.tree.get("logs") for layer in chain]
    return any(isinstance(logs, dict) and "experiment_name" in logs for logs in blocks)


def _load(
    chain: Sequence[Layer], overrides: Sequence[str], kind: type[Kind], published: Iterable[str]
) -> tuple[Kind, dict[str, Given], dict[str, FieldInfo]]:
    """Read files as one kind of options: the options, what was given by dotted key, and what could be given.

    Raises:
        InputError: something is wrong; names all faults at once.
    """
    source = chain[-1].source
    settings, faults = _settings(overrides)
    faults += [Fault(problem, layer.source) for layer in chain for problem in layer.problems]

    blocks: dict[str, Any] = {name: field.annotation for name, field in kind.model_fields.items()}
    if "model" in blocks:
        model = _merged(chain, settings, {}).get(MODEL, Given(None, source))
        if isinstance(model.value, str) and model.value in model_blocks():
            blocks["model"] = model_blocks()[model.value].parameters
        else:
            del blocks["model"]
            faults.append(_unknown_model(model))

    known = {key: field for name, block in blocks.items() for key, field in leaves(block, name).items()}
    given = _merged(chain, settings, known)
    faults += _unknown_keys(given, known, published, model_known=blocks.keys() == kind.model_fields.keys())
    values = {}
    for name, block in blocks.items():
        try:
            values[name] = block.whole().model_validate(_nested(given, known, name))
        except ValidationError as error:
            faults += _invalid_values(error, name, given, known, source)
    if isinstance(values.get("model"), ModelParameters) and "dataset" in values:
        faults += _wrong_side(values["model"], values["dataset"].image_size, given, source)
    if faults:
        raise InputError(_report(faults))
    return kind(**values), given, known


def _worth_a_word(
    chain: Sequence[Layer],
    options: Kind,
    given: Mapping[str, Given],
    known: Mapping[str, FieldInfo],
    published: Iterable[str],
) -> list[tuple[str, str]]:
    """The keys that nothing reads although somebody wrote them down to be read.

    Passed over are those of a file that holds every key, as a run's `options.yaml` does, and those of a file in which
    they do have an effect, until an override of another key takes it away.
    """
    told = dict(unread(options, known))
    of_file = {key for key in told if given[key].source != OVERRIDES}
    if all(key in given for key in known):
        told = {key: reason for key, reason in told.items() if key not in of_file}
    elif of_file and any(item.source == OVERRIDES for item in given.values()):
        try:
            alone = {key for key, _ in unread(_load(chain, (), type(options), published)[0], known)}
        except InputError:  # without the overrides it is no whole experiment
            alone = set()
        told = {key: reason for key, reason in told.items() if key not in of_file or key in alone}
    return list(told.items())


def _settings(overrides: Iterable[str]) -> tuple[list[Tree], list[Fault]]:
    """Each override as a dotted key and its value, and the malformed ones."""
    settings: list[Tree] = []
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            faults.append(Fault(f"{shown(override)}: expected key=value, such as optim.lr=1e-4", OVERRIDES))
            continue
        try:
            value, problems = parse(text)
        except InputError as error:
            value, problems = None, [f"{error}; put the value in quotes"]
        faults += [Fault(f"{key}: {problem}", OVERRIDES) for problem in problems]
        if not problems:
            settings.append({key.strip(): value})
    return settings, faults


def _merged(chain: Iterable[Layer], settings: Iterable[Tree], known: Mapping[str, FieldInfo]) -> dict[str, Given]:
    """What the files give, by dotted key, with what the overrides give in its place; a later file counts.

    A file that names another model than those that it extends takes nothing of their `model` block.
    """
    given: dict[str, Given] = {}
    for layer in chain:
        own = {key: Given(value, layer.source) for key, value in _flatten(layer.tree, known)}
        if MODEL in own and MODEL in given and own[MODEL].value != given[MODEL].value:
            given = {key: item for key, item in given.items() if not key.startswith("model.")}
        given |= own
    for setting in settings:
        given |= {key: Given(value, OVERRIDES) for key, value in _flatten(setting, known)}
    return given


def _flatten(tree: Tree, known: Mapping[str, FieldInfo], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested blocks by dotted key; a block given to a known key stays whole, for its type to judge."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value and dotted not in known:
            yield from _flatten(value, known, f"{dotted}.")
        else:
            yield dotted, value


def _nested(given: Mapping[str, Given], known: Mapping[str, FieldInfo], block: str) -> Tree:
    """The known values of one block as nested dicts, the undoing of `_flatten`."""
    tree: Tree = {}
    for key in given.keys() & known.keys():
        first, *path, last = key.split(".")
        if first == block:
            inner = tree
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = given[key].value
    return tree


def _unknown_model(name: Given) -> Fault:
    models = sorted(model_blocks())
    found = "missing" if name.value is None else f"given {shown(name.value)}"
    hint = _did_you_mean(name.value, models)
    return Fault(f"model.name: {found}; allowed: one of {', '.join(models)}{hint}", name.source)


def _unknown_keys(
    given: Mapping[str, Given], known: Mapping[str, FieldInfo], published: Iterable[str], model_known: bool
) -> list[Fault]:
    """A fault for each key that neither the options nor the published files have."""
    here = list(known) if model_known else ["model.name", *known]
    everywhere = [*here, *published]
    sections = {key[:end] for key in everywhere for end, letter in enumerate(key) if letter == "."}
    faults: list[Fault] = []
    for key, item in given.items():
        empty_section = key in sections and item.value in (None, {})
        # nothing can be said about the keys of a model that is not known
        if key in everywhere or empty_section or (key.startswith("model.") and not model_known):
            continue
        if key in sections:
            inside = ", ".join(name for name in here if name.startswith(f"{key}.")) or "none of this model"
            text = f"{key}: given {shown(item.value)}; allowed: a block of keys: {inside}"
        else:
            # each hint compares the key with all others, which would take hours for a file of nothing but unknown keys
            hint = _nearest_key(key, everywhere) or _beside(key, here) if len(faults) < MOST_HINTS else ""
            text = f"{key}: unknown key, given {shown(item.value)}{hint}"
        faults.append(Fault(text, item.source))
    return faults


def _nearest_key(key: str, keys: Sequence[str]) -> str:
    """A hint at the key that could be meant: the same word in another block, or a similar spelling."""
    word = key.rpartition(".")[2]
    same_word = [other for other in keys if other.rpartition(".")[2] == word]
    return _did_you_mean(key, same_word, cutoff=0) or _did_you_mean(key, keys)


def _beside(key: str, keys: Iterable[str]) -> str:
    """What else the block of a key could hold, for one that resembles nothing."""
    block = key[: key.rfind(".") + 1]
    names = dict.fromkeys(other[len(block) :].partition(".")[0] for other in keys if other.startswith(block))
    return f"; known there: {', '.join(names)}" if names else ""


def _did_you_mean(word: Any, words: Iterable[str], cutoff: float = 0.6) -> str:
    close = get_close_matches(word, list(words), n=1, cutoff=cutoff) if isinstance(word, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def _invalid_values(
    error: ValidationError, block: str, given: Mapping[str, Given], known: Mapping[str, FieldInfo], source: str
) -> list[Fault]:
    """One fault for each key of a block that is missing or whose value its type refuses."""
    faults: dict[str, Fault] = {}
    for detail in error.errors(include_url=False):
        key = block
        for part in detail["loc"]:
            if key in known:
                break  # what follows names members of a union or of a list
            key = f"{key}.{part}"
        reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
        if key not in known:
            text = f"{key}: {reason or detail['msg']}"
        elif detail["type"] == "missing":
            text = f"{key}: missing; needed: {known[key].description} ({allowed(known[key])})"
        else:
            value = given[key].value
            reason = reason or f"allowed: {allowed(known[key])}{_did_you_mean(value, choices(known[key]))}"
            text = f"{key}: given {shown(value)}; {reason}"
        faults.setdefault(key, Fault(text, given[key].source if key in given else source))
    return list(faults.values())


def _wrong_side(model: ModelParameters, side: int, given: Mapping[str, Given], source: str) -> list[Fault]:
    """A fault where images of a side do not fit the model."""
    key, step = "dataset.image_size", model.image_step
    if side % step == 0:
        return []
    below = side // step * step
    text = (
        f"{key}: given {side}; {model.name} takes multiples of {step}, since its maps are halved "
        f"{step.bit_length() - 1} times and joined: choose {below} or {below + step}"
    )
    return [Fault(text, given[key].source if key in given else source)]


def _report(faults: Iterable[Fault]) -> str:
    """All faults under their file or `--set`, the files first."""
    by_source = defaultdict(list)
    for fault in faults:
        by_source[fault.source].append(fault.text)
    lines = []
    for source in sorted(by_source, key=lambda name: name == OVERRIDES):
        texts = by_source[source]
        lines.append(f"{source}: {len(texts)} fault{'s' if len(texts) > 1 else ''}")
        lines += [f"  {text}" for text in texts]
    return "\n".join(lines)
