"""The bench of depthwise convolutions measures four different ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.tune import WAYS, main
from layers import depthwise
from utils import InputError


def test_all_ways_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool] = []
    plain = depthwise.learns_depthwise

    def asked(*tensors: object) -> bool:
        answers.append(plain(*tensors))  # type: ignore[arg-type]
        return answers[-1]

    monkeypatch.setattr(depthwise, "learns_depthwise", asked)
    out = tmp_path / "tune.json"
    small = ["--architecture", "timm/test_efficientnet", "--last", "2", "--batch", "2", "--size", "64"]
    main([*small, "--rounds", "3", "--json", str(out)])
    found = json.loads(out.read_text())
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == dict.fromkeys(WAYS, 3)
    assert all(second > 0 for seconds in found["seconds"].values() for second in seconds)
    per_step = sum(answers) / 4 / 3  # the first round does not count; of four ways one does not ask
    assert per_step == int(per_step) > 0
    assert "last 2 blocks of timm/test_efficientnet, 2 images of 64 pixels" in found["title"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--architecture", "timm/test_efficientnet", "--last", "99"],
            "--last 99: timm/test_efficientnet has 6 blocks",
        ),
        (["--architecture", "timm/vit_base_patch32_224"], "timm/vit_base_patch32_224: its blocks give no maps"),
    ],
)
def test_a_network_that_has_no_such_step_is_told(given: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main([*given, "--batch", "1", "--rounds", "1"])
