"""Indexing an archive of images and searching it exactly: the folder, its damages, resuming, queries, the sheet."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile
from torch import Tensor

import search
import vocab
from archive import exact, indexing
from archive.encoder import Encoder
from archive.index_folder import IndexFolder
from archive.indexing import Share
from archive.searcher import Hit, Searcher
from archive.shards import Shards, write_shard
from archive.sheet import GAP, write_sheet
from archive.sheet import SIDE as THUMBNAIL
from batches.augmentation import normalise
from batches.batch import Batch, Captions
from data.annotations import read_annotations
from data.audio.spectrogram import mel_power, save_image, to_image
from data.images import decode, load_square
from data.keywords.file import write_keywords
from data.regions.file import write_regions
from engine import embed, encode
from layers import build_model
from option import Options, load_options
from option.images import ImageRule
from runs.loaders import evaluation_loader, read_vocabulary
from runs.media import Media
from runs.models import load_model
from tests import ROOT
from tests.archives import WORDS, Trained, make_index, make_trained
from tests.tiny_bert import TINY_BERT
from utils import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def amfmn(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A model that scores each pair by more."""
    return make_trained(tmp_path_factory.mktemp("amfmn"), tiny_options, "AMFMN")


@pytest.fixture(scope="module")
def made_by_pairs(amfmn: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of that model's images, in shards of 5."""
    return make_index(amfmn, tmp_path_factory.mktemp("made"))


def names_of(folder: Path) -> list[str]:
    return IndexFolder.open(folder).names()


def whole(folder: Path) -> Tensor:
    embeddings = IndexFolder.open(folder).embeddings
    assert embeddings is not None
    return torch.cat(list(embeddings.blocks()))


def by_name(folder: Path) -> dict[str, Tensor]:
    return dict(zip(names_of(folder), whole(folder), strict=True))


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


class TestShards:
    def test_blocks_and_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("archive.shards.BLOCK_NUMBERS", 8)  # two rows of four
        values = torch.arange(28.0).view(7, 4)
        write_shard(tmp_path / "a.npy", values[:5], "float16")
        write_shard(tmp_path / "b.npy", values[5:], "float16")
        shards = Shards(tmp_path, {"a": 5, "b": 2}, 4, "float16")
        assert len(shards) == 7
        assert [len(block) for block in shards.blocks()] == [2, 2, 1, 2]
        assert torch.cat(list(shards.blocks())).equal(values)
        assert shards.rows(np.array([6, 0, 5, 0])).equal(values[[6, 0, 5, 0]])

    def test_a_number_too_large_for_half_precision(self, tmp_path: Path) -> None:
        refused(lambda: write_shard(tmp_path / "a.npy", torch.full((1, 2), 1e6), "float16"), "--dtype float32")
        assert list(tmp_path.iterdir()) == []


def naive(scores: Sequence[int], k: int, keep: Sequence[bool]) -> list[int]:
    return sorted((row for row in range(len(scores)) if keep[row]), key=lambda row: (-scores[row], row))[:k]


class TestExact:
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_agrees_with_a_sort_whatever_the_blocks_and_ties(self, data: st.DataObject) -> None:
        scores = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=30))
        keep = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        k = data.draw(st.integers(1, 12))
        rows = data.draw(st.integers(1, 9))
        blocks = torch.tensor(scores, dtype=torch.float32)[:, None].split(rows)
        ((found, places),) = exact.search(blocks, torch.ones(1, 1), lambda a, b: a @ b.T, k, np.array(keep))
        assert places.tolist() == naive(scores, k, keep)
        assert found.tolist() == [scores[row] for row in places]

    def test_of_nearest_candidates_in_any_order(self) -> None:
        scores, rows = exact.order(torch.tensor([1.0, 2.0, 1.0, 3.0]), torch.tensor([9, 4, 2, 7]), 3)
        assert (scores.tolist(), rows.tolist()) == ([3, 2, 1], [7, 4, 2])

    def test_cosine(self) -> None:
        found = exact.cosine(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 5.0]]))
        assert found.flatten().tolist() == pytest.approx([0.8, 1.0])


def of_an_earlier_version(index: Path) -> None:
    """Make an index look as one of the version before images had rules, whose models had fewer keys."""
    content = json.loads((index / "index.json").read_text())
    del content["decoding"], content["options"]["model"]["backbone"]["train"]
    for key in ("bands", "range", "nodata"):
        del content["options"]["dataset"][key]
    (index / "index.json").write_text(json.dumps(content))


