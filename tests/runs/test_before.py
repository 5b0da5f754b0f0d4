"""What the version before the rooms wrote still loads: checkpoints, a run to go on with, YAMLs, an index.

`tests/reference/before` was written by commit 62c1042: an experiment of `tests.tiny`, trained for two epochs. Of its
checkpoints everything but the tensors is kept. These are filled by their names, as they were when scores were taken.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import option
import search as search_entry
import test as test_entry
import train as train_entry
from archive.index_folder import IndexFolder
from engine import encode
from runs.checkpoints import flat_options
from runs.models import load_model
from runs.scoring import open_test_set
from runtime.weights import read_checkpoint
from tests import ROOT
from tests.reference_inputs import fill
from tests.tiny import make_precomp, write_experiment
from utils import InputError, file_sha256

BEFORE = ROOT / "tests" / "reference" / "before"
CPU = torch.device("cpu")


def rebuilt(value: Any, name: str = "") -> Any:
    """A checkpoint's content from its skeleton."""
    if isinstance(value, list):
        return [rebuilt(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    if "__random_state__" in value:
        return torch.get_rng_state()
    if "__tensor__" in value:
        dtype = getattr(torch, value["dtype"])
        if "values" in value:
            return torch.tensor(value["values"], dtype=dtype).reshape(value["__tensor__"])
        filled = torch.from_numpy(fill(name, tuple(value["__tensor__"]))).to(dtype)
        return filled.abs() if name.endswith("_sq") else filled  # squares of the optimiser
    if "__items__" in value:
        return {key: rebuilt(item, f"{name}.{key}") for key, item in value["__items__"]}
    if "__tuple__" in value:
        return tuple(rebuilt(item, name) for item in value["__tuple__"])
    return {key: rebuilt(item, key) for key, item in value.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's folder as the earlier version left it."""
    folder = tmp_path_factory.mktemp("before")
    write_experiment(folder, make_precomp(folder / "data"))
    shutil.copy(BEFORE / "experiment.yaml", folder / "tiny.yaml")
    run = folder / "checkpoint" / "tiny" / "0"
    run.mkdir(parents=True)
    for name, file in (("best", "AMFMN_best.pth.tar"), ("last", "last.pth")):
        torch.save(rebuilt(json.loads((BEFORE / f"{name}.json").read_text())), run / file)
    return folder


@pytest.mark.parametrize("file", ["experiment.yaml", "options.yaml"])
def test_a_yaml_gives_the_same_options(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    stored = flat_options(json.loads((BEFORE / "best.json").read_text())["options"])
    now = flat_options(option.dump(option.load_options(BEFORE / file)))
    assert {key: now[key] for key in stored} == stored


def test_a_checkpoint_gives_the_same_embeddings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    options = option.load_options("tiny.yaml")
    test_set = open_test_set(options, CPU)
    model, content = load_model(options, test_set.vocabulary, Path("checkpoint/tiny/0/AMFMN_best.pth.tar"), CPU)
    images, texts = encode(model, test_set.loader, CPU)
    with np.load(BEFORE / "embeddings.npz") as expected:
        np.testing.assert_allclose(images.numpy(), expected["images"], atol=1e-5)
        np.testing.assert_allclose(texts[test_set.loader.caption_row].numpy(), expected["captions"], atol=1e-5)
    assert content["fold"] == 0


def test_a_checkpoint_gives_the_same_table(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "test.json"
    test_entry.main(["--path_opt", "tiny.yaml", "--device", "cpu", "--folds", "0", "--json", str(out)])
    scores = json.loads(out.read_text())["rows"]["fold 0"]
    expected = json.loads((BEFORE / "scores.json").read_text())
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_a_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    monkeypatch.chdir(copy)
    train_entry.main(["--path_opt", "tiny.yaml", "--device", "cpu", "--folds", "0", "--set", "optim.epochs=3"])
    content = read_checkpoint(Path("checkpoint/tiny/0/last.pth"))
    assert content["epoch"] == 3
    assert content["history"][:2] == json.loads((BEFORE / "last.json").read_text())["history"]


def test_an_index_is_taken_over_without_encoding_and_answers_as_it_did(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    index, checkpoint = tmp_path / "index", folder / "checkpoint" / "tiny" / "0" / "AMFMN_best.pth.tar"
    shutil.copytree(BEFORE / "index", index)
    manifest = json.loads((index / "index.json").read_text())
    manifest["checkpoint_sha256"] = file_sha256(checkpoint)  # the zip file's own bytes may differ
    (index / "index.json").write_text(json.dumps(manifest))
    assert IndexFolder.open(index).manifest.count == 36
    monkeypatch.chdir(folder)
    places = ["--checkpoint", str(checkpoint), "--images", str(folder / "data" / "images"), "--device", "cpu"]
    with pytest.raises(InputError, match=r"of an earlier version.*Run search\.py index"):
        search_entry.main(["query", str(index), "a red roof", *places])
    search_entry.main(["index", "--path_opt", "tiny.yaml", *places, "--out", str(index)])
    assert "36 images in the folder, 36 in the index already" in caplog.text
    capsys.readouterr()
    search_entry.main(["query", str(index), "a red roof", *places])
    assert capsys.readouterr().out == (BEFORE / "query.txt").read_text()
