"""The page behind a real server: silent and greedy clients, slow uploads, and who is kept waiting."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.responses import Response

from archive import connections, page, page_images, serve, thumbnails
from archive.arguments import read_arguments, share_processors
from archive.page import make_app
from archive.page_limits import Refusals
from archive.scenes import no_scenes
from archive.searcher import Searcher
from data.images import decode
from option.images import ImageRule

FORM = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
UPLOAD = (
    b"POST /api/search/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 5000\r\n\r\n" + FORM
)
HEALTHY = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@contextmanager
def serving(app: FastAPI, behind_proxy: bool = False) -> Iterator[int]:
    """The port of a server as the command configures it."""
    with serve.open_socket("127.0.0.1", 0) as listening:
        listening.listen()
        server = uvicorn.Server(serve.configured(app, behind_proxy))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def connected(port: int, sent: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    """A connection from an address of this machine."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket) -> bytes:
    """What comes until the server closes a connection."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def client(port: int, address: str = "127.0.0.1") -> httpx2.Client:
    """What asks the page from an address of this machine."""
    transport = httpx2.HTTPTransport(local_address=address)
    return httpx2.Client(transport=transport, base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20)


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()

    @made.get("/")
    def short() -> int:
        return 5

    @made.get("/slow")
    async def slow() -> int:
        await asyncio.sleep(1)
        return 7

    @made.get("/large")
    def large() -> Response:
        return Response(bytes(50_000_000))

    return made


class TestConnections:
    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"GET / HT",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
            HEALTHY + b"GET /",  # after a request that was answered
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab",  # refused before its body has come
            b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n",  # not read
        ],
    )
    def test_one_on_which_nothing_happens_is_closed(
        self, app: FastAPI, monkeypatch: pytest.MonkeyPatch, sent: bytes
    ) -> None:
        monkeypatch.setattr(connections, "SILENT_SECONDS", 0.2)
        with serving(app) as port, connected(port, sent) as connection:
            started = time.monotonic()
            if b"large" in sent:
                time.sleep(2)
                assert len(ended(connection)) < 50_000_000
            else:
                ended(connection)
            assert time.monotonic() - started < 4

    def test_an_answer_may_take_longer(self, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "SILENT_SECONDS", 0.2)
        with serving(app) as port, client(port) as asking:
            assert asking.get("/slow").json() == 7

    def test_silent_ones_are_nobody_elses_fault(self, app: FastAPI) -> None:
        with serving(app) as port:
            silent = [connected(port, b"GET / HT" if number % 2 else b"") for number in range(200)]
            with client(port) as same, client(port, "127.0.0.2") as other:
                assert same.get("/").json() == other.get("/").json() == 5
            for connection in silent:
                connection.close()

    @pytest.mark.parametrize("behind_proxy", [False, True])
    def test_so_many_of_one(
        self, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, behind_proxy: bool
    ) -> None:
        monkeypatch.setattr(connections, "MOST_OF_ONE", 2)
        monkeypatch.setattr(connections.Connection, "refusals", Refusals())
        with serving(app, behind_proxy) as port:
            held = [connected(port) for _ in range(2)]
            with connected(port, HEALTHY.replace(b"Host", b"Connection: close\r\nHost")) as third:
                answer = ended(third)
            assert answer.startswith(b"HTTP/1.1 200 OK" if behind_proxy else b"HTTP/1.1 503 Service Unavailable")
            assert ("127.0.0.1: refused, it has 3 connections of 3 in all" in caplog.text) != behind_proxy
            with client(port, "127.0.0.2") as other:
                assert other.get("/").json() == 5
            held.pop().close()
            time.sleep(0.2)
            with client(port) as same:
                assert same.get("/").json() == 5
            held.pop().close()

    def test_so_many_in_all(self, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
        with serving(app) as port, connected(port), connected(port, HEALTHY, "127.0.0.2") as second:
            assert b"503" in ended(second)


def image() -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "green").save(file, "PNG")
    return {"image": file.getvalue()}


class TestWaiting:
    @pytest.fixture
    def searcher(self, made: Path) -> Searcher:
        return Searcher.open(made, "cpu")

    @pytest.fixture
    def port(self, searcher: Searcher) -> Iterator[int]:
        with serving(make_app(searcher, lambda _: no_scenes(len(searcher)), serve.LOOPBACK, 2**20)) as port:
            yield port

    def test_slow_uploads_of_one_client_leave_room_for_others(self, port: int) -> None:
        slow = [connected(port, UPLOAD) for _ in range(20)]
        time.sleep(0.5)
        with client(port, "127.0.0.2") as other:
            assert other.post("/api/search/image", files=image()).status_code == 200
        for connection in slow:
            connection.close()

    @pytest.mark.parametrize("blocked", ["image", "text"])
    def test_one_kind_does_not_wait_for_another(
        self, port: int, searcher: Searcher, monkeypatch: pytest.MonkeyPatch, blocked: str
    ) -> None:
        verb = {"image": "image", "text": "texts"}[blocked]
        go_on, encode = threading.Event(), getattr(searcher.encoder, verb)

        def wait(query: object) -> object:
            assert go_on.wait(20)
            return encode(query)

        monkeypatch.setattr(searcher.encoder, verb, wait)
        asked: dict[str, Callable[[httpx2.Client], httpx2.Response]] = {
            "image": lambda asking: asking.post("/api/search/image", files=image()),
            "text": lambda asking: asking.get("/api/search?q=a+red+field"),
            "thumbnail": lambda asking: asking.get("/thumbnail/3"),
        }
        found: list[int] = []

        def ask() -> None:
            with client(port) as asking:
                found.append(asked[blocked](asking).status_code)

        with ThreadPoolExecutor(12) as threads:
            for _ in range(12):
                threads.submit(ask)
            time.sleep(0.5)
            with client(port) as asking:
                assert [asked[kind](asking).status_code for kind in asked if kind != blocked] == [200, 200]
            assert found == []
            go_on.set()
        assert found == [200] * 12

    def test_nothing_is_done_for_those_who_went_away(
        self, port: int, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go_on, decoded = threading.Event(), list[str]()

        def wait(path: Path, rule: ImageRule) -> Image.Image:
            decoded.append(path.name)
            assert go_on.wait(20)
            return decode(path, rule)

        monkeypatch.setattr(thumbnails, "decode", wait)
        gone = [connected(port, b"GET /thumbnail/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % row) for row in range(10)]
        time.sleep(0.5)
        for connection in gone:
            connection.close()
        time.sleep(0.5)
        go_on.set()
        with client(port) as asking:
            assert asking.get("/thumbnail/11").status_code == 200
        assert len(decoded) == page_images.AT_ONCE + 1  # those that had their turn, and the last one

    def test_fifty_clients_at_one_address_are_all_answered(self, port: int) -> None:
        found: list[int] = []

        def ask(number: int) -> None:
            with client(port) as asking:
                for turn in range(3):
                    if number % 5 == 0:
                        found.append(asking.post("/api/search/image", files=image()).status_code)
                    else:
                        found.append(asking.get("/api/search", params={"q": f"a red field {turn}"}).status_code)

        with ThreadPoolExecutor(50) as threads:
            list(threads.map(ask, range(50)))
        assert found == [200] * 150

    def test_waiting_sentences_are_encoded_together(
        self, port: int, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches: list[int] = []
        encode = searcher.encoder.texts

        def counted(sentences: list[str]) -> object:
            batches.append(len(sentences))
            time.sleep(0.5 if len(batches) == 1 else 0)
            return encode(sentences)

        monkeypatch.setattr(searcher.encoder, "texts", counted)
        answers: dict[str, list[str]] = {}

        def ask(sentence: str, number: int) -> None:
            with client(port) as asking:
                found = asking.get("/api/search", params={"q": sentence, "per_page": 2, "page": number}).json()
            answers[f"{sentence} {number}"] = [hit["name"] for hit in found["hits"]]

        with ThreadPoolExecutor(6) as threads:
            for sentence, number in itertools.product(("a red field", "a green roof", "a blue pond"), (1, 2)):
                threads.submit(ask, sentence, number)
                time.sleep(0 if batches else 0.1)
        assert batches[0] == 1
        assert sum(batches) == 6
        assert len(batches) < 5
        monkeypatch.undo()
        assert len(answers) == 6
        for asked, names in answers.items():
            sentence, number = asked[:-2], int(asked[-1])
            assert names == [hit.name for hit in searcher.text(sentence, 2, 2 * (number - 1))]


def test_the_queue_holds_what_the_connections_bring() -> None:
    from archive import turns

    assert turns.MOST_WAITING >= connections.MOST_CONNECTIONS
    assert turns.MOST_WAITING_OF_ONE >= connections.MOST_OF_ONE
    assert page.UPLOADS_OF_ONE < page.UPLOADS_AT_ONCE


@pytest.mark.parametrize(("command", "waiting"), [("serve", "passive"), ("measure", None)])
def test_threads_of_a_server_sleep_while_they_wait(
    monkeypatch: pytest.MonkeyPatch, command: str, waiting: str | None
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    share_processors(read_arguments([command, "index"]))
    assert os.environ.get("OMP_WAIT_POLICY") == waiting
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    share_processors(read_arguments(["serve", "index"]))
    assert os.environ["OMP_WAIT_POLICY"] == "active"
