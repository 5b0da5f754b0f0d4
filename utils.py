"""What has no better home: errors for the reader, seeds, devices, atomic files, logging."""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from tqdm import tqdm

from machine import explain, system_error
from untrusted import is_plain_weight, load_torch

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


def _umask() -> int:
    """The process's umask, which `mkstemp` ignores; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or one that a model's authors published, without running code from it.

    Returns:
        Its content, the weights under the key `model`, also where they were stored as `state_dict` or alone.

    Raises:
        InputError: the file is missing, or is not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}.")
    try:
        content = load_torch(path)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as fault:
        raise InputError(
            f"{path} can't be read as a checkpoint: {first_line(fault)}. Copy or download it again."
        ) from fault
    except Exception as fault:  # pickle's own errors share no useful base class
        raise InputError(
            f"{path} was refused: it holds more than tensors and plain values ({first_line(fault)}). Don't load it by "
            "other means unless you trust its source."
        ) from fault
    if isinstance(content, dict) and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        content = {"model": content}
    elif isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = {"model": content["state_dict"]}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            f"{path} is not a checkpoint: expected the weights under the key `model` or `state_dict`, or nothing else."
        )
    refuse_odd_weights(content["model"], str(path))
    return content


def refuse_odd_weights(weights: dict[Any, Any], source: str) -> None:
    """Raise an InputError if some weights are no plain tensors under a name each."""
    odd = [name for name, value in weights.items() if not (isinstance(name, str) and is_plain_weight(value))]
    if odd:
        raise InputError(
            f"{source}: {len(odd)} of {len(weights)} weights are no plain tensors, the first is {odd[0]!r:.80}. Take "
            "the file from its authors again."
        )


def first_line(fault: Exception) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return next(iter(str(fault).splitlines()), "") or type(fault).__name__


def derive_seed(root: int, *parts: int | str) -> int:
    """A seed in 0..2^63 - 1 for one purpose, from the root seed and what names the purpose."""
    digest = hashlib.sha256("/".join(map(str, (root, *parts))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def choose_device(name: str | None) -> torch.device:
    """The device that was asked for; without a wish a CUDA device where there is one, else the CPU.

    Raises:
        InputError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as fault:
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:NUMBER.") from fault
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:NUMBER.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: this machine shows {count} CUDA devices; try --device cpu.")
    return device


class _AboveProgressBars(logging.Handler):
    """Console log that does not tear the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line above the bars."""
        tqdm.write(self.format(record), file=sys.stderr)


def start_logging() -> None:
    """Send the project's log to the console; warnings carry their level."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = _AboveProgressBars()
    handler.setFormatter(_ConsoleFormat())
    logger.addHandler(handler)
    logger.propagate = False


class _ConsoleFormat(logging.Formatter):
    """The bare message; its level before it from warnings on."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + record.getMessage()


class _LogFile(logging.FileHandler):
    """A log that a full disk silences, with one warning, where Python's own prints a traceback for every line."""

    broken = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, unless an earlier one could not be written."""
        if not self.broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the log ends here."""
        self.broken = True
        logger.warning("%s can't be written any more (%s); the work goes on.", self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        """Close it; what is still to be written may be lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append the project's log, with times, to a file as long as the context lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def run_entry_point(main: Callable[[], None]) -> NoReturn:
    """Run an entry point, whose faults end in one message and an exit status, not in a traceback.

    2: a fault in what the user gave, found before the work; 3: one that ended the work, such as a full disk;
    `RUN_AGAIN`: a signal stopped a training; 130: the keyboard.
    """
    start_logging()
    try:
        main()
    except RunFault as fault:
        logger.error("%s", fault)
        sys.exit(3)
    except InputError as fault:
        logger.error("%s", fault)
        sys.exit(2)
    except Interrupted:
        sys.exit(RUN_AGAIN)
    except KeyboardInterrupt:
        logger.error("stopped by the keyboard")
        sys.exit(130)
    except (OSError, RuntimeError, MemoryError) as fault:
        text = explain(fault)
        if text is None:
            raise
        logger.error("%s.", text)
        sys.exit(3)
    sys.exit(0)
