"""The pages docs/adding_a_*.md: their files, put into a copy of the project, train, test and pass the shared tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.markdown import blocks, commands
from tests.tiny import make_precomp

MODEL, LOSS = (ROOT / "docs" / f"adding_a_{kind}.md" for kind in ("model", "loss"))
CACHES = shutil.ignore_patterns("__pycache__", "reference", "*.png")
SMALLER = ["--set", "optim.epochs=1", "dataset.batch_size=8", "dataset.workers=0", "k_fold.nums=1"]
SMALL_AMFMN = ["model.seq2vec.arch=gru", "model.seq2vec.word_dim=16", "model.seq2vec.hidden_dim=32"]

# One process, so that torch is imported once: argument 1 holds the commands as JSON.
RUN = """
import json, runpy, sys
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the files of both pages and a tiny data set in the place of the toy set."""
    copy = tmp_path_factory.mktemp("project")
    for package in ROOT.glob("*/__init__.py"):
        folder = package.parent.name
        shutil.copytree(ROOT / folder, copy / folder, ignore=lambda *given: CACHES(*given) | _data_sets(*given))
    for file in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(file, copy)
    for block in [*blocks(MODEL), *blocks(LOSS)]:
        if block.file:
            assert not (copy / block.file).exists()
            (copy / block.file).write_text(block.text)
    make_precomp(copy / "data" / "toy_precomp")
    return copy


def _data_sets(folder: str, names: list[str]) -> set[str]:
    """Folders that are no rooms: data sets and what is made of them."""
    here = [Path(folder, name) for name in names] if Path(folder).name == "data" else []
    return {path.name for path in here if path.is_dir() and not (path / "__init__.py").is_file()}


@pytest.mark.parametrize(
    ("page", "files"),
    [
        (MODEL, ["layers/mean_word.py", "option/TOY_MEANWORD.yaml"]),
        (LOSS, ["layers/losses/uniformity.py", "option/TOY_UNIFORMITY.yaml"]),
    ],
)
def test_a_page_holds_one_file_and_one_yaml(page: Path, files: list[str]) -> None:
    assert [block.file for block in blocks(page) if block.file] == files


def calls_of(page: Path, smaller: list[str]) -> list[list[str]]:
    """The commands of a page behind `python` or `python -m`, smaller where they train or test."""
    (script,) = (block.text for block in blocks(page) if block.language == "bash")
    lines = [words[1:] for words in commands(script)]
    calls = [words[1:] if words[0] == "-m" else words for words in lines]
    return [[*call, *smaller] if call[0] in ("train.py", "test.py") else call for call in calls]


def test_their_commands_train_and_test_and_both_pass_the_shared_tests(project: Path) -> None:
    of_model, of_loss = calls_of(MODEL, SMALLER), calls_of(LOSS, [*SMALLER, *SMALL_AMFMN])
    assert [call[0] for call in of_model] == ["data.toy", "vocab", "train.py", "test.py", "pytest"]
    assert [call[0] for call in of_loss] == ["data.toy", "vocab", "train.py", "pytest"]
    assert of_model[:2] == of_loss[:2]
    tests = [[*call, "-q", "-p", "no:cacheprovider"] for call in (of_model[-1], of_loss[-1])]
    joined = ["pytest", *tests[0][1:3], tests[1][1], "-k", f"{tests[0][4]} or {tests[1][3]}", *tests[0][5:]]
    calls = [*of_model[1:-1], *of_loss[2:-1], joined]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(calls)], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((project / "checkpoint" / "toy_meanword" / "test.json").read_text())
    assert set(table["rows"]) == {"fold 0"}
    assert 0 <= table["rows"]["fold 0"]["mR"] <= 100
    history = (project / "checkpoint" / "toy_uniformity" / "0" / "history.csv").read_text().splitlines()
    row = dict(zip(history[0].split(","), map(float, history[1].split(",")), strict=True))
    assert row["loss"] == pytest.approx(row["contrastive"] + row["uniformity"])
    assert 0 < row["uniformity"] <= 0.5 * 2  # its weight, and both directions of at most 1
    found = re.search(r"^(\d+) passed, \d+ deselected in", done.stdout, re.MULTILINE)  # and none failed or skipped
    assert found is not None, done.stdout
    assert int(found.group(1)) >= 13  # every test of a model and its YAML, and the three of a loss
