"""What the page does with images of its index: similar ones, some by chance, their files; and its word lists."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from archive import page, page_images
from archive.page import closed_words
from archive.scenes import no_scenes
from archive.searcher import Searcher
from tests.archive.pages import MANY, assert_refused, client_with, row_of


def version(client: TestClient) -> str:
    index = client.get("/api/about").json()["index"]
    assert isinstance(index, str)
    return index


class TestLike:
    def test_are_found_by_the_stored_embedding(self, client: TestClient, searcher: Searcher) -> None:
        assert searcher.index.embeddings is not None
        vectors = next(searcher.index.embeddings.blocks()).numpy()
        cosines = vectors @ vectors[7] / ((vectors**2).sum(1) ** 0.5 * (vectors[7] ** 2).sum() ** 0.5)
        answer = client.get(f"/api/search/like/7?per_page=10&index={version(client)}").json()
        assert [hit["row"] for hit in answer["hits"]] == (-cosines).argsort(kind="stable")[:10].tolist()
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx(sorted(cosines, reverse=True)[:10])
        assert answer["hits"][0]["row"] == answer["like"]["row"] == 7
        assert answer["like"]["name"] == searcher.index.name(7)
        assert (answer["total"], answer["note"]) == (MANY, None)
        south = client.get("/api/search/like/7?scene=south&per_page=100").json()["hits"]
        assert {hit["scene"] for hit in south} == {"south"}
        assert len(south) == 10

    def test_refused(self, client: TestClient) -> None:
        assert_refused(client.get("/api/search/like/30"), 404, "rows 0 to 29")
        assert_refused(client.get("/api/search/like/x"), 422, "valid integer")
        assert_refused(client.get("/api/search/like/3?index=another"), 404, "the index has changed since this search")


class TestThreshold:
    def test_pages_end_at_a_score(self, client: TestClient, searcher: Searcher) -> None:
        found = searcher.text("a red field", MANY)
        least = (found[6].score + found[7].score) / 2
        query = f"/api/search?q=a+red+field&min_score={least}&per_page=5"
        first, second = client.get(query).json(), client.get(f"{query}&page=2").json()
        assert [hit["row"] for hit in first["hits"] + second["hits"]] == [hit.row for hit in found[:7]]
        assert [(one["total"], one["pages"]) for one in (first, second)] == [(7, 2)] * 2
        assert_refused(client.get(f"{query}&page=3"), 404, "7 images fill 2")
        nothing = client.get("/api/search?q=red&min_score=2").json()
        assert (nothing["hits"], nothing["total"]) == ([], 0)


class TestSample:
    def test_other_images_each_time(self, client: TestClient) -> None:
        drawn = [tuple(image["row"] for image in client.get("/api/sample").json()["images"]) for _ in range(5)]
        assert len(set(drawn)) > 1
        assert all(len(set(rows)) == 24 for rows in drawn)
        everything = client.get("/api/sample?count=100").json()["images"]
        assert {image["row"] for image in everything} == set(range(MANY))
        south = client.get("/api/sample?scene=south").json()["images"]
        assert [image["scene"] for image in south] == ["south"] * 10
        assert_refused(client.get("/api/sample?scene=west"), 404, "no scene class")
        assert_refused(client.get("/api/sample?count=0"), 422, "greater than or equal to 1")


class TestWords:
    def test_of_a_closed_vocabulary(self, client: TestClient) -> None:
        words = client.get("/api/words").json()["words"]
        assert words == ["blue", "field", "green", "pond", "red", "roof", "yellow"]

    def test_of_an_open_one(self, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(searcher.encoder, "reads_all", True)
        assert closed_words(searcher.encoder) == []

    def test_whether_it_is_open_is_found_out_once(self, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        """A tokenizer takes a tenth of a second to read: too long for each sentence."""
        asked: list[object] = []
        encoder = replace(searcher.encoder)
        monkeypatch.setattr(encoder.model, "own_vocabulary", asked.append)
        encoder.texts(["a red field", "the pond"])
        assert encoder.remarks(["a red field", "a red zeppelin"]) == ["words that the model does not know: zeppelin"]
        assert closed_words(encoder)
        assert len(asked) == 1

    def test_examples_are_understood(
        self, client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(page, "EXAMPLES", ("a red field", "planes on the field", "the pond"))
        assert client.get("/api/about").json()["examples"] == ["a red field", "the pond"]


@pytest.fixture
def vanished(searcher: Searcher) -> Iterator[None]:
    """For a while, an image is not there."""
    path = searcher.images / "north" / "1.png"
    content = path.read_bytes()
    path.unlink()
    yield
    path.write_bytes(content)


@pytest.mark.usefixtures("vanished")
class TestZip:
    def test_files_as_they_are(self, client: TestClient, searcher: Searcher) -> None:
        names = ["north/last.tif", "south/3.png", "north/1.png"]  # the last is gone
        rows = ",".join(str(row_of(searcher, name)) for name in names)
        response = client.get(f"/api/zip?rows={rows}&index={version(client)}")
        assert response.headers["content-disposition"] == 'attachment; filename="images.zip"'
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            assert archive.testzip() is None
            assert sorted(archive.namelist()) == ["north/last.tif", "south/3.png"]
            assert archive.read("south/3.png") == (searcher.images / "south/3.png").read_bytes()

    def test_refused(self, client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
        for rows in ("", "x", "1,,2", "1;2"):
            assert_refused(client.get("/api/zip", params={"rows": rows}), 422, "expected numbers with commas")
        assert_refused(client.get("/api/zip?rows=1,30"), 404, "rows 0 to 29")
        assert_refused(client.get("/api/zip?rows=1&index=another"), 404, "has changed")
        assert_refused(client.get(f"/api/zip?rows={row_of(searcher, 'north/1.png')}"), 404, "none of these images")
        monkeypatch.setattr(page_images, "MOST_IN_ZIP", 2)
        assert_refused(client.get("/api/zip?rows=1,2,3"), 413, "3 images, at most 2 are sent at once")
        assert client.get("/api/zip?rows=1,2,1,2").status_code == 200
        monkeypatch.setattr(page_images, "ZIP_BYTES", 100)
        assert_refused(client.get("/api/zip?rows=1,2"), 413, "MiB, at most 0 are sent at once")

    def test_nothing_from_outside(self, searcher: Searcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        images = Path(shutil.copytree(searcher.images, tmp_path / "images"))
        (tmp_path / "secret").write_text("secret")
        (images / "south/3.png").unlink()
        (images / "south/3.png").symlink_to(tmp_path / "secret")
        monkeypatch.setattr(searcher, "images", images)
        client = client_with(searcher, no_scenes(MANY))
        assert_refused(client.get(f"/api/zip?rows={row_of(searcher, 'south/3.png')}"), 404, "none of these images")
