"""The report as a page: its numbers, its images and its escaping, read back with an HTML parser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import option
import test as test_entry
from batches.batch import Batch
from data.annotations import read_annotations
from data.regions.file import write_regions
from engine import encode, score_source
from layers import build_model
from layers.multiscale import MultiscaleImageEncoder
from layers.swan import SWAN
from localization.overlay import overlay
from metrics import limits
from metrics.ranks import rank, recalls
from metrics.scenes import scene_recalls, scene_shares
from option import Options
from reports.history import duration
from reports.html.charts import Line, line_chart, matrix
from reports.html.collect import explain
from reports.html.findings import (
    Miss,
    answers,
    captions_found,
    chance_curve,
    confusion,
    cutoffs,
    extremes,
    first_scenes,
    histogram,
    length_groups,
    margins,
    misses,
    principal_plane,
    recall_curve,
)
from reports.html.markup import VOID, tag
from reports.results import parameters_of
from runs.checkpoints import save_checkpoint
from runs.folders import best_checkpoint, experiment_folder, run_folder
from runs.loaders import evaluation_loader, read_vocabulary
from runs.media import Media
from runs.models import load_model
from runs.scoring import open_test_set
from tests.tiny import add_spectrograms, make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary, tokenize

EVIL = """<script>alert("1")</script> & 'it' """


class Node:
    def __init__(self, name: str, attributes: dict[str, str], parent: Node | None) -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children: list[Node | str] = []

    def all(self, name: str, **attributes: str) -> list[Node]:
        """Elements below of a name; `class_` has to be among their classes."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        return [
            node
            for node in self._below()
            if node.name == name and all(value in node.attributes.get(key, "").split() for key, value in wanted.items())
        ]

    def _below(self) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child._below()

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Reader(HTMLParser):
    """Builds the tree, and fails on a tag that does not close the one that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.open = Node("", {}, None)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        node = Node(name, {key: value or "" for key, value in attributes}, self.open)
        assert len(node.attributes) == len(attributes)
        self.open.children.append(node)
        if name not in VOID:
            self.open = node

    def handle_endtag(self, name: str) -> None:
        assert name == self.open.name
        assert self.open.parent is not None
        self.open = self.open.parent

    def handle_data(self, text: str) -> None:
        self.open.children.append(text)


def parse(text: str) -> Node:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open is reader.root
    return reader.root


def section(page: Node, name: str) -> Node:
    return next(node for node in page.all("section") if node.attributes["id"] == name)


def save_random(path: Path) -> None:
    """A checkpoint of random weights, and a history, for each fold of an experiment."""
    options = option.load_options(path)
    vocabulary = Vocabulary.load(options.dataset.vocab_path)
    for fold in range(options.k_fold.nums):
        torch.manual_seed(fold)
        state = {"model": build_model(options, vocabulary).state_dict(), "epoch": 7 + fold}
        save_checkpoint(best_checkpoint(options, fold), state | {"vocabulary": vocabulary.digest}, options)
        entries = [{"started": f"2026-03-0{day}T10:00:00+00:00", "commit": "0123456789+"} for day in (1, 1 + fold)]
        (run_folder(options, fold) / "record.json").write_text(json.dumps(entries))
        history = run_folder(options, fold) / "history.csv"
        history.write_text(f"epoch,loss,val_mR,seconds\n1.0,{3 + fold},,100\n2.0,2.0,40.5,{140 + 120 * fold}\n")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a small AMFMN; captions, file names and class names hold markup."""
    folder = tmp_path_factory.mktemp("report")
    data = make_precomp(folder / "data")
    for split in ("train", "test"):
        names, captions = data / f"{split}_filename.txt", data / f"{split}_caps.txt"
        for name in names.read_text().split():
            (data / "images" / name).rename(data / "images" / name.replace("_", "<i>&_"))
        names.write_text(names.read_text().replace("_", "<i>&_"))
        captions.write_text("".join(f"{EVIL}{line}\n" for line in captions.read_text().splitlines()))
    path = write_experiment(folder, data)
    save_random(path)
    return path


