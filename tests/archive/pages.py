"""The page of an archive of 30 images, for its tests."""

from __future__ import annotations

import tempfile

import httpx2
from fastapi.testclient import TestClient

from archive.page import make_app
from archive.scenes import Scenes
from archive.searcher import Searcher

MIB = 2**20
HOSTILE = "<img src=x onerror=alert(1)>.png"
MANY = 30  # images, which fill two of the page's pages


def client_with(searcher: Searcher, scenes: Scenes, **limits: int) -> TestClient:
    return TestClient(
        make_app(searcher, lambda _: scenes, ["testserver"], **{"max_upload": MIB, "rate": 1000} | limits)
    )


def row_of(searcher: Searcher, name: str) -> int:
    return searcher.index.names().index(name)


def assert_refused(response: httpx2.Response, status: int, *words: str) -> None:
    """The response is a refusal in one message, without a path of the server."""
    assert response.status_code == status, response.text
    (message,) = response.json().values()
    for word in words:
        assert word in message
    assert tempfile.gettempdir() not in message
