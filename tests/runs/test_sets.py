"""Several training sets in one YAML: joined on the way, trained on, tested one by one, noticed when they change."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import option
import test as test_entry
import train as train_entry
from data.annotations import read_annotations
from runs.loaders import read_vocabulary, typed_queries_of
from runs.sets import joined_sets, sets_in_words, sets_of, tell_sets, with_joined
from runtime.weights import read_checkpoint
from tests.data.test_join import write_set
from tests.small_model import use_small_model
from tests.tiny import write_experiment
from utils import InputError


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML that trains on two sets, of which the second has two of the first one's images, and counts twice."""
    monkeypatch.chdir(tmp_path)
    use_small_model(monkeypatch)
    write_set(Path("one_precomp"), {f"park_{n}.png": n for n in range(10)}, {"park_t.png": 100, "road_t.png": 101})
    second = {"b0.png": 0, "b1.png": 101} | {f"b{n}.png": n for n in range(20, 28)}
    write_set(Path("two_precomp"), second, {"c0.png": 200, "c1.png": 201, "c2.png": 202})
    path = write_experiment(tmp_path, Path("one_precomp"), epochs=1)
    content = yaml.safe_load(path.read_text())
    content["dataset"] |= {
        "data_path": ["one_precomp", {"path": "two_precomp", "weight": 2}],
        "feature_path": "kept",
    }
    content["k_fold"]["nums"] = 1
    path.write_text(yaml.safe_dump(content))
    return path


def train(path: Path, *overrides: str, flags: tuple[str, ...] = ()) -> None:
    train_entry.main(["--path_opt", str(path), *flags, "--set", "optim.seed=0", *overrides])


