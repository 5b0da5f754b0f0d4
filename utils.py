"""What has no better home: errors for the reader, atomic files, seeds, plain tables."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import importlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger("rsretrieval")
logger.setLevel(logging.INFO)


class InputError(Exception):
    """A fault in what the user gave (options, files, weights): what was expected, what was found, where, what to do.

    Entry points print its text without a traceback and end with exit status 2.
    """


class RunFault(InputError):
    """A fault that ends a run midway; what was saved before stays, and a resumed run goes on from it. Exit status 3."""


class Interrupted(BaseException):
    """A signal ended a run whose state is saved. Entry points end with exit status `RUN_AGAIN`."""


RUN_AGAIN = 75
"""Exit status of a run that the same command carries on: EX_TEMPFAIL, of which sysexits.h says "try again"."""
UNFINISHED = ".unfinished"
"""Ends the names of files that are being written."""


@dataclass
class Gate:
    """Whether the user insists on what does not belong together.

    Attributes:
        forced: whether the user insists.
        passed: what was let through, a line each.
    """

    forced: bool = False
    passed: list[str] = field(default_factory=list)


def refuse(gate: Gate | None, what: str, advice: str) -> None:
    """Name a mismatch.

    Args:
        gate: whether the user insists; None where nobody can.
        what: the mismatch, in words.
        advice: what to do about it, a sentence.

    Raises:
        InputError: it is not forced.
    """
    if gate is None or not gate.forced:
        stop = "" if "\n" in what else "."
        insist = "" if gate is None else "To go on all the same: --force."
        raise InputError(f"{what}{stop}\n{advice} {insist}".rstrip())
    logger.warning("forced: %s", what)
    gate.passed.append(what.partition("\n")[0].rstrip(":"))


def install(extra: str) -> str:
    """What installs an extra: a script in the project's root, pip where `rsretrieval` is installed."""
    return f"bash exec/environment.sh {extra}" if __name__ == "utils" else f'pip install ".[{extra}]" in a clone'


def import_extra(module: str, purpose: str, extra: str) -> Any:
    """A module that one of the project's extras brings.

    Args:
        module: its name.
        purpose: what needs it, for the message.
        extra: of pyproject.toml.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise InputError(f"{purpose}: {install(extra)} ({first_line(fault)})") from fault


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], durable: bool = False) -> None:
    """Write a file so that a reader sees either the old content or the whole new one, even after a crash.

    Args:
        path: the file; its folder is made.
        write: called with the temporary file beside it, open for writing and for reading back.
        durable: return only when the new name, too, is on the disk: the file is there even if the power fails then.

    Raises:
        OSError: it can't be written; carries the name of the file. What was there before stays.
    """
    try:
        _write_atomic(path, write)
        if durable:
            _flush_folder(path.parent)
    except (OSError, RuntimeError) as fault:
        error = system_error(fault)
        if error is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from fault


def _write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Remove what killed writers of `write_atomic` left in a folder, of one file name or of all.

    Nobody else may be writing there: hold the folder's lock.
    """
    for leftover in folder.glob(f".{glob.escape(name)}*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_atomic` for a UTF-8 text."""
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


@contextmanager
def named_by(flag: str, path: Path) -> Iterator[None]:
    """Write a file that the user named by a flag of the command line.

    Raises:
        InputError: it can't be written.
    """
    try:
        yield
    except OSError as fault:
        raise InputError(f"{flag} {path}: can't be written ({first_line(fault)}); give another file.") from fault


def _umask() -> int:
    """The process's umask, which `mkstemp` ignores; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def first_line(fault: Exception) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return next(iter(str(fault).splitlines()), "") or type(fault).__name__


def derive_seed(root: int, *parts: int | str) -> int:
    """A seed in 0..2^63 - 1 for one purpose, from the root seed and what names the purpose."""
    digest = hashlib.sha256("/".join(map(str, (root, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def system_error(fault: BaseException) -> OSError | None:
    """The operating system's error that an exception is or follows from: `torch.save` raises another one for it."""
    return next((link for link in _chain(fault) if isinstance(link, OSError) and link.errno is not None), None)


def _chain(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__cause__ or fault.__context__


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text as an aligned Markdown table, the first row its head; numbers right, labels left."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """One line per row at full precision; what a row has no value for stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(value: object) -> str:
    """Indented JSON; what JSON has no form for becomes text."""
    return json.dumps(value, indent=2, default=str) + "\n"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; read in pieces, since checkpoints are large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
