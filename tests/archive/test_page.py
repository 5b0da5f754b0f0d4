"""The page of an archive: its answers against the searcher's, its limits, and how it behaves in a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message
from torch import Tensor

import archive
import search
from archive import answers, living, page, serve, thumbnails
from archive.index_folder import IndexFolder, Manifest, add_shard, update_manifest
from archive.page_limits import STRICT, RateLimit, client_of
from archive.records import Record
from archive.scenes import Scenes, find_scenes, no_scenes, read_scenes
from archive.searcher import Searcher
from archive.shards import IndexFault
from archive.store import NameRows
from archive.uploads import FORM_BYTES, read_upload
from data.audio.sounds import read_sound
from data.audio.spectrogram import RATE
from data.images import decode
from option.images import ImageRule
from tests.archive.pages import MANY, MIB, assert_refused, client_with, row_of
from tests.archives import Trained
from utils import InputError


def png(width: int, height: int) -> bytes:
    """A PNG whose header announces what its data do not hold."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 80).save(file, format="JPEG")
    return file.getvalue()


class TestSearch:
    def test_about(self, client: TestClient) -> None:
        assert client.get("/api/about").json() == {
            "index": client.get("/api/sample").json()["images"][0]["image"].partition("=")[2],
            "images": MANY,
            "model": "GaLR",
            "search": "exact",
            "audio": False,
            "words": True,
            "examples": [],
            "scenes": [
                {"name": "<img src=x onerror=alert(1)>", "images": 1},
                {"name": "north", "images": 19},
                {"name": "south", "images": 10},
            ],
            "per_page": 24,
            "longest_query": 1000,
            "max_upload": MIB,
            "most_in_list": 1000,
            "most_in_zip": 200,
        }

    def test_pages_are_the_searchers_with_an_offset(self, client: TestClient, searcher: Searcher) -> None:
        answer = client.get("/api/search", params={"q": "a red field", "page": 3, "per_page": 7}).json()
        expected = searcher.text("a red field", 7, offset=14)
        assert [(hit["row"], hit["name"]) for hit in answer["hits"]] == [(hit.row, hit.name) for hit in expected]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected])
        assert [hit["rank"] for hit in answer["hits"]] == list(range(15, 22))
        assert (answer["total"], answer["pages"], answer["page"]) == (30, 5, 3)
        assert answer["encode_ms"] > 0
        assert answer["search_ms"] > 0
        assert len(client.get("/api/search", params={"q": "a red field", "page": 5, "per_page": 7}).json()["hits"]) == 2

    def test_a_scene_filters_as_keep_does(self, client: TestClient, searcher: Searcher) -> None:
        keep = np.array([name.startswith("south/") for name in searcher.index.names()])
        parameters = {"q": "a red field", "scene": "south", "page": "2", "per_page": "4"}
        answer = client.get("/api/search", params=parameters).json()
        assert [hit["row"] for hit in answer["hits"]] == [hit.row for hit in searcher.text("a red field", 4, 4, keep)]
        assert {hit["scene"] for hit in answer["hits"]} == {"south"}
        assert (answer["total"], answer["pages"]) == (10, 3)

    def test_an_image(self, client: TestClient, searcher: Searcher) -> None:
        path = searcher.images / "north/last.tif"
        sent = client.post("/api/search/image?per_page=5", files={"image": ("a.tif", path.read_bytes())}).json()
        expected = searcher.image(decode(path), 5)
        assert [hit["row"] for hit in sent["hits"]] == [hit.row for hit in expected]
        assert sent["hits"][0]["name"] == "north/last.tif"
        kind, _, preview = sent["preview"].partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(preview))) as shown:
            assert (shown.format, shown.size) == ("JPEG", (96, 64))
        assert sent["note"] is None

    def test_a_model_that_scores_pairs_says_how_images_are_compared(
        self, client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(searcher.encoder.model, "scores_by_cosine", lambda: False)
        assert "cosine" in client.post("/api/search/image", files={"image": jpeg()}).json()["note"]
        assert client.get("/api/search?q=a+red+field").json()["note"] is None

    def test_a_sound(
        self, client: TestClient, searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def heard(path: Path) -> Tensor:
            return searcher.encoder.text("a red field" if len(read_sound(path)) == 8_000 else "a blue pond")

        monkeypatch.setattr(searcher.encoder, "sound", heard)
        monkeypatch.setattr(searcher.encoder.model, "uses_audio", True)
        assert client.get("/api/about").json()["audio"] is True
        wavfile.write(tmp_path / "a.wav", RATE, np.zeros(8_000, np.float32))
        sound = (tmp_path / "a.wav").read_bytes()
        answer = client.post("/api/search/audio?per_page=6", files={"sound": sound}).json()
        assert [hit["row"] for hit in answer["hits"]] == [hit.row for hit in searcher.text("a red field", 6)]
        assert_refused(
            client.post("/api/search/audio", files={"sound": ("b.wav", b"RIFF")}), 400, "'b.wav': not a readable WAV"
        )
        assert_refused(client.post("/api/search/audio", files={"sound": bytes(MIB + 1)}), 413, "at most 1 MiB")

    def test_words_that_the_model_does_not_know(self, client: TestClient) -> None:
        found = client.get("/api/search", params={"q": "the red zeppelin"}).json()
        assert found["unknown_words"] == ["zeppelin"]

    @pytest.mark.parametrize(
        ("query", "status", "word"),
        [
            ("q=zeppelin", 400, "knows no word of 'zeppelin'"),
            ("q=%20", 400, "the sentence is empty"),
            ("", 422, "q: Field required"),
            ("q=", 422, "q: String should have at least 1 character"),
            (f"q={'red' * 334}", 422, "q: String should have at most 1000 characters"),
            ("q=red&page=0", 422, "page: Input should be greater than or equal to 1"),
            ("q=red&page=x", 422, "page: Input should be a valid integer"),
            ("q=red&per_page=1001", 422, "per_page: Input should be less than or equal to 1000"),
            ("q=red&min_score=nan", 422, "min_score: Input should be a finite number"),
            ("q=red&min_score=-2&page=3", 404, "there is no page 3: 30 images fill 2"),
            ("q=red&page=3", 404, "there is no page 3: 30 images fill 2"),
            ("q=red&scene=west", 404, "no scene class 'west'"),
        ],
    )
    def test_refused_queries(self, client: TestClient, query: str, status: int, word: str) -> None:
        assert_refused(client.get(f"/api/search?{query}"), status, word)

    def test_no_sound_where_the_model_hears_nothing(self, client: TestClient) -> None:
        assert_refused(client.post("/api/search/audio", files={"sound": b"RIFF"}), 400, "GaLR has no audio encoder")

    def test_no_deeper_than_the_limit(
        self, searcher: Searcher, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(answers, "DEEPEST", 10)
        client = client_with(searcher, scenes)
        assert client.get("/api/search?q=red&per_page=6").json()["total"] == 10
        assert len(client.get("/api/search?q=red&per_page=6&page=2").json()["hits"]) == 4
        assert_refused(client.get("/api/search?q=red&per_page=6&page=3"), 404, "no page 3")


class FakeStore:
    def __init__(self, found: Sequence[tuple[str, float]] | None) -> None:
        self.found = found
        self.asked: Any = None

    def search(self, vector: Any, k: int) -> list[tuple[str, float]]:
        if self.found is None:
            raise IndexFault("the vector store http://10.0.0.7:19530 does not work")
        self.asked = vector
        return list(self.found[:k])

    def vectors(self, names: Sequence[str]) -> Any:
        return np.array([[len(name)] * 4 for name in names], np.float32)


class TestStore:
    @pytest.fixture
    def stored(self, many: Path, monkeypatch: pytest.MonkeyPatch) -> Searcher:
        searcher = Searcher.open(many, "cpu")
        monkeypatch.setattr(searcher, "kind", "store")
        monkeypatch.setattr(searcher.presence, "there", lambda *_: True)
        monkeypatch.setattr(searcher, "_store", FakeStore([("south/3.png", 0.75), ("new.png", 0.5)]))
        return searcher

    def test_hits_get_their_rows_by_name(self, stored: Searcher) -> None:
        client = client_with(stored, no_scenes(MANY))
        assert client.get("/api/about").json()["scenes"] == []
        known, unknown = client.get("/api/search?q=red").json()["hits"]
        assert known["row"] == row_of(stored, "south/3.png")
        assert (unknown["name"], unknown["row"], unknown["thumbnail"]) == ("new.png", None, None)

    def test_similar_images_are_found_by_its_embedding(self, stored: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stored.encoder, "query_images", None)  # nothing is encoded
        row = row_of(stored, "north/1.png")  # nor read: it is damaged
        found = client_with(stored, no_scenes(MANY)).get(f"/api/search/like/{row}").json()
        assert [hit["name"] for hit in found["hits"]] == ["south/3.png", "new.png"]
        assert found["like"]["name"] == "north/1.png"
        assert isinstance(stored._store, FakeStore)
        assert stored._store.asked.tolist() == [len("north/1.png")] * 4

    def test_its_fault_does_not_tell_its_address(
        self, stored: Searcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(stored, "_store", FakeStore(None))
        response = client_with(stored, no_scenes(MANY)).get("/api/search?q=red")
        assert_refused(response, 503, "the index does not answer")
        assert "10.0.0.7" not in response.text
        assert "10.0.0.7" in caplog.text

    def test_pages_end_where_its_hits_do(self, stored: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        """A graph of neighbours need not reach all images."""
        found = [(name, 1 - place / 100) for place, name in enumerate(stored.index.names()[:7])]
        monkeypatch.setattr(stored, "_store", FakeStore(found))
        client = client_with(stored, no_scenes(MANY))
        pages = [client.get(f"/api/search?q=red&per_page=3&page={page}").json() for page in (1, 2, 3)]
        assert [(page["total"], page["pages"], page["page"]) for page in pages] == [(7, 3, 1), (7, 3, 2), (7, 3, 3)]
        assert [hit["name"] for page in pages for hit in page["hits"]] == [name for name, _ in found]
        assert [hit["rank"] for page in pages for hit in page["hits"]] == list(range(1, 8))
        assert_refused(client.get("/api/search?q=red&per_page=3&page=4"), 404, "there is no page 4: 7 images fill 3")
        monkeypatch.setattr(stored, "_store", FakeStore([]))
        empty = client.get("/api/search?q=red").json()
        assert (empty["total"], empty["pages"], empty["hits"]) == (0, 0, [])

    def test_no_deeper_than_a_vector_index_proposes(self, stored: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answers, "DEEPEST_PROPOSED", 5)
        monkeypatch.setattr(stored, "_store", FakeStore([(name, 0.5) for name in stored.index.names()]))
        assert client_with(stored, no_scenes(MANY)).get("/api/search?q=red").json()["total"] == 5

    def test_rows_of_names(self, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        names = searcher.index.names()
        rows = NameRows(searcher.index)
        assert [rows.row(name) for name in names] == list(range(MANY))
        assert rows.row("absent") is None
        monkeypatch.setattr("archive.store._digest", len)  # nearly all collide
        rows = NameRows(searcher.index)
        assert [rows.row(name) for name in names] == list(range(MANY))
        assert rows.row("south/x.png") is None


class TestImages:
    def test_are_made_anew_for_the_browser(self, client: TestClient, searcher: Searcher) -> None:
        row = row_of(searcher, "north/last.tif")
        for path in (f"/thumbnail/{row}", f"/image/{row}"):
            response = client.get(path)
            assert response.headers["content-type"] == "image/jpeg"
            with Image.open(io.BytesIO(response.content)) as shown:
                assert (shown.format, shown.size) == ("JPEG", (96, 64))
                difference = np.abs(np.asarray(shown, float) - np.asarray(decode(searcher.images / "north/last.tif")))
                assert difference.mean() < 12

    def test_are_scaled_down(self) -> None:
        for side, expected in ((320, (320, 160)), (4096, (1000, 500))):
            with Image.open(io.BytesIO(thumbnails.to_jpeg(Image.new("RGB", (1000, 500)), side, 85))) as shown:
                assert shown.size == expected

    def test_thumbnails_are_kept_up_to_a_bound(self, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[Path] = []

        def counting(path: Path, rule: ImageRule) -> Image.Image:
            decoded.append(path)
            return decode(path, rule)

        monkeypatch.setattr(thumbnails, "decode", counting)
        monkeypatch.setattr(thumbnails, "KEPT", 2)
        client = client_with(searcher, no_scenes(MANY))
        rows = [row_of(searcher, f"south/{number}.png") for number in (0, 3, 6)]
        for row in (rows[0], rows[1], rows[0], rows[2], rows[0], rows[1]):
            assert client.get(f"/thumbnail/{row}").status_code == 200
        assert [path.name for path in decoded] == ["0.png", "3.png", "6.png", "3.png"]

    @pytest.mark.parametrize("kind", ["thumbnail", "image"])
    def test_only_rows_of_the_index(self, client: TestClient, searcher: Searcher, kind: str) -> None:
        assert_refused(client.get(f"/{kind}/30"), 404, "rows 0 to 29")
        assert_refused(client.get(f"/{kind}/-1"), 404, "rows 0 to 29")
        assert_refused(client.get(f"/{kind}/{10**30}"), 404, "rows 0 to 29")
        assert_refused(client.get(f"/{kind}/one"), 422, "valid integer")
        for path in ("north/2.png", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd"):
            assert client.get(f"/{kind}/{path}").status_code in (404, 422)
        assert_refused(client.get(f"/{kind}/{row_of(searcher, 'north/1.png')}"), 404, "gone, or can't be read")

    def test_one_that_is_damaged_or_leads_outside(
        self, searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = Path(shutil.copytree(searcher.images, tmp_path / "images"))
        (images / "south/0.png").write_bytes((images / "south/0.png").read_bytes()[:60])
        (images / "south/3.png").unlink()
        Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
        (images / "south/3.png").symlink_to(tmp_path / "secret.png")
        (images / "south/6.png").write_bytes(png(30_000, 30_000))
        monkeypatch.setattr(searcher, "images", images)
        client = client_with(searcher, no_scenes(MANY))
        for number in (0, 3, 6):
            assert_refused(client.get(f"/image/{row_of(searcher, f'south/{number}.png')}"), 404, "can't be read")

    def test_addresses_differ_between_indexes(self, client: TestClient, searcher: Searcher, tmp_path: Path) -> None:
        first = client.get("/api/search?q=red").json()["hits"][0]["thumbnail"]
        elsewhere = Searcher(searcher.index, searcher.encoder, tmp_path / "unmounted", "exact")
        second = client_with(elsewhere, no_scenes(MANY)).get("/api/search?q=red").json()["hits"][0]["thumbnail"]
        assert first.partition("?")[0] == second.partition("?")[0]
        assert first != second


def grow(index: Path, manifest: Manifest, embedding: Tensor) -> None:
    """Add an image to an index as the command does."""
    add_shard(index, [Record("north/new.png")], embedding, manifest.dtype)
    update_manifest(index, manifest)


class TestIndexUnderAServer:
    @pytest.fixture
    def copied(self, many: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(many, tmp_path / "index"))

    def assert_unavailable(self, client: TestClient, path: str, caplog: pytest.LogCaptureFixture, word: str) -> None:
        response = client.get(path)
        assert_refused(response, 503, "the index does not answer; try again later")
        assert "pytest" not in response.text
        assert word in caplog.text

    def test_deleted(self, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
        client = client_with(Searcher.open(copied, "cpu"), no_scenes(MANY))
        shutil.rmtree(copied)
        self.assert_unavailable(client, "/api/search?q=red", caplog, "the index was deleted")
        self.assert_unavailable(client, "/thumbnail/0", caplog, "this part of the index is missing")

    def test_made_anew_with_another_model(self, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
        client = client_with(Searcher.open(copied, "cpu"), no_scenes(MANY))
        content = json.loads((copied / "index.json").read_text())
        (copied / "index.json").write_text(json.dumps(content | {"checkpoint_sha256": "of another"}))
        self.assert_unavailable(client, "/api/search?q=red", caplog, "made anew while it was open")

    def test_made_anew_it_is_taken_up(self, copied: Path, galr: Trained) -> None:
        searcher = Searcher.open(copied, "cpu")
        client, images = client_with(searcher, no_scenes(MANY)), searcher.images
        shutil.rmtree(copied)
        search.main(Trained(galr.options, galr.checkpoint, images).arguments(copied, "--shard", "7"))
        found = client.get("/api/search?q=red")  # its parts are gone: it is opened again for this request
        assert found.status_code == 200
        assert found.json()["total"] == MANY - 1
        assert client.get("/api/about").json()["images"] == MANY - 1
        assert_refused(client.get("/thumbnail/0?index=of-another"), 404, "search again")

    def test_a_damaged_part(self, copied: Path, caplog: pytest.LogCaptureFixture) -> None:
        client = client_with(Searcher.open(copied, "cpu"), no_scenes(MANY))
        (names,) = (copied / "shards").glob("*.json")
        names.write_text("[]")
        self.assert_unavailable(client, "/api/search?q=red", caplog, "0 names, expected 30")

    def test_images_that_are_added_are_no_matter(self, copied: Path, galr: Trained, tmp_path: Path) -> None:
        searcher = Searcher.open(copied, "cpu")
        client = client_with(searcher, no_scenes(MANY))
        before = client.get("/api/search?q=red").json()["hits"]
        manifest = (copied / "index.json").read_text()
        (copied / "index.json").write_text(manifest + "\n")
        assert client.get("/api/search?q=red").json()["hits"] == before

    def test_a_change_is_taken_up_while_it_answers(
        self, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(living, "SECONDS_BETWEEN_LOOKS", 0.01)
        manifest = IndexFolder.open(copied).manifest
        images = Path(shutil.copytree(manifest.images, tmp_path / "images"))
        shutil.copy(images / "north" / "2.png", images / "north" / "new.png")
        searcher = Searcher.open(copied, "cpu", images=images)
        with client_with(searcher, no_scenes(MANY + 1)) as client:
            first = client.get("/api/search?q=red").json()["hits"][0]
            thumbnail = client.get(first["thumbnail"]).content
            best = searcher.encoder.text("red").cpu()
            adding = threading.Timer(0.05, grow, (copied, manifest, best))
            adding.start()
            answers: list[httpx2.Response] = []
            while not answers or (answers[-1].json()["total"] == MANY and len(answers) < 500):
                answers.append(client.get("/api/search?q=red"))
            adding.join()
            assert {answer.status_code for answer in answers} == {200}
            assert answers[-1].json()["total"] == MANY + 1
            assert answers[-1].json()["hits"][0]["name"] == "north/new.png"
            assert client.get(answers[-1].json()["hits"][0]["thumbnail"]).status_code == 200
            assert client.get(first["thumbnail"]).content == thumbnail  # a page that shows the earlier answer


class TestUploads:
    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"only a text", "'x.jpg': not an image of a kind that is read"),
            (jpeg()[:700], "'x.jpg': the image is damaged or cut short"),
            (b"", "'x.jpg': the image is empty (0 bytes)"),
            (png(0, 9), "'x.jpg': not an image"),
            (png(20_000, 6_000), "20000 x 6000 pixels, at most 100000000 are allowed"),
            (png(60_000, 60_000), "more pixels than Pillow allows"),
            (png(1, 99_000_000), "1 x 99000000 pixels, at most 65535 a side are allowed"),
            (png(99_000_000, 1), "at most 65535 a side are allowed"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a kind that is read"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
    def test_no_image(self, client: TestClient, content: bytes, word: str) -> None:
        assert_refused(client.post("/api/search/image", files={"image": ("x.jpg", content)}), 400, word)

    def test_wrong_forms(self, client: TestClient) -> None:
        post = client.post
        assert_refused(post("/api/search/image", files={"photo": jpeg()}), 400, "in the field 'image'")
        assert_refused(post("/api/search/image", data={"image": "text"}), 400, "in the field 'image'")
        assert_refused(post("/api/search/image", content=jpeg()), 400, "in the field 'image'")
        assert_refused(post("/api/search/image", files=[("image", jpeg()), ("image", jpeg())]), 400, "Too many files")
        broken = {"content-type": "multipart/form-data; boundary=x"}
        for body in (b"--y\r\n", b"--x\r\nnonsense", b"--x\r\nA: b\r\n\r\n" + bytes(5000)):
            assert_refused(post("/api/search/image", content=body, headers=broken), 400)
        assert_refused(
            post("/api/search/image", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "boundary"
        )

    def test_size(self, searcher: Searcher, scenes: Scenes) -> None:
        client = client_with(searcher, scenes, max_upload=100_000)
        assert_refused(client.post("/api/search/image", files={"image": bytes(100_000)}), 400, "not an image")
        assert_refused(client.post("/api/search/image", files={"image": bytes(100_001)}), 413, "at most 0.0953674 MiB")
        assert_refused(client.post("/api/search/image", files={"image": bytes(100_000_000)}), 413, "too large")

    @pytest.mark.parametrize("announced", ["", "10", "9" * 5000, "no number"])
    def test_no_more_is_read_than_may_be(self, announced: str) -> None:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            yield head
            while True:
                taken += 10_000
                yield bytes(10_000)

        with pytest.raises(HTTPException) as caught:
            asyncio.run(read_upload(streamed(endless(), announced), "image", MIB))
        assert caught.value.status_code == 413
        assert taken <= MIB + FORM_BYTES + 10_000
        assert (taken == 0) == announced.startswith("99")

    def test_one_that_never_ends_or_is_broken_off(self) -> None:
        async def stuck() -> AsyncIterator[bytes]:
            yield b"--x\r\n"
            await asyncio.sleep(60)

        with pytest.raises(HTTPException, match=r"longer than 0\.05 s") as caught:
            asyncio.run(read_upload(streamed(stuck()), "image", MIB, seconds=0.05))
        assert caught.value.status_code == 408

        async def broken() -> AsyncIterator[bytes]:
            yield b"--x\r\n"

        with pytest.raises(HTTPException, match="went away"):
            asyncio.run(read_upload(streamed(broken()), "image", MIB))


def streamed(chunks: AsyncIterator[bytes], announced: str = "") -> Request:
    """A request whose body comes in chunks; its sender goes away when they end."""

    async def receive() -> Message:
        async for chunk in chunks:
            return {"type": "http.request", "body": chunk, "more_body": True}
        return {"type": "http.disconnect"}

    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", announced.encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "app": None}, receive)


class TestLimits:
    def test_so_many_a_minute(self) -> None:
        now = 0.0
        limit = RateLimit(3, clock=lambda: now)
        assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 20]
        assert limit.wait("b") == 0
        now = 15
        assert limit.wait("a") == pytest.approx(5)
        now = 20
        assert [limit.wait("a"), limit.wait("a")] == [0, pytest.approx(20)]
        now = 10_000
        assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, pytest.approx(20)]

    @given(st.lists(st.floats(0, 40), max_size=60), st.integers(1, 5))
    def test_never_more_than_the_rate_in_any_time(self, pauses: list[float], rate: int) -> None:
        now = 0.0
        limit = RateLimit(rate, clock=lambda: now)
        allowed: list[float] = []
        for pause in pauses:
            now += pause
            if limit.wait("a") == 0:
                allowed.append(now)
        for first, start in enumerate(allowed):
            for last in range(first, len(allowed)):
                assert last - first + 1 <= rate + rate * (allowed[last] - start) / 60 + 1e-6

    def test_clients_that_are_remembered(self) -> None:
        limit = RateLimit(1, clients=2, clock=lambda: 0)
        assert [limit.wait(client) > 0 for client in "abaca"] == [False, False, True, False, True]
        assert len(limit) == 2
        assert limit.wait("b") == 0  # forgotten in favour of c

    @pytest.mark.parametrize(
        ("host", "client"),
        [("10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"), ("testclient", "testclient")],
    )
    def test_who_asks(self, host: str, client: str) -> None:
        assert client_of({"client": (host, 5)}) == client

    def test_too_many_requests(
        self, searcher: Searcher, scenes: Scenes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(page, "IMAGES_PER_SEARCH", 2)
        client = client_with(searcher, scenes, rate=2)
        assert [client.get("/api/search?q=red").status_code for _ in range(2)] == [200, 200]
        refused = client.post("/api/search/image", files={"image": jpeg()})
        assert_refused(refused, 429, "2 a minute are answered")
        assert 25 <= int(refused.headers["retry-after"]) <= 30
        assert caplog.text.count("testclient: refused, more than 2 requests a minute") == 1
        paths = ["/thumbnail/99", "/image/99"] * 2 + ["/thumbnail/99"]
        assert [client.get(path).status_code for path in paths] == [404] * 4 + [429]
        assert client.get("/").status_code == client.get("/api/about").status_code == 200

    def test_a_strict_browser(self, client: TestClient) -> None:
        paths = ["/", "/static/page.js", "/api/about", "/api/search", "/thumbnail/99", "/nothing"]
        for response in [client.get(path) for path in paths]:
            assert {name: response.headers[name] for name in STRICT} == STRICT
        assert STRICT["Content-Security-Policy"].startswith("default-src 'self';")
        assert "unsafe" not in "".join(STRICT.values())
        for path in ("/docs", "/redoc", "/openapi.json", "/static/../page.py", "/static/%2e%2e/page.py"):
            assert client.get(path).status_code == 404

    def test_other_hosts(self, client: TestClient) -> None:
        for host in ("evil.example", "testserver.evil.example", ""):
            assert client.get("/api/about", headers={"host": host}).status_code == 400
        assert client.get("/api/about", headers={"host": "testserver:8000"}).status_code == 200

    def test_the_files_of_the_page_load_nothing_from_elsewhere(self, client: TestClient) -> None:
        html = client.get("/").text
        assert "<script src=" in html
        assert html.count("<script") == 1
        for name in ("page.js", "page.css", "icon.svg"):
            assert f"static/{name}" in html or name == "icon.svg"
            text = client.get(f"/static/{name}").text
            assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "")
            assert "innerHTML" not in text


class TestScenes:
    def found(self, names: Sequence[str], images: Path) -> dict[str, int]:
        return find_scenes(names, images).counts

    def test_of_names(self, tmp_path: Path) -> None:
        names = ["port_1.jpg", "port_2.jpg", "7.jpg", "farm_1.jpg", "farm_2.jpg", "farm_3.jpg"]
        scenes = find_scenes(names, tmp_path)
        assert scenes.counts == {"farm": 3, "port": 2}
        assert scenes.codes.tolist() == [1, 1, -1, 0, 0, 0]
        assert scenes.keep("port").tolist() == [True, True, False, False, False, False]
        assert [scenes.of(row) for row in (0, 2)] == ["port", None]
        assert self.found(["a/x/1.jpg", "a/x/2.jpg", "b/1.jpg", "b/c_2.jpg"], tmp_path) == {"a/x": 2, "b": 2}
        assert self.found(["é\udce9/1.jpg", "é\udce9/2.jpg", "b/1.jpg", "b/2.jpg"], tmp_path) == {
            "'é\\udce9'": 2,
            "b": 2,
        }

    def test_names_that_say_none(self, tmp_path: Path) -> None:
        assert self.found(["tile_1.jpg", "tile_2.jpg"], tmp_path) == {}
        assert self.found(["img1.jpg", "img2.jpg", "img3.jpg"], tmp_path) == {}
        assert self.found(["1.jpg", "2.jpg"], tmp_path) == {}
        assert self.found([f"{number // 2}/{number}.jpg" for number in range(2002)], tmp_path) == {}

    def test_of_numbered_images(self, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("farm\nport\n")
        images = tmp_path / "images"
        assert self.found(["1.jpg", "100.jpg", "101.jpg", "200.jpg"], images) == {"farm": 2, "port": 2}
        assert self.found(["1.jpg", "100.jpg", "101.jpg", "201.jpg"], images) == {}
        assert self.found(["0.jpg", "100.jpg", "101.jpg", "102.jpg"], images) == {}

    def test_of_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "scenes.txt"
        file.write_text("a.jpg\tsports field\n\nb.jpg\tport\nelsewhere.jpg\tfarm\n")
        scenes = read_scenes(file, ["b.jpg", "c.jpg", "a.jpg"])
        assert scenes.counts == {"port": 1, "sports field": 1}
        assert scenes.codes.tolist() == [0, -1, 1]

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("a.jpg port\n\tfarm\n", "2 faults"),
            ("other.jpg\tfarm\n", "names no image of the index, whose first is 'a.jpg'"),
            ("", "names no image of the index"),
        ],
    )
    def test_a_file_that_does_not_fit(self, tmp_path: Path, text: str, word: str) -> None:
        (tmp_path / "scenes.txt").write_text(text)
        with pytest.raises(InputError, match=word):
            read_scenes(tmp_path / "scenes.txt", ["a.jpg"])

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_scenes(tmp_path / "none.txt", ["a.jpg"])


class TestServe:
    @pytest.mark.parametrize(
        ("host", "more", "expected"),
        [
            ("127.0.0.1", [], ["127.0.0.1", "localhost", "[::1]"]),
            ("localhost", ["a.example"], ["127.0.0.1", "localhost", "[::1]", "a.example"]),
            ("192.168.0.4", [], ["192.168.0.4"]),
            ("2001:db8::1", ["a.example"], ["[2001:db8::1]", "a.example"]),
            ("0.0.0.0", ["a.example"], ["127.0.0.1", "localhost", "[::1]", "a.example"]),
        ],
    )
    def test_names_that_are_answered(self, host: str, more: list[str], expected: list[str]) -> None:
        assert serve.allowed_hosts(host, more) == expected

    def test_refusals(self, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(word: str, *arguments: str) -> None:
            with pytest.raises(InputError) as caught:
                search.main(["serve", *arguments])
            assert word in str(caught.value)

        refused("no index there", str(tmp_path), "--port", "0")
        refused("--port 65536: expected 0 to 65535", str(many), "--port", "65536")
        refused("--max-upload 0: expected 1 or more", str(many), "--max-upload", "0")
        refused("--rate 0: expected 1 or more", str(many), "--rate", "0")
        refused("say under which name", str(many), "--host", "0.0.0.0")
        refused("expected a host name", str(many), "--allow-host", "http://a.example/")
        refused("expected a host name", str(many), "--allow-host", "*")
        refused("no such file", str(many), "--port", "0", "--device", "cpu", "--scenes", str(tmp_path / "none.txt"))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            refused(f"127.0.0.1, port {port}, can't be had (Address already in use)", str(many), "--port", port)
        monkeypatch.delattr(archive, "page")
        monkeypatch.setitem(sys.modules, "archive.page", None)
        refused("bash exec/environment.sh web", str(many))

    @pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
    def test_another_host_is_warned_of(
        self,
        many: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        host: str,
    ) -> None:
        def reached(app: FastAPI, listening: socket.socket, behind_proxy: bool, announcement: str) -> None:
            assert f"30 images at http://{host}:" in announcement
            socket.create_connection(listening.getsockname(), timeout=5).close()  # whoever reads the line gets through

        monkeypatch.setattr(serve, "run", reached)
        with caplog.at_level(logging.WARNING):
            search.main(["serve", str(many), "--host", host, "--port", "0", "--allow-host", "a.example"])
        assert ("there is no login" in caplog.text) == (host == "0.0.0.0")

    @pytest.mark.parametrize(
        ("number", "behind_proxy", "client"), [(signal.SIGINT, False, "127.0.0.1"), (signal.SIGTERM, True, "10.9.8.7")]
    )
    def test_signals_end_it(
        self, number: signal.Signals, behind_proxy: bool, client: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = signal.getsignal(number)
        app = FastAPI()

        @app.get("/")
        def end(request: Request) -> str:
            os.kill(os.getpid(), number)
            return client_of(request.scope)

        answers: list[Any] = []
        with serve.open_socket("127.0.0.1", 0) as listening:
            url = serve.url_of(listening)
            asking = threading.Thread(target=lambda: answers.append(ask_until_there(url)))
            asking.start()
            serve.run(app, listening, behind_proxy, "Ready.")
            asking.join()
        assert answers == [client]
        assert capsys.readouterr().out == "Ready.\n"
        assert signal.getsignal(number) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals_end_it_before_it_has_started(
        self, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, announced, waited = signal.getsignal(number), [], []

        async def main_loop(server: uvicorn.Server) -> None:
            waited.append(server)  # where the signal is lost; the true one would wait for another

        def announce(text: str, flush: bool) -> None:
            announced.append(text)
            os.kill(os.getpid(), number)

        monkeypatch.setattr(uvicorn.Server, "main_loop", main_loop)
        monkeypatch.setattr("builtins.print", announce)
        with serve.open_socket("127.0.0.1", 0) as listening:
            serve.run(FastAPI(), listening, behind_proxy=False, announcement="Ready.")
        assert announced == ["Ready."]
        assert waited == []
        assert signal.getsignal(number) is before


def ask_until_there(url: str) -> Any:
    """Ask a server that may not have begun to listen, as a reverse proxy does for somebody."""
    transport = httpx2.HTTPTransport(retries=20)
    with httpx2.Client(transport=transport, trust_env=False, timeout=60) as client:
        return client.get(url, headers={"x-forwarded-for": "10.9.8.7"}).json()