def result_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_training_joins_and_each_set_is_tested_alone(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(experiment)
    run = Path("checkpoint/tiny/0")
    (folder,) = Path("kept/joined").glob("one+two-*")
    images = read_annotations(folder, "train").image_names
    assert len(images) == 10 + 8
    listed = [(run / "split" / f"{side}.txt").read_text().split() for side in ("train", "val")]
    assert sorted(listed[0] + listed[1]) == sorted(images)
    expected = {
        "one": {"weight": 1, "images": 10, "left_out": {}},
        "two": {"weight": 2, "images": 10, "left_out": {"in another set's test": 1, "in another set's train": 1}},
    }
    content = read_checkpoint(run / "last.pth")
    for known in (content["sets"], result_of(run / "record.json")[0]["sets"]):  # type: ignore[index]
        assert {name: {key: facts[key] for key in expected[name]} for name, facts in known.items()} == expected
    assert yaml.safe_load((run / "options.yaml").read_text())["dataset"]["data_path"][1]["weight"] == 2
    said = "two: 8 of 10 train images; left out: 1 in another set's test, 1 in another set's train. It shares images"
    assert said in (run / "train.log").read_text()
    in_words = "trained on one (10 of 10 images) + 2 x two (8 of 10 images)"

    test_entry.main(["--path_opt", str(experiment), "--json", "out.json"])
    printed = capsys.readouterr().out
    for place, json_file, queries in (("", "out.json", 2), ("on_two", "out_two.json", 3)):
        protocol = result_of(Path("checkpoint/tiny", place, "test.json"))["protocol"]
        assert f"{queries} images, {queries} captions" in protocol
        assert in_words in protocol
        assert in_words in printed
        assert result_of(Path(json_file))["protocol"] == protocol
    assert "AMFMN on one_precomp" in printed
    assert "AMFMN on two_precomp" in printed


def test_what_changed_is_noticed_when_a_run_goes_on(experiment: Path) -> None:
    train(experiment)
    before = read_checkpoint(Path("checkpoint/tiny/0/last.pth"))
    shutil.rmtree("kept")
    train(experiment, "optim.epochs=2", flags=("--resume", "auto"))  # joined again, to the same lists
    assert read_checkpoint(Path("checkpoint/tiny/0/last.pth"))["train_list"] == before["train_list"]
    weighed = "dataset.data_path=[one_precomp, {path: two_precomp, weight: 3}]"
    with pytest.raises(InputError, match=r"dataset\.data_path: .* \+ 2 x two when it was begun, 1 x one \+ 3 x two"):
        train(experiment, "optim.epochs=3", weighed)
    with pytest.raises(InputError, match=r"dataset\.data_path: 1 x one \+ 2 x two when it was begun, a path now"):
        train(experiment, "optim.epochs=3", "dataset.data_path=one_precomp")
    caps = Path("two_precomp/train_caps.txt")
    caps.write_text(caps.read_text().replace("caption 20", "another caption"))
    with pytest.raises(InputError, match=r"last\.pth was trained on one \(10 of 10 images\) .* another than"):
        train(experiment, "optim.epochs=3")
    assert len(list(Path("kept/joined").iterdir())) == 4  # two joined sets and their locks


def test_a_set_that_was_not_trained_on_is_refused(experiment: Path) -> None:
    train(experiment)
    write_set(Path("other_precomp"), {"a.png": 50}, {"b.png": 51})
    with pytest.raises(InputError, match="whose train list is another than that of other_precomp"):
        test_entry.main(["--path_opt", str(experiment), "--set", "dataset.data_path=other_precomp"])
    test_entry.main(["--path_opt", str(experiment), "--set", "dataset.data_path=two_precomp"])
    assert Path("checkpoint/tiny/on_two/test.md").is_file()
    assert not Path("checkpoint/tiny/test.md").exists()


def test_check_says_what_is_joined(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(experiment, flags=("--check",))
    told = capsys.readouterr().out
    assert "one: 10 of 10 train images. two: 8 of 10 train images; left out: 1 in another set's test" in told
    assert "Data: 18 images with 18 captions in train, 2 images with 2 captions in test" in told
    assert not Path("checkpoint").exists()
    shutil.rmtree("two_precomp/images")
    shutil.rmtree("kept")
    with pytest.raises(InputError, match=r"1 fault found.*\n\nSets\n  1\. two_precomp/images/c0\.png: no such image"):
        train(experiment, "optim.epochs=1", flags=("--check",))
    assert not list(Path("kept/joined").glob("one*"))


def test_who_needs_one_folder_names_the_key(experiment: Path) -> None:
    options = option.load_options(experiment)
    with pytest.raises(InputError, match=r"dataset\.data_path: names several sets \(one \+ two\), and one folder is"):
        assert options.dataset.image_folder
    assert len(typed_queries_of(options, ["caption 1"], read_vocabulary(options)).lengths) == 1  # needs no list
    joined = with_joined(options)
    assert joined.dataset.image_folder == joined.dataset.folder / "images"
    assert option.dump(joined) == option.dump(options)
    Path("vocab.json").unlink()
    with pytest.raises(InputError, match=r"python -m vocab --data_path one_precomp two_precomp --data_name NAME"):
        train(experiment)


@pytest.mark.parametrize(
    "sets", ["text", {"one": 3}, {"one": {"weight": 1, "images": "9", "left_out": {}, "train_list": ""}}]
)
def test_what_a_strange_checkpoint_says_of_its_sets_is_passed_over(sets: object) -> None:
    assert sets_of({"sets": sets}) == {}
    assert sets_in_words({"sets": sets}) == ""


def test_a_set_that_shares_images_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    alone: dict[str, Any] = {"weight": 1, "images": 9, "left_out": {"in its own train": 1}, "train_list": "x"}
    tell_sets({"one": alone, "two": alone | {"left_out": {"in another set's test": 1}}})
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_a_set_that_data_join_made_is_known_by_its_parts(experiment: Path) -> None:
    options = option.load_options(experiment)
    folder = with_joined(options).dataset.folder
    one = option.load_options(experiment, [f"dataset.data_path={folder}", "dataset.set_weights={two: 2}"])
    assert joined_sets(one.dataset) == joined_sets(with_joined(options).dataset)
    (folder / "prepare.json").write_text("{}")
    assert joined_sets(one.dataset) == {}
