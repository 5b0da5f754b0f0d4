"""Keywords: files, extraction from captions, queries of every mode, the branch and its gate, whole runs.

Letters: B batch, P phrases, K = 2 P, D embedding.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import test as test_entry
import train as train_entry
from batches.batch import Captions, QueryMode
from batches.queries import build_queries, compact, keyword_ids, known_words, sentence_keywords, typed_queries
from data.annotations import Annotations, read_annotations
from data.keywords import __main__ as command
from data.keywords.extraction import UNNAMED, Lexicon, extract_keywords, keywords_from_captions, learn_lexicon
from data.keywords.file import Keyword, keyword_list, keywords_of, read_keywords, write_keywords
from data.splits import fold_annotations, recorded_or_new
from engine import evaluate
from layers import build_model
from layers.amfmn import AMFMN
from layers.keywords import KeywordFusion
from option import load_options
from runs.loaders import evaluation_loader, read_vocabulary, train_loader
from runs.media import Media
from runtime.weights import read_checkpoint
from tests.tiny import make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")
MODES: tuple[QueryMode, ...] = ("sentence", "keywords", "both")
WORDS = ("green", "trees", "white", "airplane", "port", "<unk>")
VOCABULARY = Vocabulary({word: index for index, word in enumerate(WORDS, start=1)})
FINE_GRAINED = st.one_of(st.just("-"), st.text("ab1-", min_size=1, max_size=3))
TARGETS = st.text("xyz-", min_size=2, max_size=4)


def listed(folder: Path, captions: list[str], per_image: int = 1, side: str = "train") -> Annotations:
    """A list of images named 0.png and so on, with these captions."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{side}{image}.png" for image in range(len(captions) // per_image)]
    (folder / f"{side}_filename.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / f"{side}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions))
    return read_annotations(folder, "train" if side == "train" else "test")


class TestFile:
    """`train_keywords.txt` and `test_keywords.txt`."""

    def test_reads_one_line_per_image(self, tmp_path: Path) -> None:
        path = tmp_path / "train_keywords.txt"
        path.write_text("green trees,- port\r\n White  Airplane \n- port, - sea\n")
        assert read_keywords(path, 3) == [
            (("green", "trees"), ("-", "port")),
            (("white", "airplane"),),
            (("-", "port"), ("-", "sea")),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a b\n- port\n", "line 2: the file ends after 2 lines, but the list has 3 images"),
            ("a b\n- port\n\n", "1 fault:\n  line 3: expected two words, found ''"),
            ("a b\nport\nred big car,- x\n", "line 2: expected two words, found 'port'\n  line 3: .* 'red big car'"),
            ("a b,\n- port\ngreen -\n", "line 1: expected two words, found ''\n  line 3: no target word in 'green -'"),
        ],
    )
    def test_names_file_and_line_of_a_fault(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "train_keywords.txt"
        path.write_text(text)
        with pytest.raises(InputError, match=f"(?s)train_keywords.txt.*{message}"):
            read_keywords(path, 3)

    def test_a_missing_file_says_how_to_make_it(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"test_keywords.txt: no such file.*dataset.keywords_path.*data.keywords"):
            read_keywords(keyword_list(tmp_path, "test"), 1)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.lists(st.tuples(FINE_GRAINED, TARGETS), min_size=1, max_size=3), max_size=4))
    def test_reads_what_it_writes(self, keywords: list[list[Keyword]]) -> None:
        with TemporaryDirectory() as folder:
            write_keywords(Path(folder, "x"), keywords)
            assert read_keywords(Path(folder, "x"), len(keywords)) == [tuple(row) for row in keywords]

    @pytest.mark.parametrize("names_per_image", [1, 2])
    def test_a_split_carries_the_right_lines(self, tmp_path: Path, names_per_image: int) -> None:
        listed(tmp_path, [f"caption {place}" for place in range(20)], per_image=2)
        names = [f"train{image}.png" for image in range(10)]
        (tmp_path / "train_filename.txt").write_text("".join(f"{name}\n" * names_per_image for name in names))
        write_keywords(tmp_path / "train_keywords.txt", [[("-", f"of{image}")] for image in range(10)])
        for half, images in (("train", (7, 2)), ("val", (5,))):
            (tmp_path / f"{half}_filename_verify.txt").write_text("".join(f"train{image}.png\n" for image in images))
            (tmp_path / f"{half}_caps_verify.txt").write_text("a\nb\n" * len(images))
        folds = [fold_annotations(tmp_path, "random", fold, 2, 0) for fold in (0, 1)]
        folds += [recorded_or_new(tmp_path, tmp_path / "run", "random", 1, 2, 0, resume) for resume in (False, True)]
        folds.append(fold_annotations(tmp_path, "fixed", 0, 1, 0))
        for part in (part for fold in folds for part in fold):
            expected = [(("-", name.replace("train", "of").removesuffix(".png")),) for name in part.image_names]
            assert keywords_of(part, tmp_path) == expected
        (tmp_path / "val_filename_verify.txt").write_text("other.png\n")
        val = fold_annotations(tmp_path, "fixed", 0, 1, 0)[1]
        with pytest.raises(InputError, match=r"val_filename_verify.txt: 1 images.*lacks\n  line 1: 'other.png'"):
            keywords_of(val, tmp_path)


