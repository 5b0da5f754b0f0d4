"""A folder of a tiny model, written by the command once for all tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import option
from layers import build_model
from option import Options
from portable.__main__ import main
from runs.checkpoints import save_checkpoint
from runs.loaders import read_vocabulary
from tests.portable import skip_without
from tests.tiny import make_precomp, write_experiment

OVERRIDES = ["model.backbone.architecture=timm/test_resnet", "optim.epochs=3"]


@dataclass(frozen=True)
class Written:
    """What `python -m portable` made, and of what."""

    folder: Path
    checkpoint: Path
    options: Options
    images: Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    skip_without("onnxruntime", "onnxscript", "safetensors", "timm")
    place = tmp_path_factory.mktemp("portable")
    path = write_experiment(place, make_precomp(place / "data"))
    options = option.load_options(path, OVERRIDES)
    vocabulary = read_vocabulary(options)
    torch.manual_seed(0)
    model = build_model(options, vocabulary)
    state = {"model": model.state_dict(), "vocabulary": vocabulary.digest, "epoch": 3, "fold": 0}
    checkpoint = place / "best.pth.tar"
    save_checkpoint(checkpoint, state, options)
    given = ["--path_opt", str(path), "--checkpoint", str(checkpoint), "--set", *OVERRIDES]
    main([*given, "--out", str(place / "out"), "--int8", "--test"])
    return Written(place / "out", checkpoint, options, place / "data" / "images")
