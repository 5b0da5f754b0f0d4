"""Reads detections in COCO's JSON form, as any detector can write them."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from data.forms import read_form
from data.lists import name_fault, refuse_faults
from data.regions.graph import CLASSES, Detections

ADVICE = (
    "Expected an object with the keys images (id, file_name, width, height), annotations (image_id, category_id, bbox "
    "[left, top, width, height] in pixels, score 0..1) and categories (id, name). A bare list of results goes under "
    "the key annotations."
)


class _Entry(BaseModel):
    """An entry of the JSON; keys that are not needed are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Side = Annotated[int, Field(gt=0, lt=2**31)]
Pixels = Annotated[float, Field(gt=-(2.0**31), lt=2.0**31)]


class _Image(_Entry):
    id: Id
    file_name: str
    width: Side
    height: Side


class _Annotation(_Entry):
    image_id: Id
    category_id: Id
    bbox: tuple[Pixels, Pixels, Pixels, Pixels]
    score: Annotated[float, Field(ge=0, le=1)] = 1.0


class _Category(_Entry):
    id: Id
    name: str


class _Coco(_Entry):
    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_detections(path: Path) -> tuple[dict[str, Detections], list[str]]:
    """Read a COCO file: `images`, `annotations` (an annotation without `score` counts as 1) and `categories`.

    Boxes are cut at the image's edge; what lies outside of it is left out. Up to 15 categories have a column each, in
    the order of their ids.

    Returns:
        The detections of each image by its file name, and the names of the categories.

    Raises:
        InputError: the file can't be read, or does not hold that; the message names the entries.
    """
    content = read_form(path, TypeAdapter(_Coco), "COCO detections", ADVICE)
    _refuse_inconsistent(path, content)
    categories = sorted(content.categories, key=lambda category: category.id)
    column = {category.id: index for index, category in enumerate(categories)}
    of_image = defaultdict(list)
    for annotation in content.annotations:
        of_image[annotation.image_id].append(annotation)
    return {image.file_name: _detections(image, of_image[image.id], column) for image in content.images}, [
        category.name for category in categories
    ]


def _refuse_inconsistent(path: Path, content: _Coco) -> None:
    """Raise for what each entry alone does not show: repeated and unknown ids, repeated names, too many categories."""
    kinds: dict[str, list[object]] = {
        "images: id": [image.id for image in content.images],
        "images: file_name": [image.file_name for image in content.images],
        "categories: id": [category.id for category in content.categories],
    }
    faults = [
        f"{kind} {value!r} comes {times} times"
        for kind, values in kinds.items()
        for value, times in Counter(values).items()
        if times > 1
    ]
    named = {image.file_name: name_fault(image.file_name, "image") for image in content.images}
    faults += [f"images: file_name {fault}" for fault in named.values() if fault]
    images, categories = set(kinds["images: id"]), set(kinds["categories: id"])
    for index, annotation in enumerate(content.annotations):
        if annotation.image_id not in images:
            faults.append(f"annotations.{index}: no image has the id {annotation.image_id}")
        if annotation.category_id not in categories:
            faults.append(f"annotations.{index}: no category has the id {annotation.category_id}")
    if len(content.categories) > CLASSES:
        faults.append(f"{len(content.categories)} categories, at most {CLASSES} have a column: merge some")
    refuse_faults(path, faults)


def _detections(image: _Image, annotations: list[_Annotation], column: dict[int, int]) -> Detections:
    """The annotations of one image, those with an area inside of it."""
    boxes = np.array([annotation.bbox for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    size = np.array([image.width, image.height])
    low = np.clip(boxes[:, :2], 0, size) / size
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, size) / size
    stored = np.hstack([(low + high) / 2, high - low]).astype(np.float32)
    inside = np.all(stored[:, 2:] > 0, axis=1)  # in 32 bits, where a side can vanish
    return Detections(
        boxes=stored[inside],
        classes=np.array([column[a.category_id] for a in annotations], dtype=np.int64)[inside],
        scores=np.array([a.score for a in annotations], dtype=np.float32)[inside],
    )
