"""The recipes of docs/recipes.md for CLIP: each file is checked and trains, and the page's commands do what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import search
import test as test_entry
import train as train_entry
from layers.clip_library import create
from runtime.weights import read_checkpoint
from tests import ROOT
from tests.markdown import blocks, commands
from tests.tiny import make_precomp

TINY = str(ROOT / "tests" / "clip_tiny.json")
WEIGHTS = "RS5M_ViT-B-32.pt"
ENTRIES = {"train.py": train_entry.main, "test.py": test_entry.main, "search.py": search.main}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny data and weights."""
    made = tmp_path_factory.mktemp("recipes")
    make_precomp(made / "data" / "rsicd_precomp")
    torch.manual_seed(0)
    torch.save(create(TINY, None).state_dict(), made / WEIGHTS)
    (made / "out").mkdir()
    return made


def smaller(folder: Path) -> list[str]:
    """Options that make a recipe small; `--set` may be given twice."""
    return [
        *("--set", f"model.architecture={TINY}", f"dataset.data_path={folder / 'data' / 'rsicd_precomp'}"),
        *("dataset.image_size=64", "dataset.batch_size=8", "dataset.workers=0", "optim.epochs=2", "optim.amp=off"),
        *("optim.warmup_steps=0", "optim.lr=1e-3", f"logs.ckpt_save_path={folder / 'checkpoint'}"),
    ]


@pytest.mark.parametrize("name", ["RSICD_GEORSCLIP_LORA", "RSITMD_REMOTECLIP", "RSITMD_REMOTECLIP_LORA"])
def test_a_recipe_is_checked(name: str, folder: Path) -> None:
    """RSICD_GEORSCLIP is the page's."""
    pytest.importorskip("peft", reason="the extra adapters is not installed")
    given = ["--path_opt", f"option/{name}.yaml", *smaller(folder), f"model.pretrained={folder / WEIGHTS}"]
    train_entry.main([*given, "--check"])
    assert not (folder / "checkpoint" / name.lower()).exists()


def test_lora_trains_adapters_alone(folder: Path) -> None:
    pytest.importorskip("peft", reason="the extra adapters is not installed")
    given = ["--path_opt", "option/RSICD_GEORSCLIP_LORA.yaml", *smaller(folder), "optim.epochs=1"]
    train_entry.main([*given, f"model.pretrained={folder / WEIGHTS}"])
    saved = read_checkpoint(folder / "checkpoint" / "rsicd_georsclip_lora" / "0" / "CLIP_best.pth.tar")
    assert all("lora_" in key for key in saved["model"].keys() - {"base_sha256"})


def test_the_commands_of_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the first that trains or tests on: what installs and what brings the data is left out."""
    (script,) = (block.text for block in blocks(ROOT / "docs" / "recipes.md") if WEIGHTS in block.text)
    calls = [words[1:] for words in commands(script) if words[0] == "python" and words[1] in ENTRIES]
    assert [call[0] for call in calls] == ["train.py", "test.py", "train.py", "test.py", "search.py", "search.py"]
    for program, *words in calls:
        placed = [
            word if word.startswith("option/") or " " in word else word.replace(WEIGHTS, str(folder / WEIGHTS))
            for word in words
        ]
        if program == "search.py":
            placed = [
                str(folder / word) if word.startswith(("checkpoint/", "data/", "out/")) else word for word in placed
            ]
        else:
            placed = [str(folder / word) if word.startswith("out/") else word for word in placed] + smaller(folder)
        ENTRIES[program](placed)
    before, after = (
        json.loads(path.read_text())["mean"]["mR"]
        for path in (folder / "out" / "zero_shot.json", folder / "checkpoint" / "rsicd_georsclip" / "test.json")
    )
    assert before < after
    assert "rsicd_clip" in capsys.readouterr().out
    assert (folder / "out" / "found.png").is_file()
