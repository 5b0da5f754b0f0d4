"""The images of an index as a page hands them out: JPEG files, and the files themselves in a ZIP archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse

from archive.living import Living, Opened
from archive.page_limits import Refusals, client_of
from archive.shards import IndexFault
from archive.turns import Turns, in_thread, stand_back, still_there
from utils import InputError

AT_ONCE = 2  # images that are decoded
MOST_IN_ZIP = 200  # files
ZIP_BYTES = 200 * 2**20
ZIP_PIECE = 2**20  # bytes that are read at a time


class PageImages:
    """Images by their row; none by a path that a browser names."""

    def __init__(self, living: Living, stand_aside: Callable[[], Awaitable[None]]) -> None:
        """Open nothing yet; every image is sent after `stand_aside`, which gives way to what is more urgent."""
        self._living = living
        self._stand_aside = stand_aside
        self._turns = Turns(AT_ONCE, AT_ONCE, "images")
        self._threads = ThreadPoolExecutor(AT_ONCE, initializer=stand_back)
        self._unreadable = Refusals()

    def state(self, row: int, index: str | None) -> Opened:
        """The version of the index that has a row.

        Raises:
            HTTPException: that is long past, or has no such row.
        """
        state = self._living.of(index)
        if state is None:
            raise HTTPException(404, "the index has changed since this search: search again.")
        if not 0 <= row < len(state.searcher):
            raise HTTPException(404, f"there is no image {row}: the index has rows 0 to {len(state.searcher) - 1}.")
        return state

    def place_now(self, row: int, index: str | None, now: Opened) -> int:
        """The row of the same image in another version.

        Raises:
            HTTPException: as `state`; or it is not there any more.
        """
        state = self.state(row, index)
        if state is now:
            return row
        try:
            return now.searcher.index.names().index(state.searcher.index.name(row))
        except ValueError as fault:
            raise HTTPException(404, "this image is no longer in the index.") from fault

    async def thumbnail(self, request: Request, row: int, index: str | None = None) -> Response:
        """A small JPEG file of an image."""
        await self._stand_aside()
        thumbnails = self.state(row, index).thumbnails
        content = thumbnails.kept(row)
        if content is None:
            content = await self._made(request, thumbnails.thumbnail, row)
            thumbnails.keep(row, content)
        return _jpeg(content)

    async def whole(self, request: Request, row: int, index: str | None = None) -> Response:
        """A JPEG file of an image."""
        await self._stand_aside()
        return _jpeg(await self._made(request, self.state(row, index).thumbnails.image, row))

    async def _made(self, request: Request, make: Callable[[int], bytes], row: int) -> bytes:
        async with self._turns.taken(client_of(request.scope)):
            await still_there(request)
            try:
                return await in_thread(self._threads, make, row)
            except IndexFault:
                raise
            except InputError as fault:
                self._unreadable.note(f"row {row}: {fault}")  # its place is for the log alone
                raise HTTPException(404, "this image is gone, or can't be read.") from fault

    async def zip(self, request: Request, rows: str, index: str | None = None) -> Response:
        """The files of some images, `rows` with commas between them, as they are in their folder."""
        numbers = _numbers(rows)
        (state,) = {self.state(row, index) for row in numbers}
        async with self._turns.taken(client_of(request.scope)):
            await still_there(request)
            files = await in_thread(self._threads, _files, state, numbers)
        headers = {"Content-Disposition": 'attachment; filename="images.zip"', "Cache-Control": "no-store"}
        return StreamingResponse(zipped(files), media_type="application/zip", headers=headers)


def _jpeg(content: bytes) -> Response:
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _files(state: Opened, rows: Sequence[int]) -> list[tuple[str, Path]]:
    """Names and paths of those that are there.

    Raises:
        HTTPException: none is, or they are too large together.
    """
    found, size = [], 0
    for row in rows:
        with suppress(OSError, InputError):  # gone, or behind a link out of the folder
            path = state.thumbnails.path(row)
            size += path.stat().st_size
            found.append((state.searcher.index.name(row), path))
    if not found:
        raise HTTPException(404, "none of these images is there any more.")
    if size > ZIP_BYTES:
        raise HTTPException(413, f"these files have {size >> 20} MiB, at most {ZIP_BYTES >> 20} are sent at once.")
    return found


def _numbers(rows: str) -> list[int]:
    """Different whole numbers, in order.

    Raises:
        HTTPException: it says others, or too many.
    """
    try:
        numbers = sorted({int(row) for row in rows.split(",")})
    except ValueError as fault:
        raise HTTPException(422, "rows: expected numbers with commas between them.") from fault
    if len(numbers) > MOST_IN_ZIP:
        raise HTTPException(413, f"{len(numbers)} images, at most {MOST_IN_ZIP} are sent at once.")
    return numbers


class _Pieces(io.RawIOBase):
    """A file that can only be written to; what was written is taken out piece by piece."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, content: Any, /) -> int:
        self.written += content
        return len(content)

    def take(self) -> bytes:
        content = bytes(self.written)
        self.written.clear()
        return content


def zipped(files: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """A ZIP archive of files under their names, in pieces; what vanishes meanwhile is left out.

    Images are compressed already: they are stored as they are.
    """
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            printed = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                source = path.open("rb")
            except OSError:
                continue
            with source, archive.open(zipfile.ZipInfo(printed), "w") as target:
                while content := source.read(ZIP_PIECE):
                    target.write(content)
                    yield pieces.take()
    yield pieces.take()
