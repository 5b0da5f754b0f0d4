"""What a page's server is asked for and what it answers, as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import HTTPException, Query
from numpy.typing import NDArray
from pydantic import BaseModel

from archive.living import Opened
from archive.searcher import Answer, Hit, printable
from data.lists import shown
from data.rasters.places import Bounds

PER_PAGE = 24
MOST_PER_PAGE = 1000
"""What the download of a list asks for at once."""
DEEPEST = 10_000
"""Images of one search that can be paged through."""
DEEPEST_PROPOSED = 500
"""The same of a vector index or store, which says how many it finds only when it has found them."""
LONGEST_QUERY = 1000  # characters


class SceneCount(BaseModel):
    """A scene class and how many images show it."""

    name: str
    images: int


class About(BaseModel):
    """What is searched, and the limits of a request.

    Attributes:
        index: differs between indexes: rows mean the same images only where it is the same.
        words: whether `/api/words` has the words that the model knows.
        examples: sentences to begin with.
        most_in_list: images of a downloaded list.
        most_in_zip: and of files in an archive.
    """

    index: str
    images: int
    model: str
    search: str
    audio: bool
    words: bool
    examples: list[str]
    scenes: list[SceneCount]
    per_page: int
    longest_query: int
    max_upload: int
    most_in_list: int
    most_in_zip: int


class ShownImage(BaseModel):
    """An image; without a row, and links, where the index does not know it.

    Attributes:
        bounds: where it lies, see `archive.records.Record`.
    """

    name: str
    scene: str | None
    bounds: Bounds | None
    row: int | None
    thumbnail: str | None
    image: str | None


class FoundImage(ShownImage):
    """An image that was found."""

    rank: int
    score: float


class Words(BaseModel):
    """The words that a model knows, in alphabetical order; none where it reads all."""

    words: list[str]


class Sample(BaseModel):
    """Images that were drawn by chance."""

    images: list[ShownImage]


class Found(BaseModel):
    """A page of what was found, and the milliseconds that it took.

    Attributes:
        like: the image of the index that was searched with.
        preview: of an image that was uploaded, as a data address.
        gone: images that would stand among the hits, but whose files are gone.
        note: what is to be said of the query and the hits.
    """

    page: int
    pages: int
    per_page: int
    total: int
    encode_ms: float
    search_ms: float
    unknown_words: list[str] = []
    gone: int = 0
    note: str | None = None
    like: ShownImage | None = None
    preview: str | None = None
    hits: list[FoundImage]


class View(BaseModel):
    """Which part of what is found to show.

    Attributes:
        page: from 1.
        per_page: images of a page.
        scene: only images of this class.
        min_score: only images of this score or more.
    """

    page: Annotated[int, Query(ge=1, le=DEEPEST)] = 1
    per_page: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = PER_PAGE
    scene: Annotated[str | None, Query(max_length=LONGEST_QUERY)] = None
    min_score: Annotated[float | None, Query(allow_inf_nan=False)] = None


@dataclass(frozen=True)
class Window:
    """What is searched for: k images after the best `offset`, of `total` that can be shown.

    A total of None will be known when they are found: all that there are have been asked for.
    """

    k: int
    offset: int
    total: int | None


def keep(now: Opened, scene: str | None) -> NDArray[np.bool_] | None:
    """Which images are of a class, by row; None: all."""
    return None if scene is None else now.scenes.keep(scene)


def check_scene(scene: str | None, now: Opened) -> None:
    """Raise an HTTPException for a class that no image shows."""
    if scene is not None and scene not in now.scenes.counts:
        raise HTTPException(404, f"there is no scene class {shown(scene)} in this index.")


def window_of(view: View, now: Opened) -> Window:
    """What to search for, so that a page can be shown.

    Raises:
        HTTPException: there is no such page or scene class.
    """
    check_scene(view.scene, now)
    count = len(now.searcher) if view.scene is None else now.scenes.counts[view.scene]
    proposed = now.searcher.kind != "exact" and view.scene is None
    if proposed or view.min_score is not None:
        return Window(k=min(DEEPEST_PROPOSED if proposed else DEEPEST, count), offset=0, total=None)
    total, offset = min(DEEPEST, count), (view.page - 1) * view.per_page
    _check_page(view, total)
    return Window(k=min(view.per_page, total - offset), offset=offset, total=total)


def found_by(answer: Answer, view: View, window: Window, now: Opened) -> Found:
    """The page of an answer."""
    hits, total, offset = answer.hits, window.total, (view.page - 1) * view.per_page
    if total is None:
        hits = [hit for hit in hits if view.min_score is None or hit.score >= view.min_score]
        total, hits = len(hits), hits[offset : offset + view.per_page]
        _check_page(view, total)
    found = Found(
        page=view.page,
        pages=math.ceil(total / view.per_page),
        per_page=view.per_page,
        total=total,
        encode_ms=answer.encode_ms,
        search_ms=answer.search_ms,
        gone=answer.gone,
        hits=[_found_image(rank, hit, now) for rank, hit in enumerate(hits, start=offset + 1)],
    )
    if answer.gone:
        add_note(found, f"{answer.gone} images that fit are gone from the archive's folder and were left out.")
    return found


def add_note(found: Found, text: str) -> None:
    """Say one thing more of an answer."""
    found.note = text if found.note is None else f"{found.note} {text}"


def shown_image(now: Opened, row: int) -> ShownImage:
    """An image of the index."""
    return ShownImage(**_of_row(now, printable(now.searcher.index.name(row)), row))


def _found_image(rank: int, hit: Hit, now: Opened) -> FoundImage:
    row = now.rows.row(hit.name) if now.rows is not None else hit.row
    return FoundImage(rank=rank, score=hit.score, **_of_row(now, hit.label, row))


def _of_row(now: Opened, name: str, row: int | None) -> dict[str, Any]:
    if row is None:
        return {"name": name, "scene": None, "bounds": None, "row": None, "thumbnail": None, "image": None}
    links = {kind: f"{kind}/{row}?index={now.version}" for kind in ("thumbnail", "image")}
    bounds = now.searcher.index.bounds(row)
    return {"name": name, "scene": now.scenes.of(row), "bounds": bounds, "row": row, **links}


def _check_page(view: View, total: int) -> None:
    """Raise an HTTPException for a page beyond the last; an empty answer has one."""
    pages = math.ceil(total / view.per_page)
    if view.page > max(1, pages):
        raise HTTPException(404, f"there is no page {view.page}: {total} images fill {pages}.")
