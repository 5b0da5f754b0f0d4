"""What open_clip is asked for: a network by the name of its architecture, and how its images are normalised."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from layers.backbone import import_extra
from layers.clip_files import stated_normalisation
from layers.sentences import import_transformers, recompute
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, first_line

LONGEST = 77
"""Tokens that a text tower reads whose configuration does not say."""


def import_open_clip() -> ModuleType:
    """open_clip, which only this model needs; see `layers.backbone.import_extra`."""
    return import_extra("open_clip", "clip", "CLIP needs open_clip")


def architecture_name(architecture: str) -> str:
    """open_clip's name of an architecture; one that is a JSON file is made known to it first.

    Raises:
        InputError: there is no such architecture, or the file is no configuration.
    """
    open_clip = import_open_clip()
    if architecture.endswith(".json"):
        path = Path(architecture)
        try:
            content = parse_json(read_bytes(path))
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(content)
        except (OSError, ValueError, TypeError) as fault:
            raise InputError(f"model.architecture: {path} can't be read ({first_line(fault)}).") from fault
        if missing:
            raise InputError(f"model.architecture: {path} lacks {', '.join(sorted(missing))} (open_clip's JSON form).")
        open_clip.add_model_config(path)
        return path.stem
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"model.architecture: open_clip has no {architecture!r}.{hint}")
    return architecture


def configuration(architecture: str) -> dict[str, Any]:
    """open_clip's configuration of an architecture; see `architecture_name`."""
    return cast("dict[str, Any]", import_open_clip().get_model_config(architecture_name(architecture)))


def longest_text(architecture: str, context_length: int | None) -> int:
    """How many tokens the text tower reads: as asked for, else as the architecture says."""
    return context_length or int(configuration(architecture)["text_cfg"].get("context_length", LONGEST))


def create(architecture: str, tag: str | None, context_length: int | None = None) -> Any:
    """A network of open_clip, random or with the weights of one of its tags, which downloads.

    Differs from open_clip's: SigLIP's networks approximate GELU by tanh in both towers, as the weights were trained and
    transformers has it. A text tower of transformers starts random, too, where no weights of the whole are given.

    Raises:
        InputError: there is no such architecture, or no such tag, or it can't be had.
    """
    open_clip, name = import_open_clip(), architecture_name(architecture)
    parts = configuration(architecture)
    text = parts["text_cfg"] | {"hf_model_pretrained": False}
    if "hf_model_name" in text:
        import_transformers()
    if context_length is not None:
        text["context_length"] = context_length
    try:
        with _root_silenced():
            clip = open_clip.create_model(name, pretrained=tag, text_cfg=text)
    except Exception as fault:  # a download, a file of the hub or a configuration: each has errors of its own
        raise InputError(
            f"model.architecture {architecture}, model.pretrained {tag or 'none'}: open_clip can't build "
            f"it ({first_line(fault)}). model.pretrained takes none, the path of a checkpoint, or one of: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'no tag for this architecture'}."
        ) from fault
    for part in clip.modules() if is_siglip(parts) else ():
        if isinstance(part, nn.GELU):
            part.approximate = "tanh"
    return clip


def check_side(clip: Any, architecture: str, side: int) -> None:
    """Refuse images of another side than a network reads.

    Raises:
        InputError: it reads others.
    """
    size = import_open_clip().get_model_preprocess_cfg(clip)["size"]
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if sides != (side, side):
        raise InputError(f"dataset.image_size: {architecture} reads images of {sides[0]} pixels, got {side}.")


def is_siglip(parts: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of SigLIP."""
    return "siglip" in str(parts["vision_cfg"].get("timm_model_name", ""))


def normalisation(architecture: str, pretrained: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and standard deviations of the images that weights were trained with, in 0..1.

    Those of a tag of open_clip, or that a folder states; else 0.5 for SigLIP, and OpenAI's for all others.
    """
    open_clip, name = import_open_clip(), architecture_name(architecture)
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if "mean" in tag and "std" in tag:
        return tuple(tag["mean"]), tuple(tag["std"])
    if (stated := stated_normalisation(Path(pretrained))) is not None:
        return stated
    if is_siglip(configuration(architecture)):
        return (0.5,) * 3, (0.5,) * 3
    return tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD)


def checkpoint_gradients(clip: Any) -> None:
    """Let both towers compute again in the backward pass what they would keep for it."""
    text = getattr(clip, "text", None)
    if text is not None and hasattr(text, "config"):  # a text tower of transformers
        clip.visual.set_grad_checkpointing(True)
        recompute(text.transformer)
    else:
        clip.set_grad_checkpointing(True)


@contextmanager
def _root_silenced() -> Iterator[None]:
    """Keeps from the log that weights are random: they are loaded later, or else it is said here.

    Nor does the root logger get a handler, which Python's first line to one without would give it.
    """

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(other)
