"""`Retriever`: three lines of Python give what the model gives, from every place where a model lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import option
from archive.encoder import Encoder
from archive.indexing import Share, Target, Upkeep, index_archive
from batches.augmentation import normalise
from batches.batch import Batch, Captions
from data.images import image_names, load_square
from layers import build_model
from option import Options
from rsretrieval import InputError, Retriever
from runs.checkpoints import save_checkpoint
from runs.loaders import read_vocabulary
from tests import ROOT
from tests.tiny import make_precomp, write_experiment

SENTENCES = ["there is a red roof here", "a large pond that is blue", "green field"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Options]:
    """A checkpoint of AMFMN, whose score is more than a cosine, with its vocabulary in the folder above."""
    place = tmp_path_factory.mktemp("retriever")
    options = option.load_options(write_experiment(place, make_precomp(place / "data", train=4, test=8)))
    vocabulary = read_vocabulary(options)
    torch.manual_seed(0)
    state = {"model": build_model(options, vocabulary).state_dict(), "vocabulary": vocabulary.digest, "epoch": 3}
    moved = options.model_copy(
        update={"dataset": options.dataset.model_copy(update={"vocab_path": Path("vocab.json")})}
    )
    save_checkpoint(place / "runs" / "0" / "best.pth.tar", state, moved)
    return place / "runs" / "0" / "best.pth.tar", options


@pytest.fixture(scope="module")
def retriever(trained: tuple[Path, Options]) -> Retriever:
    return Retriever.load(trained[0], "cpu")


def files_of(options: Options) -> list[Path]:
    folder = options.dataset.image_folder
    return [folder / name for name in image_names(folder)]


def test_images_and_sentences_are_embedded_as_the_model_embeds_them(
    retriever: Retriever, trained: tuple[Path, Options]
) -> None:
    files, model = files_of(trained[1]), retriever._encoder.model
    pixels = np.stack([load_square(file, 64) for file in files])
    captions = Captions.encode(SENTENCES, read_vocabulary(trained[1])).batch(torch.arange(3))
    with torch.inference_mode():
        images, texts = (
            model.encode_image(Batch(images=normalise(torch.from_numpy(pixels)))),
            model.encode_text(captions),
        )
        scores = model.score(images, texts)
    found = retriever.image(files, batch_size=5)
    assert (found.dtype, found.shape, retriever.dim) == (np.float32, (12, 32), 32)
    np.testing.assert_allclose(found, images.numpy(), atol=1e-5)
    np.testing.assert_allclose(retriever.text(SENTENCES, batch_size=2), texts.numpy(), atol=1e-6)
    np.testing.assert_allclose(retriever.score(found, texts.numpy()), scores.numpy(), atol=1e-5)
    best = retriever.search(found, SENTENCES[0], k=3)
    order = scores[:, 0].argsort(descending=True, stable=True)[:3]
    assert [hit.row for hit in best] == order.tolist()
    assert [hit.score for hit in best] == pytest.approx(scores[order, 0].tolist(), abs=1e-5)


def test_an_image_may_be_a_file_a_picture_or_an_array(retriever: Retriever, trained: tuple[Path, Options]) -> None:
    file = files_of(trained[1])[0]
    opened = Image.open(file)
    found = retriever.image([str(file), file, opened, np.asarray(opened)])
    np.testing.assert_array_equal(found, found[[0, 0, 0, 0]])
    grey = np.asarray(opened.convert("L"))
    np.testing.assert_array_equal(retriever.image([grey]), retriever.image([np.stack([grey] * 3, axis=-1)]))
    assert retriever.search(found, file, k=1)[0].score == pytest.approx(1, abs=1e-5)


def test_nothing_gives_nothing(retriever: Retriever) -> None:
    assert retriever.image([]).shape == retriever.text([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.text("a river"), r"text takes a list of sentences: text\(\['a river'\]\)"),
        (lambda r: r.text(["xyzzy"]), r"the model knows no word of 'xyzzy'"),
        (lambda r: r.image([np.zeros((4, 4, 3), np.float32)]), r"of uint8, got \[4, 4, 3\] of float32"),
        (lambda r: r.image([np.zeros((4, 4, 4), np.uint8)]), r"of uint8, got \[4, 4, 4\] of uint8"),
        (lambda r: r.image("a.png"), r"image takes a list of images: image\(\[one\]\)"),
        (lambda r: r.image(np.zeros((8, 8, 3), np.uint8)), r"image takes a list of images: image\(\[one\]\)"),
        (lambda r: r.search(np.zeros((2, 5)), "green field"), r"embeddings \[N, 32\] of this model, got \[2, 5\]"),
        (lambda r: r.score(np.zeros((2, 32)), np.zeros(32)), r"embeddings \[N, 32\] of this model, got \[32\]"),
        (lambda r: r.search(np.zeros((2, 32)), "green field", k=0), r"k is 0: ask for at least one image"),
        (lambda r: r.image(["absent.png"]), r"absent.png: no such image"),
        (lambda r: Retriever.load("absent"), r"absent: no model there. Give a folder of `python -m portable`"),
    ],
)
def test_faults_say_what_to_do(retriever: Retriever, ask: Callable[[Retriever], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(retriever)


def test_an_index_of_the_same_model_is_searched(
    retriever: Retriever, trained: tuple[Path, Options], tmp_path: Path
) -> None:
    checkpoint, options = trained
    encoder = Encoder(retriever._encoder.model, options, read_vocabulary(options), torch.device("cpu"))
    target = Target(tmp_path / "index", 8, "float32", None)
    index_archive(encoder, checkpoint, options.dataset.image_folder, target, Share(), Upkeep())
    hits = retriever.search(tmp_path / "index", SENTENCES[1], k=4)
    files = files_of(options)
    of_arrays = retriever.search(retriever.image(files), SENTENCES[1], k=4)
    assert [hit.name for hit in hits] == [files[hit.row].name for hit in of_arrays if hit.row is not None]
    other = Retriever(retriever._encoder, frozenset({"another"}))
    with pytest.raises(InputError, match="was made with another model"):
        other.search(tmp_path / "index", SENTENCES[1])


def test_a_portable_folder_is_the_model(
    tiny_options: Callable[..., Options], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import portable.folder as folder

    pytest.importorskip("safetensors")
    options = tiny_options("DualEncoder", {"text.encoder": "a tiny BERT", "head.width": 16, "embed_dim": 8})
    vocabulary = read_vocabulary(options)
    torch.manual_seed(0)
    source = folder.Portable(build_model(options, vocabulary).eval(), options, vocabulary, {"source_sha256": "x"})
    monkeypatch.setattr(folder, "write_graph", lambda graph, path: None)  # tests/portable writes them
    folder.write_folder(source, tmp_path)
    found, image = Retriever.load(tmp_path, "cpu"), np.full((9, 9, 3), 200, np.uint8)
    encoder = Encoder(source.model, options, vocabulary, torch.device("cpu"))
    np.testing.assert_allclose(found.text(["a red field"]), encoder.texts(["a red field"]).numpy(), atol=1e-6)
    np.testing.assert_allclose(found.image([image]), encoder.image(Image.fromarray(image)).numpy(), atol=1e-5)


def test_the_notebook_runs(trained: tuple[Path, Options], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, with a tiny model and its images in the place of the ready one and UCM's."""
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 4
    load = Retriever.load
    monkeypatch.setattr(Retriever, "load", classmethod(lambda cls, *given: load(trained[0], "cpu")))
    monkeypatch.chdir(trained[1].dataset.image_folder.parent)
    names: dict[str, Any] = {}
    for source in code:
        exec(compile(source.replace("planes parked beside a terminal", SENTENCES[0]), "notebook", "exec"), names)
    assert len(names["hits"]) == 10
