"""Guards for files that may come from a stranger: none runs code, and none claims more memory than it may.

Each raises ValueError with the reason (OSError where the file can't be opened); the reader that calls it names the file
and says what to do.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import mmap
import pickle
import pickletools
import stat
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, Literal

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_BYTES = 2**30  # of a file that is read whole
MAX_UNPACKED_BYTES = 2**33  # of all arrays of an archive
_ZIP_START = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # at the start of a file that torch.save wrote before its version 1.6
_CLAIM_MEMORY = frozenset(("builtins bytearray", "__builtin__ bytearray"))
"""What torch.load would call although a few bytes of arguments make it take any amount of memory."""


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes; a named pipe would never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # of a folder, Python's error is told
        raise ValueError("it is no regular file")
    if status.st_size > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return path.read_bytes()


def parse_json(content: bytes) -> Any:
    """A UTF-8 text as JSON, a byte-order mark at its start passed over.

    One of a hundred thousand opening brackets is refused like any other fault.
    """
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as fault:
        raise ValueError("its brackets are nested too deeply") from fault


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a file below a folder lies elsewhere once symbolic links are followed; the folder may itself be one."""
    return not path.resolve().is_relative_to(folder.resolve())


def read_array(path: Path, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
    """The array of an `.npy`, mapped into memory, so that a header alone takes none; arrays of objects are refused.

    Args:
        path: the file.
        mode: whether the array can't be written to ("r"), or changes in memory alone ("c").
    """
    try:
        return np.lib.format.open_memmap(path, mode=mode)
    except OSError:
        raise
    except Exception as fault:  # on damaged bytes NumPy raises errors of many classes
        raise ValueError(str(fault) or type(fault).__name__) from fault


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, checksums compared.

    Sizes are checked before anything is unpacked, and arrays of objects are refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise ValueError(f"its arrays take more than {MAX_UNPACKED_BYTES:,} bytes")
            return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in members}
    except OSError:
        raise
    except Exception as fault:  # on damaged bytes zipfile and NumPy raise errors of many classes
        raise ValueError(str(fault) or type(fault).__name__) from fault


def file_crc32(path: Path) -> int:
    """The checksum of a file's content; a gigabyte takes about a second."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found = zlib.crc32(piece, found)
    return found


def hdf5_data(group: h5py.Group, key: str, any_width: bool = False) -> h5py.Dataset:
    """A data set that lies in the file itself: neither a link nor its storage leads elsewhere.

    Args:
        group: where it lies.
        key: its name there.
        any_width: let in texts of free length, on which HDF5 can crash or hang if the file is damaged.

    Raises:
        KeyError: there is none.
    """
    link = group.get(key, getlink=True)
    if link is None:
        raise KeyError(f"no data set {key}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{key} is a link, which is refused: copy the data into the file")
    member = group[key]
    if not isinstance(member, h5py.Dataset) or member.external or member.is_virtual:
        raise ValueError(f"{key} is no data set stored in the file itself")
    if member.dtype.hasobject and not any_width:
        raise ValueError(f"{key} has no fixed width, which is refused: make the file anew")
    needed, stored = member.size * member.id.get_type().get_size(), member.id.get_storage_size()
    if not needed <= stored <= Path(group.file.filename).stat().st_size:
        raise ValueError(f"{key} announces {needed:,} bytes and stores {stored:,}; packed data are not read")
    return member


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote: tensors, plain values, and the `argparse.Namespace` of published checkpoints.

    The checksums of its archive are compared, once, in about the time of the load; files that torch wrote before its
    version 1.6 have none.

    Raises:
        ValueError: it is damaged, or would take more memory than it has bytes.
        pickle.UnpicklingError: it asks for anything else.
    """
    _check_torch_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def is_plain_weight(value: object) -> bool:
    """Whether a value is a dense tensor that stores all its numbers: no view that is larger than what is stored."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def check_pickle(stream: BinaryIO | mmap.mmap, refused: Collection[str] = ()) -> None:
    """Read through one pickle without building anything from it.

    Args:
        stream: at its start; a stream that gives no more than it holds, whatever length is asked of it.
        refused: functions ("module name") that it may not ask for.

    Raises:
        ValueError: it is cut short, or makes room for more values than it has bytes.
        pickle.UnpicklingError: it asks for one of `refused`.
    """
    try:
        for operation, argument, position in pickletools.genops(stream):  # type: ignore[arg-type]
            if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > (position or 0):
                raise ValueError(f"a pickle of {position:,} bytes makes room for {argument:,} values")
            if operation.name in ("GLOBAL", "INST") and argument in refused:
                raise pickle.UnpicklingError(f"it asks for {argument}")
    except OverflowError as fault:
        raise ValueError("a length in it is beyond any memory") from fault


def _check_torch_file(path: Path) -> None:
    """Refuse what is damaged, and what `torch.load` would take all memory for: `_CLAIM_MEMORY`, packed, overlapping."""
    with path.open("rb") as file:
        packed = file.read(len(_ZIP_START)) == _ZIP_START
        if not packed:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(_LEGACY_PICKLES):
                    check_pickle(content, _CLAIM_MEMORY)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its parts are larger than the file; torch.save packs nothing")
        if (broken := archive.testzip()) is not None:  # torch.load compares no checksum
            raise ValueError(f"damaged: {broken} in it does not match its checksum")
        for member in members:
            if member.filename.endswith("data.pkl"):
                check_pickle(io.BytesIO(archive.read(member)), _CLAIM_MEMORY)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array of an archive, once its header agrees with the size that the archive gives."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = readers[version](stream)
        announced = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or announced != member.file_size:
        raise ValueError(f"{member.filename} is no plain array of {member.file_size:,} bytes")
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
