"""The scripts of `exec/` and the commands of the rooms: each says how it is used, and refuses what it does not know.

The scripts run in a copy of the tree in which Python is a program that notes that it was started.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.markdown import read

FOLDERS = {path.name: path.parent.name for room in ("exec", "bench") for path in (ROOT / room).glob("*.sh")}
SCRIPTS = sorted(FOLDERS.keys() - {"common.sh"})
WORDS = {
    "run_experiment.sh": ["option/UCM_AMFMN.yaml", "ucm"],
    "run_mcrn.sh": ["ucm"],
    "run_multi_gpu.sh": ["2", "option/UCM_AMFMN.yaml", "ucm"],
}
"""What comes before the flags of the scripts that need it."""
STRICT = [name for name in SCRIPTS if name != "run_tests.sh"]
"""The scripts that know all their arguments; those of `run_tests.sh` are pytest's."""
WITH_FLAGS = [name for name in STRICT if name not in ("environment.sh", "gpu_check.sh")]
"""Those that take options of the experiment."""


class Copy:
    """A copy of what the scripts read, and a Python that only notes its arguments."""

    def __init__(self, folder: Path) -> None:
        self.root, self.programs, self.started = folder / "tree", folder / "programs", folder / "started"
        for name in ("exec", "option", "bench"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copy(ROOT / name, self.root / name)
        self.programs.mkdir()
        for name in ("python", "python3"):
            program = self.programs / name
            program.write_text(f'#!/bin/sh\necho "$@" >>{self.started}\nexit 99\n')
            program.chmod(0o755)
        self.before = self.files()

    def files(self) -> set[Path]:
        return set(self.root.rglob("*"))

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": str(self.programs / "python3"),
        }
        command = ["bash", str(self.root / FOLDERS[script] / script), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=self.root.parent, timeout=60
        )

    def refused(self, script: str, *arguments: str) -> str:
        """The one line with which a script refuses its arguments before it does anything."""
        done = self.run(script, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert self.untouched()
        assert re.fullmatch(rf"{script}: .*; --help shows the usage\n", done.stderr), done.stderr
        return done.stderr

    def untouched(self) -> bool:
        return self.files() == self.before and not self.started.exists()


@pytest.fixture
def tree(tmp_path: Path) -> Copy:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    return Copy(tmp_path)


def test_a_script_that_does_something_is_noticed(tree: Copy) -> None:
    for script in ("environment.sh", "run_amfmn_ucm.sh", "reproduce_ucm.sh"):
        tree.started.unlink(missing_ok=True)
        assert tree.run(script).returncode not in (0, 2)
        assert not tree.untouched()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed_and_nothing_is_done(script: str, tree: Copy) -> None:
    done = tree.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert tree.untouched()
    named = "reproduce_ucm" if script == "reproduce.sh" else script
    assert re.search(rf"^(.*\. )?Usage: .*bash {FOLDERS[script]}/{named}", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^#|shellcheck", done.stdout, re.MULTILINE) is None
    if script in WITH_FLAGS:
        assert "--set" in done.stdout
        assert "CARD=" in done.stdout
    assert tree.run(script, *WORDS.get(script, []), "-h").stdout == done.stdout


@pytest.mark.parametrize("script", STRICT)
def test_an_unknown_argument_is_refused(script: str, tree: Copy) -> None:
    assert "--no-such-flag" in tree.refused(script, "--no-such-flag")
    assert "--no-such-flag" in tree.refused(script, *WORDS.get(script, []), "--no-such-flag")
    if script in WITH_FLAGS:
        settings = ["--set", "optim.epochs=2", "k_fold.nums=2"]
        assert "--no-such-flag" in tree.refused(script, *WORDS.get(script, []), *settings, "--no-such-flag=3")
    assert "'word'" in tree.refused(script, *WORDS.get(script, []), "word")


@pytest.mark.parametrize("script", WITH_FLAGS)
def test_a_missing_value_is_refused(script: str, tree: Copy) -> None:
    words = WORDS.get(script, [])
    assert "--set needs a value" in tree.refused(script, *words, "--set")
    assert "--set needs a value" in tree.refused(script, *words, "--set=")
    assert "--set optim.epochs: expected KEY=VALUE" in tree.refused(script, *words, "--set", "a.b=1", "optim.epochs")
    text = tree.run(script, "--help").stdout
    flag, switch = ("--name", "--list") if "--name" in text else ("--device", "--force")
    assert f"{flag} needs a value" in tree.refused(script, *words, flag)
    assert f"{flag} needs a value" in tree.refused(script, *words, flag, switch)
    assert f"{switch} takes no value" in tree.refused(script, *words, f"{switch}=yes")


@pytest.mark.parametrize("script", WORDS)
def test_missing_words_are_refused(script: str, tree: Copy) -> None:
    for count in range(len(WORDS[script])):
        assert re.search(r"expected [A-Z_]+;", tree.refused(script, *WORDS[script][:count]))
        assert re.search(r"expected [A-Z_]+, not '--force'", tree.refused(script, *WORDS[script][:count], "--force"))
    wrong = ["wrong", *WORDS[script][1:]]
    assert "wrong" in tree.refused(script, *wrong)


def test_known_arguments_are_handed_on_whole(tree: Copy) -> None:
    python = tree.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >>{tree.started}\necho >>{tree.started}\n')
    python.chmod(0o755)
    flags = ["--set", "a.b=1 2", "c.d=3", "--device=cpu", "--folds", "0,1", "--force", "--set=e.f=4"]
    for script, start in (("run_swan_ucm.sh", []), ("run_mcrn_ucm.sh", ["--pretrain"])):
        tree.started.unlink(missing_ok=True)
        assert tree.run(script, *flags, *start).returncode == 0
        *_, train, test = [line.split("|")[:-1] for line in tree.started.read_text().splitlines()]
        assert train[0] == "train.py"
        assert test[0] == "test.py"
        assert train[1:] == test[1:]
        assert train[-len(flags) :] == flags
        assert ("model.init_from=checkpoint/ucm_mcrn_pretrain/pretrained.pth.tar" in train) == bool(start)


def test_regions_are_made_where_only_the_extended_file_names_them(tree: Copy) -> None:
    python = tree.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    answer = 'if [ "$2" = option ]; then echo "  local_path: data/mine_regions.h5"; fi'
    python.write_text(f'#!/bin/sh\necho "$@" >>{tree.started}\n{answer}\n')
    python.chmod(0o755)
    (tree.root / "variant.yaml").write_text("extends: option/RSICD_GALR.yaml\n")
    assert tree.run("run_experiment.sh", "variant.yaml", "mine", "--set", "optim.epochs=2").returncode == 0
    started = tree.started.read_text()
    assert "-m option --path_opt variant.yaml --set optim.epochs=2\n" in started
    assert "-m data.regions build --images data/mine_precomp/images --out data/mine_regions.h5\n" in started
    assert "-m data.keywords" not in started


def test_the_rows_take_their_arguments_in_any_order(tree: Copy) -> None:
    lists = {
        tree.run("run_ablation_ucm.sh", *arguments).stdout
        for arguments in (
            ["--name", "other", "--list", "--set", "optim.epochs=2", "optim.seed=3"],
            ["--set", "optim.epochs=2", "--name=other", "--set", "optim.seed=3", "--list"],
        )
    }
    assert len(lists) == 1
    lines = lists.pop().splitlines()
    assert len(lines) == 12
    assert all(" optim.epochs=2 optim.seed=3 k_fold.experiment_name=other_" in line for line in lines)
    assert tree.untouched()


def commands() -> list[str]:
    """All that `python -m` can run and that lies in a room, by the name that users type."""
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [path.relative_to(ROOT) for room in rooms for path in room.rglob("*.py") if '== "__main__"' in read(path)]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__main__") for path in files)


@pytest.mark.parametrize("command", commands())
def test_a_command_calls_itself_by_its_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = (ROOT / command.replace(".", "/") / "__main__.py").is_file()
    module = importlib.import_module(f"{command}.__main__" if package else command)
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {command} ")


@pytest.mark.parametrize(
    "path",
    [
        "vocab/mine_splits_vocab.json",
        "data/mine_precomp/train_caps.txt",
        "data/mine_regions.h5",
        "data/mine_audios/a.png",
        "data/mine_keywords/test_keywords.txt",
        "checkpoint/reproduce_ucm.md",
        ".venv/project/pyproject.toml",
    ],
)
def test_what_the_scripts_write_is_ignored(path: str) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT, check=True)
