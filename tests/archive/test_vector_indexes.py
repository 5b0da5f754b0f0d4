"""FAISS's indexes and Milvus against exact search, on synthetic vectors and on a small archive."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bench.search
import search
from archive import exact, nearest
from archive.arguments import EMBEDDED, KINDS, Kind
from archive.index_folder import IndexFolder, add_shard, retire_shard, update_manifest
from archive.measure import recall
from archive.moving import move
from archive.question import Question
from archive.records import Record
from archive.searcher import Searcher
from archive.shards import IndexFault, Shards
from archive.store import MilvusStore, open_store
from bench.search import Draw
from option import Options
from tests.archives import Archive, Trained, make_trained
from utils import InputError


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """2,000 of 32 numbers in 40 groups, in two files."""
    return Draw(32, 40, 0.8).write(tmp_path_factory.mktemp("vectors"), 2000)


class TestFaiss:
    @pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("hnsw", 0.98), ("ivfpq", 0.9)])
    def test_recall_against_exact(self, vectors: Shards, kind: Kind, least: float) -> None:
        pytest.importorskip("faiss")
        index = nearest.Nearest(kind, nearest.build(kind, vectors), vectors)
        queries = Draw(32, 40, 0.8).vectors(20)
        truth = exact.search(vectors.blocks(), queries, exact.cosine, 10)
        found = [index.search(query, exact.cosine, 10) for query in queries]
        for (scores, rows), (right, right_rows) in zip(found, truth, strict=True):
            assert len(rows) == len(set(rows.tolist())) == 10
            assert (scores <= right + 1e-6).all()  # place by place, nothing scores higher than the exact best
            known = dict(zip(right_rows.tolist(), right.tolist(), strict=True))
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
                assert known.get(row, score) == pytest.approx(score, abs=1e-6)
        assert recall([scores for scores, _ in found], [scores for scores, _ in truth]) >= least
        assert sum(len(scores) for scores, _ in found) == 200

    def test_ivfpq_is_a_fraction_of_the_vectors(self, vectors: Shards) -> None:
        pytest.importorskip("faiss")
        sizes = {}
        for kind in KINDS:
            sizes[kind] = nearest.Nearest(kind, nearest.build(kind, vectors), vectors).size()
        assert 4 * 32 * 2000 <= sizes["flat"] < sizes["hnsw"]
        assert sizes["ivfpq"] < sizes["flat"] / 2

    @pytest.mark.parametrize(("dim", "parts"), [(512, 64), (32, 4), (100, 10), (7, 1), (1, 1)])
    def test_bytes_of_a_code_divide_the_vector(self, dim: int, parts: int) -> None:
        assert nearest.code_bytes(dim) == parts
        assert dim % parts == 0

    def test_too_few_for_codes(self, made: Path) -> None:
        pytest.importorskip("faiss")
        with pytest.raises(InputError, match="needs at least 256 images to learn its codes, found 12: use flat"):
            search.main(["build", str(made), "--kind", "ivfpq"])

    def test_queries_by_a_built_index(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("faiss")
        for kind in ("flat", "hnsw"):
            search.main(["build", str(made), "--kind", kind])
            assert "12 images" in capsys.readouterr().out
            hits = Searcher.open(made, "cpu", kind).text("a red field", 4, offset=1)
            expected = Searcher.open(made, "cpu").text("a red field", 4, offset=1)
            assert [hit.name for hit in hits] == [hit.name for hit in expected]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        keep = np.arange(12) % 2 == 0
        kept = Searcher.open(made, "cpu", "hnsw").text("a red field", 12, keep=keep)
        assert sorted(hit.row or 0 for hit in kept) == [0, 2, 4, 6, 8, 10]
        search.main(["measure", str(made), "--queries", "3"])
        table = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert table[0] == ["12", "images,", "3", "images", "as", "queries"]
        assert [(row[0], row[3]) for row in table[2:]] == [("exact", "1.0000"), ("flat", "1.0000"), ("hnsw", "1.0000")]

    def test_what_is_not_built_outdated_or_damaged(self, galr: Trained, index: Path) -> None:
        pytest.importorskip("faiss")
        for path in index.glob("flat.*"):
            path.unlink()
        with pytest.raises(InputError, match=r"has no flat index; build it: python search.py build .* --kind flat"):
            Searcher.open(index, "cpu", "flat")
        search.main(["build", str(index), "--kind", "flat"])
        content = json.loads((index / "flat.json").read_text())
        (index / "flat.json").write_text(json.dumps(content | {"shards_sha256": "of another"}))
        with pytest.raises(InputError, match=r"was built before .* changed; build it"):
            Searcher.open(index, "cpu", "flat")
        (index / "flat.json").write_text(json.dumps(content))
        whole = (index / "flat.faiss").read_bytes()
        for damaged in (b"", whole[:40], b"x" * 100):
            (index / "flat.faiss").write_bytes(damaged)
            with pytest.raises(
                InputError, match=r"flat.faiss: damaged \(its checksum is not that of flat.json\); build it"
            ):
                Searcher.open(index, "cpu", "flat")

    def test_follows_an_index_that_grows_and_shrinks(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("faiss")
        for path in [*index.glob("flat.*"), *index.glob("hnsw.*")]:
            path.unlink()
        folder = IndexFolder.open(index)
        nearest.build_in(folder, "hnsw")
        assert nearest.follow(folder) == []
        random = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 128), np.float32))
        add_shard(index, [Record(f"{number}.png") for number in range(3)], random, "float32")
        update_manifest(index, folder.manifest)

        built: list[str] = []
        build = nearest.build

        def counting(kind: Kind, embeddings: Shards) -> Any:
            built.append(kind)
            return build(kind, embeddings)

        monkeypatch.setattr(nearest, "build", counting)
        self.assert_followed(index)
        assert built == []
        retire_shard(index, next(iter(folder.manifest.shards)))
        update_manifest(index, folder.manifest)
        self.assert_followed(index)
        assert built == ["hnsw"]

    def assert_followed(self, index: Path) -> None:
        folder = IndexFolder.open(index)
        (told,) = nearest.follow(folder)
        assert f"hnsw.faiss: {len(folder)} images" in told
        found = nearest.Nearest.open(folder, "hnsw")
        for row in range(len(folder)):
            query = found.embeddings.rows(np.array([row]))[0]
            assert found.search(query, exact.cosine, 1)[1].tolist() == [row]

    def test_a_model_that_scores_pairs(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        pairs = make_trained(tmp_path / "amfmn", tiny_options, "AMFMN")
        for more in (["--kind", "flat"], ["--store"]):
            with pytest.raises(InputError, match="AMFMN scores each pair by more than a cosine: leave out"):
                search.main(pairs.arguments(tmp_path / "index", *more))
        search.main(pairs.arguments(tmp_path / "index"))
        with pytest.raises(InputError, match="is searched exactly"):
            search.main(["build", str(tmp_path / "index"), "--kind", "flat"])
        with pytest.raises(InputError, match="use --index exact"):
            Searcher.open(tmp_path / "index", "cpu", "hnsw")

    def test_without_faiss(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(InputError, match=r"bash exec/environment.sh index"):
            search.main(["build", str(made), "--kind", "flat"])


class TestBench:
    def test_vectors_are_of_length_one_and_in_groups(self) -> None:
        drawn = Draw(16, 3, 0.2).vectors(50)
        torch.testing.assert_close(drawn.norm(dim=1), torch.ones(50))
        cosines = drawn @ drawn.T
        assert not ((cosines > 0.75) & (cosines < 0.85)).any()
        assert Draw(16, 3, 0.2).vectors(50).equal(drawn)

    def test_writes_its_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("faiss")
        arguments = ["--count", "600", "--dim", "16", "--queries", "5", "--json", str(tmp_path / "table.json")]
        bench.search.main([*arguments, "--kinds", "flat", "--folder", str(tmp_path)])
        table = json.loads((tmp_path / "table.json").read_text())
        assert "600 vectors of 16, evenly random; 5 queries" in table["setting"]
        assert [(row["name"], row["recall"]) for row in table["rows"]] == [("exact", 1), ("flat", 1)]
        assert table["rows"][0]["mebibytes"] == pytest.approx(600 * 16 * 4 / 2**20)
        assert table["setting"] in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Milvus Lite that serves."""
    pytest.importorskip("milvus_lite")
    pytest.importorskip("pymilvus")
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class TestStore:
    def test_finds_the_nearest_and_replaces(self, server: str) -> None:
        store = MilvusStore(server, "replaces", 8)
        random = np.random.default_rng(0)
        vectors = random.standard_normal((30, 8)).astype(np.float32)
        store.add([f"é {number}.png" for number in range(30)], vectors)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit[3]
        right = np.argsort(-cosines)[:5]
        found = store.search(7 * vectors[3], 5)
        assert [name for name, _ in found] == [f"é {number}.png" for number in right]
        assert [score for _, score in found] == pytest.approx(cosines[right].tolist(), abs=1e-5)
        store.add(["é 3.png"], -vectors[3:4])
        assert store.count() == 30
        assert store.search(-vectors[3], 1)[0][0] == "é 3.png"
        with pytest.raises(InputError, match="at most 16384"):
            store.search(vectors[3], 20_000)

    @pytest.mark.parametrize("embedded", [True, False])
    def test_an_index_in_a_store_answers_as_an_exact_one(
        self, embedded: bool, server: str, galr: Trained, made: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "stored"
        store = ["--store"] if embedded else ["--store", server]
        search.main(galr.arguments(folder, "--shard", "5", *store))
        assert list((folder / "shards").glob("*.npy")) == []
        assert len(IndexFolder.open(folder)) == 12
        searcher, exactly = Searcher.open(folder, "cpu"), Searcher.open(made, "cpu")
        hits, expected = searcher.text("a red field", 5, 2), exactly.text("a red field", 5, 2)
        assert [hit.name for hit in hits] == [hit.name for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        question = Question(("a red field", "a pond"), without=("a roof",))
        for distinct in (None, 0.9):
            hits, expected = (one.ask(question, 12, distinct).hits for one in (searcher, exactly))
            assert [(hit.name, hit.alike) for hit in hits] == [(hit.name, hit.alike) for hit in expected]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        alike = searcher.similar(3, 5).hits
        assert [hit.name for hit in alike] == [hit.name for hit in exactly.similar(3, 5).hits]
        assert searcher._store is not None
        with pytest.raises(IndexFault, match=r"does not have 'absent\.png'"):
            searcher._store.vectors([alike[0].name, "absent.png"])
        with pytest.raises(InputError, match="leave --index out"):
            Searcher.open(folder, "cpu", "exact")
        with pytest.raises(InputError, match="leave the filter out"):
            searcher.text("a red field", 3, keep=np.ones(12, dtype=bool))
        with pytest.raises(InputError, match="an index of its own"):
            search.main(["build", str(folder), "--kind", "flat"])

    # Killed after the store took in what the index does not know yet, and again as it recovers; each step on an index
    # of its own, since which comes first hangs on the order of the shards, and so on the times of the files.
    @pytest.mark.parametrize("step", ["retire_shard", "write_records"])
    @pytest.mark.parametrize("embedded", [True, False])
    def test_follows_its_folder(
        self,
        embedded: bool,
        step: str,
        server: str,
        archive: Archive,
        tmp_path: Path,
        encoded: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        stored = replace(archive, index=tmp_path / "stored")
        address = EMBEDDED if embedded else server
        stored.follow(store=address)
        names, encoded[:] = stored.names(), []
        for place in (1, 11):  # of a shard that another image leaves, and of one that keeps its rows
            (stored.images / names[place]).rename(stored.images / f"moved{place}.png")
        (stored.images / names[6]).unlink()
        Image.new("RGB", (9, 9), "blue").save(stored.images / names[2])

        def killed(folder: Path, shard: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"archive.upkeep.{step}", killed)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    stored.follow(store=address, prune=True)
        stored.follow(store=address, prune=True)
        assert encoded == [names[2]]
        store = open_store(stored.index, IndexFolder.open(stored.index).manifest)
        expected = {*names, "moved1.png", "moved11.png"} - {names[place] for place in (1, 6, 11)}
        assert sorted(store.names()) == sorted(expected) == sorted(stored.names())
        for place in (1, 11):
            assert store.search(archive.embeddings()[names[place]].numpy(), 1)[0][0] == f"moved{place}.png"

    @pytest.mark.parametrize("embedded", [True, False])
    def test_moves_to_a_server(
        self, embedded: bool, server: str, archive: Archive, tmp_path: Path, encoded: list[str]
    ) -> None:
        moved = archive
        if embedded:
            moved = replace(archive, index=tmp_path / "stored")
            moved.follow(store=EMBEDDED)
        expected, names, encoded[:] = archive.embeddings(), moved.names(), []
        assert move(moved.index, server) == 12
        assert list((moved.index / "shards").glob("*.npy")) == []
        store = open_store(moved.index, IndexFolder.open(moved.index).manifest)
        np.testing.assert_allclose(
            store.vectors(names), np.stack([expected[name].numpy() for name in names]), rtol=1e-6
        )
        moved.follow(store=server)
        assert encoded == []
        assert moved.names() == names

    def test_a_store_that_lacks_images(self, server: str, index: Path) -> None:
        content = json.loads((index / "index.json").read_text())
        (index / "index.json").write_text(
            json.dumps(content | {"store": server, "collection": None, "created": "another"})
        )
        IndexFolder.open(index)
        content |= {"collection": None, "images": "elsewhere"}
        (index / "index.json").write_text(json.dumps(content | {"store": server}))
        with pytest.raises(InputError, match="holds 0 of 12 images"):
            Searcher.open(index, "cpu")

    def test_a_store_that_was_emptied(self, server: str, galr: Trained, tmp_path: Path) -> None:
        folder = tmp_path / "index"
        search.main(
            galr.arguments(folder, "--store", server, "--set", "dataset.test_views=right_angles")
        )  # a collection apart
        search.main(galr.arguments(folder, "--store", server, "--set", "dataset.test_views=right_angles"))
        store = open_store(folder, IndexFolder.open(folder).manifest)
        assert isinstance(store, MilvusStore)
        assert store.count() == 12
        store.client.drop_collection(store.collection)
        with pytest.raises(InputError, match=r"holds 0 of 12 images: .*Delete .* and index again"):
            search.main(galr.arguments(folder, "--store", server, "--set", "dataset.test_views=right_angles"))

    def test_nothing_answers(self, galr: Trained, tmp_path: Path) -> None:
        pytest.importorskip("pymilvus")
        with pytest.raises(InputError, match=r"does not work: .*Check that it runs"):
            search.main(galr.arguments(tmp_path / "index", "--store", f"http://127.0.0.1:{free_port()}"))

    def test_without_the_client(self, galr: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pymilvus", None)
        with pytest.raises(InputError, match=r"bash exec/environment.sh store"):
            search.main(galr.arguments(tmp_path / "index", "--store"))
