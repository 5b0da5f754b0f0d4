"""`extends`: what a file takes from another one, and what every fault says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import option
from option.__main__ import main
from utils import InputError

PARENT = {
    "model": {"name": "AMFMN", "seq2vec": {"arch": "gru", "word_dim": 16}, "embed": {"embed_dim": 64}},
    "dataset": {"data_path": "data/x", "vocab_path": "vocab/x.json", "batch_size": 8},
    "optim": {"epochs": 3, "loss": {"triplet": 1, "contrastive": 0.5}},
    "k_fold": {"experiment_name": "parent", "nums": 2},
}


def write(path: Path, tree: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return write(tmp_path / "base" / "parent.yaml", PARENT)


def child(parent: Path, **blocks: Any) -> Path:
    """In another folder than its parent."""
    return write(parent.parents[1] / "child.yaml", {"extends": f"base/{parent.name}", **blocks})


def test_a_file_states_what_differs(parent: Path) -> None:
    path = child(parent, dataset={"batch_size": 16}, k_fold={"experiment_name": "child"}, optim={"loss": "contrastive"})
    options = option.load_options(path, ["optim.epochs=5"])
    assert (options.dataset.batch_size, options.dataset.data_path) == (16, Path("data/x"))
    assert (options.k_fold.experiment_name, options.k_fold.nums) == ("child", 2)
    assert (options.optim.epochs, options.optim.loss) == (5, {"contrastive": 1.0})  # a key's value is taken whole
    assert options.model == option.load_options(parent).model


def test_a_chain_counts_from_its_end(parent: Path) -> None:
    middle = child(parent, optim={"lr": 0.5, "epochs": 4})
    last = write(middle.with_name("last.yaml"), {"extends": "child.yaml", "optim": {"epochs": 9}})
    optim = option.load_options(last).optim
    assert (optim.lr, optim.epochs) == (0.5, 9)


def test_another_model_takes_no_model_block(parent: Path) -> None:
    options = option.load_options(child(parent, model={"name": "SWAN"}))
    assert options.model == option.load_options(child(parent, model={"name": "SWAN", "word_dim": 300})).model
    assert options.dataset.batch_size == 8


def test_the_resolved_options_are_whole_and_alone(parent: Path, tmp_path: Path) -> None:
    options = option.load_options(child(parent, optim={"epochs": 4}))
    for given in (False, True):
        text = option.to_yaml(options, given)
        assert "extends" not in text
        (tmp_path / "resolved.yaml").write_text(text)
        assert option.load_options(tmp_path / "resolved.yaml") == options
    assert yaml.safe_load(text)["optim"] == {"epochs": 4, "loss": {"triplet": 1, "contrastive": 0.5}}


def test_the_command_prints_the_resolved_options(parent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--path_opt", str(child(parent, optim={"epochs": 4})), "--set", "optim.lr=0.5"])
    assert yaml.safe_load(capsys.readouterr().out) == PARENT | {
        "optim": {"epochs": 4, "lr": 0.5, "loss": {"triplet": 1, "contrastive": 0.5}}
    }


def test_faults_stand_under_the_file_that_gave_the_value(parent: Path) -> None:
    write(parent, PARENT | {"optim": {"epochs": 0}})
    path = child(parent, dataset={"batch_siez": 3})
    with pytest.raises(InputError) as caught:
        option.load_options(path)
    lines = str(caught.value).splitlines()
    assert lines[0::2] == [f"{path}: 1 fault", f"{parent}: 1 fault"]
    assert "dataset.batch_siez: unknown key" in lines[1]
    assert "optim.epochs: given '0'" in lines[3]


def test_a_missing_parent_is_named_with_the_file_that_asks_for_it(parent: Path) -> None:
    path = child(parent)
    parent.rename(parent.with_name("moved.yaml"))
    with pytest.raises(InputError) as caught:
        option.load_options(path)
    assert str(caught.value).startswith(f"{path}: extends: {parent}: no such file; there are ")
    assert "moved.yaml" in str(caught.value)


def test_circles_are_named(parent: Path) -> None:
    path = child(parent)
    write(parent, {"extends": "../child.yaml"})
    with pytest.raises(InputError, match=r"child.yaml extends .*parent.yaml extends .*child.yaml: a circle"):
        option.load_options(path)
    write(path, {"extends": "child.yaml"})
    with pytest.raises(InputError, match=r"child.yaml extends .*child.yaml: a circle; take the key `extends` out"):
        option.is_pretraining(path)


def test_long_chains_end(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"{number}.yaml", {"extends": f"{number + 1}.yaml"})
    with pytest.raises(InputError, match=r"0.yaml: more than 10 files extend each other"):
        option.load_options(tmp_path / "0.yaml")


@pytest.mark.parametrize("name", [["a.yaml"], {"a": "b"}, None])
def test_one_file_is_extended(tmp_path: Path, name: Any) -> None:
    path = write(tmp_path / "x.yaml", {"extends": name})
    with pytest.raises(InputError, match=r"x.yaml: extends: given .*; allowed: the path of one YAML file"):
        option.load_options(path)


def test_a_pretraining_is_told_by_what_it_extends(tmp_path: Path) -> None:
    logs = {"logs": {"experiment_name": "x"}}
    write(tmp_path / "a.yaml", logs)
    assert option.is_pretraining(write(tmp_path / "b.yaml", {"extends": "a.yaml", "optim": {"lr": 0.5}}))
