"""Joined sets that are kept: made once, whoever asks, and made anew where a source changed or a file is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import data.joined as joined
from data.annotations import read_annotations
from data.images import DEFAULT_RULE
from data.join import join_sets
from data.joined import kept_join, sources_digest
from data.prepare import writer
from option.dataset import TrainingSet
from option.images import ImageRule
from tests.data.test_join import write_set
from utils import InputError


@pytest.fixture
def sets(tmp_path: Path) -> list[TrainingSet]:
    one = write_set(tmp_path / "one_precomp", {"a.png": 1, "b.png": 2}, {"t.png": 3})
    two = write_set(tmp_path / "two_precomp", {"c.png": 4, "d.png": 1}, {"u.png": 5})
    (two / "images").rename(tmp_path / "elsewhere")
    return [TrainingSet(path=one), TrainingSet(path=two, image_path=tmp_path / "elsewhere")]


def kept(sets: list[TrainingSet], tmp_path: Path) -> Path:
    return kept_join(sets, tmp_path / "cache", DEFAULT_RULE)


def test_it_is_made_once_though_two_want_it(
    sets: list[TrainingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counting(*given: Any) -> str:
        made.append(given)
        return join_sets(*given)

    @contextmanager
    def held_by_another(folder: Path) -> Iterator[None]:
        """A lock that is free once another run has made what it guards."""
        join_sets(sets, folder, "link", DEFAULT_RULE)
        yield

    monkeypatch.setattr(joined, "join_sets", counting)
    folder = kept(sets, tmp_path)
    assert read_annotations(folder, "train").image_names == ("one/a.png", "one/b.png", "two/c.png")
    assert kept(sets, tmp_path) == folder
    assert len(made) == 1
    shutil.rmtree(folder)
    monkeypatch.setattr(joined, "waiting_lock", held_by_another)
    assert kept(sets, tmp_path) == folder
    assert len(made) == 1


def test_a_killed_run_leaves_nothing_that_counts(sets: list[TrainingSet], tmp_path: Path) -> None:
    folder = kept(sets, tmp_path)
    half = folder.with_name(f".{folder.name}.0123abcd")
    folder.rename(half)
    assert kept(sets, tmp_path) == folder
    assert not half.exists()


@pytest.mark.parametrize("lost", ["images/two/c.png", "train_caps.txt", "prepare.json"])
def test_what_lost_a_file_is_made_anew(
    sets: list[TrainingSet], tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept(sets, tmp_path)
    (folder / lost).unlink()
    assert kept(sets, tmp_path) == folder
    assert (folder / lost).is_file()
    assert "no longer whole" in caplog.text


def test_a_changed_source_is_another_join(sets: list[TrainingSet], tmp_path: Path) -> None:
    digests = {sources_digest(sets, DEFAULT_RULE), sources_digest(sets, ImageRule(bands=(3, 2, 1)))}
    digests.add(sources_digest(sets[::-1], DEFAULT_RULE))
    weighed = [sets[0], sets[1].model_copy(update={"weight": 2})]
    assert sources_digest(weighed, DEFAULT_RULE) in digests  # a weight changes no list
    assert len(digests) == 3
    image = sets[1].image_folder / "c.png"
    os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
    digests.add(sources_digest(sets, DEFAULT_RULE))
    (sets[0].path / "scenes.txt").write_text("a.png\tport\n")
    digests.add(sources_digest(sets, DEFAULT_RULE))
    assert len(digests) == 5


def test_images_are_linked_or_else_copied_with_their_date(
    sets: list[TrainingSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sets[1].image_folder / "c.png"
    os.utime(source, ns=(0, 1_600_000_000_000_000_000))
    folder = kept(sets, tmp_path)
    assert (folder / "images/two/c.png").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(writer.NO_LINK[0], "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    shutil.rmtree(folder)
    copy = kept(sets, tmp_path) / "images/two/c.png"
    assert not copy.samefile(source)
    assert copy.stat().st_mtime_ns == 1_600_000_000_000_000_000


def test_a_cache_that_can_not_be_written_is_named(sets: list[TrainingSet], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"dataset\.feature_path: .*cache.*: can't be written"):
        kept(sets, tmp_path)
