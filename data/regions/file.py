"""GaLR's region files: their HDF5 form, written by `python -m data.regions` and read once per experiment.

A file holds `nodes` [N, 20, 20] and `adjacency` [N, 20, 20] of float32, and `names`, the N images' file names without
their endings, as texts of a fixed width. The attributes `design` and `source` say how it was made, `classes` names the
class columns.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.lists import first_faults, first_names, refuse_faults
from data.regions.graph import CLASSES, REGIONS, WIDTH
from runtime.untrusted import hdf5_data
from utils import InputError, first_line, logger, write_atomic

SHAPES = {"nodes": (REGIONS, WIDTH), "adjacency": (REGIONS, REGIONS)}

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Regions:
    """The regions of N images: nodes [N, 20, 20] and adjacency [N, 20, 20]."""

    nodes: Tensor
    adjacency: Tensor


def region_fields(regions: Regions | None, image_ids: Tensor) -> dict[str, Any]:
    """The fields of a batch of images [B]: `nodes` and `adjacency`, or none where there are no regions."""
    return {} if regions is None else {"nodes": regions.nodes[image_ids], "adjacency": regions.adjacency[image_ids]}


@dataclass(frozen=True, eq=False)
class RegionFile:
    """What a region file holds.

    Attributes:
        path: the file.
        row: image name without ending -> its row.
        nodes: [N, 20, 20].
        adjacency: [N, 20, 20].
        classes: names of the class columns; empty where the columns' meaning is not known.
    """

    path: Path
    row: Mapping[str, int]
    nodes: NDArray[np.float32]
    adjacency: NDArray[np.float32]
    classes: tuple[str, ...]

    def of(self, image_names: Sequence[str], missing: str) -> Regions:
        """The regions of some images, in their order.

        An image that the file lacks gets zeros, with one warning, where `missing` is `zeros`.

        Raises:
            InputError: `missing` is `error`, and the file lacks some images; names the first five and counts the rest.
        """
        self.check(image_names, missing)
        return self.take(image_names)

    def check(self, image_names: Sequence[str], missing: str) -> None:
        """Raise or warn as `of` does where the file lacks some images."""
        lacking = [name for name in image_names if region_name(name) not in self.row]
        if lacking:
            text = f"{self.path}: {len(lacking)} of {len(image_names)} images have no regions"
            if missing == "error":
                raise InputError(
                    f"{text}:{first_faults(lacking)}\nBuild the file from all images (python -m data.regions build), "
                    "or train with zeros in their place (--set dataset.missing_regions=zeros)."
                )
            logger.warning("%s and get zeros (dataset.missing_regions): %s", text, first_names(lacking))

    def take(self, image_names: Sequence[str]) -> Regions:
        """The regions of some images; zeros for those that the file lacks."""
        rows = np.array([self.row.get(region_name(name), -1) for name in image_names], dtype=np.int64)
        chosen = []
        for values in (self.nodes, self.adjacency):
            found = values[rows] if len(values) else np.zeros((len(rows), *values.shape[1:]), np.float32)
            found[rows < 0] = 0
            chosen.append(torch.from_numpy(found))
        return Regions(*chosen)


def region_name(image_name: str) -> str:
    """An image's name in a region file: its path in the image folder without the ending."""
    return PurePosixPath(image_name).with_suffix("").as_posix()


def by_region_name(image_names: Iterable[str]) -> dict[str, str]:
    """Names in a region file -> image names.

    Raises:
        InputError: two images differ in their ending alone.
    """
    found: dict[str, str] = {}
    for name in image_names:
        other = found.setdefault(region_name(name), name)
        if other != name:
            raise InputError(f"{other} and {name} differ in their ending alone: a region file can't tell them apart.")
    return found


