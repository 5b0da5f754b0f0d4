"""The page of an archive: a FastAPI app that answers searches as JSON and hands out images by their row."""

from __future__ import annotations

import asyncio
import base64
import math
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from archive.living import Living, Opened
from archive.page_limits import Guard, RateLimit, Refusals, client_of
from archive.scenes import Scenes
from archive.searcher import BY_COSINE, Answer, Hit, Searcher, Sentence
from archive.shards import IndexFault
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

    def __init__(self, searcher: Searcher, find_scenes: Callable[[Searcher], Scenes], max_upload: int) -> None:
        """See `make_app`."""
        self.living = Living(searcher, find_scenes)
        self.max_upload = max_upload
        self.encoder = searcher.encoder
        self.options = searcher.encoder.options
        self._searches = Turns(2 * TOGETHER, 2 * TOGETHER, "searches")  # half run while the others gather
        self._uploads = Turns(UPLOADS_AT_ONCE, UPLOADS_OF_ONE, "uploads")
        self._images = Turns(IMAGES_AT_ONCE, IMAGES_AT_ONCE, "images")
        # Sentences, uploads and images of the index have threads of their own, so that none waits for another kind.
        self._texts = Batches(self._answers, TOGETHER, ThreadPoolExecutor(1))
        self._for_uploads = ThreadPoolExecutor(1, initializer=_stand_back)
        self._for_images = ThreadPoolExecutor(IMAGES_AT_ONCE, initializer=_stand_back)
        self._unreadable = Refusals()
        self._for_changes = ThreadPoolExecutor(1, initializer=_stand_back)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """What goes on while the app runs."""
        async with self.living.watched(self._for_changes):
            yield

    def about(self) -> About:
        """What is searched."""
        now = self.living.now
        return About(
            images=len(now.searcher),
            model=self.options.model.name,
            search=now.searcher.kind,
            audio=self.encoder.model.uses_audio,
            scenes=[SceneCount(name=name, images=count) for name, count in now.scenes.counts.items()],
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

        async def ask(now: Opened) -> Found:
            window = _window(view, now)
            answer = await self._texts.result((now, view.scene), Sentence(q, window.k, window.offset))
            return _found(answer, view, window, now)

        self.encoder.check_sentence(q)
        _window(view, self.living.now)  # refused before it waits
        async with self._searches.taken(client_of(request.scope)):
            await _still_there(request)
            found = await self._asked(ask)
        found.unknown_words = self.encoder.unknown_words(q)
        return found

    async def image(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded image."""

        async def ask(now: Opened) -> Found:
            window = _window(view, now)
            answer, preview = await _in(self._for_uploads, self._of_image, *sent, window, now, view.scene)
            found = _found(answer, view, window, now)
            found.preview = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
            return found

        _window(view, self.living.now)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "image", self.max_upload)
            found = await self._asked(ask)
        if not self.encoder.model.scores_by_cosine():
            found.note = BY_COSINE
        return found

    async def audio(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded WAV file."""

        async def ask(now: Opened) -> Found:
            window = _window(view, now)
            answer = await _in(self._for_uploads, self._of_sound, *sent, window, now, view.scene)
            return _found(answer, view, window, now)

        _window(view, self.living.now)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "sound", self.max_upload)
            return await self._asked(ask)

    async def _asked(self, ask: Callable[[Opened], Awaitable[Found]]) -> Found:
        """What an index answers; one that was changed under the question is asked again."""
        now = self.living.now
        try:
            return await ask(now)
        except IndexFault:
            await _in(self._for_changes, self.living.take_up)
            if self.living.now is now:
                raise
            return await ask(self.living.now)

    async def file(
        self, request: Request, row: int, size: Literal["thumbnail", "image"], index: str | None = None
    ) -> Response:
        """An image of a version of the index as a JPEG file."""
        state = self.living.of(index)
        if state is None:
            raise HTTPException(404, "the index has changed since this search: search again.")
        if not 0 <= row < len(state.searcher):
            raise HTTPException(404, f"there is no image {row}: the index has rows 0 to {len(state.searcher) - 1}.")
        content = state.thumbnails.kept(row) if size == "thumbnail" else None
        if content is None:
            content = await self._made(request, state.thumbnails, row, size)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    async def _made(
        self, request: Request, thumbnails: Thumbnails, row: int, size: Literal["thumbnail", "image"]
    ) -> bytes:
        make = thumbnails.thumbnail if size == "thumbnail" else thumbnails.image
        try:
            async with self._images.taken(client_of(request.scope)):
                await _still_there(request)
                content = await _in(self._for_images, make, row)
        except IndexFault:
            raise
        except InputError as fault:
            self._unreadable.note(f"row {row}: {fault}")
            raise HTTPException(404, "this image is gone, or can't be read.") from fault
        if size == "thumbnail":
            thumbnails.keep(row, content)
        return content

    def _of_image(
        self, name: str, content: bytes, window: Window, now: Opened, scene: str | None
    ) -> tuple[Answer, bytes]:
        """The answer to an uploaded image, and its preview."""
        with stored(name, content) as path:
            image = decode(path, self.options.dataset.max_pixels)
        answer = now.searcher.answer(image, window.k, window.offset, _keep(now, scene))
        return answer, to_jpeg(image, PREVIEW, 85)

    def _of_sound(self, name: str, content: bytes, window: Window, now: Opened, scene: str | None) -> Answer:
        """The answer to an uploaded WAV file."""
        with stored(name, content) as path:
            return now.searcher.answer(path, window.k, window.offset, _keep(now, scene))

    def _answers(self, of: Hashable, sentences: Sequence[Sentence]) -> list[Answer]:
        """Of sentences that are asked of one scene class of a state, or of all its images."""
        now, scene = cast(tuple[Opened, str | None], of)
        return now.searcher.answers(sentences, _keep(now, scene))


def _keep(now: Opened, scene: str | None) -> NDArray[np.bool_] | None:
    return None if scene is None else now.scenes.keep(scene)


def _window(view: View, now: Opened) -> Window:
    """What to search for, so that a page can be shown."""
    if view.scene is not None and view.scene not in now.scenes.counts:
        raise HTTPException(404, f"there is no scene class {shown(view.scene)} in this index.")
    count = len(now.searcher) if view.scene is None else now.scenes.counts[view.scene]
    if now.searcher.kind != "exact" and view.scene is None:
        return Window(k=min(DEEPEST_PROPOSED, count), offset=0, total=None)
    total, offset = min(DEEPEST, count), (view.page - 1) * view.per_page
    _check_page(view, total)
    return Window(k=min(view.per_page, total - offset), offset=offset, total=total)


def _found(answer: Answer, view: View, window: Window, now: Opened) -> Found:
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
        hits=[_shown(rank, hit, now) for rank, hit in enumerate(hits, start=offset + 1)],
    )


