"""Questions of several parts, near-duplicates, files that are gone, what is cut or unknown, answers for programs."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import search
import vocab
from archive import nearest, store
from archive.encoder import Encoder
from archive.index_folder import IndexFolder
from archive.measure import recall
from archive.question import WITHOUT, Question
from archive.scenes import no_scenes
from archive.searcher import Searcher
from option import Options
from runs.loaders import read_vocabulary
from tests.archive.pages import client_with
from tests.archives import Archive
from utils import InputError
from vocab import Vocabulary, respelled

TOP = 12


@pytest.fixture
def searcher(encoder: Encoder, made: Path, archive: Archive) -> Searcher:
    """Of an archive that a test may change."""
    return Searcher(IndexFolder.open(archive.index), encoder, archive.images, "exact")


def scores_of(searcher: Searcher, question: Question) -> dict[str, float]:
    return {hit.name: hit.score for hit in searcher.ask(question, TOP).hits}


class TestQuestions:
    def test_the_score_is_the_weighted_sum(self, searcher: Searcher, archive: Archive) -> None:
        red, pond, roof = (scores_of(searcher, Question((text,))) for text in ("red", "a pond", "roof"))
        image = Image.open(archive.images / searcher.index.name(3)).convert("RGB")
        like = scores_of(searcher, Question(image=image))
        several = scores_of(searcher, Question(("red", "a pond"), image, without=("roof",), weight=0.3))
        assert several == pytest.approx(
            {
                name: 0.7 * (red[name] + pond[name]) / 2 + 0.3 * like[name] - WITHOUT * roof[name]
                for name in searcher.index.names()
            },
            abs=1e-5,
        )
        assert scores_of(searcher, Question(("red",), image, weight=0)) == pytest.approx(red, abs=1e-5)

    def test_a_vector_index_finds_the_same(self, searcher: Searcher) -> None:
        pytest.importorskip("faiss")
        nearest.build_in(searcher.index, "flat")
        flat = Searcher(searcher.index, searcher.encoder, searcher.images, "flat")
        question = Question(("red", "a pond"), without=("roof",))
        hits, expected = (one.ask(question, 5).hits for one in (flat, searcher))
        assert [hit.row for hit in hits] == [hit.row for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)

    def test_near_duplicates_are_collapsed(self, searcher: Searcher) -> None:
        hits = searcher.ask(Question(("red",)), TOP).hits
        vectors = {hit.name: row for hit, row in zip(hits, _unit(searcher._vectors(hits)), strict=True)}
        cosines = sorted(float(vectors[a.name] @ vectors[b.name]) for a in hits for b in hits if a.name < b.name)
        threshold = cosines[len(cosines) // 2]
        found = searcher.ask(Question(("red",)), TOP, distinct=threshold).hits
        kept: list[str] = []
        for hit in hits:  # one after the other
            if all(float(vectors[hit.name] @ vectors[name]) < threshold for name in kept):
                kept.append(hit.name)
        assert [hit.name for hit in found] == kept
        assert 1 < len(found) < TOP
        assert sum(hit.alike for hit in found) == TOP - len(found)
        assert [hit.name for hit in searcher.ask(Question(("red",)), 2, distinct=threshold).hits] == kept[:2]

    def test_only_those_of_a_score(self, searcher: Searcher) -> None:
        hits = searcher.ask(Question(("red",)), TOP).hits
        assert searcher.ask(Question(("red",)), TOP, least=hits[4].score).hits == hits[:5]


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors)


class TestGone:
    def test_they_are_left_out_and_counted(self, searcher: Searcher, archive: Archive) -> None:
        ranked = searcher.text("red", TOP)
        for place in (0, 2, 3, 9):
            (archive.images / ranked[place].name).unlink()
        left = [hit for hit in ranked if (archive.images / hit.name).is_file()]
        answer = searcher.answer("red", 4)
        assert ([hit.row for hit in answer.hits], answer.gone) == ([hit.row for hit in left[:4]], 3)
        pages = [hit.row for offset in (0, 3, 6, 9) for hit in searcher.answer("red", 3, offset).hits]
        assert pages == [hit.row for hit in left]

    def test_a_store_is_asked_for_no_more_than_it_gives(
        self, searcher: Searcher, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names, most = searcher.index.names(), 6

        class Few:
            def search(self, vector: object, k: int) -> list[tuple[str, float]]:
                assert k <= most
                return [(name, 1.0) for name in names[:k]]

            def vectors(self, names: Sequence[str]) -> NDArray[np.float32]:
                return np.ones((len(names), searcher.index.manifest.dim), np.float32)

        monkeypatch.setattr(store, "open_full_store", lambda *_: Few())
        monkeypatch.setattr(store, "MOST_HITS", most)
        monkeypatch.setattr("archive.searcher.DEEPEST", most)
        stored = Searcher(searcher.index, searcher.encoder, archive.images, "store")
        (hit,) = stored.ask(Question(("red",)), 2, distinct=0.9).hits
        assert (hit.name, hit.alike) == (names[0], most - 1)
        for name in names[:5]:
            (archive.images / name).unlink()
        assert [hit.name for hit in stored.text("red", 3)] == names[5:6]

    def test_a_place_that_is_not_there_says_nothing_of_its_files(
        self, searcher: Searcher, archive: Archive, tmp_path: Path
    ) -> None:
        shutil.rmtree(archive.images)
        answer = searcher.answer("red", 4)
        assert (len(answer.hits), answer.gone) == (4, 0)

    def test_the_page_says_so(self, searcher: Searcher, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        (archive.images / searcher.text("red", 1)[0].name).unlink()
        monkeypatch.setattr(searcher.encoder, "unread", lambda sentence: "and more")
        found = client_with(searcher, no_scenes(TOP)).get("/api/search?q=red").json()
        assert (len(found["hits"]), found["gone"]) == (TOP - 1, 1)
        assert "1 images that fit are gone" in found["note"]
        assert found["note"].endswith("leaves out its end: and more")

    def test_they_are_remembered_for_a_while(self, searcher: Searcher, archive: Archive) -> None:
        best = searcher.text("red", 1)[0]
        path = archive.images / best.name
        path.rename(tmp := archive.images / "other")
        assert searcher.text("red", 1)[0] != best
        tmp.rename(path)
        searcher.presence._until = 0
        assert searcher.text("red", 1)[0] == best


class TestReading:
    VOCABULARY = Vocabulary({"airplanes": 1, "near": 2, "trees": 3, "houses": 4, "field": 5, "a/c": 6, "<unk>": 7})

    @pytest.mark.parametrize(
        ("sentence", "tokens"),
        [
            ("airplanes\uff0cnear trees/houses", ["airplanes", "near", "trees", "houses"]),
            ("a field\u2026near\u3002Trees-houses", ["a", "field", "near", "trees", "houses"]),
            ("\uff34\uff32\uff25\uff25\uff33 near an a/c field.", ["trees", "near", "an", "a/c", "field", "."]),
            ("houses don't", ["houses", "do", "n't"]),
        ],
    )
    def test_punctuation_in_words_that_would_be_unknown(self, sentence: str, tokens: list[str]) -> None:
        assert vocab.tokenize(respelled(sentence, self.VOCABULARY), punctuation=True) == tokens

    def test_what_is_known_stays_as_it_is(self) -> None:
        for sentence in ("near, trees; field.", "a/c"):
            known = Vocabulary({word: place for place, word in enumerate([*vocab.tokenize(sentence), "<unk>"], 1)})
            assert respelled(sentence, known) == sentence

    def test_clip_says_what_it_leaves_out(self, tiny_options: Callable[..., Options]) -> None:
        pytest.importorskip("open_clip")
        options = tiny_options("CLIP", {})
        words = read_vocabulary(options)
        encoder = Encoder(_Owner(words), options, words, torch.device("cpu"))  # type: ignore[arg-type]
        long = " ".join(f"{number} planes" for number in range(60))
        end = encoder.unread(long)
        assert long.endswith(end)
        assert words.encode(long) == words.encode(long.removesuffix(end))
        assert words.encode(long) != words.encode(long.removesuffix(end).rsplit(maxsplit=1)[0])
        assert encoder.unread("two planes , .") == ""
        (remark,) = encoder.remarks([long])
        assert "longer than the model reads" in remark
        for empty in ("", " \n"):
            with pytest.raises(InputError, match=r"^the sentence is empty: say what the image shows\.$"):
                encoder.check_sentence(empty)
        with pytest.raises(InputError, match="has no word: say what the image shows"):
            encoder.check_sentence("..!")


@dataclass
class _Owner:
    """What a model with words of its own says."""

    words: Vocabulary

    def own_vocabulary(self, block: object) -> Vocabulary:
        return self.words


class TestMeasure:
    def test_recall_compares_scores(self) -> None:
        truth = [torch.tensor([0.9, 0.8, 0.8])]
        assert recall([torch.tensor([0.9, 0.8, 0.8])], truth) == 1  # whichever of the copies was found
        assert recall([torch.tensor([0.9, 0.8, 0.7])], truth) == pytest.approx(2 / 3)
        assert recall([torch.tensor([])], truth) == 0


class TestCommand:
    def query(self, archive: Archive, *more: str) -> None:
        search.main(["query", str(archive.index), "--images", str(archive.images), "--device", "cpu", *more])

    def test_json_and_csv(
        self, archive: Archive, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        self.query(archive, "--json", "a red zeppelin", "--top", "3")
        content = json.loads(capsys.readouterr().out)
        assert content["query"]["sentences"] == ["a red zeppelin"]
        assert content["remarks"] == ["words that the model does not know: zeppelin"]
        hits = content["hits"]
        assert [hit["rank"] for hit in hits] == [1, 2, 3]
        assert all(Path(hit["file"]) == archive.images / hit["name"] for hit in hits)
        self.query(archive, "a red zeppelin", "--csv", "--top", "3")
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(row["name"], float(row["score"])) for row in rows] == [(hit["name"], hit["score"]) for hit in hits]
        self.query(archive, "red", "--csv", "--min-score", "5")
        assert capsys.readouterr().out == "rank,score,name,file,alike\n"

    def test_a_sheet_of_nothing_is_refused(
        self, archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        names, sheet = archive.names(), tmp_path / "sheet.png"
        for name in names[2:]:
            (archive.images / name).unlink()
        for name in names[:2]:
            (archive.images / name).write_bytes(b"damaged")
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(InputError, match="none of the 2 images found can be read"),
        ):
            self.query(archive, "red", "--sheet", str(sheet))
        assert "10 images that fit are gone" in caplog.text
        assert not sheet.exists()
        Image.new("RGB", (9, 9)).save(archive.images / names[0])
        self.query(archive, "red", "--sheet", str(sheet))
        assert "1 of 2 images can't be read" in caplog.text
        assert sheet.exists()

    @pytest.mark.parametrize(
        ("more", "word"),
        [
            ([], "nothing to search with"),
            (["red", "--audio", "a.wav"], "a sound is a query of its own"),
            (["red", "--weight", "2"], "--weight 2: expected 0 to 1"),
            (["red", "--distinct", "5"], "expected a cosine"),
            (["red", "--min-score", "nan"], "expected a number"),
            ([""], "the sentence is empty"),
        ],
    )
    def test_refusals(self, archive: Archive, more: list[str], word: str) -> None:
        with pytest.raises(InputError, match=word):
            self.query(archive, *more)

    def test_a_misspelt_flag(self, archive: Archive) -> None:
        with pytest.raises(SystemExit):
            self.query(archive, "red", "--tpo", "3")
