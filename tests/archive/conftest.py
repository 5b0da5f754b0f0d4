"""A trained model and an index of its images, and the images that are encoded meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from archive.encoder import Encoder
from option import Options
from tests.archives import Trained, make_index, make_trained


@pytest.fixture(scope="module")
def galr(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A model whose score is the cosine."""
    return make_trained(tmp_path_factory.mktemp("galr"), tiny_options, "GaLR")


@pytest.fixture(scope="module")
def made(galr: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of its 12 images in shards of 5."""
    return make_index(galr, tmp_path_factory.mktemp("made"))


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "index"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that are encoded from now on."""
    names: list[str] = []
    images = Encoder.images

    def counting(self: Encoder, pixels: Tensor, given: Sequence[str]) -> Tensor:
        names.extend(given)
        return images(self, pixels, given)

    monkeypatch.setattr(Encoder, "images", counting)
    return names
