"""The images that a run was begun with: their sizes and dates, so that a later start can say which were replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from runs.events import write_table
from runtime.untrusted import parse_json, read_bytes
from utils import logger

FILE = "images.json"
"""In the run's folder: name -> bytes and second of the last change, of images, spectrograms and the region file."""
SHOWN = 3

State = list[int]


def note_images(folder: Path, files: Mapping[str, Path], begun: bool) -> None:
    """Note the files that a run reads, or say which are no longer those that it was begun with.

    Args:
        folder: of the run.
        files: by their names in the lists; those that are not there are left out.
        begun: whether the run goes on.
    """
    now = {name: state for name, path in files.items() if (state := _state(path)) is not None}
    before = _read(folder / FILE) if begun else None
    if before is None:
        write_table(folder / FILE, json.dumps(now) + "\n")
        return
    known = [name for name in now if name in before]
    replaced = [name for name in known if now[name][0] != before[name][0]]
    if replaced:
        logger.warning(
            "%s: %d of %d images are others than the run was begun with: %s. What it has learned and its scores so far "
            "are of those. Put them back, or train under another name.",
            *(folder, len(replaced), len(now)),
            _listed(f"{name} ({before[name][0]:,} bytes then, {now[name][0]:,} now)" for name in replaced),
        )
    elif touched := [name for name in known if now[name] != before[name]]:
        logger.warning(
            "%s: %d of %d images have another date than when the run was begun: %s. If they were not only copied, "
            "train under another name.",
            *(folder, len(touched), len(now), _listed(touched)),
        )


def _state(path: Path) -> State | None:
    try:
        status = path.stat()
    except OSError:
        return None  # whoever reads it says so
    return [status.st_size, int(status.st_mtime)]


def _read(path: Path) -> dict[str, State] | None:
    """What was noted; None where that can't be read, as of a run that an earlier version began."""
    try:
        content = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not all(_is_state(state) for state in content.values()):
        return None
    return content


def _is_state(state: object) -> bool:
    return isinstance(state, list) and len(state) == 2 and all(isinstance(number, int) for number in state)


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:SHOWN]) + (", ..." if len(texts) > SHOWN else "")
