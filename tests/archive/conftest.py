"""A trained model and an index of its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import search
from option import Options
from tests.archives import Trained, make_trained


@pytest.fixture(scope="module")
def galr(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Trained:
    """A model whose score is the cosine."""
    return make_trained(tmp_path_factory.mktemp("galr"), tiny_options, "GaLR")


@pytest.fixture(scope="module")
def made(galr: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of its images in shards of 5."""
    out = tmp_path_factory.mktemp("made") / "index"
    search.main(galr.arguments(out, "--shard", "5"))
    return out
