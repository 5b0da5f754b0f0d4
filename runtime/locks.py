"""Locks between processes, which end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from utils import InputError, logger, remove_unfinished

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def run_lock(folder: Path, name_key: str) -> Iterator[None]:
    """`folder_lock` of a training; the message names the option that names the folder."""
    with folder_lock(folder, f"train under another name (--set {name_key}=NAME)"):
        remove_unfinished(folder)
        yield


@contextmanager
def folder_lock(folder: Path, otherwise: str, rank: int = 0, world: int = 1) -> Iterator[None]:
    """Keep a folder, which is made, to this process, or to the processes of one job.

    Args:
        folder: to be written.
        otherwise: what to do instead of waiting, for the message.
        rank: which process of the job this is.
        world: processes of the job.

    Raises:
        InputError: another process has it; the message names that one.
        OSError: nothing can be written there.
    """
    with _opened(folder / LOCK) as handle:
        # A byte for each rank: two jobs meet at the first, and a process that is alone, which takes all, at any.
        if not _lock(handle, folder, wait=False, size=0 if world == 1 else 1, start=rank):
            raise InputError(
                f"{folder} is in use by another run: {_holder(folder)}. Wait for its end, or stop it, or {otherwise}."
            )
        if rank > 0:
            yield
            return
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(_description()).encode())
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(handle, 0)


@contextmanager
def waiting_lock(file: Path) -> Iterator[None]:
    """Keep the making of a shared file to this process; whoever else wants to make it waits.

    Raises:
        OSError: nothing can be written there.
    """
    with _opened(file.with_name(f".{file.name}{LOCK}")) as handle:
        _lock(handle, file.parent, wait=True)
        yield


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, wait: bool, size: int = 0, start: int = 0) -> bool:
    """Take the lock, of `size` bytes (0: of all) from `start` on; False: another process has it."""
    try:
        # Not flock, which a killed run's worker processes would hold on to until they notice.
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), size, start)
    except OSError as fault:
        if fault.errno in _TAKEN:
            return False
        if fault.errno not in _UNKNOWN_HERE:
            raise
        logger.warning("%s: this file system has no locks: don't start a second run there.", folder)
    return True


def _description() -> dict[str, str | int]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv),
    }


def _holder(folder: Path) -> str:
    """Who has the lock, as far as the file says."""
    with suppress(OSError, ValueError):
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return ", ".join(f"{key} {value}" for key, value in found.items())
    return "a process that did not say which"
