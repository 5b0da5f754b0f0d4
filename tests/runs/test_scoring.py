"""`test.py` beyond its first table: rerank, scene recall and export, all from one encoding."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch
import yaml

import option
import test as test_entry
from engine import encode
from layers import build_model
from layers.amfmn import AMFMN
from metrics.rerank import Method
from runs.checkpoints import load_weights, save_checkpoint
from runs.folders import best_checkpoint
from runs.models import place
from runtime.weights import read_checkpoint
from tests import ROOT
from tests.tiny import make_precomp, write_experiment
from tests.training.test_engine import CPU, loader_of
from utils import InputError
from vocab import Vocabulary


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML whose two folds have checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("saved")
    path = write_experiment(folder, make_precomp(folder / "data"))
    options = option.load_options(path)
    vocabulary = Vocabulary.load(options.dataset.vocab_path)
    for fold in range(2):
        torch.manual_seed(fold)
        state = {"model": build_model(options, vocabulary).state_dict(), "epoch": 1}
        stored = state | {"vocabulary": vocabulary.digest, "fold": fold}
        save_checkpoint(best_checkpoint(options, fold), stored, options)
    return path


def experiment(path: Path) -> Path:
    return path.parent / "checkpoint" / "tiny"


def run(path: Path, *arguments: str) -> None:
    test_entry.main(["--path_opt", str(path), *arguments])


def result_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((experiment(path) / "test.json").read_text())
    return content


def test_one_encoding_serves_all(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: Counter[str] = Counter()
    for verb in ("encode_image", "encode_text"):

        def counting(model: AMFMN, batch: object, verb: str = verb, whole: object = getattr(AMFMN, verb)) -> object:
            embeddings = whole(model, batch)  # type: ignore[operator]
            encoded[verb] += len(embeddings)
            return embeddings

        monkeypatch.setattr(AMFMN, verb, counting)
    run(saved, "--folds", "0", "--rerank", "--export", str(tmp_path / "out.h5"))
    tried = 2  # one image by the model, and by its copy with folded batch norms, to compare them
    assert encoded == {"encode_image": tried + 12, "encode_text": 24}


@pytest.mark.parametrize(
    ("arguments", "described"),
    [
        (["--rerank"], "multivariate, 30 candidates, w1 0.3, w2 1.1"),
        (
            [
                "--rerank",
                "multivariate",
                "--set",
                "rerank.candidates=12",
                "rerank.w1=0",
                "rerank.w2=2",
            ],
            "multivariate, 12 candidates, w1 0, w2 2",
        ),
        (["--rerank", "simple", "--set", "rerank.candidates=10"], "simple, 10 candidates"),
    ],
)
def test_rerank_shows_both_tables(
    saved: Path, arguments: list[str], described: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(saved)
    before = result_of(saved)
    assert before["rerank"] is None
    assert not [name for name in before["mean"] if name.startswith("reranked_")]
    capsys.readouterr()
    run(saved, *arguments)
    printed, after = capsys.readouterr().out, result_of(saved)
    assert f"After reranking ({described}; ties count against the match):" in printed
    for table in ("mean", "standard_deviation", "chance"):
        assert after[table].items() >= before[table].items()
        assert {name for name in after[table] if name.startswith("reranked_")} >= {"reranked_i2t_R@1", "reranked_mR"}
    for name in ("mR", "reranked_mR"):
        assert f"{after['mean'][name]:.2f} ± {after['standard_deviation'][name]:.2f}" in printed
    assert after["chance"]["reranked_t2i_R@5"] == after["chance"]["t2i_R@5"]
    assert after["rerank"] == described.split(",")[0]
    markdown = (experiment(saved) / "test.md").read_text()
    assert markdown.index("| chance") < markdown.index("After reranking") < markdown.index("Scene recall")
    assert markdown.count("| chance") == markdown.count("| fold 0") == 3
    with (experiment(saved) / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["reranked_mR"]) for row in rows] == [row["reranked_mR"] for row in after["rows"].values()]


def test_the_worst_order_of_ties_stands_below_where_captions_are_equal(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = renamed_copy(saved, tmp_path, {shape: f"{shape}_" for shape in ("pond", "field", "roof")})
    captions = tmp_path / "data" / "test_caps.txt"
    captions.write_text("".join(f"{line}\n" for line in captions.read_text().splitlines()[:1] * 24))
    run(path)
    printed, result = capsys.readouterr().out, result_of(saved)
    assert "With the match behind all items of equal score" in printed
    # One sentence for all 12 images: an image finds it by chance, and never where all copies stand before its own.
    mean, chance = result["mean"], result["chance"]
    assert result["ties"] == "random"
    assert mean["i2t_R@1"] == pytest.approx(chance["i2t_R@1"])
    assert mean["worst_ties_i2t_R@10"] == 0
    assert chance["worst_ties_mR"] == chance["mR"]
    assert mean["worst_ties_t2i_R@1"] == pytest.approx(mean["t2i_R@1"])
    assert result["ceiling"]["i2t_R@1"] == pytest.approx(chance["i2t_R@1"])


def test_another_rerank_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(saved, "--rerank", "both")
    assert "choose from" in capsys.readouterr().err


def test_scene_recall_stands_below_where_classes_are_known(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(saved)
    printed, result = capsys.readouterr().out, result_of(saved)
    assert printed.index("| chance") < printed.index("Scene recall in %") < printed.index("Protocol")
    assert "without a class" not in printed
    # Three classes of four images each
    assert result["chance"]["i2t_scene_recall@5"] == pytest.approx(100 / 3)
    assert result["scene_class_alone"]["t2i_R@1"] == pytest.approx(25)
    assert f"{result['scene_class_alone']['mR']:.2f}" in printed.split("| scene class alone", 1)[1].splitlines()[0]
    assert 0 <= result["rows"]["fold 0"]["t2i_scene_recall@10"] <= 100
    assert json.loads((experiment(saved) / "0" / "test.json").read_text()) == result["rows"]["fold 0"]
    with (experiment(saved) / "test.csv").open() as file:
        shown = [float(row["i2t_scene_recall@5"]) for row in csv.DictReader(file)]
    assert shown == [row["i2t_scene_recall@5"] for row in result["rows"].values()]


def renamed_copy(saved: Path, folder: Path, rename: dict[str, str]) -> Path:
    """The same experiment on a data set whose test images' names begin otherwise."""
    data = folder / "data"
    shutil.copytree(saved.parent / "data", data)
    names = []
    for name in (data / "test_filename.txt").read_text().split():
        shape, number = name.split("_")
        names.append(rename[shape] + number)
        (data / "images" / name).rename(data / "images" / names[-1])
    (data / "test_filename.txt").write_text("\n".join(names) + "\n")
    content = yaml.safe_load(saved.read_text())
    content["dataset"]["data_path"] = str(data)
    (folder / "renamed.yaml").write_text(yaml.safe_dump(content))
    return folder / "renamed.yaml"