def write_regions(
    path: Path, arrays: Mapping[str, Arrays], design: str, source: str, classes: Sequence[str] = ()
) -> None:
    """Write a region file.

    Args:
        path: where to.
        arrays: nodes [20, 20] and adjacency [20, 20] by image name without ending.
        design: what the columns and the graph are.
        source: what they were made from.
        classes: names of the class columns, if they have any.

    Raises:
        InputError: the file can't be written.
    """
    content = io.BytesIO()
    try:
        with h5py.File(content, "w") as file:
            for index, (key, shape) in enumerate(SHAPES.items()):
                values = [pair[index] for pair in arrays.values()]
                file[key] = np.array(values, dtype=np.float32).reshape(-1, *shape)
            file["names"] = _fixed_width(list(arrays))
            file.attrs.update({"design": design, "source": source, "classes": _fixed_width(classes)})
    except ValueError as error:
        raise InputError(
            f"{path}: an image's name can't be stored ({first_line(error)}): rename it, to UTF-8 text without NUL."
        ) from error
    try:
        write_atomic(path, lambda out: out.write(content.getbuffer()))
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror}).") from error


def _fixed_width(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """Texts as UTF-8, all as wide as the longest: HDF5 can crash on a damaged file that has texts of free length."""
    if any("\0" in text for text in texts):
        raise ValueError("a NUL character")
    encoded = np.array([text.encode("utf-8") for text in texts], dtype=np.bytes_)
    return encoded.astype(h5py.string_dtype("utf-8", encoded.dtype.itemsize))


def read_regions(path: Path) -> RegionFile:
    """Read a region file.

    Raises:
        InputError: the file is missing, is not such a file, leads to another file by a link, or announces more than
            it stores.
    """
    if not path.is_file():
        raise InputError(
            f"dataset.local_path: no region file {path}. Make it with: python -m data.regions build --images FOLDER "
            f"--out {path}; or leave dataset.local_path out for a global-only model."
        )
    if path.suffix == ".npy":
        out = path.with_suffix(".h5")
        raise InputError(
            f"dataset.local_path: {path} has the published form, a pickle, which is not read here. Convert it once: "
            f"python -m data.regions convert {path} {out}; then --set dataset.local_path={out}"
        )
    try:
        with h5py.File(path, "r") as file:
            nodes, adjacency = (hdf5_data(file, key)[:] for key in SHAPES)
            names = _decoded(hdf5_data(file, "names"))
            classes = _read_classes(file)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: not a region file ({first_line(error)}).") from error
    _refuse_broken(path, names, {"nodes": nodes, "adjacency": adjacency})
    row = {name: index for index, name in enumerate(names)}
    return RegionFile(path, row, nodes.astype(np.float32), adjacency.astype(np.float32), classes)


def _read_classes(file: h5py.File) -> tuple[str, ...]:
    """Names of the class columns."""
    if "classes" not in file.attrs:
        return ()
    stored = file.attrs.get_id("classes")
    if stored.dtype.hasobject or stored.shape not in ((count,) for count in range(CLASSES + 1)):
        raise ValueError(f"classes is no list of at most {CLASSES} names of a fixed width")
    return tuple(_decoded(file.attrs["classes"]))


def _decoded(texts: h5py.Dataset | NDArray[np.bytes_]) -> list[str]:
    """Texts of a fixed width."""
    if texts.dtype.kind != "S":
        raise ValueError(f"{texts.dtype} instead of texts of a fixed width")
    return [bytes(text).decode("utf-8") for text in texts[:]]


def _refuse_broken(path: Path, names: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise for shapes and types that don't fit, names that come twice, and numbers that are not finite."""
    faults = [f"names: {name!r} comes {times} times" for name, times in Counter(names).items() if times > 1]
    for key, values in arrays.items():
        expected = (len(names), *SHAPES[key])
        if values.shape != expected or values.dtype.kind != "f":
            faults.append(f"{key}: shape {values.shape} of {values.dtype}, expected {expected} of floats")
            continue
        broken = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max).all(axis=(1, 2)))
        faults += [f"{key}: {names[row]!r} holds numbers that are not finite in 32 bits" for row in broken.tolist()]
    refuse_faults(path, faults)
