"""The folder that stands alone: read back, searched without PyTorch, described by its card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import option
import portable.folder as folder
from data.images import image_names
from layers.clip_library import import_open_clip
from option import Options
from portable import CARD, CONFIG, EXAMPLE, PREPROCESSING, SCORES, VOCABULARY, WEIGHTS
from portable.folder import Portable, of_checkpoint, read_folder, standing
from portable.tokens import byte_pairs, word_rules
from tests.portable import skip_without
from tests.portable.conftest import Written
from utils import InputError
from vocab import DROPPED_TOKENS, tokenize

CPU = torch.device("cpu")
RULES = word_rules()
SENTENCE = "there is a red roof here ."


def by_rules(caption: str) -> list[str]:
    """As example.py does it."""
    words: list[str] = []
    for part in re.split(r"(?<=[.!?])\s+", caption.lower()):
        for pattern, replacement in RULES:
            part = re.sub(pattern, replacement, part)
        words += part.split()
    return [word for word in words if word not in DROPPED_TOKENS]


@given(st.text(alphabet=st.sampled_from("abcint'\"`.,:;!?()[]{}<>-$%&*@# 01\t"), max_size=40))
@example("It's 3,36 euros. I can't; gonna go... 'tis (a) \"quote\" -- ok.")
def test_words_are_cut_as_the_vocabulary_cuts_them(caption: str) -> None:
    assert by_rules(caption) == tokenize(caption)


def test_byte_pairs_are_those_of_open_clip() -> None:
    skip_without("open_clip", "tokenizers")
    theirs = import_open_clip().get_tokenizer("ViT-B-32")
    ours = byte_pairs(theirs)
    ours.enable_truncation(theirs.context_length)
    for caption in (
        "Two airplanes, stopped at the airport.",
        "it's   a\tRiver's edge (30 m)!",
        "",
        "café 12",
        "word " * 90,
    ):
        ids = theirs(caption)[0]
        assert ours.encode(caption).ids == ids[: int((ids == theirs.eot_token_id).nonzero()[0]) + 1].tolist()


def embeddings(source: Portable, written: Written) -> list[torch.Tensor]:
    from tests.ready import embeddings as embed

    return list(embed(source.model, source.vocabulary))


def test_the_folder_reads_back(written: Written) -> None:
    names = {path.name for path in written.folder.iterdir()}
    graphs = {
        f"{name}{ending}"
        for name in ("image_encoder", "text_encoder", "pair_scores")
        for ending in (".onnx", "_int8.onnx")
    }
    assert names == {CARD, CONFIG, EXAMPLE, PREPROCESSING, SCORES, VOCABULARY, WEIGHTS} | graphs
    source, found = of_checkpoint(written.options, written.checkpoint), read_folder(written.folder, CPU)
    for want, got in zip(embeddings(source, written), embeddings(found, written), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert found.facts == source.facts
    assert found.vocabulary == source.vocabulary


def test_an_earlier_model_leaves_nothing(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "write_graph", lambda graph, path: path.touch())
    source = of_checkpoint(written.options, written.checkpoint)
    for name in ("text_encoder_int8.onnx", "audio_encoder.onnx", SCORES, CARD, PREPROCESSING, "tokenizer/old.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "note.txt").touch()
    folder.write_folder(source, tmp_path)
    graphs = {"image_encoder.onnx", "text_encoder.onnx", "pair_scores.onnx"}
    expected = {CONFIG, EXAMPLE, PREPROCESSING, VOCABULARY, WEIGHTS, "note.txt"} | graphs
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_folder_of_something_else_is_refused(written: Written, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("of a project")
    (tmp_path / "train.py").touch()
    with pytest.raises(InputError, match=r"it holds other files, such as train.py. Give a new folder"):
        folder.write_folder(of_checkpoint(written.options, written.checkpoint), tmp_path)
    assert (tmp_path / CARD).read_text() == "of a project"
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_of_the_machine_is_in_it(written: Written) -> None:
    texts = [path.read_text() for path in written.folder.iterdir() if path.suffix in (".yaml", ".json", ".md", ".py")]
    assert len(texts) == 6
    assert not any(str(written.checkpoint.parent) in text for text in texts)
    assert option.load_options(written.folder / CONFIG) == standing(written.options)


def test_example_finds_what_the_model_finds(written: Written) -> None:
    program = written.folder / EXAMPLE
    assert len(program.read_text().splitlines()) <= 25
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", str(program), str(written.images), SENTENCE],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert {"onnxruntime", "numpy", "PIL"} <= imported
    assert not {"torch", "nltk", "utils", "vocab"} & imported
    lines = [line.split() for line in ended.stdout.splitlines()]
    source = of_checkpoint(written.options, written.checkpoint)
    best = searched(source, written.images, SENTENCE)[:10]
    assert [name for _, name in lines] == [name for name, _ in best]
    assert [float(score) for score, _ in lines] == pytest.approx([score for _, score in best], abs=2e-4)


def searched(source: Portable, images: Path, sentence: str) -> list[tuple[str, float]]:
    """Names and scores, the best first."""
    from archive.encoder import Encoder
    from data.images import load_square

    encoder = Encoder(source.model, source.options, source.vocabulary, CPU)
    names = image_names(images)
    size = source.options.dataset.image_size
    pixels = torch.stack([torch.from_numpy(load_square(images / name, size)) for name in names])
    scores = source.model.score(encoder.images(pixels, names), encoder.text(sentence))[:, 0].tolist()
    return sorted(zip(names, scores, strict=True), key=lambda pair: -pair[1])


def test_scores_stand_beside_each_other(written: Written) -> None:
    scores = json.loads((written.folder / SCORES).read_text())
    rows = scores["rows"]
    assert (scores["images"], scores["captions"], list(rows)) == (12, 24, ["PyTorch", "ONNX", "ONNX int8"])
    assert rows["ONNX"] == pytest.approx(rows["PyTorch"], abs=1e-3)
    assert 0 < rows["ONNX int8"]["mR"] <= 100


def test_the_card_is_in_the_hubs_form(written: Written) -> None:
    _, head, body = (written.folder / CARD).read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "rsretrieval"
    assert "| ONNX int8" in body
    assert "tokens [batch, length] -> embeddings; ONNX opset 18" in body
    assert "images [images, 32], texts [texts, 32] -> scores" in body


def test_damage_is_named(written: Written, tmp_path: Path) -> None:
    for path in written.folder.glob("*.[yj]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"model.safetensors: not the weights of config.yaml beside it"):
        read_folder(tmp_path, CPU)
    weights = bytearray((written.folder / WEIGHTS).read_bytes())
    (tmp_path / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model.safetensors: not the weights of config.yaml beside it"):
        read_folder(tmp_path, CPU)
    (tmp_path / WEIGHTS).write_bytes(weights)
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text.replace("embed_dim: 32", "embed_dim: 16"))
    with pytest.raises(InputError, match=r"is \[32\], expected \[16\]|is \[32, .*expected \[16"):
        read_folder(tmp_path, CPU)


def test_starts_are_left_out(tiny_options: Callable[..., Options]) -> None:
    options = standing(
        tiny_options("AMFMN", {"embed.glove": "/home/someone/glove.txt", "dataset.data_path": "/data/x"})
    )
    text = option.to_yaml(options)
    assert "/home" not in text
    assert options.dataset.data_path == Path("x")
