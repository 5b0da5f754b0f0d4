"""From a checkpoint to the folder of a packed model, with a table of what each part takes and loses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import option
from layers import build_model
from layers.base import RetrievalModel
from option import Options
from runs.checkpoints import FORMAT, fit_weights, scored_weights, typed_options
from runs.loaders import read_vocabulary
from runs.provenance import LIST_DIGEST
from runs.ready import CARD, DIGESTS, MOST_BYTES, OPTIONS, PARTS, WEIGHTS
from runs.ready.coding import Coding, Parts, decode, encode
from runs.ready.folder import BETWEEN, KEY, digest_line
from runtime.weights import read_checkpoint
from utils import InputError, import_extra, markdown, write_atomic, write_text_atomic

Share = dict[str, Parts]
"""The parts of each tensor."""
KEPT = ("format", "vocabulary", "epoch", "fold", LIST_DIGEST)
"""What a packed model keeps of its checkpoint besides options and weights."""


@dataclass(frozen=True)
class Loss:
    """What packing did to a tensor.

    Attributes:
        size: bytes that are stored.
        error: length of what was lost, as a share of the length of the tensor.
        lost: the same as a share of what was to be stored: the difference, or the tensor.
    """

    size: int
    error: float
    lost: float


def pack(checkpoint: Path, out: Path, rank: int, int8: Sequence[str]) -> str:
    """Pack the weights of a checkpoint that its validation scored.

    Args:
        checkpoint: of ours.
        out: folder of the packed model; its model card stays.
        rank: of differences of matrices.
        int8: parts of the model whose numbers become int8: `heads`, `image`, `text`.

    Returns:
        A table of the parts with bytes and errors.

    Raises:
        InputError: it is no checkpoint of ours, or the folder would take more than `MOST_BYTES`; nothing is written.
    """
    content = read_checkpoint(checkpoint)
    if content.get("format") != FORMAT:
        raise InputError(f"{checkpoint}: a published checkpoint; only those of train.py can be packed.")
    options = portable(typed_options(content["options"], str(checkpoint), "train anew"))
    vocabulary = read_vocabulary(options)
    model = build_model(options, vocabulary, load_weights=False).eval()
    start = {name: value.clone() for name, value in model.installed_weights().items()}
    fit_weights(model, content | {"model": scored_weights(content)}, checkpoint, options, vocabulary)
    wanted = model.state_dict()
    codings = {part: Coding(rank, part in int8) for part in PARTS}
    tables = _tables(model)
    parts = {
        name: encode(value, start.get(name), codings[part_of(name)], name in tables) for name, value in wanted.items()
    }
    facts = {key: content[key] for key in KEPT if key in content} | {"options": option.dump(options)}
    packed = _packed(parts, facts)
    table = _table({name: _loss(value, start.get(name), parts[name]) for name, value in wanted.items()})
    _write(out, packed, option.to_yaml(options), table)
    return table


def portable(options: Options) -> Options:
    """Options without what belongs to the machine that trained, and with one view of an image.

    Left out is where runs, features and weights to start from lie, and the number of workers. An archive is encoded
    eight times as fast in one view as in eight.

    Raises:
        InputError: another option is an absolute path.
    """
    tree = option.dump(options)
    for key in ("feature_path", "workers"):
        tree["dataset"].pop(key, None)
    tree["dataset"]["test_views"] = "one"
    tree["optim"] |= {"resume": None}
    tree["logs"] = {}
    given = [(key, text) for key, value in tree["dataset"].items() for text in _texts(value)]
    if absolute := [f"dataset.{key}: {text}" for key, text in given if text.startswith("/")]:
        raise InputError(f"{absolute[0]} is a path of this machine; train with one that is relative to the project.")
    return typed_options(tree, "options", "train anew")


def _texts(value: Any) -> list[str]:
    """The texts of an option, also of one that lists several sets."""
    if isinstance(value, list):
        return [text for each in value if isinstance(each, dict) for text in each.values() if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def part_of(name: str) -> str:
    """Which part of a dual encoder a tensor belongs to: `heads`, `image` or `text`."""
    return name.partition("_tower")[0] if "_tower." in name else "heads"


def _tables(model: RetrievalModel) -> set[str]:
    """The names of the tables of embeddings."""
    return {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Embedding)}


def _packed(parts: Share, facts: Mapping[str, Any]) -> bytes:
    safe = import_extra("safetensors.torch", "a packed model needs safetensors", "weights")
    stored = {f"{name}{BETWEEN}{part}": value for name, found in parts.items() for part, value in found.items()}
    return bytes(safe.save(stored, metadata={KEY: json.dumps(facts)}))


def _loss(wanted: Tensor, start: Tensor | None, parts: Parts) -> Loss:
    size = sum(part.numel() * part.element_size() for part in parts.values())
    if not wanted.is_floating_point():
        return Loss(size, 0.0, 0.0)
    found = decode(parts, start) if parts else wanted if start is None else start
    missed = float(torch.linalg.vector_norm(found - wanted))
    change = wanted if start is None else wanted - start
    lengths = [float(torch.linalg.vector_norm(tensor)) for tensor in (wanted, change)]
    error, lost = (missed / length if length else 0.0 for length in lengths)
    return Loss(size, error, lost)


def _table(losses: Mapping[str, Loss]) -> str:
    rows = [["part", "tensors stored", "bytes", "largest error [%]", "largest loss of a change [%]"]]
    for part in PARTS:
        found = [loss for name, loss in losses.items() if part_of(name) == part]
        stored = [loss for loss in found if loss.size]
        error, lost = (100 * max((getattr(loss, key) for loss in found), default=0.0) for key in ("error", "lost"))
        rows.append([part, f"{len(stored)}", f"{sum(loss.size for loss in stored):,}", f"{error:.3f}", f"{lost:.1f}"])
    return markdown(rows)


def _write(out: Path, weights: bytes, options: str, table: str) -> None:
    card = (out / CARD).stat().st_size if (out / CARD).is_file() else 0
    size = len(weights) + len(options.encode()) + card
    if size > MOST_BYTES:
        raise InputError(
            f"{out} would take {size:,} bytes, at most {MOST_BYTES:,} are allowed. Lower --rank, or give more parts to "
            f"--int8.\n\n{table}"
        )
    write_atomic(out / WEIGHTS, lambda file: file.write(weights))
    write_text_atomic(out / OPTIONS, options)
    write_text_atomic(out / DIGESTS, "".join(f"{digest_line(out, name)}\n" for name in (WEIGHTS, OPTIONS)))