CAPTIONS = [
    *("Many green trees are near the white building .", "The trees surround a building with a white roof ."),
    *("Rows of green trees stand beside two tennis courts .", "There are two tennis courts near some trees ."),
    *("A white airplane is parked at the airport .", "airplanes parked neatly at the airport ."),
    *("the green and white building .", "two green buildings"),
]


class TestExtraction:
    """Keywords from captions, by hand on eight sentences."""

    def test_which_words_name_things(self, tmp_path: Path) -> None:
        lexicon = learn_lexicon(listed(tmp_path, CAPTIONS), 1)
        assert set(lexicon.targets) == {
            *("trees", "building", "buildings", "roof", "courts", "airplane", "airport"),
        }
        assert lexicon.targets["trees"] == 4
        assert {"green", "white", "tennis", "two", "many"} <= lexicon.describing
        assert set(learn_lexicon(listed(tmp_path, CAPTIONS, per_image=2), 2).targets) == {"trees"}

    def test_keywords_of_an_image(self, tmp_path: Path) -> None:
        lexicon = learn_lexicon(listed(tmp_path, CAPTIONS), 1)
        assert extract_keywords(CAPTIONS[:2], lexicon, 5) == (
            ("green", "trees"),
            ("white", "building"),
            ("white", "roof"),
        )
        assert extract_keywords(CAPTIONS[:2], lexicon, 1) == (("green", "trees"),)
        assert extract_keywords(CAPTIONS[2:4], lexicon, 5) == (("green", "trees"), ("tennis", "courts"))
        assert extract_keywords(CAPTIONS[4:6], lexicon, 5) == (("-", "airport"), ("white", "airplane"))
        # A quantity counts only where nothing else stands before that form.
        assert extract_keywords(["two buildings", "two buildings", "one green buildings"], lexicon, 5) == (
            ("green", "buildings"),
        )
        assert extract_keywords(["two buildings are here"], lexicon, 5) == (("two", "buildings"),)
        assert extract_keywords(["the airport building"], lexicon, 5) == (("airport", "building"),)

    def test_an_image_without_a_target_word(self) -> None:
        lexicon = Lexicon({}, frozenset())
        assert extract_keywords(["It is very strange .", "strange"], lexicon, 5) == (("-", "strange"),)
        assert extract_keywords(["  ", " . "], lexicon, 5) == (UNNAMED,)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
    def test_any_text_gives_keywords_that_can_be_read(self, captions: list[str]) -> None:
        lexicon = Lexicon({"trees": 1}, frozenset({"green"}))
        found = extract_keywords(captions, lexicon, 3)
        assert 1 <= len(found) <= 3
        assert all(len(keyword) == 2 and " ".join(keyword).split() == list(keyword) for keyword in found)
        assert not any("," in word or word != word.lower() for keyword in found for word in keyword)

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        listed(tmp_path / "data", CAPTIONS, per_image=2)
        listed(tmp_path / "data", CAPTIONS[:4], per_image=2, side="test")
        before = {path.name for path in (tmp_path / "data").iterdir()}
        arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--min_images", "1"]
        command.main(arguments)
        train, test = ((tmp_path / "out" / f"{side}_keywords.txt").read_text() for side in ("train", "test"))
        assert train.splitlines()[:2] == ["green trees,white building,white roof", "green trees,tennis courts"]
        assert test.splitlines() == train.splitlines()[:2]
        printed = capsys.readouterr().out
        assert "7 target words: trees" in printed
        assert "train: 4 images, 2.00 keywords each, 6 different; 12% without a fine-grained word; 0 images" in printed
        assert {path.name for path in (tmp_path / "data").iterdir()} == before
        (tmp_path / "out" / "test_keywords.txt").unlink()
        (tmp_path / "out" / "train_keywords.txt").write_text("mine\n")
        with pytest.raises(InputError, match=r"train_keywords.txt: there already; pass --force"):
            command.main(arguments)
        assert (tmp_path / "out" / "train_keywords.txt").read_text() == "mine\n"
        command.main([*arguments, "--force"])
        assert (tmp_path / "out" / "train_keywords.txt").read_text() == train
        command.main([str(tmp_path / "data")])
        assert {path.name for path in (tmp_path / "data").iterdir()} - before == {
            "train_keywords.txt",
            "test_keywords.txt",
        }
        with pytest.raises(InputError, match="--most and --min_images"):
            command.main([*arguments, "--most", "0"])

    def test_on_a_published_set(self) -> None:
        if "RSR_DATA" not in os.environ:
            pytest.skip("RSR_DATA is not set")
        annotations = read_annotations(Path(os.environ["RSR_DATA"]) / "data" / "ucm_precomp", "train")
        lexicon = learn_lexicon(annotations, 10)
        assert {"airplane", "harbor", "river", "trees", "courts", "area"} <= lexicon.targets.keys()
        assert not {"white", "green", "tennis", "parked", "arranged", "the", "two", "go"} & lexicon.targets.keys()
        found = {" ".join(keyword) for row in keywords_from_captions(annotations, lexicon, 5) for keyword in row}
        assert {"white airplane", "- airport", "green trees", "tennis courts", "residential area"} <= found


