"""The store that decodes each image at most once, in memory and on disk."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data import image_library, image_store
from data.image_library import choose_cache
from data.image_store import ImageStore
from option.images import ImageRule
from utils import InputError

CPU = torch.device("cpu")
RULE = ImageRule(max_pixels=10_000)
COUNT = 6
SIZE = 8


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Six images of one grey each: 10, 20, ... 60."""
    folder = tmp_path / "images"
    folder.mkdir()
    return [_grey(folder / f"{i}.png", 10 * (i + 1), 10 + i) for i in range(COUNT)]


def _grey(path: Path, value: int, width: int = 10) -> Path:
    Image.new("L", (width, 9), value).save(path)
    return path


def _store(paths: list[Path], cache: str, folder: Path | None = None) -> ImageStore:
    return ImageStore(paths, SIZE, cache, folder and folder.parent / "cache", CPU, RULE)


def _greys(batch: Tensor) -> list[int]:
    assert batch.dtype == torch.uint8
    assert batch.shape[1:] == (3, SIZE, SIZE)
    assert (batch == batch[:, :1, :1, :1]).all()
    return batch[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("cache", ["ram", "device", "disk"])
def test_each_image_is_decoded_once(tmp_path: Path, paths: list[Path], cache: str) -> None:
    store = _store(paths, cache, paths[0].parent)
    assert [store.holds(i) for i in range(COUNT)] == [False] * COUNT
    store.load([3, 1, 3])
    assert store.decoded == 2
    assert [store.holds(i) for i in range(COUNT)] == [False, True, False, True, False, False]
    assert _greys(store.batch(torch.tensor([3, 0, 3, 5, 0]))) == [40, 10, 40, 60, 10]
    assert store.decoded == 4
    store.load(range(COUNT))
    assert store.decoded == COUNT
    for _ in range(2):
        assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert store.decoded == COUNT


def test_without_a_cache_each_batch_is_decoded(paths: list[Path]) -> None:
    store = _store(paths, "off")
    store.load(range(COUNT))
    assert store.decoded == 0
    assert _greys(store.batch(torch.tensor([2, 0, 2]))) == [30, 10, 30]
    assert store.decoded == 2
    assert not store.holds(2)
    store.batch(torch.tensor([2]))
    assert store.decoded == 3


def test_a_batch_does_not_alias_the_store(paths: list[Path]) -> None:
    store = _store(paths, "ram")
    store.batch(torch.tensor([1])).zero_()
    assert _greys(store.batch(torch.tensor([1]))) == [20]


def test_load_in_several_chunks(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "_CHUNK", 4)
    store = _store(paths, "ram")
    store.load(torch.arange(COUNT))
    assert store.decoded == COUNT
    assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]


def test_progress_bar(paths: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(paths, "ram")
    store.load([0], progress="images of train")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    store.load([1])
    assert capsys.readouterr().err == ""
    store.load(range(COUNT), progress="images of train")
    shown = capsys.readouterr().err
    assert "images of train: 100%" in shown
    assert "4/4" in shown
    store.load(range(COUNT), progress="images of train")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_unreadable_images_are_told_together(paths: list[Path], cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "_CHUNK", 2)
    for path in paths[:1] + paths[2:]:
        path.write_bytes(b"")
    store = _store([*paths, paths[0].parent / "missing.png"], cache, paths[0].parent)
    with pytest.raises(InputError) as caught:
        store.load(range(COUNT + 1))
    lines = str(caught.value).split("\n")
    assert lines[0] == "6 of 7 images can't be read:"
    assert lines[1:6] == [f"  {path}: the image is empty (0 bytes): copy it again" for path in paths[:1] + paths[2:]]
    assert lines[6] == "  ... and 1 more"
    assert [store.holds(i) for i in range(COUNT + 1)] == [False, True] + [False] * 5
    assert store.decoded == 1
    with pytest.raises(InputError, match=r"1 of 2 images can't be read:\n.*0\.png"):
        store.batch(torch.tensor([0, 1]))
    with pytest.raises(InputError, match=r"1 of 2 images can't be read:\n.*0\.png"):
        _store(paths, "off").batch(torch.tensor([0, 1]))


def test_a_later_run_reuses_the_disk(paths: list[Path]) -> None:
    folder = paths[0].parent
    first = _store(paths, "disk", folder)
    first.load([0, 1, 2])
    second = _store(paths, "disk", folder)
    assert [second.holds(i) for i in range(COUNT)] == [True] * 3 + [False] * 3
    second.load(range(COUNT))
    assert second.decoded == 3
    assert _greys(second.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    third = _store(paths, "disk", folder)
    assert _greys(third.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert third.decoded == 0


def test_the_disk_follows_changed_images(paths: list[Path]) -> None:
    folder = paths[0].parent
    _store(paths, "disk", folder).load(range(COUNT))
    _grey(paths[4], 99, width=30)
    _grey(paths[2], 31)
    os.utime(paths[2], ns=(1, 1))
    store = _store(paths, "disk", folder)
    assert [store.holds(i) for i in range(COUNT)] == [True, True, False, True, False, True]
    assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 31, 40, 99, 60]
    assert store.decoded == 2
    assert _store(paths, "disk", folder).batch(torch.arange(COUNT))[4, 0, 0, 0] == 99


def test_other_lists_and_sizes_have_their_own_place_on_disk(paths: list[Path]) -> None:
    cache = paths[0].parent.parent / "cache"
    _store(paths, "disk", paths[0].parent).load(range(COUNT))
    assert _greys(_store(paths[::-1], "disk", paths[0].parent).batch(torch.tensor([0]))) == [60]
    other = ImageStore(paths, 4, "disk", cache, CPU, RULE)
    assert not other.holds(0)
    assert other.batch(torch.tensor([5])).shape == (1, 3, 4, 4)
    assert all(_store(paths, "disk", paths[0].parent).holds(i) for i in range(COUNT))
    assert len(list(cache.glob("*.uint8"))) == 3


def test_an_image_that_came_later_is_decoded(paths: list[Path]) -> None:
    content = paths[3].read_bytes()
    paths[3].unlink()
    with pytest.raises(InputError, match=r"1 of 6 images can't be read:\n.*3\.png: no such image"):
        _store(paths, "disk", paths[0].parent).load(range(COUNT))
    paths[3].write_bytes(content)
    store = _store(paths, "disk", paths[0].parent)
    assert [store.holds(i) for i in range(COUNT)] == [i != 3 for i in range(COUNT)]
    assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]


def test_an_image_that_changes_during_a_run_is_decoded_by_the_next(paths: list[Path]) -> None:
    store = _store(paths, "disk", paths[0].parent)
    _grey(paths[2], 31)
    os.utime(paths[2], ns=(1, 1))
    assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 31, 40, 50, 60]
    _grey(paths[2], 32)
    os.utime(paths[2], ns=(2, 2))
    assert _greys(_store(paths, "disk", paths[0].parent).batch(torch.arange(COUNT))) == [10, 20, 32, 40, 50, 60]


