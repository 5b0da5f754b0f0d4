"""An index of the ready model, from `index` to `query`, without a flag that names a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import search
from archive.index_folder import IndexFolder, read_manifest
from archive.searcher import Searcher
from option import Options
from runs.ready import WEIGHTS
from runs.ready.packing import pack
from tests.ready import Tuned, make_tuned, tiny_packages
from tests.tiny import make_precomp
from utils import InputError


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Iterator[Tuned]:
    with tiny_packages(tmp_path_factory.mktemp("packages")):
        yield make_tuned(tmp_path_factory.mktemp("tuned"), tiny_options)


@pytest.fixture
def ready(tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ready"
    pack(tuned.checkpoint, folder, 10**6, ())
    monkeypatch.setattr("runs.ready.folder.READY", folder.resolve())
    return folder


def rows(folder: Path) -> torch.Tensor:
    embeddings = IndexFolder.open(folder).embeddings
    assert embeddings is not None
    return embeddings.rows(np.arange(12))


def test_from_index_to_query_without_a_flag(
    tuned: Tuned, ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = make_precomp(tmp_path / "data", train=12, test=0) / "images", tmp_path / "index"
    search.main(["index", "--images", str(images), "--out", str(out), "--device", "cpu"])
    assert capsys.readouterr().out == f"{out}: 12 images, 32 numbers each, by the ready model.\n"
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.ready

    own = ["--path_opt", str(tuned.checkpoint.with_name("tiny.yaml")), "--checkpoint", str(tuned.checkpoint)]
    search.main(["index", *own, "--images", str(images), "--out", str(tmp_path / "own"), "--device", "cpu"])
    assert " by the ready model" not in capsys.readouterr().out
    assert torch.nn.functional.cosine_similarity(rows(out), rows(tmp_path / "own")).min() > 0.999

    search.main(["query", str(out), "a red field", "--top", "3", "--device", "cpu"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    moved = tmp_path / "elsewhere"
    shutil.move(ready, moved)
    with pytest.raises(InputError, match="has no weights of the ready model"):
        Searcher.open(out, "cpu")
    monkeypatch.setattr("runs.ready.folder.READY", moved.resolve())
    assert len(Searcher.open(out, "cpu").text("red", 5)) == 5

    pack(tuned.checkpoint, moved, 1, ())  # a later version of the project
    with pytest.raises(InputError, match=rf"{WEIGHTS} is not the checkpoint that .* index again"):
        Searcher.open(out, "cpu")


def test_a_flag_alone_is_refused(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="belong together"):
        search.main(["index", "--path_opt", "a.yaml", "--images", str(tmp_path), "--out", str(tmp_path / "index")])
