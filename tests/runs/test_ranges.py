"""The range of images with more than 8 bits: measured once, then kept with what was made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import option
import test as test_entry
import train as train_entry
from archive.index_folder import Manifest, check_recipe, update_manifest
from archive.indexing import with_known_range
from data.image_store import ImageStore
from data.images import DECODING_RULES
from option import Options
from option.images import ImageRule
from runs.checkpoints import save_checkpoint
from runs.ranges import begun_with, range_of, with_range, with_range_of_run
from runs.resume import begun_run
from tests.tiny import make_precomp, write_experiment
from utils import InputError

DEEP = np.arange(3000, dtype=np.uint16).reshape(50, 60)
LIMITS = (29.99, 2969)  # the percentiles of DEEP, to four digits


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("ranges")
    return option.load_options(write_experiment(folder, make_precomp(folder / "tiny_precomp")), [])


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    return tmp_path / "deep.png"


def checkpoint(*limits: float) -> dict[str, Any]:
    return {"options": {"dataset": {"range": list(limits) or "auto"}}}


def test_a_range_is_measured_where_nothing_knows_one(options: Options, deep: Path) -> None:
    assert with_range(options, [deep]).dataset.range == LIMITS
    assert with_range(options, [deep], checkpoint()).dataset.range == LIMITS
    assert with_range(options, [deep], {"options": {"dataset": {}}}).dataset.range == LIMITS  # of an earlier version
    assert with_range(options, []) is options


def test_a_checkpoint_that_knows_one_is_followed(options: Options, deep: Path, tmp_path: Path) -> None:
    trained = with_range(options, [deep])
    save_checkpoint(tmp_path / "best.pth.tar", {"model": {}}, trained)
    assert with_range(options, [deep], tmp_path / "best.pth.tar").dataset.range == LIMITS
    assert with_range(options, [deep], checkpoint(0, 500)).dataset.range == (0, 500)
    given = options.model_copy(update={"dataset": options.dataset.model_copy(update={"range": (0.0, 9.0)})})
    assert with_range(given, [deep], checkpoint(0, 500)).dataset.range == (0, 9)


@pytest.mark.parametrize("content", [{}, {"options": {"dataset": {"range": [5, 1]}}}, {"options": None}])
def test_a_damaged_range_is_none(content: dict[str, Any]) -> None:
    assert range_of(content) is None


def test_a_run_that_found_its_range_goes_on_with_auto(options: Options, deep: Path, tmp_path: Path) -> None:
    trained = with_range(options, [deep])
    progress = {"model": {}, "epoch": 1, "validations_since_best": 0}
    save_checkpoint(tmp_path / "last.pth", progress, trained)
    assert begun_with(options, {"options": option.dump(trained)}).dataset.range == LIMITS
    assert begun_run(tmp_path, options, True, "name") is not None
    other = options.model_copy(update={"dataset": options.dataset.model_copy(update={"range": (0.0, 9.0)})})
    with pytest.raises(InputError, match=r"dataset\.range: \[29\.99, 2969\.0\] when it was begun, \[0\.0, 9\.0\] now"):
        begun_run(tmp_path, other, True, "name")


def test_a_run_of_an_earlier_version_is_refused_where_its_images_are_read_otherwise(
    options: Options, deep: Path
) -> None:
    earlier: dict[str, Any] = {"options": {"dataset": {}}}
    with pytest.raises(InputError, match=r"run was begun by an earlier version, .* train under another name"):
        with_range_of_run(options, [deep], earlier, Path("run"))
    assert with_range_of_run(options, [], earlier, Path("run")) is options
    assert with_range_of_run(options, [deep], checkpoint(0, 500), Path("run")).dataset.range == (0, 500)


def test_training_and_test_read_images_in_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_precomp(tmp_path / "data", train=5, test=3)
    for image in (data / "images").iterdir():
        Image.fromarray(DEEP).save(image)
    path = write_experiment(tmp_path, data)
    trained: list[Options] = []
    monkeypatch.setattr(train_entry, "train_fold", lambda options, *_: trained.append(options))
    train_entry.main(["--path_opt", str(path), "--folds", "0"])
    assert trained[0].dataset.range == LIMITS

    dataset = trained[0].dataset.model_copy(update={"range": (0.0, 500.0)})
    save_checkpoint(tmp_path / "best.pth.tar", {"model": {}}, trained[0].model_copy(update={"dataset": dataset}))
    monkeypatch.setattr(test_entry, "open_scene_task", lambda test_set, _: pytest.fail(str(test_set.options.dataset)))
    with pytest.raises(pytest.fail.Exception, match=r"range=\(0\.0, 500\.0\)"):
        test_entry.main(["--path_opt", str(path), "--scenes", "--checkpoint", str(tmp_path / "best.pth.tar")])


def manifest(options: Options, decoding: int = DECODING_RULES) -> Manifest:
    made: dict[str, Any] = {"created": "2026", "checkpoint": "x", "checkpoint_sha256": "0", "vocabulary_sha256": "0"}
    made |= {"images": "x", "dtype": "float32", "dim": 2, "options": option.dump(options), "decoding": decoding}
    return Manifest(**made)


def test_an_index_keeps_its_range_and_refuses_another(options: Options, deep: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    found = with_known_range(options, index, deep.parent, {})
    assert found.dataset.range == LIMITS
    update_manifest(index, manifest(found))
    assert with_known_range(options, index, deep.parent, checkpoint(0, 5)).dataset.range == LIMITS
    given = options.model_copy(update={"dataset": options.dataset.model_copy(update={"range": "full"})})
    with pytest.raises(InputError, match=r"dataset\.range: '\[29\.99, 2969\.0\]' there, 'full' now"):
        check_recipe(manifest(found), manifest(given), index)
    with pytest.raises(InputError, match=r"the rules of docs/images\.md: '2' there, '1' now"):
        check_recipe(manifest(found), manifest(found, decoding=1), index)


def test_a_cache_on_disk_belongs_to_its_rule(deep: Path, tmp_path: Path) -> None:
    stores = [
        ImageStore([deep], 8, "disk", tmp_path / "cache", torch.device("cpu"), ImageRule(range=limits))
        for limits in ((0, 3000), (0, 6000), (0, 3000))
    ]
    bright, dark, again = (store.batch(torch.tensor([0])).float().mean() for store in stores)
    assert bright == again
    assert dark == pytest.approx(float(bright) / 2, abs=1)
    assert [store.decoded for store in stores] == [1, 1, 0]
