"""Places annotated with sentences: the published `anno.json` of semantic localization."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from data.forms import read_form
from data.lists import name_fault, refuse_faults
from utils import write_text_atomic

ADVICE = (
    'Expected a list of {"jpg_name": a file in the image folder, "caption": a sentence, "points": a list of polygons, '
    "each a list of three or more [x, y] in pixels}."
)
_Point = tuple[float, float]


class _Entry(BaseModel):
    """An entry of the JSON; keys that are not needed are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, strict=True)

    jpg_name: str
    caption: Annotated[str, Field(min_length=1)]
    points: Annotated[list[Annotated[list[_Point], Field(min_length=3)]], Field(min_length=1)]


@dataclass(frozen=True)
class Place:
    """Where one sentence is true in one image.

    Attributes:
        image: file name in the image folder.
        caption: the sentence.
        polygons: each [V, 2], x and y of its V vertices in pixels.
    """

    image: str
    caption: str
    polygons: tuple[NDArray[np.float64], ...]


def read_places(path: Path) -> list[Place]:
    """Read an `anno.json`.

    Raises:
        InputError: the file can't be read, or does not hold that, or a name leaves the image folder, or the points of
            a polygon are all the same; the message names the entries, counted from 0.
    """
    entries = read_form(path, TypeAdapter(list[_Entry]), "annotated places", ADVICE)
    faults = [] if entries else ["the file: it holds no entry"]
    for number, entry in enumerate(entries):
        if name := name_fault(entry.jpg_name, "image"):
            faults.append(f"{number}.jpg_name: {name}")
        faults += [
            f"{number}.points.{place}: all its points are the same"
            for place, polygon in enumerate(entry.points)
            if len(set(polygon)) == 1
        ]
    refuse_faults(path, faults, ADVICE)
    return [Place(entry.jpg_name, entry.caption.strip(), _arrays(entry.points)) for entry in entries]


def refuse_outside(path: Path, places: Sequence[Place], numbers: Sequence[int], width: int, height: int) -> None:
    """Raise an InputError where a point of some places of an image lies outside of its width and height in pixels.

    `numbers` are those of the places in the file, which the message names.
    """
    faults = [
        f"{number}.points.{index}.{point}: {polygon[point].tolist()} lies outside of {place.image}"
        for number, place in zip(numbers, places, strict=True)
        for index, polygon in enumerate(place.polygons)
        for point in np.flatnonzero(((polygon < 0) | (polygon > (width, height))).any(axis=1))
    ]
    refuse_faults(path, faults, f"The image has {width} x {height} pixels; points are [x, y] with x from the left.")


def write_places(path: Path, places: Sequence[Place]) -> None:
    """Write an `anno.json`."""
    entries = [
        {"jpg_name": place.image, "caption": place.caption, "points": [p.tolist() for p in place.polygons]}
        for place in places
    ]
    write_text_atomic(path, json.dumps(entries, indent=1) + "\n")


def _arrays(polygons: Sequence[Sequence[_Point]]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(polygon, dtype=np.float64) for polygon in polygons)
