from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from archive import squares
from archive.records import Record
from archive.squares import read_squares
from option.dataset import ImageReading
from option.images import ImageRule


@pytest.mark.parametrize("workers", [0, 1])
def test_squares_come_by_batches_without_those_that_cannot_be_read(tmp_path: Path, workers: int) -> None:
    for name, grey in (("a.png", 10), ("b.png", 20), ("d.png", 40)):
        Image.new("L", (80, 70), grey).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image")
    dataset = ImageReading(image_size=64, workers=workers)
    found = list(read_squares([["b.png", "c.png", "a.png"], ["c.png"], ["d.png"]], tmp_path, dataset))
    assert [pixels.shape for pixels, _ in found] == [(2, 3, 64, 64), (0, 3, 64, 64), (1, 3, 64, 64)]
    assert [pixels.unique().tolist() for pixels, _ in found] == [[10, 20], [], [40]]
    assert found[0][0][:, 0, 0, 0].tolist() == [20, 10]  # in the order of the names
    (first, fault, last), (other,), _ = [outcome for _, outcome in found]
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert (first.name, last.name) == ("b.png", "a.png")
    assert isinstance(fault, str)
    assert "c.png" in fault
    assert other == fault


def test_without_workers_several_images_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of a batch wait for each other: read one after the other, they would wait in vain."""
    for name in ("a.png", "b.png"):
        Image.new("L", (80, 70)).save(tmp_path / name)
    both = threading.Barrier(2, timeout=20)

    def meet(path: Path, size: int, rule: ImageRule) -> np.ndarray:
        both.wait()
        return np.zeros((3, size, size), np.uint8)

    monkeypatch.setattr(squares, "load_square", meet)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    ((pixels, _),) = read_squares([["a.png", "b.png"]], tmp_path, ImageReading(image_size=64, workers=0))
    assert torch.equal(pixels, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
