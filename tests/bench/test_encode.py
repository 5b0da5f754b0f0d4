"""The bench of encoding gives a row for each network, of whole batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.encode import NETWORKS, main
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
