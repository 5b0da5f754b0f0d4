"""What open_clip is asked for: a network by the name of its architecture, and the byte pairs of its texts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from layers.backbone import import_extra
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, first_line
from vocab import UNKNOWN, Vocabulary


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


def create(architecture: str, tag: str | None) -> Any:
    """A network of open_clip, random or with the weights of one of its tags, which downloads.

    Raises:
        InputError: there is no such architecture, or no such tag, or it can't be had.
    """
    open_clip, name = import_open_clip(), architecture_name(architecture)
    try:
        with _root_silenced():
            return open_clip.create_model(name, pretrained=tag)
    except Exception as fault:  # a download, a file of the hub or a configuration: each has errors of its own
        raise InputError(
            f"model.architecture {architecture}, model.pretrained {tag or 'none'}: open_clip can't build "
            f"it ({first_line(fault)}). model.pretrained takes none, the path of a checkpoint, or one of: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'no tag for this architecture'}."
        ) from fault


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


class BytePairs(Vocabulary):
    """The byte pairs of an open_clip tokenizer as a vocabulary: no word is unknown to it.

    Ids are the tokenizer's plus 1, since 0 is padding here.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take the pieces of a tokenizer of the kind that CLIP was published with."""
        pieces = sorted(tokenizer.encoder, key=tokenizer.encoder.__getitem__)
        super().__init__({piece: index for index, piece in enumerate([*pieces, UNKNOWN], start=1)})
        object.__setattr__(self, "tokenizer", tokenizer)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption between the marks of its start and end, cut to what the model reads."""
        tokenizer = cast(Any, self).tokenizer
        ids = tokenizer(caption)[0]
        end = int((ids == tokenizer.eot_token_id).nonzero()[0])
        return [int(index) + 1 for index in ids[: end + 1]]

    def knows(self, word: str) -> bool:
        """Every word can be spelled."""
        return True
