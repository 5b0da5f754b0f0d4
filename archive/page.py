"""The page of an archive: a FastAPI app that answers searches as JSON and hands out images by their row."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import os
import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from archive.page_limits import Guard, RateLimit, client_of
from archive.scenes import Scenes
from archive.searcher import BY_COSINE, Answer, Hit, Searcher, Sentence
from archive.shards import IndexFault
from archive.store import NameRows
from archive.thumbnails import Thumbnails, to_jpeg
from archive.turns import Batches, Turns
from archive.uploads import read_upload, stored
from data.images import decode
from data.lists import shown
from utils import InputError, logger

FILES = Path(__file__).with_name("page_files")
PER_PAGE = 24
MOST_PER_PAGE = 100
DEEPEST = 10_000
"""Images of one search that can be paged through."""
DEEPEST_PROPOSED = 500
"""The same of a vector index or store, which says how many it finds only when it has found them."""
LONGEST_QUERY = 1000  # characters
IMAGES_PER_SEARCH = 100
"""How many images a client may load for each search that its rate allows."""
TOGETHER = 32  # sentences that are encoded and searched with at once
UPLOADS_AT_ONCE = 16  # that arrive or are searched with
UPLOADS_OF_ONE = 4  # of them of one client
IMAGES_AT_ONCE = 2  # of the index, decoded
POLITE = 5  # what threads with less urgent work add to their niceness
PREVIEW = 160  # pixels

Result = TypeVar("Result")


class SceneCount(BaseModel):
    """A scene class and how many images show it."""

    name: str
    images: int


class About(BaseModel):
    """What is searched, and the limits of a request."""

    images: int
    model: str
    search: str
    audio: bool
    scenes: list[SceneCount]
    per_page: int
    longest_query: int
    max_upload: int


class FoundImage(BaseModel):
    """An image that was found; without a row, and links, where the index does not know it."""

    rank: int
    score: float
    name: str
    scene: str | None
    row: int | None
    thumbnail: str | None
    image: str | None


class Found(BaseModel):
    """A page of what was found, and the milliseconds that it took."""

    page: int
    pages: int
    per_page: int
    total: int
    encode_ms: float
    search_ms: float
    unknown_words: list[str] = []
    note: str | None = None
    preview: str | None = None
    hits: list[FoundImage]


class View(BaseModel):
    """Which part of what is found to show.

    Attributes:
        page: from 1.
        per_page: images of a page.
        scene: only images of this class.
    """

    page: Annotated[int, Query(ge=1, le=DEEPEST)] = 1
    per_page: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = PER_PAGE
    scene: Annotated[str | None, Query(max_length=LONGEST_QUERY)] = None


@dataclass(frozen=True)
class Window:
    """What is searched for: k images after the best `offset`, of `total` that can be shown.

    A total of None will be known when they are found: all that there are have been asked for.
    """

    k: int
    offset: int
    total: int | None


class Service:
    """The answers to the page's requests."""

    def __init__(self, searcher: Searcher, scenes: Scenes, max_upload: int) -> None:
        """See `make_app`."""
        self.searcher = searcher
        self.scenes = scenes
        self.max_upload = max_upload
        self.options = searcher.encoder.options
        self.thumbnails = Thumbnails(searcher.index, searcher.images, self.options.dataset.max_pixels)
        self._rows = NameRows(searcher.index) if searcher.kind == "store" else None
        self._searches = Turns(2 * TOGETHER, 2 * TOGETHER, "searches")  # half run while the others gather
        self._uploads = Turns(UPLOADS_AT_ONCE, UPLOADS_OF_ONE, "uploads")
        self._images = Turns(IMAGES_AT_ONCE, IMAGES_AT_ONCE, "images")
        # Sentences, uploads and images of the index have threads of their own, so that none waits for another kind.
        self._texts = Batches(self._answers, TOGETHER, ThreadPoolExecutor(1))
        self._for_uploads = ThreadPoolExecutor(1, initializer=_stand_back)
        self._for_images = ThreadPoolExecutor(IMAGES_AT_ONCE, initializer=_stand_back)
        # Part of the images' addresses, so that a browser does not show those of another index from its memory.
        identity = f"{searcher.images}\n{searcher.index.manifest.shards_sha256}"
        self._version = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def about(self) -> About:
        """What is searched."""
        return About(
            images=len(self.searcher),
            model=self.options.model.name,
            search=self.searcher.kind,
            audio=self.searcher.encoder.model.uses_audio,
            scenes=[SceneCount(name=name, images=count) for name, count in self.scenes.counts.items()],
            per_page=PER_PAGE,
            longest_query=LONGEST_QUERY,
            max_upload=self.max_upload,
        )

    async def text(
        self,
        request: Request,
        q: Annotated[str, Query(min_length=1, max_length=LONGEST_QUERY)],
        view: Annotated[View, Query()],
    ) -> Found:
        """Search with a sentence."""
        self.searcher.encoder.check_sentence(q)
        window = self._window(view)
        async with self._searches.taken(client_of(request.scope)):
            await _still_there(request)
            answer = await self._texts.result(view.scene, Sentence(q, window.k, window.offset))
        found = self._found(answer, view, window)
        found.unknown_words = self.searcher.encoder.unknown_words(q)
        return found

    async def image(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded image."""
        window = self._window(view)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "image", self.max_upload)
            answer, preview = await _in(self._for_uploads, self._of_image, *sent, window, view.scene)
        found = self._found(answer, view, window)
        found.preview = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
        if not self.searcher.encoder.model.scores_by_cosine():
            found.note = BY_COSINE
        return found

    async def audio(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded WAV file."""
        window = self._window(view)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "sound", self.max_upload)
            answer = await _in(self._for_uploads, self._of_sound, *sent, window, view.scene)
        return self._found(answer, view, window)

    async def file(self, request: Request, row: int, size: Literal["thumbnail", "image"]) -> Response:
        """An image of the index as a JPEG file."""
        if not 0 <= row < len(self.searcher):
            raise HTTPException(404, f"there is no image {row}: the index has rows 0 to {len(self.searcher) - 1}.")
        content = self.thumbnails.kept(row) if size == "thumbnail" else None
        if content is None:
            content = await self._made(request, row, size)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    async def _made(self, request: Request, row: int, size: Literal["thumbnail", "image"]) -> bytes:
        make = self.thumbnails.thumbnail if size == "thumbnail" else self.thumbnails.image
        try:
            async with self._images.taken(client_of(request.scope)):
                await _still_there(request)
                content = await _in(self._for_images, make, row)
        except IndexFault:
            raise
        except InputError as fault:
            logger.warning("row %d: %s", row, fault)
            raise HTTPException(404, "this image is gone, or can't be read.") from fault
        if size == "thumbnail":
            self.thumbnails.keep(row, content)
        return content

    def _of_image(self, name: str, content: bytes, window: Window, scene: str | None) -> tuple[Answer, bytes]:
        """The answer to an uploaded image, and its preview."""
        with stored(name, content) as path:
            image = decode(path, self.options.dataset.max_pixels)
        answer = self.searcher.answer(image, window.k, window.offset, self._keep(scene))
        return answer, to_jpeg(image, PREVIEW, 85)

    def _of_sound(self, name: str, content: bytes, window: Window, scene: str | None) -> Answer:
        """The answer to an uploaded WAV file."""
        with stored(name, content) as path:
            return self.searcher.answer(path, window.k, window.offset, self._keep(scene))

    def _answers(self, scene: Hashable, sentences: Sequence[Sentence]) -> list[Answer]:
        """Of sentences that are asked of one scene class, or of all images."""
        assert scene is None or isinstance(scene, str)
        return self.searcher.answers(sentences, self._keep(scene))

    def _keep(self, scene: str | None) -> NDArray[np.bool_] | None:
        return None if scene is None else self.scenes.keep(scene)

    def _window(self, view: View) -> Window:
        """What to search for, so that a page can be shown."""
        if view.scene is not None and view.scene not in self.scenes.counts:
            raise HTTPException(404, f"there is no scene class {shown(view.scene)} in this index.")
        count = len(self.searcher) if view.scene is None else self.scenes.counts[view.scene]
        if self.searcher.kind != "exact" and view.scene is None:
            return Window(k=min(DEEPEST_PROPOSED, count), offset=0, total=None)
        total, offset = min(DEEPEST, count), (view.page - 1) * view.per_page
        _check_page(view, total)
        return Window(k=min(view.per_page, total - offset), offset=offset, total=total)

    def _found(self, answer: Answer, view: View, window: Window) -> Found:
        """The page of an answer."""
        hits, total, offset = answer.hits, window.total, (view.page - 1) * view.per_page
        if total is None:
            total, hits = len(hits), hits[offset : offset + view.per_page]
            _check_page(view, total)
        return Found(
            page=view.page,
            pages=math.ceil(total / view.per_page),
            per_page=view.per_page,
            total=total,
            encode_ms=answer.encode_ms,
            search_ms=answer.search_ms,
            hits=[self._shown(rank, hit) for rank, hit in enumerate(hits, start=offset + 1)],
        )

    def _shown(self, rank: int, hit: Hit) -> FoundImage:
        row = self._rows.row(hit.name) if self._rows is not None else hit.row
        return FoundImage(
            rank=rank,
            score=hit.score,
            name=hit.label,
            scene=None if row is None else self.scenes.of(row),
            row=row,
            thumbnail=None if row is None else f"thumbnail/{row}?index={self._version}",
            image=None if row is None else f"image/{row}?index={self._version}",
        )