class TestQueries:
    """What captions and keywords become."""

    def test_ids_of_keywords(self) -> None:
        rows = [(("green", "trees"), ("-", "port")), (("huge", "airplane"),)]
        assert keyword_ids(rows, VOCABULARY).tolist() == [[1, 2, 0, 5], [6, 4, 0, 0]]
        assert known_words(rows, VOCABULARY).tolist() == [1, 2, 4, 5]

    def test_known_words_of_sentences(self) -> None:
        tokens = torch.tensor([[6, 2, 6, 1], [3, 0, 0, 0], [2, 2, 4, 0]])
        found = sentence_keywords(tokens, torch.tensor([1, 2]))
        assert found.tolist() == [[0, 2, 0, 1], [0, 0, 0, 0], [0, 2, 0, 2]]
        assert sentence_keywords(tokens, torch.tensor([5])).tolist() == [[0, 0]] * 3

    @settings(deadline=None)
    @given(st.lists(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=3, max_size=3), min_size=1))
    def test_compact_equals_its_slow_twin(self, rows: list[list[tuple[int, bool]]]) -> None:
        ids, kept = (torch.tensor([[pair[place] for pair in row] for row in rows]) for place in (0, 1))
        moved, counts = compact(ids, kept)
        expected = [[number for number, keep in row if keep] for row in rows]
        assert counts.tolist() == list(map(len, expected))
        assert moved.shape[1] == max(1, *map(len, expected), 0)
        assert [[number for number in row if number] for row in moved.tolist()] == expected
        assert all((row[count:] == 0).all() for row, count in zip(moved, counts, strict=True))

    def test_each_mode(self, tmp_path: Path) -> None:
        captions = ["green trees", "white port", "green trees", "an airplane", "an airplane", "an airplane"]
        annotations = listed(tmp_path, captions, per_image=2)
        write_keywords(
            tmp_path / "train_keywords.txt", [[("green", "trees"), ("-", "port")], [("-", "port")], [("-", "port")]]
        )

        def queries(mode: QueryMode) -> Captions:
            return build_queries(annotations, VOCABULARY, mode, tmp_path)

        none, both, sentence, keywords = (queries(mode) for mode in ("none", "both", "sentence", "keywords"))
        own = [[1, 2, 0, 5]] * 2 + [[0, 5, 0, 0]] * 4
        assert none.keywords is None
        assert torch.equal(both.tokens, none.tokens)
        assert cast(Tensor, both.keywords).tolist() == own
        assert (
            cast(Tensor, sentence.keywords).tolist() == [[0, 1, 0, 2], [0, 5, 0, 0], [0, 1, 0, 2]] + [[0, 0, 0, 0]] * 3
        )
        assert keywords.tokens.tolist() == [[1, 2, 5]] * 2 + [[5, 0, 0]] * 4
        assert keywords.lengths.tolist() == [3, 3, 1, 1, 1, 1]
        assert cast(Tensor, keywords.keywords).tolist() == own
        # Equal captions with other keywords are other queries; all captions of an image are one by keywords alone.
        groups = {"none": [0, 1, 0, 2, 2, 2], "both": [0, 1, 2, 3, 3, 3], "sentence": [0, 1, 0, 2, 2, 2]}
        for found, mode in ((none, "none"), (both, "both"), (sentence, "sentence")):
            assert same(found.distinct()[1]) == groups[mode]
        assert same(keywords.distinct()[1]) == [0, 0, 1, 1, 1, 1]
        for found in (both, sentence, keywords):
            distinct, row_of = found.distinct()
            for name in ("tokens", "lengths", "keywords"):
                assert torch.equal(getattr(distinct, name)[row_of], getattr(found, name))
            assert distinct.lengths.tolist() == sorted(distinct.lengths.tolist(), reverse=True)
        batch = both.batch(torch.tensor([3, 0]))
        assert batch.need("keywords").tolist() == [own[3], own[0]]
        assert typed_queries(["white port"], VOCABULARY, "none", tmp_path, tmp_path).keywords is None
        typed = typed_queries(["white port"], VOCABULARY, "sentence", tmp_path, tmp_path)
        assert cast(Tensor, typed.keywords).tolist() == [[0, 5]]
        for mode in MODES[1:]:
            with pytest.raises(InputError, match=rf"model\.keywords\.mode={mode} takes the keywords of an image"):
                typed_queries(["white port"], VOCABULARY, mode, tmp_path, tmp_path)