def test_queries_without_a_class_come_once_with_and_once_without(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = renamed_copy(saved, tmp_path, {"pond": "7", "field": "field_", "roof": "roof_"})
    run(path, "--folds", "0", "--json", str(tmp_path / "out.json"))
    result = json.loads((tmp_path / "out.json").read_text())
    assert "queries without a class left out" in capsys.readouterr().out
    assert result["chance"]["i2t_scene_recall@1_without_noneclass"] == pytest.approx(100 / 3)
    for name in ("i2t_scene_recall@1", "t2i_scene_recall@10"):
        assert {name, f"{name}_without_noneclass"} <= result["mean"].keys()


def test_scene_recall_is_left_out_where_no_class_is_known(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = renamed_copy(saved, tmp_path, {"pond": "7", "field": "8", "roof": "9"})
    run(path, "--folds", "0", "--json", str(tmp_path / "out.json"))
    assert "Scene recall" not in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert not [name for name in [*result["mean"], *result["chance"]] if "scene" in name]
    assert result["scene_class_alone"] == {}


def test_export_holds_what_was_encoded(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.h5"
    run(saved, "--export", str(out), "--set", "dataset.batch_size_val=4")
    options = option.load_options(saved, ["dataset.batch_size_val=4"])
    vocabulary = Vocabulary.load(options.dataset.vocab_path)
    data = saved.parent / "data"
    with h5py.File(out) as file:
        assert set(file) == {"image_names", "captions", "caption_image", "fold 0", "fold 1"}
        assert file["image_names"].asstr()[:].tolist() == (data / "test_filename.txt").read_text().splitlines()
        assert file["captions"].asstr()[:].tolist() == (data / "test_caps.txt").read_text().splitlines()
        assert file["caption_image"][:].tolist() == [image for image in range(12) for _ in range(2)]
        assert file["caption_image"].dtype == np.int64
        assert file.attrs["format"] == "rsretrieval-embeddings-1"
        assert (file.attrs["model"], file.attrs["score"], file.attrs["list"]) == ("AMFMN", "model", "test")
        assert file.attrs["vocabulary_sha256"] == vocabulary.digest
        (tmp_path / "again.yaml").write_text(file.attrs["options"])
        assert option.load_options(tmp_path / "again.yaml") == options
        for fold in range(2):
            group, checkpoint = file[f"fold {fold}"], best_checkpoint(options, fold)
            assert group.attrs["fold"] == fold
            assert group.attrs["checkpoint"] == str(checkpoint)
            assert group.attrs["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
            images, captions = group["image_embeddings"], group["caption_embeddings"]
            assert (images.shape, captions.shape) == ((12, 32), (24, 32))
            assert (images.dtype, captions.dtype) == (np.float32, np.float32)
    assert [file.name for file in out.parent.iterdir()] == ["out.h5"]
    check_embeddings(out, saved)


def check_embeddings(out: Path, saved: Path) -> None:
    """The exported rows score as the model does, and caption by caption."""
    options = option.load_options(saved)
    vocabulary = Vocabulary.load(options.dataset.vocab_path)
    model = build_model(options, vocabulary)
    load_weights(model, best_checkpoint(options, 1), options, vocabulary)
    loader = loader_of(options, vocabulary)
    images, texts = encode(place(model, CPU), loader, CPU)
    with h5py.File(out) as file:
        exported = [torch.from_numpy(file[f"fold 1/{kind}_embeddings"][:]) for kind in ("image", "caption")]
    # Batches of another size sum in another order
    torch.testing.assert_close(exported[0], images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported[1], texts[loader.caption_row], rtol=1e-4, atol=1e-5)


def test_export_of_one_checkpoint(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = experiment(saved) / "1" / "AMFMN_best.pth.tar"
    run(saved, "--checkpoint", str(checkpoint), "--export", str(tmp_path / "one.h5"))
    protocol = capsys.readouterr().out.partition("Protocol: ")[2]
    assert "24 captions; one checkpoint, AMFMN_best.pth.tar (epoch 1); items of equal score" in protocol
    assert "split strategy" not in protocol
    with h5py.File(tmp_path / "one.h5") as file:
        assert file["checkpoint"].attrs["fold"] == 1
    unnumbered = {key: value for key, value in read_checkpoint(checkpoint).items() if key != "fold"}
    torch.save(unnumbered, tmp_path / "nofold.pth")
    run(saved, "--checkpoint", str(tmp_path / "nofold.pth"), "--export", str(tmp_path / "one.h5"))
    with h5py.File(tmp_path / "one.h5") as file:
        assert "fold" not in file["checkpoint"].attrs
        assert file["checkpoint"].attrs["checkpoint"] == str(tmp_path / "nofold.pth")


def test_the_documented_example_reads_an_export(saved: Path, tmp_path: Path) -> None:
    run(saved, "--folds", "0", "--export", str(tmp_path / "embeddings.h5"))
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.S)
    assert len(example.splitlines()) <= 6
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    caption = (saved.parent / "data" / "test_caps.txt").read_text().splitlines()[7]
    name = (saved.parent / "data" / "test_filename.txt").read_text().splitlines()[3]
    assert done.stdout == f"(12, 32) (24, 32) {caption} belongs to {name}\n", done.stderr


def test_faults_of_an_export(saved: Path, tmp_path: Path) -> None:
    for flag in ("--export", "--json"):
        with pytest.raises(InputError, match=f"{flag} .*: this is a folder; give the name of the file to write"):
            run(saved, flag, str(tmp_path))
    (tmp_path / "file").write_text("")
    (experiment(saved) / "test.json").unlink(missing_ok=True)
    with pytest.raises(InputError, match="can't be written"):
        run(saved, "--export", str(tmp_path / "file" / "out.h5"))
    # The scores are not lost with it
    assert result_of(saved)["mean"]["mR"] >= 0
    (experiment(saved) / "test.json").unlink()
    with pytest.raises(InputError, match="can't be written"):
        run(saved, "--json", str(tmp_path / "file" / "result.json"))
    assert result_of(saved)["mean"]["mR"] >= 0
    path = renamed_copy(saved, tmp_path, {"pond": "pond_", "field": "field_", "roof": "roof_"})
    captions = tmp_path / "data" / "test_caps.txt"
    captions.write_text(captions.read_text().replace("large", "la\0rge", 1))
    with pytest.raises(InputError, match=r"line 2: holds a NUL character"):
        run(path, "--export", str(tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


def test_the_ways_to_rerank_are_those_that_can_be_asked_for() -> None:
    assert get_args(Method) == test_entry.RERANKS
