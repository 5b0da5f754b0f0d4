"""Results to cite: each experiment beside its published row, with what it was made; and the script that makes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import option
from layers import registry
from layers.registry import Registration, registered
from option.parameters import ModelParameters
from reports.experiments import read_experiment
from reports.export import RANKS_FORMAT
from reports.reproduction import TABLES, difference_rows, main, read_published, recall_rows, run_rows
from reports.tables import RECALLS
from tests import ROOT
from tests.tiny import make_precomp, write_experiment
from utils import InputError, as_csv

TABLE_SCRIPTS = sorted(path.name for path in (ROOT / "exec").glob("*.sh") if "\nrun_rows " in path.read_text())
ROWS = {"run_ablation_ucm.sh": 12}
ENTRY = {"device": "a processor", "processors": 2, "threads": 1, "torch": "2.9", "commit": "abc"}


def finished(folder: Path, model: dict[str, Any], scores: list[float], record: list[dict[str, Any]], rank: int) -> Path:
    """What `train.py` and `test.py` leave of an experiment of one fold per score, all of whose queries have a rank."""
    options = {"model": model, "optim": {"seed": 3, "lr": len(scores)}, "k_fold": {"seed": 5, "nums": 2}}
    means, mean = dict.fromkeys(RECALLS, 20.0), sum(scores) / len(scores)
    content = {
        "options": options,
        "protocol": "Protocol: ...",
        "rows": {f"fold {i}": means | {"mR": score} for i, score in enumerate(scores)},
        "mean": means | {"mR": mean},
        "standard_deviation": dict.fromkeys(RECALLS, 1.5),
        "chance": dict.fromkeys(RECALLS, 2.0),
        "ceiling": dict.fromkeys(RECALLS, 70.0),
    }
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps(content))
    with h5py.File(folder / "ranks.h5", "w") as archive:
        archive.attrs["format"] = RANKS_FORMAT
        archive["image_names"] = [f"{i}.jpg" for i in range(10)]
        archive["captions"] = [f"image {i}" for i in range(10)]
        archive["caption_image"] = np.arange(10)
        for i in range(len(scores)):
            archive[f"fold {i}/image_ranks"] = archive[f"fold {i}/caption_ranks"] = np.full(10, rank)
    for i in range(len(scores)):
        (folder / str(i)).mkdir()
        epochs = [{"epoch": n + 1.0, "loss": 1.0, "val_mR": [1.0, 3.0, 2.0][n], "seconds": 60.0 * i} for n in range(3)]
        (folder / str(i) / "history.csv").write_text(as_csv(epochs))
        (folder / str(i) / "record.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    soft = {"name": "AMFMN", "cross_attention": {"att_type": "soft_att"}}
    record = [ENTRY | {"peak_memory_mib": 1500}, ENTRY | {"commit": "def+"}]
    return [
        finished(tmp_path / "a", soft, [10.0, 14.0], record, rank=20),
        finished(tmp_path / "b", {"name": "SWAN"}, [13.0], [], rank=7),
    ]


def test_published_rows_are_the_mean_of_their_recalls() -> None:
    # AMFMN-soft on RSICD is printed with a mean that its own six numbers do not have
    for data_set in ("ucm", "rsitmd", "rsicd"):
        for row in read_published(data_set):
            mean = sum(value for name, value in row.scores.items() if name != "mR") / 6
            odd = (data_set, row.model, row.variant) == ("rsicd", "AMFMN", "soft_att")
            assert row.scores["mR"] == pytest.approx(mean, abs=0.15 if odd else 0.02), row
    with pytest.raises(InputError, match="there are some of ucm, rsitmd, rsicd"):
        read_published("sydney")


def test_rows_stand_above_what_was_published_of_them(folders: list[Path]) -> None:
    cells = recall_rows([read_experiment(folder, TABLES) for folder in folders], read_published("rsitmd"))
    assert [row[0] for row in cells] == [
        *("", "**AMFMN soft_att**", "published", "rerun by RRSITR (any attention)"),
        *("**SWAN**", "published", "rerun by RRSITR", "chance", "ceiling"),
    ]
    assert [row[-1] for row in cells] == [
        *("mR", "12.00 ± 1.50", "28.74", "31.66", "13.00", "34.11", "34.37", "2.00", "70.00"),
    ]


def test_the_worst_order_of_ties_stands_under_its_row_in_older_results_too(folders: list[Path]) -> None:
    path = folders[0] / "test.json"
    content = json.loads(path.read_text())
    before = [f"{content['mean'][name]:.2f} ± {content['standard_deviation'][name]:.2f}" for name in RECALLS]
    tied = [content["mean"], content["standard_deviation"], *content["rows"].values()]
    for scores, value in zip(tied, (31.25, 2.5, *[31.25] * len(content["rows"])), strict=True):
        scores |= dict.fromkeys((f"random_ties_{name}" for name in RECALLS), value)
    path.write_text(json.dumps(content))
    cells = recall_rows([read_experiment(folder, TABLES) for folder in folders], [])
    assert cells[1] == ["**AMFMN soft_att**", *["31.25 ± 2.50"] * 7]
    assert cells[2] == ["worst order of ties", *before]
    assert [row[0] for row in cells[3:]] == ["**SWAN**", "chance", "ceiling"]


def test_what_the_scene_class_gives_stands_once_where_it_is_known(folders: list[Path]) -> None:
    path = folders[1] / "test.json"  # the other test.json has none, as those of earlier versions
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scene_class_alone": dict.fromkeys(RECALLS, 45.0)}))
    cells = recall_rows([read_experiment(folder, TABLES) for folder in [*folders, folders[1]]], [])
    assert [row[0] for row in cells[-3:]] == ["chance", "scene class alone", "ceiling"]
    assert cells[-2][1:] == ["45.00"] * 7


def test_differences_between_rows(folders: list[Path]) -> None:
    again = [*folders, folders[1]]
    # With rank 7 everything is found among the first 10, and nothing sooner: two recalls of six are 100
    assert difference_rows([read_experiment(folder, TABLES) for folder in again]) == [
        ["", "AMFMN soft_att", "SWAN"],
        ["SWAN", "**+33.33 (p < 0.001)**", ""],
        ["SWAN", "**+33.33 (p < 0.001)**", "+0.00 (p 1.000)"],
    ]


def test_what_each_row_was_made_with(folders: list[Path]) -> None:
    _, amfmn, swan = run_rows([read_experiment(folder, TABLES) for folder in folders])
    assert amfmn == [
        "AMFMN soft_att",
        "2",
        "3, 5",
        "2 2",
        "2",
        "1,500",
        "abc def+",
        "optim.lr=2",
    ]  # (0 + 3) / 2 min, to even
    assert swan == ["SWAN", "1", "3, 5", "2", "0", "unknown", "unknown", "optim.lr=1"]


def test_of_a_models_own_options_only_what_is_not_its_default_is_shown(tmp_path: Path) -> None:
    swan: dict[str, Any] = {"name": "SWAN", "num_layers": 1, "is_finetune": True}
    galr: dict[str, Any] = {"name": "GaLR", "seq2vec": {"arch": "gru", "dropout": 0.25}}
    folders = [finished(tmp_path / str(i), model, [1.0], [], rank=0) for i, model in enumerate((swan, galr))]
    cells = run_rows([read_experiment(folder, TABLES) for folder in folders])
    assert [row[-1] for row in cells[1:]] == ["model.is_finetune=True", "model.seq2vec.arch=gru"]


def test_a_model_may_have_parameters_without_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Demanding(ModelParameters):
        depth: int
        width: int = 8

    known = registered()["SWAN"]
    monkeypatch.setitem(registry._registrations, "Demanding", Registration(known.model, Demanding))
    models: list[dict[str, Any]] = [{"name": "Demanding", "depth": 2, "width": 8}, {"name": "SWAN"}]
    folders = [finished(tmp_path / str(i), model, [1.0], [], rank=0) for i, model in enumerate(models)]
    cells = run_rows([read_experiment(folder, TABLES) for folder in folders])
    assert [row[-1] for row in cells[1:]] == ["model.depth=2", ""]


def test_the_command_prints_and_writes(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = folders[0].parent / "table.md"
    main([*map(str, folders), "--published", "ucm", "--out", str(out)])
    assert capsys.readouterr().out == out.read_text()
    assert "a processor, 2 processors, threads per training: 1, torch 2.9." in out.read_text()
    (folders[0] / "test.json").write_text("{}")
    with pytest.raises(InputError, match="not the result of a test"):
        main([str(folders[0])])


SCRIPT = """
source {root}/exec/reproduce.sh
python=${{PYTHON:-{python}}}
row first {yaml} optim.epochs=1
[[ -n "${{ONE_ROW:-}}" ]] || row second {yaml} optim.epochs=1 optim.lr=2e-3
prepare() {{ :; }}
cd {folder}
run_rows ucm reproduce_ucm -m reports.reproduction --published ucm
"""

STAND_IN = """#!/bin/bash
# Notes each command and does what matches $REAL; of what does not, a training lasts until it is told to stop.
shopt -s extglob
printf '%s\\n' "$*" >> commands.txt
case "$*" in
  $REAL) exec {python} "$@" ;;
  -c*cuda*) exit 1 ;;
  -c*) echo "$FOLDS" ;;
  *--check*$BROKEN*) exit 1 ;;
  *--folds*)
    if [[ -n "$LASTING" ]]; then
      trap 'kill $!; touch stopped; exit 75' TERM
      sleep 600 >/dev/null 2>&1 &
      echo 'epoch 1/1000'
      wait
    fi ;;
esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script of two rows, or one, on a tiny data set."""
    yaml = write_experiment(tmp_path, make_precomp(tmp_path / "data"))
    for name in ("train.py", "test.py"):
        (tmp_path / name).write_text(f"import runpy; runpy.run_path({str(ROOT / name)!r}, run_name='__main__')\n")
    path = tmp_path / "script.sh"
    path.write_text(SCRIPT.format(root=ROOT, python=sys.executable, yaml=yaml, folder=tmp_path))
    return path


def start(script: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JOBS": "2"} | environment
    command = ["bash", str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def start_with_stand_in(script: Path, *arguments: str, **given: str) -> subprocess.Popen[str]:
    program = script.parent / "python"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    nothing = {"REAL": "nothing", "BROKEN": "nothing", "LASTING": "", "FOLDS": "2"}
    return start(script, "--name", "small", *arguments, PYTHON=str(program), **nothing | given)


def commands_of(script: Path, *options: str) -> list[str]:
    """The trainings and tests that the stand-in was asked for, as `train first --check`; what else began with `-m`."""
    found = []
    for line in (script.parent / "commands.txt").read_text().splitlines():
        program, *words = line.split()
        if program == "-m":
            found.append(line)
        elif program != "-c":
            row = next(word for word in words if word.startswith("k_fold.experiment_name")).partition("small_")[2]
            flags = words[: words.index("--path_opt")] + words[words.index("--path_opt") + 2 : words.index("--set")]
            found.append(" ".join([program.removesuffix(".py"), row, *flags]))
            assert set(options) <= set(words)
    return found


def test_the_script_trains_tests_and_draws_up_the_table(script: Path) -> None:
    given = {"REAL": "@(train.py --path_opt*|test.py*|-m*)", "ONE_ROW": "yes", "FOLDS": "1"}
    done = start_with_stand_in(script, "--set", "k_fold.nums=1", **given)
    printed, faults = done.communicate()
    assert done.returncode == 0, printed + faults
    table = (script.parent / "checkpoint" / "small.md").read_text()
    assert table in printed
    assert "45.97" in table  # published
    mean = json.loads((script.parent / "checkpoint" / "small_first" / "test.json").read_text())["mean"]["mR"]
    assert f"{mean:.2f}" in table


def test_every_row_is_checked_then_every_fold_trained_and_every_row_tested(script: Path) -> None:
    done = start_with_stand_in(script, "--set", "optim.epochs=3")
    printed, faults = done.communicate()
    assert done.returncode == 0, printed + faults
    trained = {f"train {row} --folds {fold}" for row in ("first", "second") for fold in (0, 1)}
    commands = commands_of(script, "optim.epochs=3")
    assert commands[:2] == ["train first --check", "train second --check"]
    assert set(commands[2:6]) == trained  # two side by side
    assert commands[6:] == [
        "test first",
        "test second",
        "-m reports.reproduction --published ucm --out checkpoint/small.md "
        "checkpoint/small_first checkpoint/small_second",
    ]


def test_a_row_that_can_not_be_trained_is_told_before_any_is(script: Path) -> None:
    broken = start_with_stand_in(script, BROKEN="small_first")
    faults = broken.communicate()[1]
    assert broken.returncode == 2, faults
    assert "none of the rows was trained" in faults
    assert commands_of(script) == ["train first --check", "train second --check"]


def test_as_many_trainings_as_processors_whatever_the_threads() -> None:
    source = f"source {ROOT}/exec/reproduce.sh; python=false; choose_jobs; echo $jobs"  # false: no GPU
    environment = {name: value for name, value in os.environ.items() if name != "JOBS"} | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(["bash", "-c", source], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert int(printed.stdout) == min(len(os.sched_getaffinity(0)), 4)


def test_a_stopped_script_has_saved_what_was_reached(script: Path) -> None:
    given = {"REAL": "*--folds 0*", "LASTING": "yes"}  # of the two trainings side by side one is real
    stopped = start_with_stand_in(script, "--set", "optim.epochs=1000", **given)
    assert stopped.stdout is not None
    begun: set[int] = set()
    while len(begun) < 2:
        line = stopped.stdout.readline()
        assert line, "the script ended before both folds were in training"
        begun |= {fold for fold in range(2) if line.startswith(f"[first {fold}] epoch 1/1000")}
    stopped.send_signal(signal.SIGTERM)
    _, faults = stopped.communicate(timeout=120)
    assert stopped.returncode == 75, faults
    assert "Run the same command again to go on." in faults
    assert (script.parent / "checkpoint" / "small_first" / "0" / "last.pth").is_file()
    assert (script.parent / "stopped").is_file()
    assert [command for command in commands_of(script) if "--check" not in command] == [
        "train first --folds 0",
        "train first --folds 1",
    ]


@pytest.mark.parametrize("script", TABLE_SCRIPTS)
@pytest.mark.parametrize("size", [[], ["--full"]])
def test_the_rows_of_every_script_can_be_loaded(script: str, size: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    listed = subprocess.run(
        ["bash", str(ROOT / "exec" / script), *size, "--list", "--set", "optim.lr=0.5"], capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    loaded = [option.load_options(path, overrides) for path, *overrides in map(str.split, listed.stdout.splitlines())]
    names = [options.k_fold.experiment_name for options in loaded]
    assert len(set(names)) == len(names) == ROWS.get(script, 6)
    assert {options.optim.lr for options in loaded} == {0.5}  # what is given comes last
    if script.startswith("reproduce"):
        assert {options.model.name for options in loaded} == {"AMFMN", "GaLR", "SWAN", "MCRN"}
        assert len({(options.k_fold.nums, options.dataset.image_size) for options in loaded}) == 1
