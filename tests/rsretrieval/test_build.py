"""What pip installs: one package, whose rooms import each other below it, and no module of another name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from exec import build_backend
from exec.build_backend import PACKAGE, ROOMS, lay_out, moved
from tests.test_house import imported, modules, room_of


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    lay_out(folder)
    return folder


def test_imports_move_with_their_rooms() -> None:
    source = (
        "import option\nimport torch\nfrom layers.base import (\n    A,\n)\n"
        "from torch import Tensor\nfrom dataloader import B as C"
    )
    assert moved(source) == (
        "from rsretrieval import option\nimport torch\nfrom rsretrieval.layers.base import (\n    A,\n)\n"
        "from torch import Tensor\nfrom rsretrieval.dataloader import B as C"
    )
    assert moved("import metrics as m  # why") == "from rsretrieval import metrics as m  # why"
    with pytest.raises(ValueError, match="one room to a line"):
        moved("import layers.base")


def test_all_rooms_that_are_needed_come_along() -> None:
    needed = {PACKAGE, *ROOMS}
    files = {name: path for name, path in modules().items() if room_of(name) in needed and path.stem != "__main__"}
    missing = {
        (name, other) for name, path in files.items() for other in imported(path) if room_of(other) not in needed
    }
    assert missing == set()


def test_no_import_is_left_at_the_root(laid_out: Path) -> None:
    assert {path.name for path in laid_out.iterdir()} == {PACKAGE, "pyproject.toml", "LICENSE"}
    for path in (laid_out / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & set(ROOMS), path


def test_it_works_from_any_folder_and_shadows_nothing(laid_out: Path, tmp_path: Path) -> None:
    program = (
        "import sys, importlib.util, rsretrieval, rsretrieval.option as option\n"
        "rooms = sys.argv[1].split()\n"
        "found = [room for room in rooms if room in sys.modules or importlib.util.find_spec(room)]\n"
        "print(rsretrieval.__file__, found)\n"
        "print(len(option.Options.model_fields), sorted(rsretrieval.option.parameters.model_blocks()))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, " ".join(ROOMS)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(laid_out), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == f"{laid_out / PACKAGE / '__init__.py'} []"
    assert "'AMFMN'" in second


def test_without_rooms_the_package_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As exec/environment.sh installs it, for the packages that it depends on."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        (tmp_path / "a" / name).write_text("x")
    monkeypatch.setattr(build_backend, "ROOT", tmp_path / "a")
    lay_out(tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"pyproject.toml", "LICENSE"}


def test_what_lies_beside_the_code_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    files = ["rsretrieval/__init__.py", "utils.py", "vocab/__init__.py", "vocab/stop_words.txt", "runs/__init__.py"]
    files += [
        "runs/ready/__init__.py",
        "runs/ready/model/model.safetensors",
        "data/__init__.py",
        "data/toy/__init__.py",
    ]
    mine = ["data/my_precomp/train_caps.txt", "data/my_precomp/images/a.jpg", "vocab/glove.6B.300d.txt"]
    mine += ["data/toy/__main__.py", "vocab/my_vocab.json"]
    for name in (*files, *mine, "pyproject.toml", "LICENSE"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    out.mkdir()
    monkeypatch.setattr(build_backend, "ROOT", root)
    monkeypatch.setattr(build_backend, "ROOMS", ("utils", "vocab", "runs", "data"))
    lay_out(out)
    found = {path.relative_to(out / PACKAGE).as_posix() for path in (out / PACKAGE).rglob("*") if path.is_file()}
    assert found == {name.removeprefix(f"{PACKAGE}/") for name in files}
