"""What a machine does to a program, put in words: full disks, folders gone, dead workers, memory that runs out."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

import torch

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what worker processes hand over."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_LOCKED = {errno.EROFS, errno.EACCES, errno.EPERM}
_OTHER_KIND = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_GONE = {errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
_SHARED = ("Bus error", "shared memory", "unable to write to file </torch_", "unable to resize file </torch_")
_UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))
_WORKER = re.compile(r"DataLoader worker \(pid\S* [^)]*\) [^.\n]*")


def explain(fault: BaseException) -> str | None:
    """What happened and what to do, in words; None for anything that is not the machine's doing."""
    text = str(fault)
    if any(mark in text for mark in _SHARED) and ("DataLoader" in text or "torch_" in text):
        return (
            f"the processes that read images ran out of shared memory ({_room(SHARED_MEMORY)}). Give them more "
            "(docker run --shm-size=8g), or do without: --set dataset.workers=0, or dataset.cache=ram"
        )
    if worker := _WORKER.search(text):
        return (
            f"a process that reads images died ({worker.group()}): most likely the system ended it because the "
            f"machine's memory, or its shared memory, was full ({_room(SHARED_MEMORY)}). Use fewer of them (--set "
            "dataset.workers=1; 0: the main process reads), or less memory elsewhere (dataset.cache=disk)"
        )
    if is_out_of_memory(fault):
        return (
            f"out of memory ({first_words(text) or type(fault).__name__}). Lower dataset.batch_size or, where a "
            "validation or a test ran, dataset.batch_size_val; or keep images elsewhere (dataset.cache=disk)"
        )
    return _explain_file(fault) if isinstance(fault, OSError) else None


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that a device, or the machine, has no memory left."""
    if isinstance(fault, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(fault, RuntimeError) and any(mark in str(fault) for mark in _OUT_OF_MEMORY)


def first_words(text: str) -> str:
    """The first sentence of a message of PyTorch's."""
    text = text[max(0, text.find("DefaultCPUAllocator")) :]  # behind a line of PyTorch's source
    return text.partition("\n")[0].partition(". ")[0].rstrip(". ")


def free_bytes(path: Path) -> int:
    """Room on the file system of a path, which need not exist yet."""
    return shutil.disk_usage(existing_part(path)).free


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    whole = path.absolute()
    return next(part for part in (whole, *whole.parents) if part.exists())


def _explain_file(fault: OSError) -> str | None:
    place = fault.filename if isinstance(fault.filename, str) else None
    name = place or "a file"
    if fault.errno in _FULL:
        room = f", {_room(Path(place))}" if place else ""
        return f"{name} can't be written: {fault.strerror}{room}. Free some space, or write to another disk"
    if fault.errno in _LOCKED:
        return f"{name}: {fault.strerror}. Make the folder writable for this user, or choose another"
    if fault.errno in _OTHER_KIND:
        return f"{name}: {fault.strerror}. Something else has that name: move it away, or choose another"
    if fault.errno in _GONE and place:
        return f"{name}: {fault.strerror}. Check that its folder is there and its disk is mounted"
    if fault.errno == errno.EMFILE:
        return f"{name}: {fault.strerror}. Raise the limit (ulimit -n 4096), or set dataset.workers=0"
    return None


def in_words(count: int) -> str:
    """Bytes in the unit that fits."""
    power, unit = next((power, unit) for power, unit in _UNITS if count >= 2**power or power == 10)
    return f"{count / 2**power:.{power // 30}f} {unit}"


def _room(path: Path) -> str:
    try:
        return f"{in_words(free_bytes(path))} free at {path}"
    except OSError:
        return f"no such folder: {path}"
