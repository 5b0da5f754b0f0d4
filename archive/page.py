"""The page of an archive: a FastAPI app that answers searches as JSON and hands out images by their row."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from archive.page_limits import Guard, RateLimit, Turns
from archive.scenes import Scenes
from archive.searcher import BY_COSINE, Hit, Searcher
from archive.store import NameRows, StoreFault
from archive.thumbnails import Thumbnails, to_jpeg
from archive.uploads import named, read_image, read_upload
from data.lists import shown
from utils import InputError, logger

FILES = Path(__file__).with_name("page_files")
PER_PAGE = 24
MOST_PER_PAGE = 100
DEEPEST = 10_000
"""Images of one search that can be paged through."""
LONGEST_QUERY = 1000  # characters
IMAGES_PER_SEARCH = 100
"""How many images a client may load for each search that its rate allows."""
MOST_SEARCHES = 8  # that run or wait
MOST_UPLOADS = 4  # that arrive or are searched with
DECODED_AT_ONCE = 2  # images, of up to dataset.max_pixels each
PREVIEW = 160  # pixels


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
        self._searches = Turns(MOST_SEARCHES, "searches")
        self._uploads = Turns(MOST_UPLOADS, "uploads")
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
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
        self, q: Annotated[str, Query(min_length=1, max_length=LONGEST_QUERY)], view: Annotated[View, Query()]
    ) -> Found:
        """Search with a sentence."""
        found = await self._found(q, view)
        found.unknown_words = self.searcher.encoder.unknown_words(q)
        return found

    async def image(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded image."""
        with self._uploads.taken():
            name, content = await read_upload(request, "image", self.max_upload)
            async with self._decoding:
                image = await run_in_threadpool(read_image, name, content, self.options.dataset.max_pixels)
                preview = await run_in_threadpool(to_jpeg, image, PREVIEW, 85)
            found = await self._found(image, view)
        found.preview = f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
        if not self.searcher.encoder.model.scores_by_cosine():
            found.note = BY_COSINE
        return found

    async def audio(self, request: Request, view: Annotated[View, Query()]) -> Found:
        """Search with an uploaded WAV file."""
        with self._uploads.taken(), TemporaryDirectory() as folder:
            name, content = await read_upload(request, "sound", self.max_upload)
            path = Path(folder) / "upload"
            path.write_bytes(content)
            with named(path, name):
                return await self._found(path, view)

    async def file(self, row: int, size: Literal["thumbnail", "image"]) -> Response:
        """An image of the index as a JPEG file."""
        if not 0 <= row < len(self.searcher):
            raise HTTPException(404, f"there is no image {row}: the index has rows 0 to {len(self.searcher) - 1}.")
        make = self.thumbnails.thumbnail if size == "thumbnail" else self.thumbnails.image
        try:
            async with self._decoding:
                content = await run_in_threadpool(make, row)
        except InputError as fault:
            logger.warning("row %d: %s", row, fault)
            raise HTTPException(404, "this image is gone, or can't be read.") from fault
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    async def _found(self, query: str | Image.Image | Path, view: View) -> Found:
        """Search, once it is this query's turn."""
        if view.scene is not None and view.scene not in self.scenes.counts:
            raise HTTPException(404, f"there is no scene class {shown(view.scene)} in this index.")
        keep = None if view.scene is None else self.scenes.keep(view.scene)
        total = min(DEEPEST, len(self.searcher) if keep is None else int(keep.sum()))
        pages = math.ceil(total / view.per_page)
        offset = (view.page - 1) * view.per_page
        if offset >= total:
            raise HTTPException(404, f"there is no page {view.page}: {total} images fill {pages}.")
        wanted = min(view.per_page, total - offset)
        with self._searches.taken():
            answer = await run_in_threadpool(self.searcher.answer, query, wanted, offset, keep)
        return Found(
            page=view.page,
            pages=pages,
            per_page=view.per_page,
            total=total,
            encode_ms=answer.encode_ms,
            search_ms=answer.search_ms,
            hits=[self._shown(rank, hit) for rank, hit in enumerate(answer.hits, start=offset + 1)],
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


def make_app(searcher: Searcher, scenes: Scenes, hosts: Sequence[str], max_upload: int, rate: int) -> FastAPI:
    """The page of an index and what it asks for.

    Args:
        searcher: of the index.
        scenes: classes of its images, which can be filtered by; none for a vector store.
        hosts: names that the page answers to, against DNS rebinding.
        max_upload: bytes of an uploaded file.
        rate: searches of a client per minute; of images `IMAGES_PER_SEARCH` times as many.

    Raises:
        InputError: the names of the index can't be read.
    """
    service = Service(searcher, scenes, max_upload)
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="RSRetrieval", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    limits = {
        "/api/search": RateLimit(rate),
        "/thumbnail": (images := RateLimit(rate * IMAGES_PER_SEARCH)),
        "/image": images,
    }
    app.add_middleware(Guard, limits=limits)
    app.add_exception_handler(InputError, _tell_input_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_api_route("/api/about", service.about)
    app.add_api_route("/api/search", service.text)
    app.add_api_route("/api/search/image", service.image, methods=["POST"])
    app.add_api_route("/api/search/audio", service.audio, methods=["POST"])

    @app.get("/thumbnail/{row}")
    async def thumbnail(row: int) -> Response:
        return await service.file(row, "thumbnail")

    @app.get("/image/{row}")
    async def image(row: int) -> Response:
        return await service.file(row, "image")

    @app.get("/")
    async def index() -> FileResponse:
        return FileResponse(FILES / "index.html")

    app.mount("/static", StaticFiles(directory=FILES))
    return app


async def _tell_input_error(request: Request, fault: Exception) -> JSONResponse:
    """Status 400, or 503 where it is the vector store's, whose address is nobody's business."""
    if isinstance(fault, StoreFault):
        logger.error("%s", fault)
        return JSONResponse({"detail": "the vector store does not answer; try again later."}, 503)
    return JSONResponse({"detail": str(fault)}, 400)


async def _tell_invalid(request: Request, fault: Exception) -> JSONResponse:
    """The first fault of the parameters in one line, status 422."""
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}."}, 422)
