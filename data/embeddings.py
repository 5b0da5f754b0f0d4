"""Stored embeddings of a list: the HDF5 files of `test.py --export` and of `reports.teacher` (docs/export.md).

Letters: N images, M captions, D embedding.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from data.annotations import Annotations
from data.lists import first_names
from runtime.untrusted import hdf5_data
from utils import InputError, first_line

FORMAT = "rsretrieval-embeddings-1"
EMBEDDINGS = ("image_embeddings", "caption_embeddings")


def read_embeddings(path: Path, annotations: Annotations) -> tuple[Tensor, Tensor]:
    """The embeddings of each image and caption of a list, found by file name and by wording.

    Args:
        path: a file with one group of embeddings, which may hold more images and captions than the list.
        annotations: the list.

    Returns:
        Images [N, D] and captions [M, D], float32.

    Raises:
        InputError: the file can't be read, has several groups, or lacks an image or a caption.
    """
    try:
        with h5py.File(path) as archive:
            inside = [archive[key] for key in archive if isinstance(archive.get(key, getlink=True), h5py.HardLink)]
            groups = [group for group in inside if isinstance(group, h5py.Group)]
            if archive.attrs.get("format") != FORMAT or len(groups) != 1:
                raise ValueError(f"{len(groups)} groups of embeddings in format {archive.attrs.get('format')}")
            stored = [np.asarray(hdf5_data(groups[0], name)[:], dtype=np.float32) for name in EMBEDDINGS]
            kinds = ("image_names", "captions")
            keys = [hdf5_data(archive, name, any_width=True).asstr()[:].tolist() for name in kinds]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as fault:
        raise InputError(
            f"{path}: expected one group of embeddings in the format {FORMAT} (docs/export.md); found: "
            f"{first_line(fault)}"
        ) from fault
    wanted = (annotations.image_names, annotations.captions)
    images, captions = (_rows(path, *given) for given in zip(stored, keys, wanted, ("image", "caption"), strict=True))
    if images.shape[1] != captions.shape[1]:
        raise InputError(f"{path}: images have {images.shape[1]} numbers and captions {captions.shape[1]}.")
    return images, captions


def _rows(path: Path, stored: np.ndarray, keys: list[str], wanted: tuple[str, ...], kind: str) -> Tensor:
    """The rows of the wanted keys."""
    if stored.ndim != 2 or len(stored) != len(keys) or not np.isfinite(stored).all():
        raise InputError(f"{path}: its {kind} embeddings are no finite matrix of {len(keys)} rows.")
    place = {key: row for row, key in enumerate(keys)}
    if absent := [key for key in wanted if key not in place]:
        raise InputError(
            f"{path}: no embedding of {len(absent)} of {len(wanted)} {kind}s ({first_names(absent)}): it is of another "
            "list. Make it anew: python -m reports.teacher"
        )
    return torch.from_numpy(stored[[place[key] for key in wanted]])
