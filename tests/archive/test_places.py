"""Where images lie: kept by an index, and given back with what a query finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rasterio.warp import transform_bounds

import search
from archive import index_folder
from archive.index_folder import IndexFolder, add_shard, read_manifest, update_manifest
from archive.places import rectangle
from archive.records import Record, read_records
from data.rasters.places import bounds_of
from option.images import ImageRule
from tests.archives import Archive
from tests.data.test_rasters import write
from tests.rasters import north_up

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)


def test_bounds_are_those_of_the_file(tmp_path: Path) -> None:
    form = {"crs": "EPSG:32633", "transform": north_up(300_000, 6_600_000, 100)}
    path = write(tmp_path / "utm.tif", PIXELS, photometric="RGB", **form)
    expected = transform_bounds("EPSG:32633", "EPSG:4326", 300_000, 6_593_600, 306_400, 6_600_000, densify_pts=19)
    assert bounds_of(path, ImageRule()) == pytest.approx(expected, abs=1e-6)


def test_an_image_across_the_date_line_is_two_parts(tmp_path: Path) -> None:
    form = {"crs": "EPSG:3832", "transform": north_up(3_270_000, 100_000, 4000)}  # its middle is at 150 E
    path = write(tmp_path / "pacific.tif", PIXELS, photometric="RGB", **form)
    bounds = bounds_of(path, ImageRule())
    assert bounds is not None
    west, _, east, _ = bounds
    assert 179 < west < 180
    assert -180 < east < -178
    found = rectangle(bounds)
    assert found["type"] == "MultiPolygon"
    assert [[min(x for x, _ in ring), max(x for x, _ in ring)] for (ring,) in found["coordinates"]] == [
        [west, 180],
        [-180, east],
    ]


def test_a_place_is_a_ring_of_degrees() -> None:
    assert rectangle((1, 2, 3, 4)) == {
        "type": "Polygon",
        "coordinates": [[[1, 2], [3, 2], [3, 4], [1, 4], [1, 2]]],
    }


def test_places_of_many_parts_are_read_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page shows images of as many parts as it has images, each time: their files take 50 ms each to read."""
    manifest, places = read_manifest(index), {f"{number}.tif": (float(number), 1.0, 3.0, 4.5) for number in range(12)}
    assert manifest is not None
    for name, bounds in places.items():
        embedding = torch.randn(1, manifest.dim)
        add_shard(index, [Record(name, bounds=bounds)], embedding, manifest.dtype)
    add_shard(index, [Record("a.tif", bounds=(1, 2, 3, 4)), Record("b.png")], torch.randn(2, manifest.dim), "float32")
    update_manifest(index, manifest)
    folder, read = IndexFolder.open(index), list[Path]()

    def reading(path: Path, count: int | None = None) -> list[Record]:
        read.append(path)
        return read_records(path, count)

    monkeypatch.setattr(index_folder, "read_records", reading)
    for _ in range(2):
        found = {folder.name(row): folder.bounds(row) for row in range(len(folder))}
    assert {name: bounds for name, bounds in found.items() if bounds is not None} == places | {"a.tif": (1, 2, 3, 4)}
    assert len(found) == 26
    assert len(read) == len(set(read)) == len(folder.manifest.shards)


def test_an_index_keeps_places_and_a_query_gives_them_back(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    form = {"crs": "EPSG:4326", "transform": north_up(15, 40, 0.001)}
    write(archive.images / "placed.tif", PIXELS, photometric="RGB", **form)
    archive.follow()
    index = IndexFolder.open(archive.index)
    known = {index.name(row): index.bounds(row) for row in range(len(index))}
    assert known.pop("placed.tif") == pytest.approx((15, 39.936, 15.064, 40))
    assert set(known.values()) == {None}
    out = tmp_path / "found.geojson"
    query = [
        "query",
        str(archive.index),
        "--image",
        str(archive.images / "placed.tif"),
        "--device",
        "cpu",
        "--top",
        "2",
    ]
    search.main([*query, "--images", str(archive.images), "--geojson", str(out)])
    first, second = json.loads(out.read_text())["features"]
    assert first["properties"] | {"score": 1} == {
        "rank": 1,
        "score": 1,
        "name": "placed.tif",
        "query": "like placed.tif",
    }
    assert first["properties"]["score"] == pytest.approx(1, abs=1e-5)
    assert first["geometry"] == rectangle((15.0, 39.936, 15.064, 40.0))
    assert second["geometry"] is None
    assert "1 of 2 images have no place" in caplog.text
