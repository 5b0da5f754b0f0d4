"""The bench of encoding gives a row for each network, of whole batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import encode
from bench.encode import NETWORKS, main
from data.image_store import ImageStore
from data.images import DEFAULT_RULE
from tests.tiny import make_precomp
from utils import InputError


def test_a_row_for_each_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("timm/test_efficientnet", "resnet18")
    monkeypatch.setattr("bench.encode.NETWORKS", small)
    images = make_precomp(tmp_path / "data") / "images"
    out = tmp_path / "encode.json"
    sizes = ["--size", "64", "--batch", "4", "--count", "10", "--workers", "0", "--rounds", "1"]
    main(["--images", str(images), "--amp", "off", "--device", "cpu", "--json", str(out), *sizes])
    found = json.loads(out.read_text())
    assert list(found["networks"]) == list(small)
    assert "8 images of 64 pixels" in found["title"]  # whole batches alone
    assert all(rate > 0 for rates in found["networks"].values() for rate in rates.values())
    assert len(NETWORKS) == 3


def test_too_few_images_are_told(tmp_path: Path) -> None:
    images = make_precomp(tmp_path / "data", train=2, test=1) / "images"
    with pytest.raises(InputError, match="3 images; at least --batch 64 are needed"):
        main(["--images", str(images)])


def test_the_ways_of_encoding_take_turns_and_the_best_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1.0, 20.0, 300.0, 4.0, 10.0, 200.0])
    turns: list[tuple[bool, int]] = []

    def rate(network: torch.nn.Module, batches: Iterator[torch.Tensor], device: torch.device, amp: str) -> float:
        turns.append((network is plain, len(list(batches))))
        return next(rates)

    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    monkeypatch.setattr(encode, "network_of", lambda architecture: plain)
    monkeypatch.setattr(encode, "images_per_second", rate)
    paths, cpu = [tmp_path / "a.png", tmp_path / "b.png"], torch.device("cpu")
    for path in paths:
        Image.new("RGB", (64, 64)).save(path)
    store = ImageStore(paths, 64, "off", None, cpu, DEFAULT_RULE)
    found = encode.measure("any", store, batch=1, workers=0, device=cpu, amp="off", rounds=2)
    assert found == {"from files": 4.0, "bare, folded": 20.0, "bare": 300.0}
    assert turns == [(False, 2), (False, 2), (True, 2)] * 2
