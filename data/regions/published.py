"""Reads GaLR's published region files: an `.npy` that holds a pickled dictionary, without running anything from it.

A pickle can name any function and call it. The reader here knows five names, which stand for stand-ins of its own, and
refuses every other one: what comes out are numbers, text, plain containers and numeric arrays.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.lists import first_faults
from data.regions.graph import REGIONS, WIDTH, Floats
from runtime.untrusted import check_pickle, read_bytes
from utils import InputError, first_line

NODES, ADJACENCY = "local_rep", "adj_matrix"
SHAPES = {NODES: (REGIONS, WIDTH), ADJACENCY: (REGIONS, REGIONS)}
LARGEST = float(np.finfo(np.float32).max)
NUMBERS = "fiu"  # kinds of NumPy types: floating point, whole, whole without sign


class _Type:
    """Stands in for a `numpy.dtype` while a pickle is read."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = code
        self.order = "|"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array type of an unknown form")
        self.order = state[1]

    def numeric(self) -> np.dtype[Any]:
        """The NumPy type, if it is one of plain numbers."""
        if not isinstance(self.code, str) or self.code[:1] not in NUMBERS or not self.code[1:].isdigit():
            raise pickle.UnpicklingError(f"an array of type {self.code!r}; only numbers are read")
        return np.dtype(self.order.replace("|", "=") + self.code)


class _Array:
    """Stands in for a `numpy.ndarray` while a pickle is read."""

    values: np.ndarray | None = None
    objects: list[object] | None = None

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(), _Type(code=str(code)), _, list() as objects) if code.startswith("O"):
                self.objects = objects
            case (int(), tuple() as shape, _Type() as kind, bool() | int() as column_first, bytes() | str() as content):
                raw = content.encode("latin-1") if isinstance(content, str) else content
                dtype = kind.numeric()
                if not all(isinstance(side, int) and side >= 0 for side in shape):
                    raise pickle.UnpicklingError("an array of an unknown shape")
                if len(raw) != math.prod(shape) * dtype.itemsize:
                    raise pickle.UnpicklingError("an array with too many or too few bytes")
                self.values = np.frombuffer(raw, dtype).reshape(shape, order="F" if column_first else "C")
            case _:
                raise pickle.UnpicklingError("an array of an unknown form")


def _encode(text: object, encoding: object = "") -> bytes:
    """Stands in for `codecs.encode`, by which old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}; only latin1 is read")
    return text.encode("latin-1")


def _empty_array(*_: object) -> _Array:
    """Stands in for the function that makes an array before it is filled."""
    return _Array()


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _empty_array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Reader(pickle.Unpickler):
    """Unpickler that knows arrays and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def read_published(path: Path) -> dict[str, tuple[Floats, Floats]]:
    """Read a published region file: an `.npy` with a dictionary of `local_rep` and `adj_matrix`.

    Each of them is a dictionary from `<image stem>.txt` to a 20 x 20 array.

    Returns:
        Nodes [20, 20] and adjacency [20, 20] by image stem.

    Raises:
        InputError: the file can't be read, asks for anything but arrays and plain containers (which is named), or
            holds something else.
    """
    try:
        content = _unpickle(read_bytes(path))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was refused: {first_line(error)}. A pickle can run code; this reader takes nothing but NumPy "
            "arrays of numbers and plain containers. Don't load this file by other means unless you trust its source."
        ) from error
    except Exception as error:  # on damaged bytes pickle raises errors of nearly any class
        raise InputError(f"{path}: not a published region file ({first_line(error)}).") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(key), dict) for key in SHAPES):
        raise InputError(f"{path}: expected a dictionary with the dictionaries {NODES} and {ADJACENCY}.")
    return _arrays(path, content)


def _unpickle(stored: bytes) -> Any:
    """The object in the content of an `.npy` file."""
    file = io.BytesIO(stored)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = read_header[version](file)
    if dtype.kind != "O" or shape != ():
        raise ValueError(f"it holds an array of {dtype} and shape {shape}, expected one pickled dictionary")
    start = file.tell()
    check_pickle(file)
    file.seek(start)
    array = _Reader(file, encoding="latin1").load()
    return array.objects[0] if isinstance(array, _Array) and array.objects else array


def _arrays(path: Path, content: dict[str, Any]) -> dict[str, tuple[Floats, Floats]]:
    """The content as arrays by image stem; raises with the entries that are wrong."""
    faults: list[str] = []
    found: dict[str, dict[str, Floats]] = {}
    for key, shape in SHAPES.items():
        found[key] = {}
        for name, value in content[key].items():
            array = value.values if isinstance(value, _Array) else None
            fits = array is not None and array.shape == shape and bool((np.abs(array) <= LARGEST).all())
            if not isinstance(name, str) or array is None or not fits:
                faults.append(f"{key}[{name!r}]: expected a finite array of {shape[0]} x {shape[1]} numbers")
            else:
                found[key][name.removesuffix(".txt")] = array.astype(np.float32)
    nodes, adjacency = found[NODES], found[ADJACENCY]
    if not faults:
        faults = [f"{name}: in {NODES} or {ADJACENCY}, but not in both" for name in sorted(nodes.keys() ^ adjacency)]
    if faults or not nodes:
        raise InputError(f"{path}: {len(faults)} faults in {len(nodes)} images:{first_faults(faults)}")
    return {name: (nodes[name], adjacency[name]) for name in nodes}