class TestIndex:
    def test_one_of_an_earlier_version_is_taken_over(self, galr: Trained, index: Path, encoded: list[str]) -> None:
        before = (index / "index.json").read_text()
        of_an_earlier_version(index)
        with pytest.raises(InputError, match=r"is of an earlier version, .* Run search\.py index as you did then"):
            Searcher.open(index, "cpu")
        search.main(galr.arguments(index, "--shard", "5"))
        assert encoded == []
        assert json.loads((index / "index.json").read_text()) == json.loads(before)
        assert len(Searcher.open(index, "cpu").text("a red field", 3, 0)) == 3

    def test_one_whose_images_were_read_otherwise_is_refused(
        self, galr: Trained, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        of_an_earlier_version(index)
        name = names_of(index)[7]
        monkeypatch.setattr(indexing, "mark_of", lambda path, rule: " 2" if path.as_posix().endswith(name) else "")
        with pytest.raises(InputError, match=rf"which read images such as '{name}' otherwise .* another --out"):
            search.main(galr.arguments(index, "--shard", "5"))

    def test_holds_what_evaluation_encodes(self, galr: Trained, made: Path) -> None:
        names = sorted(path.relative_to(galr.images).as_posix() for path in galr.images.rglob("*.png"))
        assert sorted(names_of(made)) == names
        data = galr.images.parent
        (data / "test_filename.txt").write_text("\n".join(names))
        (data / "test_caps.txt").write_text("\n".join(["a red field"] * len(names)))
        options, vocabulary = load_options(galr.options), read_vocabulary(load_options(galr.options))
        annotations = read_annotations(data, "test")
        loader = evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU)
        model, _ = load_model(options, vocabulary, galr.checkpoint, CPU)
        images, _ = encode(model, loader, CPU)
        found = by_name(made)
        torch.testing.assert_close(torch.stack([found[name] for name in names]), images, rtol=1e-5, atol=1e-6)

    def test_says_how_it_was_made(self, galr: Trained, made: Path) -> None:
        content = json.loads((made / "index.json").read_text())
        assert content["count"] == 12
        assert sorted(content["shards"].values()) == [2, 5, 5]
        assert content["checkpoint"] == str(galr.checkpoint)
        assert len(content["checkpoint_sha256"]) == 64
        assert content["options"]["model"]["name"] == "GaLR"
        assert IndexFolder.open(made).manifest.typed_options() == load_options(galr.options)

    def test_goes_on_with_what_is_missing(self, galr: Trained, index: Path, encoded: list[str]) -> None:
        before = by_name(index)
        search.main(galr.arguments(index, "--shard", "5"))
        assert encoded == []
        lost = IndexFolder.open(index)
        shard, count = next(iter(lost.manifest.shards.items()))
        gone = lost.names()[:count]
        (index / "shards" / f"{shard}.npy").unlink()
        search.main(galr.arguments(index, "--shard", "5"))
        assert sorted(encoded) == sorted(gone)
        after = by_name(index)
        assert after.keys() == before.keys()
        for name, embedding in before.items():
            torch.testing.assert_close(after[name], embedding, rtol=1e-5, atol=1e-6)

    def test_takes_new_images_and_says_which_are_gone(
        self, galr: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        images = Path(shutil.copytree(galr.images, tmp_path / "images"))
        grown = Trained(galr.options, galr.checkpoint, images)
        search.main(grown.arguments(tmp_path / "index"))
        (images / "new").mkdir()
        Image.new("L", (9, 7), 99).save(images / "new" / "é x.TIFF")
        next((images / "north").iterdir()).unlink()
        with caplog.at_level(logging.WARNING):
            search.main(grown.arguments(tmp_path / "index"))
        assert "1 images of the index are no longer in the folder; answers leave them out" in caplog.text
        assert names_of(tmp_path / "index").count("new/é x.TIFF") == 1
        assert len(IndexFolder.open(tmp_path / "index")) == 13

    def test_skips_what_can_not_be_read(
        self, galr: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images = tmp_path / "images"
        images.mkdir()
        Image.new("RGB", (20, 20), "red").save(images / "good.jpg")
        Image.new("RGB", (200, 101), "red").save(images / "huge.png")
        (images / "empty.tif").touch()
        (images / "text.jpg").write_text("no image")
        (images / "notes.txt").write_text("not looked at")
        Image.new("RGB", (20, 20), "blue").save(images / "latin.png")
        os.rename(images / "latin.png", os.fsencode(images) + b"/caf\xe9.png")  # a name that is not UTF-8
        Path(os.fsdecode(os.fsencode(images) + b"/\xe9.png")).touch()
        found = Trained(galr.options, galr.checkpoint, images)
        with caplog.at_level(logging.WARNING):
            search.main(found.arguments(tmp_path / "index", "--set", "dataset.max_pixels=20000"))
        assert "4 images can't be read and were skipped" in caplog.text
        listed = (tmp_path / "index" / "skipped-0.txt").read_text().splitlines()
        assert len(listed) == 4
        assert sum(r"\udce9.png: the image is empty" in line for line in listed) == 1
        assert "huge.png: 200 x 101 pixels, at most 20000" in "\n".join(listed)
        assert names_of(tmp_path / "index") == ["caf\udce9.png", "good.jpg"]
        search.main(["query", str(tmp_path / "index"), "red", "--sheet", str(tmp_path / "sheet.png")])
        printed = capsys.readouterr().out
        assert r"'caf\udce9.png'" in printed
        assert "2 images, 128 numbers each" in printed

    def test_worker_processes_read_the_same(self, galr: Trained, made: Path, tmp_path: Path) -> None:
        search.main(galr.arguments(tmp_path / "index", "--set", "dataset.workers=1"))
        for name, embedding in by_name(tmp_path / "index").items():
            torch.testing.assert_close(embedding, by_name(made)[name], rtol=1e-5, atol=1e-6)

    def test_half_precision(self, galr: Trained, made: Path, tmp_path: Path) -> None:
        search.main(galr.arguments(tmp_path / "index", "--dtype", "float16"))
        (file,) = (tmp_path / "index" / "shards").glob("*.npy")
        assert np.load(file, allow_pickle=False).dtype == np.float16
        for name, embedding in by_name(tmp_path / "index").items():
            torch.testing.assert_close(embedding, by_name(made)[name].half().float(), rtol=1e-3, atol=1e-4)

    def test_two_processes_share_the_work(self, galr: Trained, made: Path, tmp_path: Path) -> None:
        command = [sys.executable, "search.py", *galr.arguments(tmp_path / "index", "--shard", "4", "--device", "cpu")]
        processes = [
            subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"})
            for rank in range(2)
        ]
        assert [process.wait() for process in processes] == [0, 0]
        found = by_name(tmp_path / "index")
        assert len(names_of(tmp_path / "index")) == len(found) == 12
        for name, embedding in by_name(made).items():
            torch.testing.assert_close(found[name], embedding, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        ("environment", "share"),
        [
            ({}, Share()),
            ({"WORLD_SIZE": "", "RANK": ""}, Share()),
            ({"WORLD_SIZE": "1"}, Share()),
            ({"WORLD_SIZE": "3", "RANK": "2"}, Share(2, 3)),
            ({"WORLD_SIZE": "3"}, "WORLD_SIZE=3 but no RANK: .*env -u WORLD_SIZE python search.py"),
            ({"WORLD_SIZE": "3", "RANK": "3"}, "RANK=3, expected 0 to 2"),
            ({"WORLD_SIZE": "3", "RANK": "a"}, "RANK=a, expected a number"),
        ],
    )
    def test_share_of_the_environment(
        self, environment: dict[str, str], share: Share | str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("WORLD_SIZE", "RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if isinstance(share, Share):
            assert Share.of_environment() == share
        else:  # a share of less would leave images out, and say nothing
            with pytest.raises(InputError, match=share):
                Share.of_environment()

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)), st.integers(1, 5))
    def test_shares_are_a_partition(self, names: list[str], world: int) -> None:
        shares = [Share(rank, world).of(names) for rank in range(world)]
        assert sorted(name for share in shares for name in share) == sorted(names)

    def test_shares_of_like_names_are_even(self) -> None:
        names = [f"part/{number}.jpg" for number in range(2000)]
        assert [950 < len(Share(rank, 2).of(names)) < 1050 for rank in range(2)] == [True, True]


class TestRefusals:
    def test_another_checkpoint(self, galr: Trained, index: Path, tmp_path: Path) -> None:
        content = torch.load(galr.checkpoint, weights_only=True)
        torch.save(content | {"epoch": 99}, tmp_path / "other.pth")
        other = Trained(galr.options, tmp_path / "other.pth", galr.images)
        refused(lambda: search.main(other.arguments(index)), "made otherwise", "SHA-256 of the checkpoint", "--out")
        refused(lambda: Searcher.open(index, "cpu", checkpoint=tmp_path / "other.pth"), "not the checkpoint")
        refused(lambda: Searcher.open(index, "cpu", checkpoint=tmp_path / "none.pth"), "no checkpoint", "--checkpoint")

    def test_another_precision_view_or_folder(self, galr: Trained, index: Path, tmp_path: Path) -> None:
        refused(lambda: search.main(galr.arguments(index, "--dtype", "float16")), "--dtype: 'float32' there")
        refused(
            lambda: search.main(galr.arguments(index, "--set", "dataset.test_views=right_angles")),
            "test_views: 'one' there",
        )
        before = (index / "index.json").read_bytes()
        Image.new("RGB", (9, 9), "blue").save(tmp_path / "other.png")
        elsewhere = Trained(galr.options, galr.checkpoint, tmp_path)
        refused(lambda: search.main(elsewhere.arguments(index)), "has none of the images", "another --out")
        assert json.loads((index / "index.json").read_text()) == json.loads(before)

    def test_missing_things(self, galr: Trained, tmp_path: Path) -> None:
        out, empty = tmp_path / "index", tmp_path / "empty"
        empty.mkdir()
        refused(lambda: search.main(Trained(galr.options, galr.checkpoint, empty).arguments(out)), "no image there")
        gone = Trained(galr.options, galr.checkpoint, tmp_path / "gone")
        refused(lambda: search.main(gone.arguments(out)), "no such folder")
        nothing = Trained(galr.options, tmp_path / "gone.pth", galr.images)
        refused(lambda: search.main(nothing.arguments(out)), "no checkpoint")
        assert not out.exists()

    def test_no_image_that_can_be_read(self, galr: Trained, tmp_path: Path) -> None:
        images = tmp_path / "images"
        images.mkdir()
        (images / "a.png").touch()
        bad = Trained(galr.options, galr.checkpoint, images)
        refused(lambda: search.main(bad.arguments(tmp_path / "index")), "none of the 1 images can be read")

    def test_arguments_that_do_not_go_together(
        self, galr: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def index_with(*more: str) -> Callable[[], None]:
            return lambda: search.main(galr.arguments(tmp_path / "index", *more))

        refused(index_with("--shard", "0"), "--shard 0: expected 1 or more")
        refused(index_with("--store", "milvus:19530"), "expected an address")
        refused(index_with("--store", "http://user:word@host:19530"), "MILVUS_TOKEN")
        refused(index_with("--store", "--kind", "flat"), "leave out --kind")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        refused(index_with("--kind", "flat"), "when all processes are done")
        refused(index_with("--prune"), "--prune, --verify and --upkeep: once without torchrun")
        refused(index_with("--store"), "serves one process")


class TestBrokenIndex:
    def shard(self, index: Path, ending: str) -> Path:
        return sorted((index / "shards").glob(f"*.{ending}"))[0]

    def test_none(self, tmp_path: Path) -> None:
        refused(lambda: IndexFolder.open(tmp_path), "no index there")

    @pytest.mark.parametrize("ending", ["npy", "json"])
    def test_a_missing_shard(self, index: Path, ending: str) -> None:
        path = self.shard(index, ending)
        path.unlink()
        refused(lambda: IndexFolder.open(index), path.name, "missing", "run the command that made the index again")

    def test_a_shard_that_is_cut_short(self, index: Path) -> None:
        path = self.shard(index, "npy")
        for size in (200, 90, 3, 0):
            os.truncate(path, size)
            refused(lambda: IndexFolder.open(index), path.name, "damaged or cut short")

    def test_a_shard_of_another_form(self, index: Path) -> None:
        np.save(self.shard(index, "npy"), np.zeros((9, 3), np.float32))
        refused(lambda: IndexFolder.open(index), "holds (9, 3) of float32, expected (", ", 128)")
        np.save(self.shard(index, "npy"), np.array([{"code": "runs"}]), allow_pickle=True)
        refused(lambda: IndexFolder.open(index), "damaged or cut short")

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("{", "damaged"),
            ("[" * 100_000, "damaged"),
            ("[]", "damaged"),
            ('{"format": "rsretrieval-index-9"}', "rsretrieval-index-9, expected rsretrieval-index-1"),
            ('{"format": "rsretrieval-index-1"}', "created: Field required"),
        ],
    )
    def test_a_damaged_manifest(self, galr: Trained, index: Path, text: str, word: str) -> None:
        (index / "index.json").write_text(text)
        refused(lambda: IndexFolder.open(index), "index.json", word)
        refused(lambda: search.main(galr.arguments(index)), "index.json", word)

    def test_a_count_that_does_not_add_up(self, index: Path) -> None:
        content = json.loads((index / "index.json").read_text())
        (index / "index.json").write_text(json.dumps(content | {"count": 13}))
        refused(lambda: IndexFolder.open(index), "count is 13, but the shards hold 12")

    @pytest.mark.parametrize(
        ("names", "word"),
        [
            (["../../etc/passwd"], "leaves the image folder"),
            (["a", "b"], "names, expected"),
            ({}, "no list"),
            ([1], "no list"),
        ],
    )
    def test_damaged_names(self, index: Path, names: Any, word: str) -> None:
        for shard, count in IndexFolder.open(index).manifest.shards.items():
            (index / "shards" / f"{shard}.json").write_text(json.dumps(names * count if names else names))
        refused(lambda: names_of(index), word)

    def test_another_vocabulary(self, index: Path) -> None:
        content = json.loads((index / "vocabulary.json").read_text())
        first, second = list(content["word2idx"])[:2]
        content["word2idx"][first], content["word2idx"][second] = 2, 1
        content["idx2word"]["1"], content["idx2word"]["2"] = second, first
        (index / "vocabulary.json").write_text(json.dumps(content))
        refused(lambda: Searcher.open(index, "cpu"), "not the vocabulary")


