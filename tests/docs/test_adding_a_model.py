"""The page docs/adding_a_model.md: its files, put into a copy of the project, train, test and pass the model tests."""

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

PAGE = ROOT / "docs" / "adding_a_model.md"
CACHES = shutil.ignore_patterns("__pycache__", "reference", "*.png")
SMALLER = ["--set", "optim.epochs=1", "dataset.batch_size=8", "dataset.workers=0", "k_fold.nums=1"]

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
    """A copy of the project with the files of the page and a tiny data set in the place of the toy set."""
    copy = tmp_path_factory.mktemp("project")
    for package in ROOT.glob("*/__init__.py"):
        folder = package.parent.name
        shutil.copytree(ROOT / folder, copy / folder, ignore=lambda *given: CACHES(*given) | _data_sets(*given))
    for file in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(file, copy)
    for block in blocks(PAGE):
        if block.file:
            assert not (copy / block.file).exists()
            (copy / block.file).write_text(block.text)
    make_precomp(copy / "data" / "toy_precomp")
    return copy


def _data_sets(folder: str, names: list[str]) -> set[str]:
    """Folders that are no rooms: data sets and what is made of them."""
    here = [Path(folder, name) for name in names] if Path(folder).name == "data" else []
    return {path.name for path in here if path.is_dir() and not (path / "__init__.py").is_file()}


def test_the_page_holds_one_model_and_one_yaml() -> None:
    assert [block.file for block in blocks(PAGE) if block.file] == ["layers/mean_word.py", "option/TOY_MEANWORD.yaml"]


def test_its_commands_train_and_test_and_the_model_passes_the_shared_tests(project: Path) -> None:
    (script,) = (block.text for block in blocks(PAGE) if block.language == "bash")
    lines = [words[1:] for words in commands(script)]
    calls = [words[1:] if words[0] == "-m" else words for words in lines]
    names = [words[0] for words in calls]
    assert names == ["data.toy", "vocab", "train.py", "test.py", "pytest"]
    calls = [[*call, *SMALLER] if call[0] in ("train.py", "test.py") else call for call in calls[1:]]
    calls[-1] += ["-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(calls)], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((project / "checkpoint" / "toy_meanword" / "test.json").read_text())
    assert set(table["rows"]) == {"fold 0"}
    assert 0 <= table["rows"]["fold 0"]["mR"] <= 100
    found = re.search(r"^(\d+) passed, \d+ deselected in", done.stdout, re.MULTILINE)  # and none failed or skipped
    assert found is not None, done.stdout
    assert int(found.group(1)) >= 10  # every test of a model, and those of its YAML
