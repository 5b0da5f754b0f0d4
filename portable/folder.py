"""The folder of a portable model: written from a checkpoint, read back without the data set and the installed weights.

`model.safetensors` holds every parameter and buffer under its name in the model, those that a package brings, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

import option
from data.images import ENDINGS
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from option import Options
from portable import CARD, CONFIG, EXAMPLE, PREPROCESSING, SCORES, TOKENIZER, VOCABULARY, WEIGHTS
from portable.example import program
from portable.graphs import Graph, graphs_of, write_graph
from portable.hub import ALL
from portable.tokens import check_tokenizer, write_tokenizer
from runs.checkpoints import typed_options
from runs.loaders import read_vocabulary
from runs.models import load_model, place
from runtime.untrusted import parse_json
from utils import InputError, as_json, file_sha256, first_line, import_extra, write_atomic, write_text_atomic
from vocab import Vocabulary

FORMAT = "rsretrieval-portable-1"
KEY = "rsretrieval"
"""Of the metadata of the weights."""
SAFE = "a portable model needs safetensors"
STARTS: Mapping[str, Any] = {
    "pretrained": "none",
    "dir_st": None,
    "glove": None,
    "resnet_ckpt": None,
    "init_from": None,
}
"""Keys of `model` that name weights to start from -> that there are none."""
ARCHITECTURE = f"{TOKENIZER}/architecture.json"


@dataclass(frozen=True)
class Portable:
    """A model that was read from a folder, or loaded to be written into one.

    Attributes:
        model: in evaluation mode.
        options: that it was trained with, or those of its folder.
        vocabulary: the words that it reads.
        facts: what its checkpoint says: `epoch`, `fold`, `source_sha256`.
    """

    model: RetrievalModel
    options: Options
    vocabulary: Vocabulary
    facts: dict[str, Any]


def of_checkpoint(options: Options, checkpoint: Path) -> Portable:
    """The model of a checkpoint, on the CPU.

    Raises:
        InputError: it can't be read, or does not fit the options.
    """
    vocabulary = read_vocabulary(options)
    model, content = load_model(options, vocabulary, checkpoint, torch.device("cpu"))
    facts = {key: content[key] for key in ("epoch", "fold") if content.get(key) is not None}
    return Portable(model.eval(), options, vocabulary, facts | {"source_sha256": file_sha256(checkpoint)})


def write_folder(source: Portable, folder: Path) -> list[Graph]:
    """Write all files but the card; returns the graphs. Nothing is left of a model that was in the folder before.

    Raises:
        InputError: the folder holds something else, or the model can't be exported; says why.
        OSError: a file can't be written.
    """
    model, options, vocabulary = source.model, source.options, source.vocabulary
    refuse_others(folder)
    check_tokenizer(vocabulary)
    graphs = graphs_of(model, options)
    folder.mkdir(parents=True, exist_ok=True)
    for graph in graphs:
        write_graph(graph, folder / graph.file)
    _remove_earlier(folder, {graph.file for graph in graphs})
    safe = import_extra("safetensors.torch", SAFE, "onnx")
    facts = {KEY: json.dumps({"format": FORMAT, **source.facts})}
    stored = {name: value.detach().clone().contiguous() for name, value in _held(model)}
    write_atomic(folder / WEIGHTS, lambda file: file.write(safe.save(stored, metadata=facts)))
    text = write_tokenizer(vocabulary, model, folder)
    vocabulary.save(folder / VOCABULARY)
    settings = {
        "image": {"side": options.dataset.image_size, "mode": "RGB", "resample": "bilinear", "endings": list(ENDINGS)},
        "text": text,
        "regions": any("nodes" in graph.inputs for graph in graphs),
        "score": "cosine" if model.scores_by_cosine() else graphs[-1].file,
    }
    write_text_atomic(folder / PREPROCESSING, as_json(settings))
    write_text_atomic(folder / EXAMPLE, program(settings))
    write_text_atomic(folder / CONFIG, option.to_yaml(standing(options, folder)))
    return graphs


def refuse_others(folder: Path) -> None:
    """Raise an InputError for a folder with files that this command does not write, unless a model lies among them."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [path.name for path in found if path.name != TOKENIZER and not any(map(path.match, ALL))]
    if others and not (folder / PREPROCESSING).is_file():
        raise InputError(f"{folder}: it holds other files, such as {others[0]}. Give a new folder.")


