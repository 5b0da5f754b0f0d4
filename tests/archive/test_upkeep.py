"""An index that follows its folder: new, changed, moved and missing images, relocation, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from archive import upkeep
from archive.index_folder import IndexFolder
from archive.indexing import Share
from archive.records import Record, read_records
from archive.upkeep import Stamp, compare, digest_of, record_of
from data.images import image_names
from tests.archives import Archive
from utils import InputError, write_text_atomic


def records_of(index: Path) -> list[Record]:
    return [
        record
        for shard in IndexFolder.open(index).manifest.shards
        for record in read_records(index / "shards" / f"{shard}.json")
    ]


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20), colour).save(path)


class TestCompare:
    def test_tells_all_kinds_apart(self, tmp_path: Path) -> None:
        for name in ("same", "touched", "changed", "elsewhere"):
            (tmp_path / name).write_text(name)
        known = {name: record_of(tmp_path, name) for name in ("same", "touched", "changed", "elsewhere")}
        (tmp_path / "changed").write_text("CHANGED")  # of the same size
        os.utime(tmp_path / "changed", ns=(1, 1))
        os.utime(tmp_path / "touched", ns=(2, 2))
        (tmp_path / "elsewhere").rename(tmp_path / "moved")
        (tmp_path / "new").write_text("elsewherE")  # of the size of one that is missing
        records = [*known.values(), Record("gone", 3, 3, "digest")]
        files = upkeep.stamps_of(tmp_path, ["same", "touched", "changed", "moved", "new"])
        found = compare(records, files, tmp_path, verify=False, follow=True)
        assert (found.new, found.changed, found.missing) == (["new"], ["changed"], ["gone"])
        assert found.looked_at == {"touched": known["touched"]._replace(modified=2)}
        assert found.moved == {"elsewhere": known["elsewhere"]._replace(name="moved")}
        unfollowed = compare(records, files, tmp_path, verify=False, follow=False)
        assert (unfollowed.moved, unfollowed.missing) == ({}, ["elsewhere", "gone"])
        assert unfollowed.new == ["moved", "new"]

    def test_reads_what_it_must_and_no_more(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name)
        records = [record_of(tmp_path, name) for name in ("a", "b")]
        (tmp_path / "b").write_text("B")
        os.utime(tmp_path / "b", ns=(1, records[1].modified or 0))  # as if nothing had happened
        read: list[str] = []

        def reading(path: Path) -> str | None:
            read.append(path.name)
            return digest_of(path)

        monkeypatch.setattr(upkeep, "digest_of", reading)
        files = upkeep.stamps_of(tmp_path, ["a", "b"])
        assert compare(records, files, tmp_path, verify=False, follow=True).changed == []
        assert read == []
        assert compare(records, files, tmp_path, verify=True, follow=True).changed == ["b"]
        assert sorted(read) == ["a", "b"]

    def test_equal_contents_that_move_pair_up(self, tmp_path: Path) -> None:
        for name in ("x", "y", "z"):
            (tmp_path / name).write_text("equal")
        digest = digest_of(tmp_path / "x")
        records = [Record(name, 5, 0, digest) for name in ("a", "b")]
        found = compare(records, dict.fromkeys("xyz", Stamp(5, 1)), tmp_path, verify=False, follow=True)
        assert {old: record.name for old, record in found.moved.items()} == {"a": "x", "b": "y"}
        assert (found.new, found.missing) == (["z"], [])


class TestIndex:
    def test_what_is_unchanged_is_not_written(self, archive: Archive, encoded: list[str]) -> None:
        paths = [archive.index / "index.json", *(archive.index / "shards").iterdir()]
        before = {path: path.stat().st_mtime_ns for path in paths}
        archive.follow()
        assert encoded == []
        assert {path: path.stat().st_mtime_ns for path in paths} == before
        assert len(list((archive.index / "shards").iterdir())) == len(paths) - 1

    def test_changed_moved_missing_and_new(
        self, archive: Archive, encoded: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        old, names = archive.embeddings(), archive.names()
        moved, changed, missing = names[1], names[2], names[6]
        (archive.images / moved).rename(archive.images / "moved.png")
        paint(archive.images / changed, "blue")
        (archive.images / missing).unlink()
        paint(archive.images / "new.png", "green")
        with caplog.at_level(logging.INFO):
            archive.follow()
        assert sorted(encoded) == sorted([changed, "new.png"])
        assert "images: 1 new, 1 changed, 1 moved, 1 missing" in caplog.text
        assert "answers leave them out, --prune takes them out" in caplog.text
        now = archive.embeddings()
        assert now.keys() == (old.keys() | {"new.png", "moved.png"}) - {moved}
        assert now["moved.png"].equal(old[moved])
        assert not now[changed].equal(old[changed])
        for name in old.keys() - {moved, changed}:
            assert now[name].equal(old[name])
        encoded.clear()
        archive.follow(prune=True)
        assert encoded == []
        assert archive.embeddings().keys() == now.keys() - {missing}

    def test_a_moved_image_keeps_its_row(self, archive: Archive, encoded: list[str]) -> None:
        names, before = archive.names(), IndexFolder.open(archive.index).manifest
        opened = IndexFolder.open(archive.index)
        archive.follow()
        assert not opened.changed()
        (archive.images / names[7]).rename(archive.images / "x.png")
        archive.follow()
        assert opened.changed()  # a server takes the name up
        assert archive.names() == [*names[:7], "x.png", *names[8:]]
        assert IndexFolder.open(archive.index).manifest.shards_sha256 == before.shards_sha256
        assert encoded == []

    def test_names_that_come_back_do_not_meet_the_shard_that_they_left(
        self, archive: Archive, encoded: list[str], tmp_path: Path
    ) -> None:
        shutil.rmtree(archive.index)
        archive.follow()
        old, encoded[:] = archive.embeddings(), []
        kept = Path(shutil.copytree(archive.images, tmp_path / "kept"))
        for part in ("north", "south"):
            (archive.images / part).rename(archive.images / f"old_{part}")
        archive.follow()
        assert encoded == []
        shutil.copytree(kept, archive.images, dirs_exist_ok=True)  # with the times of before
        archive.follow()
        assert sorted(encoded) == sorted(old)
        now = archive.embeddings()
        assert len(archive.names()) == len(now) == 24
        for name, embedding in old.items():
            assert now[f"old_{name}"].equal(embedding)
            torch.testing.assert_close(now[name], embedding)

    def test_the_folder_moved(self, archive: Archive, encoded: list[str], tmp_path: Path) -> None:
        names = archive.names()
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(archive.images, elsewhere, copy_function=shutil.copyfile)  # with the times of today
        shutil.rmtree(archive.images)
        replace(archive, images=elsewhere).follow()
        assert encoded == []
        assert archive.names() == names
        assert IndexFolder.open(archive.index).manifest.images == elsewhere
        assert {record.modified for record in records_of(archive.index)} == {
            (elsewhere / name).stat().st_mtime_ns for name in names
        }

    def test_an_index_of_an_earlier_version_learns_what_its_files_are(
        self, archive: Archive, encoded: list[str]
    ) -> None:
        made = IndexFolder.open(archive.index)
        for shard in made.manifest.shards:  # of names alone, which the shard is named after
            path = archive.index / "shards" / f"{shard}.json"
            names = [record.name for record in read_records(path)]
            for ending in ("json", "npy"):
                path.with_suffix(f".{ending}").rename(path.with_name(f"{earlier_id(names)}.{ending}"))
            (archive.index / "shards" / f"{earlier_id(names)}.json").write_text(json.dumps(names))
        content = json.loads((archive.index / "index.json").read_text())
        (archive.index / "index.json").write_text(json.dumps(content | {"shards": {}, "count": 0, "crc32": {}}))
        archive.follow()
        assert encoded == []
        assert records_of(archive.index) == [
            record_of(archive.images, record.name) for record in records_of(archive.index)
        ]

    def test_upkeep_alone_encodes_nothing(self, archive: Archive, encoded: list[str]) -> None:
        names = archive.names()
        paint(archive.images / names[0], "blue")
        paint(archive.images / "new.png", "green")
        archive.follow(encode=False)
        assert encoded == []
        assert set(archive.names()) == set(names[1:])

    def test_hidden_folders_are_passed_over(self, archive: Archive, encoded: list[str]) -> None:
        for name in (".hidden/a.png", ".b.png"):
            paint(archive.images / name, "blue")
        assert not any(name.startswith(".") for name in image_names(archive.images))
        archive.follow()
        assert encoded == []

    def test_several_processes_leave_it_to_one(self, archive: Archive) -> None:
        paint(archive.images / archive.names()[0], "blue")
        with pytest.raises(InputError, match=r"1 images of the index have another size .* once without torchrun"):
            archive.follow(Share(0, 2))


class Killed(BaseException):
    """As a signal ends a process, no `except Exception` catches it."""


@pytest.mark.parametrize("write", range(5))
def test_killed_at_any_write_it_goes_on(
    write: int, archive: Archive, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, names = archive.embeddings(), archive.names()
    for place in (1, 6):
        (archive.images / names[place]).unlink()
    (archive.images / names[2]).rename(archive.images / "moved.png")
    writes = [0]

    def killing(path: Path, text: str) -> None:
        if writes[0] == write:
            raise Killed
        writes[0] += 1
        write_text_atomic(path, text)

    for module in ("archive.index_folder", "archive.records"):
        monkeypatch.setattr(f"{module}.write_text_atomic", killing)
    with pytest.raises(Killed):
        archive.follow(prune=True)
    monkeypatch.undo()
    archive.follow(prune=True)
    now = archive.embeddings()
    assert now.keys() == (old.keys() | {"moved.png"}) - {names[place] for place in (1, 2, 6)}
    assert now["moved.png"].equal(old[names[2]])
    assert all(torch.equal(now[name], old[name]) for name in now.keys() & old.keys())
    assert encoded == []


def test_who_has_the_index_open_goes_on_reading_it(archive: Archive, encoded: list[str]) -> None:
    opened, names = IndexFolder.open(archive.index), archive.names()
    (archive.images / names[6]).unlink()
    archive.follow(prune=True)
    assert opened.embeddings is not None
    assert sum(len(block) for block in opened.embeddings.blocks()) == 12
    assert opened.names() == names
    archive.follow()
    assert len(list((archive.index / "shards").glob("*.npy"))) == len(IndexFolder.open(archive.index).manifest.shards)


def earlier_id(names: list[str]) -> str:
    """What a shard of earlier versions is called."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
