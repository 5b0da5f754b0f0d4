"""Portable models on the Hugging Face hub: a folder goes up whole, and comes down as a pinned revision without code."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from portable import CARD, CONFIG, EXAMPLE, PREPROCESSING, SCORES, TOKENIZER, VOCABULARY, WEIGHTS
from utils import InputError, first_line, import_extra

PREFIX = "hf://"
"""Before the name of a model on the hub, OWNER/NAME."""
NEEDED = (WEIGHTS, CONFIG, PREPROCESSING, VOCABULARY, f"{TOKENIZER}/*.json", f"{TOKENIZER}/*.txt")
"""What a model is read from: no code, and no pickle."""
ALL = (*NEEDED, CARD, EXAMPLE, SCORES, "*.onnx")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(folder: Path, name: str, private: bool = True) -> str:
    """Upload a folder of `python -m portable`; the repository is made where there is none.

    Args:
        folder: with the card in it.
        name: OWNER/NAME.
        private: of a repository that is made.

    Returns:
        The commit, which `download` takes as the revision.

    Raises:
        InputError: it is no such folder, the name is none, or the hub refuses.
    """
    _check_name(name)
    missing = [file for file in (WEIGHTS, CONFIG, PREPROCESSING, CARD) if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder}: no portable model ({', '.join(missing)} missing). Write one: python -m portable")
    api = _hub().HfApi(endpoint=_endpoint())
    try:
        api.create_repo(name, private=private, exist_ok=True)
        info = api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(ALL), commit_message="A model")
    except Exception as fault:  # of the network, of the service, of rights: each has errors of its own
        raise InputError(
            f"{name}: the hub does not take it ({first_line(fault)}). Log in first: hf auth login"
        ) from fault
    return str(info.oid)


def download(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub, in the cache of huggingface_hub.

    Args:
        name: OWNER/NAME.
        revision: a commit, 40 hexadecimal digits: a branch or a tag may mean other weights tomorrow.

    Raises:
        InputError: the revision is not pinned, the hub has no such model, or it is none of ours.
    """
    _check_name(name)
    if revision is None or not _COMMIT.fullmatch(revision):
        raise InputError(
            f"{PREFIX}{name}: give the commit as revision, 40 hexadecimal digits (the model's page on the hub, under "
            f"Files, History); found {revision}."
        )
    try:
        folder = Path(
            _hub().snapshot_download(name, revision=revision, allow_patterns=list(NEEDED), endpoint=_endpoint())
        )
    except Exception as fault:  # as in `push`
        raise InputError(f"{PREFIX}{name}: can't be had from the hub ({first_line(fault)}).") from fault
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(f"{PREFIX}{name}: no model of `python -m portable` ({CONFIG} and {WEIGHTS} are not there).")
    return folder


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: expected OWNER/NAME, as the hub names models.")


def _hub() -> Any:
    return import_extra("huggingface_hub", "the hub needs huggingface_hub", "hub")


def _endpoint() -> str | None:
    """Of a hub elsewhere, as huggingface_hub itself reads it."""
    return os.environ.get("HF_ENDPOINT")
