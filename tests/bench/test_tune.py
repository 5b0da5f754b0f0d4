"""The bench of convolutions that learn measures four different ways."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bench.tune
from bench.tune import WAYS, main
from layers import depthwise, folding
from utils import InputError


def test_all_ways_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps take turns, and each takes the shortcuts of its way alone."""
    taken: Counter[str] = Counter()
    for place, name in ((folding, "_taken_over"), (depthwise, "is_wide"), (depthwise, "learns_depthwise")):
        monkeypatch.setattr(place, name, counting(getattr(place, name), taken))
    steps, plain = [], bench.tune.step_seconds

    def step_seconds(*given: Any) -> float:
        taken.clear()
        seconds = plain(*given)
        steps.append((taken["_taken_over"], taken["is_wide"], taken["learns_depthwise"]))
        return seconds

    monkeypatch.setattr(bench.tune, "step_seconds", step_seconds)
    out = tmp_path / "tune.json"
    small = ["--architecture", "timm/test_efficientnet", "--last", "2", "--batch", "2", "--size", "64"]
    main([*small, "--rounds", "3", "--json", str(out)])
    norms, kernels, maps = steps[0]
    assert maps >= norms > kernels > 0  # how often each was asked for
    one_round = [(norms, kernels, maps), (0, kernels, maps), (0, 0, maps), (0, 0, 0)]
    assert steps == one_round * 4  # the first round does not count
    found = json.loads(out.read_text())
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == dict.fromkeys(WAYS, 3)
    assert all(second > 0 for seconds in found["seconds"].values() for second in seconds)
    assert "last 2 blocks of timm/test_efficientnet, 2 images of 64 pixels" in found["title"]


def counting(function: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    """A function that counts its calls by its name."""

    def counted(*given: Any) -> Any:
        calls[function.__name__] += 1
        return function(*given)

    return counted


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
