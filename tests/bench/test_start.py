"""The bench of a running start measures every stage and ends in a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.start import main
from tests.runs.test_features import Experiment, experiment  # noqa: F401
from utils import InputError


def test_every_stage_is_measured(
    experiment: Experiment,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "start.json"
    main(["--path_opt", str(experiment()), "--device", "cpu", "--json", str(out)])
    found = json.loads(out.read_text())
    names = ["packages, weights, tokenizer", "features of images", "features of captions", "heads, 2 epochs", "test"]
    assert list(found["stages"]) == names
    assert all(seconds > 0 for seconds in found["stages"].values())
    assert 0 < found["mR"] <= 100
    printed = capfd.readouterr()
    assert f"from images to {found['mR']:.2f} mR on test" in printed.out
    # Train's two kinds, and the images of test: all its captions are in train.
    assert caplog.text.count("computed, kept in") == 3
    of_commands = printed.out + printed.err
    assert "Fold 0 of" in of_commands
    assert "computed, kept in" not in of_commands  # training and test find all features made
    assert not (tmp_path / "features").exists()  # those of before are neither read nor added to


def test_towers_that_learn_are_refused(experiment: Experiment) -> None:  # noqa: F811
    path = experiment(dataset__augmentation="published")
    with pytest.raises(InputError, match=r"frozen towers and views of whole images: see option/RSICD_DUAL\.yaml"):
        main(["--path_opt", str(path), "--device", "cpu"])
