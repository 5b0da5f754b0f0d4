"""The page of an archive: a FastAPI app that answers searches as JSON and hands out images by their row."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, cast

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware
from xstatic.pkg import leaflet

from archive.answers import (
    LONGEST_QUERY,
    MOST_PER_PAGE,
    PER_PAGE,
    About,
    Found,
    Sample,
    SceneCount,
    View,
    Window,
    Words,
    add_note,
    check_scene,
    found_by,
    keep,
    shown_image,
    window_of,
)
from archive.encoder import Encoder
from archive.living import Living, Opened
from archive.page_images import MOST_IN_ZIP, PageImages
from archive.page_limits import Guard, RateLimit, client_of
from archive.scenes import Scenes
from archive.searcher import BY_COSINE, Answer, Searcher, Sentence
from archive.shards import IndexFault
from archive.thumbnails import to_jpeg
from archive.turns import Batches, Turns, in_thread, stand_back, still_there
from archive.uploads import read_upload, stored
from data.images import decode
from utils import InputError, logger
from vocab import UNKNOWN

FILES = Path(__file__).with_name("page_files")
IMAGES_PER_SEARCH = 100
"""How many images a client may load for each search that its rate allows."""
TOGETHER = 32  # sentences that are encoded and searched with at once
IMAGES_WAIT = 0.25  # seconds at most that they stand back while sentences wait
UPLOADS_AT_ONCE = 16  # that arrive or are searched with
UPLOADS_OF_ONE = 4  # of them of one client
PREVIEW = 160  # pixels
EXAMPLES = (
    "planes parked beside a terminal",
    "many boats in a harbor",
    "a river with trees on its banks",
    "a baseball field beside a road",
    "white storage tanks",
    "a playground surrounded by buildings",
)
"""To begin with; of a model that knows some words alone, those that it understands."""


class Service:
    """The answers to the page's requests."""

    def __init__(self, searcher: Searcher, find_scenes: Callable[[Searcher], Scenes], max_upload: int) -> None:
        """See `make_app`."""
        self.living = Living(searcher, find_scenes)
        self.max_upload = max_upload
        self.encoder = searcher.encoder
        self.options = searcher.encoder.options
        self._words = closed_words(searcher.encoder)
        self._searches = Turns(2 * TOGETHER, 2 * TOGETHER, "searches")  # half run while the others gather
        self._uploads = Turns(UPLOADS_AT_ONCE, UPLOADS_OF_ONE, "uploads")
        # Sentences, uploads and images of the index have threads of their own, so that none waits for another kind.
        self._for_searches = ThreadPoolExecutor(1)
        self._texts = Batches(self._answers, TOGETHER, self._for_searches)
        self._for_uploads = ThreadPoolExecutor(1, initializer=stand_back)
        self.images = PageImages(self.living, lambda: self._texts.idle(IMAGES_WAIT))
        self._for_changes = ThreadPoolExecutor(1, initializer=stand_back)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """What goes on while the app runs."""
        await in_thread(self._for_searches, self.encoder.prepare)
        async with self.living.watched(self._for_changes):
            yield

    def about(self) -> About:
        """What is searched."""
        now = self.living.now
        return About(
            index=now.version,
            images=len(now.searcher),
            model=self.options.model.name,
            search=now.searcher.kind,
            audio=self.encoder.model.uses_audio,
            words=bool(self._words),
            examples=[text for text in EXAMPLES if not self.encoder.unknown_words(text)],
            scenes=[SceneCount(name=name, images=count) for name, count in now.scenes.counts.items()],
            per_page=PER_PAGE,
            longest_query=LONGEST_QUERY,
            max_upload=self.max_upload,
            most_in_list=MOST_PER_PAGE,
            most_in_zip=MOST_IN_ZIP,
        )

    def words(self) -> Words:
        """The words that the model knows, where it knows no others."""
        return Words(words=self._words)

    def sample(
        self, count: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = PER_PAGE, scene: str | None = None
    ) -> Sample:
        """Some images, other ones each time."""
        now = self.living.now
        check_scene(scene, now)
        chosen = keep(now, scene)
        rows = range(len(now.searcher)) if chosen is None else np.flatnonzero(chosen).tolist()
        return Sample(images=[shown_image(now, row) for row in random.sample(rows, min(count, len(rows)))])

    async def text(
        self,
        request: Request,
        q: Annotated[str, Query(min_length=1, max_length=LONGEST_QUERY)],
        view: Annotated[View, Query()],
    ) -> Found:
        """Search with a sentence."""

        async def ask(now: Opened) -> Found:
            window = window_of(view, now)
            answer = await self._texts.result((now, view.scene), Sentence(q, window.k, window.offset))
            return found_by(answer, view, window, now)

        self.encoder.check_sentence(q)
        window_of(view, self.living.now)  # refused before it waits
        async with self._searches.taken(client_of(request.scope)):
            await still_there(request)
            found = await self._asked(ask)
        found.unknown_words = self.encoder.unknown_words(q)
        if unread := self.encoder.unread(q):
            add_note(found, f"The sentence is longer than the model reads, which leaves out its end: {unread}")
        return found

    async def like(self, request: Request, row: int, view: Annotated[View, Query()], index: str | None = None) -> Found:
        """Search with an image of the index, `row` of its version `index`."""

        async def ask(now: Opened) -> Found:
            place = await in_thread(self._for_searches, self.images.place_now, row, index, now)
            window = window_of(view, now)
            asked = place, window.k, window.offset, keep(now, view.scene)
            answer = await in_thread(self._for_searches, now.searcher.similar, *asked)
            found = found_by(answer, view, window, now)
            found.like = shown_image(now, place)
            return found

        async with self._searches.taken(client_of(request.scope)):
            await still_there(request)
            found = await self._asked(ask)
        return self._noted(found)

    async def image(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded image."""

        async def ask(now: Opened) -> Found:
            window = window_of(view, now)
            answer, preview = await in_thread(self._for_uploads, self._of_image, *sent, window, now, view.scene)
            found = found_by(answer, view, window, now)
            found.preview = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
            return found

        window_of(view, self.living.now)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "image", self.max_upload)
            found = await self._asked(ask)
        return self._noted(found)

    async def audio(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded WAV file."""

        async def ask(now: Opened) -> Found:
            window = window_of(view, now)
            answer = await in_thread(self._for_uploads, self._of_sound, *sent, window, now, view.scene)
            return found_by(answer, view, window, now)

        window_of(view, self.living.now)
        async with self._uploads.taken(client_of(request.scope)):
            sent = await read_upload(request, "sound", self.max_upload)
            return await self._asked(ask)

    async def _asked(self, ask: Callable[[Opened], Awaitable[Found]]) -> Found:
        """What an index answers; one that was changed under the question is asked again."""
        now = self.living.now
        try:
            return await ask(now)
        except IndexFault:
            await in_thread(self._for_changes, self.living.take_up)
            if self.living.now is now:
                raise
            return await ask(self.living.now)

    def _noted(self, found: Found) -> Found:
        """With a word on how images are compared."""
        if not self.encoder.model.scores_by_cosine():
            add_note(found, BY_COSINE)
        return found

    def _of_image(
        self, name: str, content: bytes, window: Window, now: Opened, scene: str | None
    ) -> tuple[Answer, bytes]:
        """The answer to an uploaded image, and its preview."""
        with stored(name, content) as path:
            image = decode(path, self.options.dataset.rule)
        answer = now.searcher.answer(image, window.k, window.offset, keep(now, scene))
        return answer, to_jpeg(image, PREVIEW, 85)

    def _of_sound(self, name: str, content: bytes, window: Window, now: Opened, scene: str | None) -> Answer:
        """The answer to an uploaded WAV file."""
        with stored(name, content) as path:
            return now.searcher.answer(path, window.k, window.offset, keep(now, scene))

    def _answers(self, of: Hashable, sentences: Sequence[Sentence]) -> list[Answer]:
        """Of sentences that are asked of one scene class of a state, or of all its images."""
        now, scene = cast(tuple[Opened, str | None], of)
        return now.searcher.answers(sentences, keep(now, scene))


def closed_words(encoder: Encoder) -> list[str]:
    """The words that a model knows, in alphabetical order; none where it reads any."""
    if encoder.reads_all:
        return []
    return sorted(word for word in encoder.vocabulary.word2idx if word != UNKNOWN)


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
        searches = RateLimit(rate)
        limits = {"/api/search": searches, "/api/zip": searches, "/thumbnail": images, "/image": images}
    app.add_middleware(Guard, limits=limits)
    app.add_exception_handler(InputError, _tell_input_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    answers: dict[str, Callable[..., object]] = {
        "/api/about": service.about,
        "/api/words": service.words,
        "/api/sample": service.sample,
        "/api/search": service.text,
        "/api/search/like/{row}": service.like,
        "/api/zip": service.images.zip,
        "/thumbnail/{row}": service.images.thumbnail,
        "/image/{row}": service.images.whole,
    }
    for path, answer in answers.items():
        app.add_api_route(path, answer)
    app.add_api_route("/api/search/image", service.image, methods=["POST"])
    app.add_api_route("/api/search/audio", service.audio, methods=["POST"])

    @app.get("/")
    async def start() -> FileResponse:
        return FileResponse(FILES / "index.html")

    app.mount("/static", StaticFiles(directory=FILES))
    app.mount("/leaflet", StaticFiles(directory=leaflet.BASE_DIR))
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