@pytest.fixture(scope="module")
def page(saved: Path) -> Node:
    test_entry.main(["--path_opt", str(saved), "--report"])
    return parse((saved.parent / "checkpoint" / "tiny" / "report.html").read_text(encoding="utf-8"))


def test_it_loads_nothing_and_runs_nothing(page: Node) -> None:
    assert not page.all("script")
    assert not page.all("link")
    policies = {meta.attributes.get("http-equiv"): meta.attributes.get("content", "") for meta in page.all("meta")}
    assert policies["Content-Security-Policy"].startswith("default-src 'none';")
    targets = {link.attributes["href"] for link in page.all("a")}
    assert targets == {f"#{node.attributes['id']}" for node in page.all("section")}
    assert not re.search(r"url\(|@import|https?://", page.all("style")[0].text)
    for node in page._below():
        assert not [name for name in node.attributes if name.startswith("on")]


def test_every_image_is_inside_and_described(page: Node) -> None:
    images = page.all("img")
    assert len(images) > 30
    for image in images:
        assert image.attributes["alt"]
        head, content = image.attributes["src"].split(",")
        assert head == "data:image/jpeg;base64"
        size = Image.open(io.BytesIO(base64.b64decode(content))).size
        assert size == (int(image.attributes["width"]), int(image.attributes["height"]))
    assert all(chart.attributes["aria-label"] for chart in page.all("svg"))


def test_numbers_are_those_of_the_json(saved: Path, page: Node) -> None:
    result = json.loads((saved.parent / "checkpoint" / "tiny" / "test.json").read_text())
    names = [
        [*(f"{direction}_R@{cutoff}" for direction in ("i2t", "t2i") for cutoff in (1, 5, 10)), "mR"],
        [f"{direction}_scene_recall@{cutoff}" for direction in ("i2t", "t2i") for cutoff in (1, 5, 10)],
    ]
    tables = section(page, "scores").all("table")
    assert len(tables) == len(names)
    for table, columns in zip(tables, names, strict=True):
        rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")}
        for fold in ("fold 0", "fold 1"):
            assert rows[fold] == [f"{result['rows'][fold][name]:.2f}" for name in columns]
        spread = result["standard_deviation"]
        assert rows["mean ± sd"] == [f"{result['mean'][name]:.2f} ± {spread[name]:.2f}" for name in columns]
        assert rows["chance"] == [f"{result['chance'][name]:.2f}" for name in columns]
    assert result["protocol"] in section(page, "scores").text
    assert f"{result['mean']['mR']:.2f} ± {result['standard_deviation']['mR']:.2f}" in page.all("header")[0].text


def test_all_folds_have_curves_and_are_named(saved: Path, page: Node) -> None:
    loss, score = section(page, "training").all("svg")
    assert [len(line.attributes["points"].split()) for line in loss.all("polyline")] == [2, 2]
    assert [len(line.attributes["points"].split()) for line in score.all("polyline")] == [1, 1]
    assert "fold 0" in section(page, "training").text
    made = section(page, "made").text
    assert "AMFMN_best.pth.tar, epoch 7, trained 2026-03-01, commit 0123456789+, 2 epochs in 4 min" in made
    assert "epoch 8, trained 2026-03-01, 2026-03-02, commit 0123456789+, 2 epochs in 6 min" in made
    assert f"python test.py --path_opt {saved} --report" in made
    assert "experiment_name: tiny" in made


