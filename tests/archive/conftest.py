"""A trained model and an index of its images, and the images that are encoded meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor

import option
import search
from archive.encoder import Encoder
from archive.scenes import Scenes, find_scenes
from archive.searcher import Searcher
from option import Options
from runs.loaders import read_vocabulary
from runs.models import load_model
from tests.archive.pages import HOSTILE, MANY, client_with
from tests.archives import Archive, Trained, make_index, make_trained
from tests.rasters import north_up, placeless


@pytest.fixture(scope="session")
def galr(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A model whose score is the cosine."""
    changes = {"backbone.architecture": "resnet18"}  # the viewer's test relies on the order that it gives
    return make_trained(tmp_path_factory.mktemp("galr"), tiny_options, "GaLR", changes)


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


@pytest.fixture(scope="session")
def many(galr: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of images in two folders: one has a hostile name, one a place, and one is damaged since."""
    folder = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    names = [f"{'north' if number % 3 else 'south'}/{number}.png" for number in range(MANY - 2)]
    for name in [*names, HOSTILE, "north/last.tif"]:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((96, 64), Image.Resampling.NEAREST).save(path)
    with placeless(), rasterio.open(folder / "images/north/last.tif", "r+") as placed:
        placed.crs, placed.transform = "EPSG:4326", north_up(15, 40, 0.001)
    search.main(Trained(galr.options, galr.checkpoint, folder / "images").arguments(folder / "index"))
    (folder / "images" / "north" / "1.png").write_bytes(b"damaged")
    return folder / "index"


@pytest.fixture(scope="module")
def searcher(many: Path) -> Searcher:
    return Searcher.open(many, "cpu")


@pytest.fixture(scope="module")
def scenes(searcher: Searcher) -> Scenes:
    return find_scenes(searcher.index.names(), searcher.images)


@pytest.fixture(scope="module")
def client(searcher: Searcher, scenes: Scenes) -> TestClient:
    return client_with(searcher, scenes)


@pytest.fixture(scope="session")
def encoder(galr: Trained) -> Encoder:
    """The model, loaded once."""
    options = option.load_options(galr.options)
    vocabulary, cpu = read_vocabulary(options), torch.device("cpu")
    return Encoder(load_model(options, vocabulary, galr.checkpoint, cpu)[0], options, vocabulary, cpu)


@pytest.fixture
def archive(galr: Trained, index: Path, encoder: Encoder, encoded: list[str], tmp_path: Path) -> Archive:
    """An archive that its index follows; `encoded` names what is encoded from then on."""
    images = Path(shutil.copytree(galr.images, tmp_path / "images"))  # which keep their times
    found = Archive(encoder, galr.checkpoint, images, index)
    found.follow()
    assert encoded == []
    return found