def same(rows: Tensor) -> list[int]:
    """The numbers of rows in the order of their first appearance."""
    order = list(dict.fromkeys(rows.tolist()))
    return [order.index(row) for row in rows.tolist()]


def slow_fusion(fusion: KeywordFusion, sentence: Tensor, keywords: list[int], words: nn.Embedding) -> Tensor:
    """The text of one item, word by word by the formulas of a GRU."""
    cell = fusion.phrase
    states = []
    for first, second in zip(keywords[::2], keywords[1::2], strict=True):
        if second == 0:
            continue
        state = torch.zeros(cell.hidden_size, dtype=sentence.dtype)
        for word in (first, second) if first else (second,):
            into_reset, into_update, into_new = (cell.weight_ih @ words.weight[word] + cell.bias_ih).chunk(3)
            from_reset, from_update, from_new = (cell.weight_hh @ state + cell.bias_hh).chunk(3)
            reset, update = torch.sigmoid(into_reset + from_reset), torch.sigmoid(into_update + from_update)
            new = torch.tanh(into_new + reset * from_new)
            state = (1 - update) * new + update * state
        states.append(state)
    sentence = sentence / (sentence.norm() + 1e-8)
    if not states:
        return sentence
    first_map, second_map = cast(nn.Linear, fusion.projection[0]), cast(nn.Linear, fusion.projection[2])
    keyword = second_map(torch.relu(first_map(torch.stack(states).mean(dim=0))))
    keyword = keyword / (keyword.norm() + 1e-8)
    weight = torch.sigmoid(fusion.gate(torch.cat([sentence, keyword])))
    return cast(Tensor, weight * sentence + (1 - weight) * keyword)