def _check_page(view: View, total: int) -> None:
    """Raise an HTTPException for a page beyond the last; an empty answer has one."""
    pages = math.ceil(total / view.per_page)
    if view.page > max(1, pages):
        raise HTTPException(404, f"there is no page {view.page}: {total} images fill {pages}.")


async def _still_there(request: Request) -> None:
    """Spare the work for a client that went away while it waited for its turn; of a request without a body."""
    if await request.is_disconnected():
        raise HTTPException(400, "the sender went away.")


def _stand_back() -> None:
    """Let a thread take what sentences leave of the processors, where the system can tell threads apart."""
    if sys.platform == "linux":
        os.nice(POLITE)


async def _in(threads: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def make_app(
    searcher: Searcher, scenes: Scenes, hosts: Sequence[str], max_upload: int, rate: int | None = None
) -> FastAPI:
    """The page of an index and what it asks for.

    Args:
        searcher: of the index.
        scenes: classes of its images, which can be filtered by; none for a vector store.
        hosts: names that the page answers to, against DNS rebinding.
        max_upload: bytes of an uploaded file.
        rate: searches of a client per minute, and `IMAGES_PER_SEARCH` times as many images; None: no limit.

    Raises:
        InputError: the names of the index can't be read.
    """
    service = Service(searcher, scenes, max_upload)
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="RSRetrieval", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    limits: dict[str, RateLimit] = {}
    if rate is not None:
        images = RateLimit(rate * IMAGES_PER_SEARCH)
        limits = {"/api/search": RateLimit(rate), "/thumbnail": images, "/image": images}
    app.add_middleware(Guard, limits=limits)
    app.add_exception_handler(InputError, _tell_input_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_api_route("/api/about", service.about)
    app.add_api_route("/api/search", service.text)
    app.add_api_route("/api/search/image", service.image, methods=["POST"])
    app.add_api_route("/api/search/audio", service.audio, methods=["POST"])

    @app.get("/thumbnail/{row}")
    async def thumbnail(request: Request, row: int) -> Response:
        return await service.file(request, row, "thumbnail")

    @app.get("/image/{row}")
    async def image(request: Request, row: int) -> Response:
        return await service.file(request, row, "image")

    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(FILES / "index.html")

    app.mount("/static", StaticFiles(directory=FILES))
    return app


async def _tell_input_error(request: Request, fault: Exception) -> JSONResponse:
    """Status 400, or 503 where it is the index's, whose place is nobody's business."""
    if isinstance(fault, IndexFault):
        logger.error("%s", fault)
        return JSONResponse({"detail": "the index does not answer; try again later."}, 503, {"Retry-After": "60"})
    return JSONResponse({"detail": str(fault)}, 400)


async def _tell_invalid(request: Request, fault: Exception) -> JSONResponse:
    """The first fault of the parameters in one line, status 422."""
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}."}, 422)
