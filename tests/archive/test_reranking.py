"""The second stage of a search: the first images of an answer in the order of another model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import search
from archive.encoder import Encoder
from archive.index_folder import IndexFolder
from archive.question import WITHOUT, Question
from archive.reranking import Reranker
from archive.searcher import Searcher
from data.images import load_square
from option import Options
from tests.archives import Archive, Trained, make_trained
from tests.tiny_bert import TINY_BERT
from utils import InputError

TOP = 7


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A model with a score for each pair."""
    return make_trained(tmp_path_factory.mktemp("amfmn"), tiny_options, "AMFMN")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A dual encoder with a matching head."""
    changes = {"text.encoder": TINY_BERT, "matching.layers": 1, "matching.width": 16, "matching.heads": 2}
    return make_trained(tmp_path_factory.mktemp("dual"), tiny_options, "DualEncoder", changes)


@pytest.fixture
def reranker(encoder: Encoder, archive: Archive, second: Trained) -> Reranker:
    searcher = Searcher(IndexFolder.open(archive.index), encoder, archive.images, "exact")
    return Reranker.open(searcher, str(second.options), second.checkpoint, TOP)


def scores_by_hand(reranker: Reranker, sentence: str) -> dict[str, float]:
    """Each image of the archive alone."""
    encoder, folder = reranker.encoder, reranker.searcher.images
    found = {}
    for name in reranker.searcher.index.names():
        pixels = torch.from_numpy(load_square(folder / name, 64))[None]
        with torch.no_grad():
            found[name] = float(encoder.model.score(encoder.images(pixels, [name]), encoder.text(sentence)))
    return found


@pytest.mark.parametrize("kind", ["second", "matcher"])
def test_the_first_images_are_put_in_order(reranker: Reranker, kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    reranker = Reranker.open(reranker.searcher, str(model.options), model.checkpoint, TOP)
    question = Question(("red", "a pond"), without=("roof",))
    first = reranker.searcher.ask(question, TOP).hits
    red, pond, roof = (scores_by_hand(reranker, text) for text in ("red", "a pond", "roof"))
    expected = {hit.name: (red[hit.name] + pond[hit.name]) / 2 - WITHOUT * roof[hit.name] for hit in first}
    found = reranker.ask(question, TOP).hits
    assert {hit.name: hit.score for hit in found} == pytest.approx(expected, abs=1e-5)
    assert [hit.name for hit in found] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert [hit.name for hit in found] != [hit.name for hit in first]
    assert {hit.row for hit in found} == {hit.row for hit in first}
    assert reranker.ask(question, 3).hits == found[:3]
    assert reranker.ask(question, TOP, least=found[4].score).hits == found[:5]


def test_what_cant_be_read_is_left_out(reranker: Reranker, archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    found = reranker.ask(Question(("red",)), TOP).hits
    (archive.images / found[2].name).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        left = reranker.ask(Question(("red",)), TOP).hits
    assert [hit.row for hit in left] == [hit.row for hit in found[:2] + found[3:]]
    assert f"left out of the answer: {archive.images / found[2].name}" in caplog.text


def test_the_images_must_be_there(reranker: Reranker, archive: Archive, tmp_path: Path) -> None:
    archive.images.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="the second stage reads the images, and they are not there; --images"):
        reranker.ask(Question(("red",)), TOP)


def test_the_command(reranker: Reranker, archive: Archive, second: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["query", str(archive.index), "red", "--images", str(archive.images), "--device", "cpu", "--top", "4"]
    model = ["--rerank-path_opt", str(second.options), "--rerank-checkpoint", str(second.checkpoint)]
    search.main([*given, *model, "--rerank-top", str(TOP), "--json"])
    hits = json.loads(capsys.readouterr().out)["hits"]
    expected = reranker.ask(Question(("red",)), 4).hits
    assert [hit["name"] for hit in hits] == [hit.name for hit in expected]
    with pytest.raises(InputError, match="belong together: options and weights of a model"):
        search.main([*given, *model[:2]])
    with pytest.raises(InputError, match=r"--rerank-top 3: expected --top \(4\) or more"):
        search.main([*given, *model, "--rerank-top", "3"])
    with pytest.raises(InputError, match="the second stage reads sentences; leave out --image and --audio"):
        search.main([*given, *model, "--image", "any.png"])