class TestFusion:
    """The branch and its gate."""

    KEYWORDS = ([1, 2, 0, 5, 3, 3], [0, 4, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [6, 1, 2, 2, 0, 0])

    def parts(self) -> tuple[KeywordFusion, Tensor, nn.Embedding]:
        torch.manual_seed(0)
        return KeywordFusion(5, 7).double(), torch.randn(4, 7).double(), nn.Embedding(7, 5, padding_idx=0).double()

    def test_equals_the_slow_twin_with_its_gradients(self) -> None:
        fusion, sentences, words = self.parts()
        sources = [sentences.requires_grad_(), words.weight, *fusion.parameters()]
        weights = torch.linspace(-1, 2, 28, dtype=torch.float64).reshape(4, 7)
        found = fusion(sentences, torch.tensor(self.KEYWORDS), words)
        expected = torch.stack(
            [slow_fusion(fusion, s, k, words) for s, k in zip(sentences, self.KEYWORDS, strict=True)]
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        given = torch.autograd.grad((weights * found).sum(), sources)
        wanted = torch.autograd.grad((weights * expected).sum(), sources)
        for gradient, other in zip(given, wanted, strict=True):
            assert other.abs().max() > 1e-4
            torch.testing.assert_close(gradient, other, atol=1e-12, rtol=0)

    def test_padding_and_order_of_keywords_change_nothing(self) -> None:
        fusion, sentences, words = self.parts()
        found = fusion(sentences, torch.tensor(self.KEYWORDS), words)
        moved = torch.tensor([[0, 0, 3, 3, 1, 2, 0, 5], [0, 0, 0, 0, 0, 0, 0, 4], [0] * 8, [2, 2, 6, 1, 0, 0, 0, 0]])
        torch.testing.assert_close(fusion(sentences, moved, words), found, atol=1e-12, rtol=0)

    def test_without_keywords_the_text_is_the_sentence(self) -> None:
        fusion, sentences, words = self.parts()
        found = fusion(sentences, torch.tensor(self.KEYWORDS), words)[2]
        torch.testing.assert_close(found, sentences[2] / sentences[2].norm(), atol=1e-7, rtol=0)

    def test_embeddings_come_close_in_mixed_precision(self) -> None:
        fusion, sentences, words = self.parts()
        fusion, sentences, words = fusion.float(), sentences.float(), words.float()
        found = fusion(sentences, torch.tensor(self.KEYWORDS), words)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = fusion(sentences.bfloat16(), torch.tensor(self.KEYWORDS), words)
        assert rough.isfinite().all()
        torch.testing.assert_close(rough.float(), found, atol=0.02, rtol=0)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a tiny set, whose keywords, made from its captions, lie in a folder beside it."""
    folder = tmp_path_factory.mktemp("keywords")
    data = make_precomp(folder / "data")
    command.main([str(data), "--out", str(folder / "keywords"), "--min_images", "2"])
    return write_experiment(folder, data)


def overrides(experiment: Path, mode: str, name: str | None = None) -> list[str]:
    return [
        f"model.keywords.mode={mode}",
        f"dataset.keywords_path={experiment.parent / 'keywords'}",
        f"k_fold.experiment_name={name or mode}",
    ]


class TestRuns:
    """Training and test through the entry points."""

    @pytest.mark.parametrize("mode", MODES)
    def test_each_mode_trains_and_is_tested(
        self, experiment: Path, mode: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--path_opt", str(experiment), "--folds", "0", "--set", *overrides(experiment, mode)]
        train_entry.main([*arguments, "optim.epochs=1"])
        test_entry.main([*arguments, "optim.epochs=1"])
        note = {
            "both": "queries are sentences with the keywords of their image",
            "sentence": "queries are sentences, whose known keyword words stand for keywords",
            "keywords": "queries are the keywords of the image, the same ones for all of its captions",
        }
        assert note[mode] in capsys.readouterr().out
        folder = experiment.parent / "checkpoint" / mode / "0"
        scores = json.loads((folder / "test.json").read_text())
        assert 0 <= scores["mR"] <= 100
        if mode != "both":
            return
        # The same weights answer the queries of the other modes, in files of their own.
        for other in ("sentence", "keywords"):
            test_entry.main([*arguments, f"model.keywords.mode={other}"])
            assert note[other] in capsys.readouterr().out
            assert (folder.parent / f"by_{other}" / "0" / "test.json").is_file()
        assert json.loads((folder / "test.json").read_text()) == scores
        with pytest.raises(InputError, match=r"model.keywords.mode: both in the checkpoint, none now"):
            test_entry.main([*arguments, "model.keywords.mode=none"])
        content = read_checkpoint(folder / "AMFMN_best.pth.tar")
        assert content["options"]["model"]["keywords"] == {"mode": "both"}

    def test_captions_of_an_image_tie_by_keywords(self, experiment: Path) -> None:
        found = {}
        for mode in ("keywords", "both"):
            options = load_options(experiment, overrides(experiment, mode))
            vocabulary = read_vocabulary(options)
            annotations = read_annotations(options.dataset.folder, "test")
            loader = evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU)
            texts = [tuple(keywords) for keywords in keywords_of(annotations, options.dataset.keywords_folder)]
            assert len(set(texts)) == 12
            found[mode] = loader
            expected = np.repeat(np.arange(12), 2) if mode == "keywords" else np.arange(24)
            assert same(loader.caption_row) == expected.tolist()
            torch.manual_seed(0)
            model = build_model(options, vocabulary)
            assert evaluate(model, loader, CPU)["mR"] > 0
        assert len(found["keywords"].distinct.lengths) == 12

    def test_batches_carry_the_keywords_of_their_images(self, experiment: Path) -> None:
        options = load_options(experiment, overrides(experiment, "both"))
        vocabulary = read_vocabulary(options)
        whole = read_annotations(options.dataset.folder, "train")
        train = whole.subset([20, 3, 11, 8, 5])
        media = Media.of(options, [whole], CPU)
        ids = keyword_ids(keywords_of(whole, options.dataset.keywords_folder), vocabulary)
        for batch in train_loader(options, 0, vocabulary, train, media, CPU).epoch(0):
            images = torch.tensor([20, 3, 11, 8, 5])[batch.need("image_ids")]
            assert torch.equal(batch.need("keywords"), ids[images])

    def test_the_released_model_knows_no_keywords(self, experiment: Path) -> None:
        options = load_options(experiment)
        vocabulary = read_vocabulary(options)
        model = cast(AMFMN, build_model(options, vocabulary))
        assert model.keywords is None
        assert not [name for name in model.state_dict() if "keywords" in name]
        both = build_model(load_options(experiment, overrides(experiment, "both")), vocabulary)
        added = both.state_dict().keys() - model.state_dict().keys()
        assert {name.split(".")[0] for name in added} == {"keywords"}
        assert len(added) == 10
        assert (
            build_queries(read_annotations(options.dataset.folder, "test"), vocabulary, "none", Path("absent")).keywords
            is None
        )

    def test_missing_keywords_are_named_before_training(self, experiment: Path) -> None:
        arguments = [
            "--path_opt",
            str(experiment),
            "--set",
            "model.keywords.mode=both",
            "k_fold.experiment_name=lacking",
        ]
        with pytest.raises(InputError, match=r"train_keywords.txt: no such file of keywords"):
            train_entry.main(arguments)
        shutil.rmtree(experiment.parent / "checkpoint" / "lacking")

    def test_other_models_refuse_the_option(self, experiment: Path) -> None:
        with pytest.raises(InputError, match=r"model.keywords.mode: unknown key, given 'both'"):
            load_options(experiment.parents[0] / "tiny.yaml", ["model={name: GaLR}", "model.keywords.mode=both"])

    def test_a_path_without_effect_is_named(self, experiment: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_options(experiment, ["dataset.keywords_path=somewhere"])
        assert "dataset.keywords_path (model.keywords.mode is none)" in caplog.text
