"""Files that a browser sends: read no further than they may be, and named as their sender names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from data.lists import shown
from utils import InputError

FORM_BYTES = 2**16
"""What an upload may have beside its file: boundaries and headers."""
UPLOAD_SECONDS = 30


async def read_upload(request: Request, field: str, most: int, seconds: float = UPLOAD_SECONDS) -> tuple[str, bytes]:
    """The file of a multipart form; no more of the body is read than may be, whatever its header announces.

    Args:
        request: with the body unread.
        field: the form's field.
        most: bytes of the file.
        seconds: that the sender may take.

    Returns:
        The file's name as the sender gives it, and its content.

    Raises:
        HTTPException: too large (413), too slow (408), broken off or no such file in it (400).
    """
    too_large = HTTPException(413, f"the file is too large: at most {most / 2**20:g} MiB are taken.")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > most + FORM_BYTES:
        raise too_large
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > most + FORM_BYTES:
            raise too_large
        return message

    try:
        with anyio.fail_after(seconds):
            async with Request(request.scope, receive).form(max_files=1, max_fields=1, max_part_size=1024) as form:
                file = form.get(field)
                if not isinstance(file, UploadFile):
                    raise HTTPException(400, f"no file there: send it as multipart/form-data in the field {field!r}.")
                content = await file.read()
                name = file.filename or field
    except TimeoutError as fault:
        raise HTTPException(408, f"the file took longer than {seconds:g} s to arrive.") from fault
    except ClientDisconnect as fault:
        raise HTTPException(400, "the sender went away.") from fault
    if len(content) > most:
        raise too_large
    return name, content


@contextmanager
def stored(name: str, content: bytes) -> Iterator[Path]:
    """An upload as a file while the context lasts; messages call it by the sender's name in place of its path."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_bytes(content)
        try:
            yield path
        except InputError as fault:
            if str(path) not in str(fault):
                raise
            raise InputError(str(fault).replace(str(path), shown(name))) from fault
