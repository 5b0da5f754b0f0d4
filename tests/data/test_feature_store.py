"""The store that keeps what frozen networks make of images and captions."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data import feature_store
from data.feature_store import FeatureStore, key_of
from utils import InputError

RECIPE = {"part": "a digest", "side": 64}
KEYS = [key_of(bytes([number])) for number in range(10)]
BYTES = 12


def feature(place: int) -> Tensor:
    """Of the key at a place: [3]."""
    return torch.tensor([1.0, 10.0, 100.0]) * place


class Maker:
    """Makes features four at a time and notes for which places; ends in an error after so many."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.asked: list[int] = []
        self.breaks_after = breaks_after

    def __call__(self, wanted: Sequence[int]) -> Iterable[Tensor]:
        for start in range(0, len(wanted), 4):
            if self.breaks_after is not None and start >= self.breaks_after:
                raise KeyboardInterrupt
            chunk = wanted[start : start + 4]
            self.asked += chunk
            yield torch.stack([feature(place) for place in chunk])


def refuse(wanted: Sequence[int]) -> Iterable[Tensor]:
    pytest.fail(f"made again: {wanted}")


def rows(store: FeatureStore, keys: Sequence[str] = KEYS) -> Tensor:
    return store.table(keys).rows(torch.arange(len(keys)))


EXPECTED = torch.stack([feature(place) for place in range(10)])


def test_large_features_come_in_shards_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 3 * BYTES + 1)
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES)
    assert sorted(len(shard) for shard in store.shards) == [1, 3, 3, 3]
    assert torch.equal(rows(store), EXPECTED)
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 1)
    other = FeatureStore(tmp_path, RECIPE | {"side": 65})
    other.fill(KEYS, Maker(), BYTES)
    assert [len(shard) for shard in other.shards] == [1] * 10


@pytest.mark.parametrize("shard", [1, 3, 4, 10, 100])
def test_features_are_made_once_and_read_in_any_order(tmp_path: Path, shard: int) -> None:
    store, make = FeatureStore(tmp_path, RECIPE), Maker()
    assert store.fill(KEYS, make, BYTES, shard) == 10
    assert make.asked == list(range(10))
    for opened in (store, FeatureStore(tmp_path, RECIPE)):
        assert opened.fill(KEYS, refuse, BYTES) == 0
        assert torch.equal(rows(opened), EXPECTED)
        order = torch.tensor([7, 0, 7, 9])
        assert torch.equal(opened.table(KEYS).rows(order), EXPECTED[order])
        assert torch.equal(rows(opened, KEYS[::-1]), EXPECTED.flip(0))
        assert opened.shape == (3,)
    assert len(list(store.folder.glob("*.npy"))) == -(-10 // shard)
    assert len(store.table(KEYS[:4])) == 4
    assert json.loads((store.folder / "recipe.json").read_text()) == RECIPE


def test_a_flipped_bit_is_found_as_its_row_is_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES, shard=4)
    path = Path(str(getattr(store.shards[0], "filename")))  # noqa: B009 (mypy knows no memmap there)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in its last row
    path.write_bytes(content)
    damaged = path.with_suffix(".keys").read_text().split()[-1]
    opened = FeatureStore(tmp_path, RECIPE)
    sound = [key for key in KEYS if key != damaged]
    assert len(rows(opened, sound)) == 9
    with pytest.raises(InputError, match=rf"{path}: the kept features are damaged: row \d .* Delete .*{path.stem}\.\*"):
        rows(opened)
    for file in store.folder.glob(f"{path.stem}.*"):
        file.unlink()
    again = FeatureStore(tmp_path, RECIPE)
    again.fill(KEYS, Maker(), BYTES)
    table = again.table(KEYS)
    assert torch.equal(table.rows(torch.arange(10)), EXPECTED)
    monkeypatch.setattr(table, "_check", lambda *_: pytest.fail("checked again"))
    assert torch.equal(table.rows(torch.arange(10)), EXPECTED)


def test_stores_of_an_earlier_version_are_read_and_those_of_this_one_by_it(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES, shard=4)
    for keys_file in store.folder.glob("*.keys"):  # as an earlier version reads it
        assert len(np.load(keys_file.with_suffix(".npy"))) == len(keys_file.read_text().split())
    for file in store.folder.glob("*.crc32"):
        file.unlink()
    assert torch.equal(rows(FeatureStore(tmp_path, RECIPE)), EXPECTED)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_checksums_that_are_cut_short(tmp_path: Path, size: int) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES)
    (file,) = store.folder.glob("*.crc32")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match="the kept features are damaged"):
        FeatureStore(tmp_path, RECIPE)