class TestSearcher:
    @pytest.mark.parametrize("fixture", ["made", "made_by_pairs"])
    def test_a_sentence_finds_what_the_model_scores_highest(self, fixture: str, request: pytest.FixtureRequest) -> None:
        folder = request.getfixturevalue(fixture)
        searcher = Searcher.open(folder, "cpu")
        query = searcher.encoder.text("a red field")
        scores = searcher.encoder.model.score(whole(folder), query)[:, 0].tolist()
        ranked = naive(scores, 12, [True] * 12)
        hits = searcher.text("a red field", 4)
        assert [hit.row for hit in hits] == ranked[:4]
        assert [hit.score for hit in hits] == pytest.approx([scores[row] for row in ranked[:4]], abs=1e-6)
        assert [hit.name for hit in hits] == [names_of(folder)[row] for row in ranked[:4]]
        assert [hit.row for hit in searcher.text("a red field", 4, offset=10)] == ranked[10:]
        keep = np.array([row in ranked[1::2] for row in range(12)])
        assert [hit.row for hit in searcher.text("a red field", 3, 1, keep)] == ranked[1::2][1:4]

    @pytest.mark.parametrize("fixture", ["made", "made_by_pairs"])
    def test_an_image_finds_itself(self, fixture: str, request: pytest.FixtureRequest) -> None:
        folder = request.getfixturevalue(fixture)
        searcher = Searcher.open(folder, "cpu")
        name = names_of(folder)[7]
        hits = searcher.image(decode(searcher.images / name), 12)
        assert hits[0].name == name
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        expected = exact.cosine(whole(folder), whole(folder)[7:8])[:, 0]
        assert {hit.row: hit.score for hit in hits} == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)

    def test_unknown_words(self, made: Path) -> None:
        searcher = Searcher.open(made, "cpu")
        assert searcher.encoder.unknown_words("The red zeppelins over a red zeppelins field!") == ["zeppelins"]
        refused(lambda: searcher.text("two zeppelins", 3), "knows no word of 'two zeppelins'", "such as")
        refused(lambda: searcher.text("  ", 3), "the sentence is empty")
        refused(lambda: searcher.text("<unk>", 3), "knows no word")

    @pytest.mark.parametrize(
        ("name", "changes", "cast"),
        [
            ("DualEncoder", {"text.encoder": TINY_BERT}, 14),  # two layers of six maps, and the head's two
            ("DualEncoder", {"text.encoder": "gru"}, 2),
            ("CLIP", {}, 0),  # whose blocks compute in the precision of their weights
            ("GaLR", {}, None),
            ("SWAN", {}, None),  # whose attention is in full precision
        ],
    )
    def test_sentences_in_mixed_precision(
        self, name: str, changes: dict[str, Any], cast: int | None, tiny_options: Callable[..., Options], tmp_path: Path
    ) -> None:
        vocab.build(WORDS, min_count=1).save(tmp_path / "vocab.json")
        given = {"optim.amp": "bf16", "dataset.vocab_path": str(tmp_path / "vocab.json"), "dataset.local_path": None}
        options = tiny_options(name, given | changes)
        words = read_vocabulary(options)
        torch.manual_seed(0)
        model = build_model(options, words)
        encoder = Encoder(model, options, words, CPU)
        batch = Captions.encode(WORDS, words).batch(torch.arange(4))
        assert torch.equal(encoder.texts(WORDS), embed(model, model.encode_text, [batch], "caption", CPU, "bf16"))
        lower = {
            part for part in encoder._reader.modules() for held in part.parameters(False) if held.dtype != torch.float32
        }
        assert cast is None or len(lower) == cast
        assert all(weight.dtype == torch.float32 for weight in model.parameters())

    def test_no_sound_where_the_model_hears_nothing(self, made: Path, tmp_path: Path) -> None:
        refused(lambda: Searcher.open(made, "cpu").audio(tmp_path / "a.wav", 3), "GaLR has no audio encoder")

    def test_a_sound_is_heard_as_its_spectrogram(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        trained = make_trained(tmp_path / "mcrn", tiny_options, "MCRN")
        search.main(trained.arguments(tmp_path / "index"))
        tone = 0.5 * np.sin(np.arange(16_000) / 5) * np.linspace(0, 1, 16_000)
        wavfile.write(tmp_path / "a.wav", 16_000, tone.astype(np.float32))
        searcher = Searcher.open(tmp_path / "index", "cpu")
        save_image(tmp_path / "a.png", to_image(mel_power(tone.astype(np.float32))))
        pixels = torch.from_numpy(load_square(tmp_path / "a.png", 64))[None]
        with torch.no_grad():
            heard = searcher.encoder.model.eval().encode_audio(Batch(audio=normalise(pixels)))
        scores = searcher.encoder.model.score(whole(tmp_path / "index"), heard)[:, 0].tolist()
        hits = searcher.audio(tmp_path / "a.wav", 12)
        assert {hit.row: hit.score for hit in hits} == pytest.approx(dict(enumerate(scores)), abs=1e-5)

    def test_a_model_that_brings_its_words(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        trained = make_trained(tmp_path / "clip", tiny_options, "CLIP")
        search.main(trained.arguments(tmp_path / "index"))
        assert not (tmp_path / "index" / "vocabulary.json").exists()
        searcher = Searcher.open(tmp_path / "index", "cpu")
        assert searcher.encoder.unknown_words("two zeppelins") == []
        assert len(searcher.text("two zeppelins", 20)) == 12

    def test_words_that_count_as_keywords(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        trained = make_trained(tmp_path / "amfmn", tiny_options, "AMFMN", {"keywords.mode": "sentence"})
        data = trained.images.parent
        write_keywords(data / "train_keywords.txt", [[("red", "field")]] * 12)
        search.main(trained.arguments(tmp_path / "index"))
        (data / "train_keywords.txt").unlink()
        encoder = Searcher.open(tmp_path / "index", "cpu").encoder
        words = encoder.vocabulary.word2idx
        tokens = torch.tensor([[words[word] for word in ("blue", "field")]])
        keywords = torch.tensor([[0, words["field"]]])
        with torch.no_grad():
            expected = encoder.model.eval().encode_text(
                Batch(tokens=tokens, lengths=torch.tensor([2]), keywords=keywords)
            )
        torch.testing.assert_close(encoder.text("blue field"), expected, rtol=1e-5, atol=1e-6)
        index_by = ["--set", "model.keywords.mode=both"]
        search.main(trained.arguments(tmp_path / "both", *index_by))
        searcher = Searcher.open(tmp_path / "both", "cpu")
        refused(lambda: searcher.text("a red field", 3), "--set model.keywords.mode=sentence")

    def test_regions(self, tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
        regions = tmp_path / "regions.h5"
        trained = make_trained(tmp_path / "galr", tiny_options, "GaLR", {"dataset.local_path": str(regions)})
        names = sorted(
            path.relative_to(trained.images).with_suffix("").as_posix() for path in trained.images.rglob("*.png")
        )
        random = np.random.default_rng(0)
        arrays = {name: tuple(random.random((2, 20, 20), dtype=np.float32)) for name in names}
        write_regions(regions, dict(list(arrays.items())[1:]), "test", "test")
        refused(lambda: search.main(trained.arguments(tmp_path / "index")), "1 of 12 images have no regions")
        write_regions(regions, arrays, "test", "test")
        search.main(trained.arguments(tmp_path / "index"))
        searcher = Searcher.open(tmp_path / "index", "cpu")
        assert len(searcher.text("a red field", 12)) == 12
        refused(lambda: searcher.image(Image.new("RGB", (9, 9)), 1), "reads the regions", "missing_regions=zeros")
        search.main(trained.arguments(tmp_path / "zeros", "--set", "dataset.missing_regions=zeros"))
        assert len(Searcher.open(tmp_path / "zeros", "cpu").image(Image.new("RGB", (9, 9)), 5)) == 5


class TestCommands:
    def test_query_prints_and_draws(
        self, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        sheet = tmp_path / "sheet.png"
        with caplog.at_level(logging.WARNING):
            search.main(["query", str(made), "a red zeppelin", "--top", "4", "--sheet", str(sheet), "--device", "cpu"])
        assert "does not know: zeppelin" in caplog.text
        lines = capsys.readouterr().out.splitlines()
        hits = Searcher.open(made, "cpu").text("a red zeppelin", 4)
        assert lines[0] == "rank   score  file"
        assert [line.split() for line in lines[1:5]] == [
            [str(rank), f"{hit.score:.4f}", hit.name] for rank, hit in enumerate(hits, start=1)
        ]
        with Image.open(sheet) as drawn:
            assert drawn.format == "PNG"
            assert drawn.width > 4 * THUMBNAIL
            assert drawn.convert("RGB").getcolors(10**6) is not None

    def test_query_with_an_image(
        self,
        amfmn: Trained,
        made_by_pairs: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        image = sorted((amfmn.images / "north").iterdir())[0]
        with caplog.at_level(logging.INFO):
            search.main(["query", str(made_by_pairs), "--image", str(image), "--sheet", str(tmp_path / "a.png")])
        assert "cosine of their embeddings" in caplog.text
        assert f"1.0000  north/{image.name}" in capsys.readouterr().out

    def test_a_sheet_shows_the_images(self, tmp_path: Path) -> None:
        for colour in ("red", "lime"):
            Image.new("RGB", (400, 400), colour).save(tmp_path / f"{colour}.png")
        hits = [Hit("red.png", 0.5, 0), Hit("gone.png", 0.4, 1), Hit("lime.png", 0.3, 2), Hit("x" * 300, 0.1, 3)]
        write_sheet(tmp_path / "sheet.png", "a long caption " * 40, hits, tmp_path, ImageRule())
        with Image.open(tmp_path / "sheet.png") as sheet:
            y = sheet.height - THUMBNAIL // 2 - 50
            middles = [GAP + place * (THUMBNAIL + GAP) + THUMBNAIL // 2 for place in range(3)]
            assert sheet.getpixel((middles[0], y)) == (255, 0, 0)
            assert sheet.getpixel((middles[2], y)) == (0, 255, 0)

    @pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
    def test_refusals(self, made: Path, tmp_path: Path) -> None:
        def query(*more: str) -> Callable[[], None]:
            return lambda: search.main(["query", str(made), *more])

        refused(query("red", "--top", "0"), "--top 0: expected 1 or more")
        refused(query("red", "--sheet", str(tmp_path / "sheet.bmp")), "expected the name of a file that ends in .png")
        refused(query("--image", str(tmp_path / "none.png")), "no such image")
        Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
        refused(query("--image", str(tmp_path / "huge.png")), "20000 x 6000 pixels, at most 100000000")

    def test_measure(self, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "captions.txt").write_text("a red field\n\na red field\nthe blue pond\n")
        search.main(["measure", str(made), "--captions", str(tmp_path / "captions.txt")])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "12 images, 2 sentences as queries"
        assert lines[-1].split()[::3] == ["exact", "1.0000"]
        (tmp_path / "captions.txt").write_text("\n \n")
        refused(lambda: search.main(["measure", str(made), "--captions", str(tmp_path / "captions.txt")]), "no query")
