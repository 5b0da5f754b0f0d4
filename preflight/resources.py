"""What pretrainings and trainings have in common: images, weights, memory, and room to write."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from data.headers import Header, read_headers
from data.image_library import available_memory, choose_cache
from data.rasters.survey import settled
from option.dataset import ImageReading
from option.fields import leaves
from option.parameters import ModelParameters
from preflight.findings import Findings
from runtime.machine import SHARED_MEMORY, existing_part, free_bytes, in_words

PREFETCHED = 2
"""Batches that each worker of a DataLoader has ready."""

Stored = tuple[int, int]
"""Images to be kept: how many, and their side in pixels."""


def check_headers(
    found: Findings, group: str, folder: Path, names: Iterable[str], images: ImageReading
) -> list[Header]:
    """Read the headers of all images that are there; those that are not are `check_images`' matter.

    The range of those with more than 8 bits is said, as a run would find it.
    """
    paths = [path for name in sorted(set(names)) if (path := folder / name).is_file()]
    headers, faults = read_headers(paths, images.rule)
    found.add_alike(group, faults)
    settled(images.rule, paths)
    return headers


def describe_headers(headers: Sequence[Header]) -> str:
    """Sides and kinds of images, in words."""
    if not headers:
        return "none"
    sides = [min((h.width, h.height) for h in headers), max((h.width, h.height) for h in headers)]
    sizes = " to ".join(dict.fromkeys(f"{width} x {height}" for width, height in sides))
    kinds = ", ".join(f"{count:,} {mode}" for mode, count in Counter(h.mode for h in headers).most_common())
    return f"{sizes} pixels ({kinds})"


def check_memory(
    found: Findings, images: ImageReading, stores: Sequence[Stored], device: torch.device
) -> tuple[str, int]:
    """See whether the images' cache and what workers hand over fit.

    Args:
        found: gets the faults.
        images: the `dataset` block.
        stores: what is kept, in the order in which it is opened.
        device: where the model goes.

    Returns:
        Where the images are kept and what that takes, in words, and the bytes on disk.
    """
    needed: Counter[str] = Counter()
    for count, size in stores:
        cache = choose_cache(images.cache, count, size, device, promised=needed)
        needed[cache] += count * 3 * size**2
    available = available_memory()
    if needed["ram"] > available:
        found.add(
            "Memory",
            f"dataset.cache: ram takes {in_words(needed['ram'])} for images, {in_words(available)} are available; "
            "set dataset.cache=disk, or a smaller dataset.image_size",
        )
    _check_shared(found, images, needed, max((size for _, size in stores), default=0))
    places = [f"{cache} ({in_words(size)})" if cache != "off" else "off" for cache, size in needed.items() if size]
    return " and ".join(places) or "nowhere", needed["disk"]


def _check_shared(found: Findings, images: ImageReading, caches: Iterable[str], size: int) -> None:
    handed_over = images.batch_size * 3 * size**2 * images.workers * PREFETCHED
    if not ({"disk", "off"} & {*caches}) or not handed_over or not SHARED_MEMORY.is_dir():
        return
    free = free_bytes(SHARED_MEMORY)
    if handed_over > free:
        found.add(
            "Memory",
            f"{SHARED_MEMORY}: {in_words(free)} free, but {images.workers} workers hand over up to "
            f"{in_words(handed_over)}; give it more (docker run --shm-size=8g), or set dataset.workers=0",
        )


def checkpoint_bytes(model: nn.Module, averaged: bool) -> tuple[int, int]:
    """About how large a run's `last.pth` (with Adam's two averages) and its best weights become."""
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in model.parameters() if value.requires_grad)
    return (2 if averaged else 1) * weights + 2 * trained, weights


def check_output(found: Findings, folder: Path, needed: int) -> str:
    """See whether a run can write its folder, which takes `needed` bytes; what is needed and free, in words."""
    try:
        place = existing_part(folder)
        with tempfile.TemporaryFile(dir=place):
            free = free_bytes(place)
    except OSError as fault:
        found.add(
            "Output",
            f"{folder}: can't be written ({fault.strerror}); make it writable, or set logs.ckpt_save_path to a folder "
            "that is",
        )
        return ""
    if free < needed:
        found.add(
            "Output",
            f"{folder}: the run takes about {in_words(needed)}, {in_words(free)} are free; free some space, or set "
            "logs.ckpt_save_path to another disk",
        )
    return f"{in_words(needed)} are written to {folder}, {in_words(free)} are free"


def each_weight_alone(parameters: ModelParameters) -> Iterator[ModelParameters]:
    """The `model` block once for each file of weights that it names, with the others left out."""
    kind = type(parameters)
    blank: dict[str, str | None] = {}
    for key, field in leaves(kind, "model").items():
        if Path in (field.annotation, *get_args(field.annotation)):
            blank[key] = None
        elif key == "model.backbone.pretrained":
            blank[key] = "none"
    given = parameters.model_dump(by_alias=True)
    for kept in blank:
        block = _with(given, {key: value for key, value in blank.items() if key != kept})
        if block != _with(given, blank):
            yield kind.model_validate(block)


def _with(tree: dict[str, object], values: dict[str, str | None], prefix: str = "model.") -> dict[str, object]:
    return {
        key: _with(value, values, f"{prefix}{key}.") if isinstance(value, dict) else values.get(f"{prefix}{key}", value)
        for key, value in tree.items()
    }