def test_two_runs_share_the_disk(paths: list[Path]) -> None:
    first, second = _store(paths, "disk", paths[0].parent), _store(paths, "disk", paths[0].parent)
    first.load([0, 1])
    assert [second.holds(i) for i in range(3)] == [True, True, False]
    assert _greys(second.batch(torch.tensor([1, 0]))) == [20, 10]
    assert second.decoded == 0


def test_a_cut_cache_file_starts_anew(paths: list[Path]) -> None:
    _store(paths, "disk", paths[0].parent).load(range(COUNT))
    (file,) = (paths[0].parent.parent / "cache").glob("*.uint8")
    file.write_bytes(file.read_bytes()[:-1])
    store = _store(paths, "disk", paths[0].parent)
    assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert store.decoded == COUNT


@pytest.mark.parametrize("place", [-1, 8 * COUNT, 0], ids=["pixels", "checksum", "mark"])
def test_a_damaged_image_on_disk_is_decoded_again(
    paths: list[Path], caplog: pytest.LogCaptureFixture, place: int
) -> None:
    _store(paths, "disk", paths[0].parent).load(range(COUNT))
    (file,) = (paths[0].parent.parent / "cache").glob("*.uint8")
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    store = _store(paths, "disk", paths[0].parent)
    with caplog.at_level(logging.WARNING):
        assert _greys(store.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert store.decoded == 1
    told = f"{file}: 1 of 6 images that were kept do not match their checksum: decoded again"
    assert caplog.messages == ([] if place == 0 else [told])
    later = _store(paths, "disk", paths[0].parent)
    assert _greys(later.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert later.decoded == 0


def test_an_image_on_disk_is_compared_once(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _store(paths, "disk", paths[0].parent).load(range(4))
    store = _store(paths, "disk", paths[0].parent)
    compared: list[int] = []

    def watched(image: memoryview) -> int:
        compared.append(image[0, 0, 0])
        return zlib.crc32(image)

    monkeypatch.setattr(image_store, "crc32", watched)
    store.load([1])
    store.load([0, 1])
    assert compared == [20, 10]
    copy = pickle.loads(pickle.dumps(store))  # as a worker process gets it
    copy.batch(torch.tensor([3, 1, 0]))
    assert compared == [20, 10, 40]
    copy.batch(torch.tensor([5]))  # decoded now
    assert compared == [20, 10, 40, 60]
    copy.load(range(4))
    assert compared == [20, 10, 40, 60, 30]


def test_a_run_killed_between_pixels_and_marks_decodes_again(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(paths, "disk", paths[0].parent)
    store.load([0])

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.memmap, "flush", killed)
    with pytest.raises(KeyboardInterrupt):
        store.load(range(COUNT))
    monkeypatch.undo()
    after = _store(paths, "disk", paths[0].parent)
    assert [after.holds(i) for i in range(COUNT)] == [True] + [False] * 5
    assert _greys(after.batch(torch.arange(COUNT))) == [10, 20, 30, 40, 50, 60]
    assert after.decoded == 5


def test_a_full_disk_is_told_at_the_start(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"no room for an image cache of 0\.0 GiB \(No space left on device\)"):
        _store(paths, "disk", paths[0].parent)


def test_nothing_is_written_beside_the_images(paths: list[Path]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in paths[0].parent.iterdir()}
    for cache in ("ram", "device", "disk", "off"):
        _store(paths, cache, paths[0].parent).batch(torch.arange(COUNT))
    assert {path.name: path.stat().st_mtime_ns for path in paths[0].parent.iterdir()} == before


class _Images(Dataset[Tensor]):
    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __getitem__(self, index: int) -> Tensor:
        return self.store.batch(torch.tensor([index]))[0]

    def __len__(self) -> int:
        return len(self.store.paths)


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_workers_of_a_loader(paths: list[Path], cache: str) -> None:
    store = _store(paths, cache, paths[0].parent)
    store.load([0])
    loader = DataLoader(_Images(store), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert [_greys(batch) for batch in loader] == [[10, 20], [30, 40], [50, 60]]
    # What workers decode onto the disk is there for this process too.
    assert [store.holds(i) for i in range(COUNT)] == [cache == "disk"] * COUNT


@pytest.mark.parametrize("cache", ["disk", "off", "ram"])
def test_a_store_can_be_pickled(paths: list[Path], cache: str) -> None:
    store = _store(paths, cache, paths[0].parent)
    store.load([1])
    content = pickle.dumps(store)
    copy = pickle.loads(content)
    assert copy.holds(1) == (cache != "off")
    assert _greys(copy.batch(torch.tensor([1, 2]))) == [20, 30]
    assert store.holds(2) == (cache == "disk")
    if cache == "disk":
        assert b".uint8" in content
        assert len(content) < 2000


def test_choose_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for requested in ("ram", "disk", "off"):
        assert choose_cache(requested, 10, 256, CPU) == choose_cache(requested, 10, 256, cuda) == requested
    assert choose_cache("device", 10, 256, CPU) == "ram"
    assert choose_cache("device", 10**9, 256, cuda) == "device"

    image = 3 * 256 * 256
    monkeypatch.setattr(image_library, "available_memory", lambda: 201 * image)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (101 * image, 1000 * image))
    assert choose_cache("auto", 100, 256, CPU) == "ram"
    assert choose_cache("auto", 101, 256, CPU) == "disk"
    assert choose_cache("auto", 30, 256, cuda) == "device"
    assert choose_cache("auto", 31, 256, cuda) == "ram"
    assert choose_cache("auto", 101, 256, cuda) == "disk"


def test_what_was_promised_to_other_stores_counts(monkeypatch: pytest.MonkeyPatch, paths: list[Path]) -> None:
    image, cuda = 3 * 256 * 256, torch.device("cuda")
    monkeypatch.setattr(image_library, "available_memory", lambda: 201 * image)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (101 * image, 200 * image))
    assert choose_cache("auto", 70, 256, CPU, promised={"ram": 60 * image}) == "ram"
    assert choose_cache("auto", 71, 256, CPU, promised={"ram": 60 * image}) == "disk"
    assert choose_cache("auto", 10, 256, CPU, 2, {"ram": 90 * image}) == "disk"
    assert choose_cache("auto", 30, 256, cuda, promised={"device": 10 * image}) == "ram"
    store = _store(paths, "ram")
    assert store.promised == COUNT * 3 * SIZE**2
    store.load([3, 1])
    assert store.promised == (COUNT - 2) * 3 * SIZE**2
    assert _store(paths, "disk", paths[0].parent).promised == _store(paths, "off").promised == 0


def test_available_memory(tmp_path: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = image_library.available_memory(tmp_path)
    assert 2**20 < machine <= total
    (tmp_path / "memory.max").write_text("max\n")
    assert image_library.available_memory(tmp_path) > machine / 2
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nfile 500000\n")
    assert image_library.available_memory(tmp_path) == 600_000


def test_bad_arguments_and_too_many_images(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for cache in ("auto", "disk"):
        with pytest.raises(ValueError, match="cache must be one of"):
            _store(paths, cache)

    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(InputError, match=r"6 images of 8 x 8 need 0\.0 GiB on cpu, which are not free; set dataset"):
        _store(paths, "ram")


@pytest.mark.skipif("RSR_DATA" not in os.environ, reason="RSR_DATA is not set")
def test_published_images() -> None:
    """The first UCM images, as the published transform (RGB, then resized by Pillow) gives them."""
    folder = Path(os.environ["RSR_DATA"]) / "data/ucm_precomp/images"
    names = [folder / f"{number}.jpg" for number in range(1, 41)]
    store = ImageStore(names, 256, "ram", None, CPU, ImageRule())
    batch = store.batch(torch.arange(40))
    for row, name in zip(batch, names, strict=True):
        with Image.open(name) as image:
            expected = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(row.permute(1, 2, 0).numpy(), expected)
    assert store.decoded == 40
