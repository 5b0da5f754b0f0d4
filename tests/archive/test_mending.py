"""Indexes that are damaged, hold images twice, or are written by two runs: what is refused, and what `index` mends."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import search
from archive.encoder import Encoder
from archive.index_folder import IndexFolder
from archive.searcher import Searcher
from runtime.locks import LOCK
from tests.archive.test_search import by_name
from tests.archives import Trained
from tests.runs.test_resume import HOLD
from utils import InputError


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def make_infinite(path: Path) -> None:
    values = np.load(path, allow_pickle=False)
    values[1, 3] = np.nan
    np.save(path, values)


def of_an_earlier_version(index: Path) -> None:
    content = json.loads((index / "index.json").read_text())
    del content["crc32"]
    (index / "index.json").write_text(json.dumps(content))


def by_text(searcher: Searcher) -> None:
    searcher.text("a red field", 3)


def by_row(searcher: Searcher) -> None:
    assert searcher.index.embeddings is not None
    searcher.index.embeddings.rows(np.array([0]))


def assert_equal(index: Path, made: Path) -> None:
    found, expected = by_name(index), by_name(made)
    assert len(IndexFolder.open(index)) == len(expected)
    assert found.keys() == expected.keys()
    for name, embedding in expected.items():
        torch.testing.assert_close(found[name], embedding, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "earlier", "reason"),
    [
        (lambda path: flip(path, -7), False, "damaged: its checksum is not that of index.json"),
        (make_infinite, False, "damaged: its checksum is not that of index.json"),
        (make_infinite, True, "damaged: it holds numbers that are not finite"),
    ],
    ids=["a bit", "a number", "a number without a checksum"],
)
def test_a_damaged_shard_is_refused_and_encoded_again(
    damage: Callable[[Path], None],
    earlier: bool,
    reason: str,
    galr: Trained,
    made: Path,
    index: Path,
    encoded: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if earlier:
        of_an_earlier_version(index)
    opened = IndexFolder.open(index)
    shard, count = next(iter(opened.manifest.shards.items()))
    path, names = index / "shards" / f"{shard}.npy", opened.names()[:count]
    damage(path)
    for ask in (by_text, by_row):
        searcher = Searcher.open(index, "cpu")
        with pytest.raises(InputError, match=reason) as caught:
            ask(searcher)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).endswith("run the command that made the index again: it mends that.")
    with caplog.at_level(logging.WARNING):
        search.main(galr.arguments(index, "--shard", "5"))
    assert f"{path}: {reason}: it is mended now." in caplog.text
    assert sorted(encoded) == sorted(names)
    assert_equal(index, made)


def test_a_shard_is_read_through_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archive.shards.OPEN_FILES", 1)
    embeddings = IndexFolder.open(index).embeddings
    assert embeddings is not None
    checked: list[int] = []
    check = embeddings.check

    def counting(place: int) -> None:
        checked.append(place)
        check(place)

    monkeypatch.setattr(embeddings, "check", counting)
    for _ in range(3):
        assert sum(map(len, embeddings.blocks())) == 12
    assert checked == [0, 1, 2]


def test_damaged_names_are_refused_and_made_again(galr: Trained, made: Path, index: Path) -> None:
    path = sorted((index / "shards").glob("*.json"))[0]
    place = path.read_text().index(".png") - 1
    flip(path, place)
    with pytest.raises(InputError, match=r"damaged: its names are not those that it was made with; run the command"):
        IndexFolder.open(index).names()
    search.main(galr.arguments(index, "--shard", "5"))
    assert_equal(index, made)


def test_what_two_runs_wrote_twice(
    galr: Trained, made: Path, index: Path, tmp_path: Path, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    search.main(galr.arguments(tmp_path / "other", "--shard", "4"))
    encoded.clear()
    for path in (tmp_path / "other" / "shards").iterdir():
        shutil.copy(path, index / "shards")
    content = json.loads((index / "index.json").read_text())
    content["shards"] |= json.loads((tmp_path / "other" / "index.json").read_text())["shards"]
    (index / "index.json").write_text(json.dumps(content | {"count": 24, "crc32": {}}))
    with pytest.raises(InputError, match="12 of 24 images are in the index more than once; run the command"):
        IndexFolder.open(index)
    with caplog.at_level(logging.WARNING):
        search.main(galr.arguments(index))
    assert "images are in the index already: it is mended now." in caplog.text
    assert encoded == []
    assert_equal(index, made)


def test_a_second_run_is_refused(galr: Trained, index: Path) -> None:
    before = (index / "index.json").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, index / LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for rank in ("", "0", "1"):
            with pytest.MonkeyPatch.context() as patch:
                if rank:
                    patch.setenv("RANK", rank)
                    patch.setenv("WORLD_SIZE", "2")
                with pytest.raises(InputError, match=r"in use by another run: host node7, .*or give another --out"):
                    search.main(galr.arguments(index))
        holder.communicate("\n")
    assert (index / "index.json").read_bytes() == before
    search.main(galr.arguments(index))


def test_an_embedding_that_is_not_finite_is_never_written(
    galr: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Encoder, pixels: Tensor, names: Sequence[str]) -> Tensor:
        found = torch.ones(len(names), self.dim)
        found[1, 2] = float("nan")
        return found

    monkeypatch.setattr(Encoder, "images", broken)
    with pytest.raises(InputError, match=r"north/.*\.png: the model gives an embedding that is not finite"):
        search.main(galr.arguments(tmp_path / "index"))
    assert not list((tmp_path / "index").rglob("*.npy"))


def test_a_damaged_vector_index(index: Path) -> None:
    pytest.importorskip("faiss")
    search.main(["build", str(index), "--kind", "flat"])
    Searcher.open(index, "cpu", "flat")
    flip(index / "flat.faiss", -9)
    with pytest.raises(InputError, match=r"flat.faiss: damaged \(its checksum is not that of flat.json\); build it"):
        Searcher.open(index, "cpu", "flat")