def test_only_what_is_missing_is_made_and_equal_keys_once(tmp_path: Path) -> None:
    store, first, second = FeatureStore(tmp_path, RECIPE), Maker(), Maker()
    store.fill([KEYS[3], KEYS[1], KEYS[3]], first, BYTES)
    assert first.asked == [0, 1]
    store.fill(KEYS, second, BYTES)
    assert second.asked == [0, 2, 4, 5, 6, 7, 8, 9]
    assert torch.equal(rows(store, [KEYS[3], KEYS[1], KEYS[4]]), torch.stack([feature(0), feature(1), feature(4)]))


def test_another_recipe_is_another_store(tmp_path: Path) -> None:
    FeatureStore(tmp_path, RECIPE).fill(KEYS, Maker(), BYTES)
    make = Maker()
    FeatureStore(tmp_path, RECIPE | {"side": 32}).fill(KEYS, make, BYTES)
    assert len(make.asked) == 10


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(tmp_path, RECIPE).fill(KEYS, Maker(breaks_after=8), BYTES, shard=3)
    store, make = FeatureStore(tmp_path, RECIPE), Maker()
    assert store.missing(KEYS) == [6, 7, 8, 9]  # two shards of three were whole
    assert store.fill(KEYS, make, BYTES) == 4
    assert make.asked == [6, 7, 8, 9]
    assert torch.equal(rows(store), EXPECTED)


def test_a_shard_counts_once_its_keys_are_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES, shard=5)
    next(iter(sorted(store.folder.glob("*.keys")))).unlink()  # as if it was killed between the two files
    again, make = FeatureStore(tmp_path, RECIPE), Maker()
    assert again.fill(KEYS, make, BYTES) == 5
    assert torch.equal(rows(again), rows(store)[torch.arange(10)])


@pytest.mark.parametrize("damage", ["cut", "rows", "type", "no_array"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    store.fill(KEYS, Maker(), BYTES)
    array = next(store.folder.glob("*.npy"))
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-8])
    elif damage == "rows":
        np.save(array, EXPECTED[:7].numpy())
    elif damage == "type":
        np.save(array, EXPECTED.numpy().astype(np.float64))
    else:
        array.unlink()
    with pytest.raises(InputError, match=rf"kept features are damaged .*Delete {store.folder}: they are made again"):
        FeatureStore(tmp_path, RECIPE)


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "free_bytes", lambda path: 10 * BYTES - 1)
    store = FeatureStore(tmp_path, RECIPE)
    with pytest.raises(InputError, match=r"do not fit.*dataset\.feature_path.*dataset\.features=off"):
        store.fill(KEYS, refuse, BYTES)
    assert store.fill(KEYS[1:], Maker(), BYTES) == 9


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, RECIPE)
    with pytest.raises(InputError, match="not finite"):
        store.fill(KEYS[:1], lambda wanted: [torch.tensor([[1.0, float("nan")]])], 8)
    assert FeatureStore(tmp_path, RECIPE).missing(KEYS[:1]) == [0]


def test_what_another_run_has_made_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    one, other, last = (FeatureStore(tmp_path, RECIPE) for _ in range(3))
    one.fill(KEYS[:6], Maker(), BYTES)
    make = Maker()
    assert other.fill(KEYS, make, BYTES) == 4
    assert make.asked == [6, 7, 8, 9]
    assert last.fill(KEYS, refuse, BYTES) == 0
    for store in (other, last):
        assert torch.equal(rows(store), EXPECTED)


def _fill_slowly(folder: Path, begun: Event, go_on: Event) -> None:
    def make(wanted: Sequence[int]) -> Iterable[Tensor]:
        begun.set()
        go_on.wait(60)
        return Maker()(wanted)

    FeatureStore(folder, RECIPE).fill(KEYS, make, BYTES, shard=4)


def test_two_processes_that_fill_a_store_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn = multiprocessing.get_context("spawn")
    begun, go_on = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_fill_slowly, args=(tmp_path, begun, go_on))
    process.start()
    assert begun.wait(60)
    store = FeatureStore(tmp_path, RECIPE)  # of which nothing is there yet
    real: Callable[[Sequence[str]], list[int]] = store.missing

    def missing(keys: Sequence[str]) -> list[int]:
        go_on.set()  # just before this one waits for the lock
        return real(keys)

    monkeypatch.setattr(store, "missing", missing)
    assert store.fill(KEYS, refuse, BYTES) == 0
    process.join(60)
    assert process.exitcode == 0
    assert torch.equal(rows(store), EXPECTED)