def _remove_earlier(folder: Path, graphs: Collection[str]) -> None:
    """Remove what an earlier model left, other than the files that every model replaces."""
    for path in (*folder.glob("*.onnx"), folder / SCORES, folder / CARD):
        if path.name not in graphs:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)


def _held(model: RetrievalModel) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers, those that checkpoints leave out, too."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def standing(options: Options, folder: Path | None = None) -> Options:
    """Options without paths of the machine that trained; what the folder brings is named as seen from it.

    A configuration of CLIP's architecture that is a file is copied into `folder`.
    """
    tree = option.dump(options)
    tree["model"] = _without_starts(tree["model"])
    block, data = tree["model"], tree["dataset"]
    if "encoder" in block.get("text", {}) and block["text"]["encoder"] != "gru":
        block["text"]["encoder"] = TOKENIZER
    if str(block.get("architecture", "")).endswith(".json"):
        if folder is not None:
            (folder / TOKENIZER).mkdir(exist_ok=True)
            shutil.copyfile(block["architecture"], folder / ARCHITECTURE)
        block["architecture"] = ARCHITECTURE
    for key in ("feature_path", "workers", "cache"):
        data.pop(key, None)
    tree["dataset"] = data = {key: _named(value) for key, value in data.items()}
    data["vocab_path"], data["missing_regions"] = VOCABULARY, "zeros"
    tree["optim"]["resume"], tree["logs"] = None, {}
    return typed_options(tree, "options", "train anew")


def _without_starts(block: Mapping[str, Any]) -> dict[str, Any]:
    """A block of options that starts from no file."""
    inner = {key: _without_starts(value) if isinstance(value, dict) else _named(value) for key, value in block.items()}
    return {key: STARTS.get(key, value) for key, value in inner.items()}


def _named(value: Any) -> Any:
    """Of an absolute path, which is one of the machine that trained, the name; of several sets those of each."""
    if isinstance(value, list):
        return [_named(each) for each in value]
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def read_folder(folder: Path, device: torch.device) -> Portable:
    """Read what `write_folder` wrote.

    Raises:
        InputError: a file is missing, damaged or of another form.
    """
    options = read_config(folder)
    own = registered()[options.model.name].model.own_vocabulary(options.model)
    vocabulary = Vocabulary.load(folder / VOCABULARY) if own is None else own
    model = build_model(options, vocabulary, load_weights=False)
    safe = import_extra("safetensors", SAFE, "onnx")
    path = folder / WEIGHTS
    try:
        with safe.safe_open(path, framework="pt") as file:
            facts = parse_json((file.metadata() or {})[KEY].encode())
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        if facts.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        _fill(model, stored)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, safe.SafetensorError) as fault:
        raise InputError(f"{path}: not the weights of {CONFIG} beside it ({first_line(fault)}).") from fault
    return Portable(place(model, device).eval(), options, vocabulary, facts)


def read_config(folder: Path) -> Options:
    """The options of a folder, the files that it brings named from here.

    Raises:
        InputError: they are missing or broken.
    """
    options = option.load_options(folder / CONFIG)
    tree = option.dump(options)
    block = tree["model"]
    if block.get("text", {}).get("encoder") == TOKENIZER:
        block["text"]["encoder"] = str(folder / TOKENIZER)
    if block.get("architecture") == ARCHITECTURE:
        block["architecture"] = str(folder / ARCHITECTURE)
    tree["dataset"]["vocab_path"] = str(folder / VOCABULARY)
    return typed_options(tree, str(folder / CONFIG), "write the folder anew: python -m portable")


@torch.no_grad()
def _fill(model: RetrievalModel, stored: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer its stored value; ValueError where names or shapes differ."""
    wanted = dict(_held(model))
    if wanted.keys() != stored.keys():
        raise ValueError(f"other tensors, such as {sorted(wanted.keys() ^ stored.keys())[0]}")
    for name, value in wanted.items():
        if value.shape != stored[name].shape:
            raise ValueError(f"{name} is {list(stored[name].shape)}, expected {list(value.shape)}")
        value.copy_(stored[name])