def _shown(rank: int, hit: Hit, now: Opened) -> FoundImage:
    row = now.rows.row(hit.name) if now.rows is not None else hit.row
    return FoundImage(
        rank=rank,
        score=hit.score,
        name=hit.label,
        scene=None if row is None else now.scenes.of(row),
        row=row,
        thumbnail=None if row is None else f"thumbnail/{row}?index={now.version}",
        image=None if row is None else f"image/{row}?index={now.version}",
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
    searcher: Searcher,
    find_scenes: Callable[[Searcher], Scenes],
    hosts: Sequence[str],
    max_upload: int,
    rate: int | None = None,
) -> FastAPI:
    """The page of an index and what it asks for.

    Args:
        searcher: of the index.
        find_scenes: classes of its images, which can be filtered by; none for a vector store.
        hosts: names that the page answers to, against DNS rebinding.
        max_upload: bytes of an uploaded file.
        rate: searches of a client per minute, and `IMAGES_PER_SEARCH` times as many images; None: no limit.

    Raises:
        InputError: the names of the index can't be read.
    """
    service = Service(searcher, find_scenes, max_upload)
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="RSRetrieval", openapi_url=None, docs_url=None, redoc_url=None, lifespan=service.lifespan)
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
    async def thumbnail(request: Request, row: int, index: str | None = None) -> Response:
        return await service.file(request, row, "thumbnail", index)

    @app.get("/image/{row}")
    async def image(request: Request, row: int, index: str | None = None) -> Response:
        return await service.file(request, row, "image", index)

    @app.get("/")
    async def start() -> FileResponse:
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