def test_framed_answers_and_places_are_the_true_ones(saved: Path, page: Node) -> None:
    options = option.load_options(saved)
    annotations = read_annotations(options.dataset.folder, "test")
    vocabulary, device = read_vocabulary(options), torch.device("cpu")
    loader = evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], device), device)
    model, _ = load_model(options, vocabulary, best_checkpoint(options, 0), device)
    scores = torch.cat(list(score_source(model, *encode(model, loader, device), loader.caption_row)()))
    ranks = rank(scores, loader.text_image)
    names, captions = annotations.image_names, annotations.captions

    by_caption, by_image = section(page, "queries").all("div", class_="grid")
    seen = []
    for query in by_caption.all("article"):
        caption = captions.index(query.all("h5")[0].text.strip("“”"))
        own = names[caption // 2]
        place = int(ranks.text_to_image[caption]) + 1
        seen.append(place)
        assert f"finds its image on place {place} of 12" in query.text
        shown = query.all("li")
        best = [names[image] for image in scores[:, caption].argsort(descending=True)[:5]]
        assert [item.all("img")[0].attributes["alt"].split(", ")[0] for item in shown[:5]] == best
        framed = [item.all("img")[0].attributes["alt"] for item in shown if "right" in item.attributes["class"]]
        assert len(framed) == 1
        assert framed[0].startswith(f"{own}, ✓ right, place {place}")
        assert len(shown) == (5 if place <= 5 else 6)
    assert seen[:3] == sorted(seen[:3])
    assert max(seen[:3]) <= min(seen[3:])
    for query in by_image.all("article"):
        image = names.index(query.all("h5")[0].text)
        place = int(ranks.image_to_text[image]) + 1
        assert f"finds the first of its captions on place {place} of 24" in query.text
        for item in query.all("li"):
            text = item.text.removeprefix("✓ ").rsplit(" ", 1)[0]
            assert (captions.index(text) // 2 == image) == ("right" in item.attributes["class"])

    missed = section(page, "misses")
    for what, places in (
        ("captions find their image", ranks.text_to_image),
        ("images find a caption of theirs", ranks.image_to_text),
    ):
        beyond = sorted((int(place) + 1 for place in places if place >= 10), reverse=True)
        assert f"{len(beyond)} of {len(places)} {what} beyond place 10" in missed.text
        tables = [table for node in missed.all("details") if what in node.text for table in node.all("table")]
        listed = [int(row.all("th")[0].text) for table in tables for row in table.all("tbody")[0].all("tr")]
        assert listed == beyond


def test_parameters_and_time_are_said(saved: Path, page: Node) -> None:
    options = option.load_options(saved)
    model = build_model(options, Vocabulary.load(options.dataset.vocab_path))
    sizes = [weight.numel() for weight in model.parameters()]
    said = page.all("header")[0].all("p")[0].text
    assert said == f"{sum(sizes):,} parameters, of which {sum(sizes):,} are trained; trained for 5 min per fold."
    model.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    assert parameters_of(model) == {"trained": sizes[0], "all": sum(sizes)}


def test_captions_are_grouped_by_length(saved: Path, page: Node) -> None:
    captions = read_annotations(option.load_options(saved).dataset.folder, "test").captions
    (table,) = section(page, "captions").all("table")
    rows = {row.all("th")[0].text: int(row.all("td")[0].text) for row in table.all("tbody")[0].all("tr")}
    lengths = [len(tokenize(caption)) for caption in captions]
    assert sum(rows.values()) == len(captions) == 24
    assert rows.get("9-11", 0) == sum(9 <= length <= 11 for length in lengths)


def test_an_image_is_enlarged_by_a_click(page: Node) -> None:
    folded = page.all("details", class_="zoom")
    assert len(folded) == len(page.all("img"))
    assert all(len(image.all("summary")[0].all("img")) == 1 for image in folded)
    assert ".zoom[open]" in page.all("style")[0].text


def test_the_last_column_of_scores_stays_in_sight(page: Node) -> None:
    frames = section(page, "scores").all("div", class_="scroll")
    assert ["kept" in frame.attributes["class"].split() for frame in frames] == [True, False]  # mR; scene recall
    assert len(section(page, "scores").all("p", class_="cue")) == len(frames)


def test_an_image_with_several_captions_has_its_map_once(saved: Path) -> None:
    options = option.load_options(saved)
    subject = open_test_set(options, torch.device("cpu"))
    model, _ = load_model(options, subject.vocabulary, best_checkpoint(options, 0), torch.device("cpu"))
    examples = explain(subject, model, [4, 0, 5, 1])
    assert [(example.image, [caption for caption, _ in example.captions]) for example in examples] == [
        (2, [4, 5]),
        (0, [0, 1]),
    ]


def test_what_was_given_stays_text(saved: Path, page: Node) -> None:
    text = (saved.parent / "checkpoint" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<i>" not in text
    assert f"“{EVIL}" in section(page, "queries").text
    assert "field<i>&" in section(page, "classes").text


def test_the_same_file_each_time(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.html"
    contents = set()
    for _ in range(2):
        test_entry.main(["--path_opt", str(saved), "--folds", "0", "--report", str(out)])
        contents.add(out.read_bytes())
    assert len(contents) == 1
    assert len(contents.pop()) < 500_000


def test_one_checkpoint_that_has_no_history(saved: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "published.pth"
    checkpoint.write_bytes(best_checkpoint(option.load_options(saved), 1).read_bytes())
    test_entry.main(["--path_opt", str(saved), "--checkpoint", str(checkpoint), "--report"])
    page = parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "training" not in [node.attributes["id"] for node in page.all("section")]
    assert "±" not in "".join(cell.text for cell in section(page, "scores").all("td"))
    assert "Of published.pth" in section(page, "queries").text


def test_a_name_that_is_typed_is_a_place_of_its_own(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = experiment_folder(option.load_options(saved)) / "report.html"
    before = beside.read_bytes() if beside.exists() else None
    monkeypatch.chdir(tmp_path)
    test_entry.main(["--path_opt", str(saved), "--report", "report.html"])
    assert (tmp_path / "report.html").is_file()
    assert (beside.read_bytes() if beside.exists() else None) == before


def test_a_folder_is_no_target(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--report .*: this is a folder; give the name of the file"):
        test_entry.main(["--path_opt", str(saved), "--report", str(tmp_path)])


def test_without_classes_there_is_no_word_of_them(tmp_path: Path) -> None:
    data = make_precomp(tmp_path / "data")
    for split in ("train", "test"):
        names = (data / f"{split}_filename.txt").read_text().split()
        for number, name in enumerate(names):
            (data / "images" / name).rename(data / "images" / f"{number}{split}.png")
        (data / f"{split}_filename.txt").write_text("".join(f"{n}{split}.png\n" for n in range(len(names))))
    path = write_experiment(tmp_path, data)
    save_random(path)
    test_entry.main(["--path_opt", str(path), "--report", str(tmp_path / "out.html")])
    page = parse((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert [node.attributes["id"] for node in page.all("section")] == [
        *("scores", "ranks", "training", "queries", "misses", "captions", "space", "weighed", "made")
    ]
    assert "class" not in section(page, "queries").text + section(page, "space").text
    assert len(section(page, "queries").all("article")) == 16  # four best and worst of both directions


def changed(path: Path, folds: int = 1, **blocks: Mapping[str, object]) -> Path:
    """An experiment with some of its blocks' keys changed, and checkpoints."""
    content = yaml.safe_load(path.read_text())
    for name, keys in blocks.items():
        content[name] |= keys
    content["k_fold"]["nums"] = folds
    path.write_text(yaml.safe_dump(content))
    save_random(path)
    return path


def test_speech_has_tables_and_curves(tmp_path: Path) -> None:
    data = make_precomp(tmp_path / "data")
    model = {"name": "MCRN", "embed": {"embed_dim": 64}, "discriminator": {"in_size": 64}}
    audio = {"audio_path": str(add_spectrograms(data))}
    path = changed(write_experiment(tmp_path, data), model=model, dataset=audio, optim={"epochs": 1})
    test_entry.main(["--path_opt", str(path), "--report", str(tmp_path / "out.html")])
    page = parse((tmp_path / "out.html").read_text(encoding="utf-8"))
    titles = [figure.all("figcaption")[0].text for figure in section(page, "ranks").all("figure")]
    assert [title.split(":")[0] for title in titles[::2]] == [
        *("image → text", "text → image", "image → audio", "audio → image", "image → other view")
    ]
    assert "Spoken captions" in section(page, "scores").text
    examples = section(page, "weighed").all("figure")
    names = [example.all("figcaption")[0].text for example in examples]
    assert len(names) == len(set(names))  # an image stands once, with all of the captions
    assert [len(example.all("img")) for example in examples] == [2] * len(examples)
    assert sum(paragraph.text.startswith("“") for example in examples for paragraph in example.all("p")) == 6


def test_regions_are_drawn(tmp_path: Path) -> None:
    data = make_precomp(tmp_path / "data", train=4, test=4)
    regions = tmp_path / "regions.h5"
    random, classes = np.random.default_rng(0), ["roof", "tree"]
    graphs = {
        path.stem: (random.random((20, 20), dtype=np.float32), random.random((20, 20), dtype=np.float32))
        for path in (data / "images").iterdir()
    }
    write_regions(regions, graphs, "a design", "a source", classes)
    fusion = {"mca_HIDDEN_SIZE": 32, "mca_MULTI_HEAD": 4, "mca_HIDDEN_SIZE_HEAD": 8}
    model = {"name": "GaLR", "fusion": fusion}
    path = changed(write_experiment(tmp_path, data), model=model, dataset={"local_path": str(regions)})
    test_entry.main(["--path_opt", str(path), "--report", str(tmp_path / "out.html")])
    page = parse((tmp_path / "out.html").read_text(encoding="utf-8"))
    alts = [image.attributes["alt"] for image in section(page, "weighed").all("img")]
    assert len([alt for alt in alts if alt.startswith("regions of ")]) == len(alts) / 3 > 0


def test_words_of_swan_are_shaded(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data", train=4, test=4))
    content = yaml.safe_load(path.read_text())
    content["model"] = {"name": "SWAN", "word_dim": 8, "embed": {"embed_dim": 16}, "backbone": {"pretrained": "none"}}
    path.write_text(yaml.safe_dump(content))
    changed(path)
    test_entry.main(["--path_opt", str(path), "--report", str(tmp_path / "out.html")])
    page = parse((tmp_path / "out.html").read_text(encoding="utf-8"))
    examples = section(page, "weighed").all("figure")
    assert examples
    paragraphs = [paragraph for example in examples for paragraph in example.all("p")]
    for captioned, shaded in zip(paragraphs[::2], paragraphs[1::2], strict=True):
        words, caption = shaded.all("span"), captioned.text.strip("“”")
        expected = [
            word if word not in ("a", "that", "is", "there", "here") else "<unk>" for word in caption.split()[:-1]
        ]
        assert [word.text.split()[0] for word in words] == expected
        assert sum(int(word.text.split()[1]) for word in words) == pytest.approx(100, abs=len(words) / 2)


@pytest.mark.parametrize("name", ["AMFMN", "GaLR", "MCRN"])
def test_attention_is_what_the_forward_pass_multiplies_by(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    model = build_model(tiny_options(name, {"multiscale.multiscale_output_channel": 2}), vocabulary).eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    passed: list[torch.Tensor] = []
    encoder = model.image_encoder
    assert isinstance(encoder, MultiscaleImageEncoder)
    encoder.attention.register_forward_hook(lambda module, given, result: passed.append(result))
    with torch.no_grad():
        encoder(images)
        found = model.explain(Batch(images=images))
    assert found.word_shares is None
    assert found.image_attention is not None
    assert found.image_attention.shape == (3, 4, 4)
    assert torch.equal(found.image_attention, torch.sigmoid(passed[0]).mean(dim=1))
    assert 0 <= found.image_attention.min() < found.image_attention.max() <= 1


@pytest.mark.parametrize("rounding", ["floor", "none"])
def test_word_shares_sum_to_one_and_make_the_context(
    rounding: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    model = build_model(tiny_options("SWAN", {"tcge.rounding": rounding}), vocabulary).eval()
    assert isinstance(model, SWAN)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 0, 0, 0]])
    lengths = torch.tensor([4, 2, 1])
    with torch.no_grad():
        explanation = model.explain(Batch(tokens=tokens, lengths=lengths))
        alone = model.explain(Batch(tokens=tokens[1:2, :2], lengths=lengths[1:2])).word_shares
        encoder = model.caption_encoder
        states = encoder.read(tokens, lengths)
        weights = encoder.attention.weights(states, torch.arange(4) < lengths[:, None])
        context = encoder.attention(states, torch.arange(4) < lengths[:, None])
        values = encoder.attention.value(states).unflatten(-1, (2, -1)).transpose(1, 2)
    shares = explanation.word_shares
    assert explanation.image_attention is None
    assert shares is not None
    assert alone is not None
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert shares[1, 2:].tolist() == [0, 0]
    assert shares[2].tolist() == [1, 0, 0, 0]
    assert torch.allclose(shares[1, :2], alone[0], atol=1e-6)
    assert torch.allclose(shares[0], weights[0, :, 3].mean(dim=0))
    made = torch.cat([(weights[0, head, 3, :, None] * values[0, head]).sum(dim=0) for head in range(2)])
    assert torch.allclose(context[0, 3], made, atol=1e-5)


class TestFindings:
    scores = torch.randn(12, 36, generator=torch.Generator().manual_seed(0))
    text_image = torch.arange(36) // 3
    scenes = torch.arange(12) % 4 - 1

    def test_curves_pass_through_the_recalls_and_chance(self) -> None:
        ranks = rank(self.scores, self.text_image)
        table, chance = recalls(ranks), limits.chance(self.text_image)
        for name, items, own, places in (("i2t", 36, 3, ranks.image_to_text), ("t2i", 12, 1, ranks.text_to_image)):
            at = (1, 5, 10)
            assert recall_curve(places, at) == pytest.approx([table[f"{name}_R@{cutoff}"] for cutoff in at])
            counts = torch.full((len(places),), own)
            assert chance_curve(items, counts, at) == pytest.approx([chance[f"{name}_R@{cutoff}"] for cutoff in at])
            assert chance_curve(items, counts, [items]) == recall_curve(places, [items]) == [100.0]

    @pytest.mark.parametrize("items", [1, 4, 12, 1050, 50_000])
    def test_cutoffs_and_bins_cover_all_items(self, items: int) -> None:
        at = cutoffs(items)
        assert at == sorted(set(at))
        assert (at[0], at[-1]) == (1, items)
        assert {1, 5, 10} & set(at) == {cutoff for cutoff in (1, 5, 10) if cutoff <= items}
        assert len(at) <= 63
        places = torch.arange(items)
        assert sum(histogram(places, items).values()) == pytest.approx(100)

    def test_histogram_by_hand(self) -> None:
        bins = histogram(torch.tensor([0, 0, 4, 5, 9, 10, 199, 100]), 200)
        assert bins == {"1": 25, "2-5": 12.5, "6-10": 25, "11-20": 12.5, "21-50": 0, "51-100": 0, ">100": 25}

    def test_lengths_by_hand(self) -> None:
        groups = length_groups([5, 6, 8, 0, 15, 16, 40])
        assert {name: numbers.tolist() for name, numbers in groups.items()} == {
            **{"up to 5": [0, 3], "6-8": [1, 2], "12-15": [4], "16+": [5, 6]}
        }

    def test_captions_found_by_hand(self) -> None:
        ranks = torch.tensor([0, 9, 10, 99, 3, 50])
        assert captions_found(ranks, torch.tensor([0, 0, 1, 1, 2, 2])) == pytest.approx(
            {"0": 100 / 3, "1": 100 / 3, "2": 100 / 3}
        )

    def test_misses_by_hand(self) -> None:
        scores = torch.arange(12.0).repeat(3, 1)  # item 11 is found first
        own = torch.zeros(3, 12, dtype=torch.bool)
        own[0, 1] = own[1, 2] = own[2, 0] = True  # places 11, 10, 12
        assert misses(scores, own, torch.tensor([10, 9, 11])) == [Miss(2, 11, 11), Miss(0, 10, 11)]

    def test_the_diagonal_is_scene_recall(self) -> None:
        first = first_scenes(self.scores, self.text_image, self.scenes)
        shares = confusion(first, self.text_image, self.scenes)
        table = scene_recalls(
            scene_shares(lambda: [self.scores], self.text_image, self.scenes), self.text_image, self.scenes
        )
        assert shares.sum(dim=1).tolist() == pytest.approx([100] * 4)
        assert float(shares.diagonal().mean()) == pytest.approx(table["t2i_scene_recall@1"])  # classes of equal size

    def test_a_tie_is_a_confusion(self) -> None:
        assert first_scenes(torch.zeros(2, 2), torch.arange(2), torch.tensor([0, 1])).tolist() == [1, 0]

    def test_answers_by_hand(self) -> None:
        scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.5])
        own = torch.tensor([True, False, False, False, False])
        found = answers(scores, own, ["a", "b", "c", "d", "c"], 3)
        assert [answer.items for answer in found] == [(1,), (2, 4), (0,)]
        assert [answer.right for answer in found] == [False, False, True]
        assert answers(scores, own, ["a", "b", "a", "d", "e"], 2)[1].items == (2, 0)

    def test_extremes_by_hand(self) -> None:
        scores = torch.tensor([[0.9, 0.1], [0.6, 0.5], [0.2, 0.8], [0.3, 0.4]])
        own = torch.tensor([[True, False]] * 4)
        margin = margins(scores, own)
        assert margin.tolist() == pytest.approx([0.8, 0.1, -0.6, -0.1])
        ranks = torch.tensor([0, 0, 1, 1])
        assert extremes(ranks, margin, [0, 1, 2, 3], 2) == ([0, 1], [2, 3])
        assert extremes(ranks, margin, [0, 0, 1, 1], 4) == ([0, 3], [2, 1])

    def test_the_plane_holds_what_lies_in_one(self) -> None:
        angles = torch.linspace(0, 6, 40, dtype=torch.float64)
        flat = torch.stack([angles.cos(), torch.zeros(40), angles.sin()], dim=1)
        images, texts, shares = principal_plane(7 * flat[:25], flat[25:])
        points = torch.cat([images, texts])
        assert sum(shares) == pytest.approx(100)
        assert shares[0] > shares[1]
        assert torch.allclose(torch.cdist(points, points), torch.cdist(flat, flat), atol=1e-6)


class TestMarkup:
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")))
    def test_any_text_survives(self, text: str) -> None:
        node = parse(tag("p", tag("b", text, title=text), text)).all("p")[0]
        assert node.text == text + text
        assert node.all("b")[0].attributes["title"] == text

    def test_joined_markup_is_text_again(self) -> None:
        assert tag("p", f"{tag('b', 'x')}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"

    @given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e6)), min_size=1, max_size=9), st.booleans())
    def test_lines_stay_inside(self, points: list[tuple[int, float]], log_x: bool) -> None:
        chart = parse(line_chart("t", [Line("l", points, "c0")], "x", "y", log_x)).all("svg")[0]
        places = [place.split(",") for place in chart.all("polyline")[0].attributes["points"].split()]
        assert len(places) == len(points)
        for x, y in places:
            assert 46 <= float(x) <= 408
            assert 11.9 <= float(y) <= 230

    @pytest.mark.parametrize("count", [2, 3, 21, 30])
    def test_letters_of_a_matrix_keep_their_size(self, count: int) -> None:
        names = [f"class{number}" for number in range(count)]
        chart = parse(matrix("t", names, torch.eye(count).mul(100).tolist(), "found", "caption")).all("svg")[0]
        width = int(chart.attributes["viewbox"].split()[2])
        assert chart.attributes["style"] == f"width:{width}px;max-width:none"
        texts = [text.text for text in chart.all("text")]
        assert all(texts.count(name) == 2 for name in names)  # of its row and of its column

    @pytest.mark.parametrize(
        ("seconds", "said"), [(0.123, "0.123 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"), (7500, "2 h 05 min")]
    )
    def test_durations(self, seconds: float, said: str) -> None:
        assert duration(seconds) == said

    def test_overlay_is_yellow_at_the_highest(self) -> None:
        plain = Image.new("RGB", (8, 8), "black")
        mixed = np.asarray(overlay(plain, torch.tensor([[0.2, 0.2], [0.2, 0.9]])))
        assert mixed[-1, -1].tolist() == [126, 116, 18]  # half of the last colour, rounded to even
        assert mixed[0, 0].tolist() == [34, 0, 42]
        flat = np.asarray(overlay(plain, torch.full((2, 2), 0.7)))
        assert (flat == flat[0, 0]).all()
