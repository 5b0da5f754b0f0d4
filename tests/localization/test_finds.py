"""What a map finds: masks, centres and areas, in the image's coordinates, and the folder that they are written into."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from data.rasters.places import Georeference, bounds_of
from localization.drawing import draw_map
from localization.finds import areas_above, as_geojson, centre_rows, crs_member
from localization.indicators import attention_centres
from localization.large_image import open_large, write_geotiff
from localization.outputs import own_files, replacing, say_coordinates
from localization.windows import held_windows, mean_map, window_grid
from option.images import ImageRule
from tests.data.test_rasters import BYTES, HEIGHT, WIDTH, write
from tests.rasters import north_up
from utils import InputError, logger

UTM = {"crs": "EPSG:32633", "transform": north_up(500_000, 4_600_000, 2)}


def georeference_of(path: Path) -> Georeference | None:
    with open_large(path, ImageRule()) as image:
        return image.georeference


class TestMasks:
    SIDE = 8
    VALID = np.ones((24, 24), bool)
    VALID[:, 13:] = False

    def test_windows_hold_data_in_half_of_their_pixels(self) -> None:
        windows = window_grid(24, 24, [self.SIDE])
        held = held_windows(windows, self.VALID)
        shares = [self.VALID[row : row + side, left : left + side].mean() for side, row, left in windows]
        np.testing.assert_array_equal(held, windows[np.array(shares) >= 0.5])
        assert held_windows(windows, None) is windows

    def test_a_map_says_nothing_where_there_is_no_data(self) -> None:
        """Against loops over windows and pixels."""
        windows = held_windows(window_grid(24, 24, [self.SIDE]), self.VALID)
        scores = np.random.default_rng(0).normal(size=len(windows))
        mean = mean_map(windows, scores, self.VALID)
        total, count = np.zeros((2, 24, 24))
        for (side, row, left), score in zip(windows, scores, strict=True):
            total[row : row + side, left : left + side] += score
            count[row : row + side, left : left + side] += 1
        known = mean.known()
        assert known is not None
        np.testing.assert_array_equal(known, self.VALID & (count > 0))
        slow = total[known] / count[known]
        np.testing.assert_allclose(mean.pixels(mean.values)[known], slow)
        assert (mean.lowest, mean.highest) == pytest.approx((slow.min(), slow.max()))
        levels = mean.levels(1)
        assert (levels[~known] == 0).all()
        expected = (255 * ((slow - slow.min()) / (slow.max() - slow.min()))).astype(int)
        assert np.abs(levels[known].astype(int) - expected).max() <= 1

    def test_no_centre_lies_where_there_is_no_data(self) -> None:
        levels = np.full((60, 60), 128, np.uint8)
        assert len(attention_centres(levels)) == 1
        assert len(attention_centres(levels, np.zeros((60, 60), bool))) == 0

    def test_a_map_keeps_its_mask(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB", nodata=int(BYTES[0, 3, 4]), **UTM)
        levels, known = np.full((HEIGHT, WIDTH), 200, np.uint8), np.zeros((HEIGHT, WIDTH), bool)
        known[:5] = True
        georeference = georeference_of(path)
        assert georeference is not None
        write_geotiff(tmp_path / "map.tif", levels, georeference, "x", known)
        with rasterio.open(tmp_path / "map.tif") as written:
            np.testing.assert_array_equal(written.dataset_mask() > 0, known)
            assert (written.crs.to_epsg(), written.transform) == (32633, UTM["transform"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "x.tif"]

    def test_a_drawing_says_what_it_shows(self) -> None:
        image, levels = Image.new("RGB", (200, 100), "blue"), np.zeros((100, 200), np.uint8)
        plain = draw_map(image, levels, "a pond", np.zeros((0, 2)))
        known = np.ones((100, 200), bool)
        known[:, 150:] = False
        masked = draw_map(image, levels, "a pond", np.zeros((0, 2)), known=known)
        assert masked.getpixel((180, 80)) == (0x90, 0x90, 0x90) != plain.getpixel((180, 80))
        assert masked.height > plain.height > 100  # a line more of the legend


class TestCoordinates:
    def test_centres_and_areas_are_in_the_images_coordinates(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB", **UTM)
        georeference = georeference_of(path)
        windows = window_grid(HEIGHT, WIDTH, [16])
        mean = mean_map(windows, np.linspace(0.1, 0.5, len(windows)))
        levels = np.zeros((HEIGHT, WIDTH), np.uint8)
        levels[4:10, 6:8] = 200
        levels[7, 6] = 255
        levels[20, 30:40] = 130
        centres = np.array([[6.0, 7.0]])
        rows = centre_rows(3, "a pond", centres, mean, levels, georeference)
        expected = {"number": 3, "query": "a pond", "x_pixel": 6.0, "y_pixel": 7.0, "x": 500_013.0, "y": 4_599_985.0}
        assert rows == [expected | {"score": mean.pixels(mean.values)[7, 6], "level": 1.0}]
        areas = list(areas_above(levels, 0.75))
        assert [(area.pixels, area.highest) for area in areas] == [(12, 1.0)]
        assert areas[0].mean == pytest.approx(levels[4:10, 6:8].mean() / 255)
        assert [area.pixels for area in areas_above(levels, 0.5)] == [12, 10]
        found = as_geojson("a pond", rows, areas, mean, georeference)
        assert found["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
        point, polygon = found["features"]
        assert point["geometry"] == {"type": "Point", "coordinates": [500_013.0, 4_599_985.0]}
        assert point["properties"]["query"] == polygon["properties"]["query"] == "a pond"
        assert point["properties"]["score"] == rows[0]["score"]
        ring = np.array(polygon["geometry"]["coordinates"][0])
        corners = np.array([[6, 4], [6, 10], [8, 10], [8, 4]]) * [2, -2] + [500_000, 4_600_000]
        assert {tuple(corner) for corner in ring.tolist()} == {tuple(map(float, corner)) for corner in corners}
        (tmp_path / "found.geojson").write_text(json.dumps(found))
        plain = as_geojson("a pond", centre_rows(3, "a pond", centres, mean, levels, None), areas, mean, None)
        assert plain["coordinates"].startswith("pixels")
        assert plain["features"][0]["geometry"]["coordinates"] == [6.0, 7.0]

    def test_a_coordinate_system_without_a_number_is_named_by_its_wkt(self) -> None:
        own = CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +datum=WGS84 +units=m")
        assert CRS.from_wkt(crs_member(own)["crs"]["properties"]["name"]) == own
        assert crs_member(None) == crs_member(CRS.from_epsg(4326)) == {}

    @pytest.mark.parametrize("ending", ["tif", "jpg", "png"])
    def test_world_files(self, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = tmp_path / f"x.{ending}"
        Image.new("RGB", (20, 10)).save(path)
        assert georeference_of(path) is None
        say_coordinates(path, None)
        assert f"world file such as x.{ending[0]}{ending[-1]}w" in caplog.text
        path.with_suffix(f".{ending[0]}{ending[-1]}w").write_text("2\n0\n0\n-2\n500001\n4599999\n")
        found = georeference_of(path)
        assert found is not None
        assert found.transform == UTM["transform"]
        say_coordinates(path, found)
        assert "does not name its coordinate system (no x.prj beside it)" in caplog.text
        path.with_suffix(".prj").write_text(CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI"))
        found = georeference_of(path)
        assert found is not None
        assert found.crs is not None
        assert found.crs.to_epsg(confidence_threshold=20) == 32633
        assert bounds_of(path, ImageRule()) == pytest.approx((15.0, 41.55148, 15.00048, 41.55166), abs=1e-5)
        path.with_suffix(f".{ending[0]}{ending[-1]}w").write_text("2 0 0")
        with pytest.raises(InputError, match="expected the six numbers of a world file"):
            georeference_of(path)

    def test_ground_control_points(self, tmp_path: Path) -> None:
        corners = [(0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH)]
        gcps = [GroundControlPoint(row, column, 15 + column / 100, 40 - row / 100) for row, column in corners]
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB", gcps=gcps, crs="EPSG:4326")
        found = georeference_of(path)
        assert found is not None
        points = np.array([[0.0, 0.0], [10.0, 20.0]])
        np.testing.assert_allclose(found.xy(points), np.array([[15.0, 40.0], [15.1, 39.8]]), atol=1e-6)
        write_geotiff(tmp_path / "map.tif", np.zeros((HEIGHT, WIDTH), np.uint8), found, "x")
        with rasterio.open(tmp_path / "map.tif") as written:
            assert [(point.x, point.y) for point in written.gcps[0]] == [(point.x, point.y) for point in gcps]
        assert bounds_of(path, ImageRule()) == pytest.approx((15, 39.68, 15.48, 40))

    def test_a_turned_image_keeps_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tif"
        Image.new("RGB", (20, 10)).save(path, tiffinfo={274: 6})
        path.with_suffix(".tfw").write_text("2\n0\n0\n-2\n500001\n4599999\n")
        found = georeference_of(path)
        assert found is not None
        assert found.size == (10, 20)
        # Turned clockwise, the first stored row is the last column that is seen.
        corners = np.array([[10.0, 0.0], [0.0, 0.0], [0.0, 20.0]])
        expected = [[500_000, 4_600_000], [500_000, 4_599_980], [500_040, 4_599_980]]
        np.testing.assert_allclose(found.xy(corners), expected)
        a, b, c, d, e, f = found.transform[:6]
        assert (a, b, c, d, e, f) == (0, 2, 500_000, 2, 0, 4_599_980)

    @pytest.mark.parametrize("form", [{}, {"transform": UTM["transform"]}])
    def test_bounds_are_none_where_the_file_does_not_know(self, form: dict[str, Any], tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB", **form)
        assert bounds_of(path, ImageRule()) is None
        assert bounds_of(tmp_path / "none.tif", ImageRule()) is None


class TestFolder:
    def test_a_run_replaces_what_the_last_one_wrote(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        for names in (["a.png", "b.png"], ["b.png", "c.png"]):
            with replacing(out) as new:
                for name in names:
                    (new / name).write_text(names[0])
                (new / "localization.json").write_text(json.dumps({"files": names}))
            assert sorted(path.name for path in out.iterdir()) == [*names, "localization.json"]
        assert (out / "b.png").read_text() == "b.png"
        (out / "own.txt").write_text("x")
        with replacing(out) as new:
            (new / "localization.json").write_text(json.dumps({"files": []}))
        assert sorted(path.name for path in out.iterdir()) == ["localization.json", "own.txt"]

    def test_a_run_that_fails_leaves_what_was_there(self, tmp_path: Path) -> None:
        def fail() -> None:
            with replacing(tmp_path / "out") as new:
                (new / "a.png").write_text("x")
                raise InputError("full")

        with pytest.raises(InputError, match="full"):
            fail()
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("content", [None, "{", "[]", '{"files": ["../x"]}', '{"files": [".."]}', "{}"])
    def test_files_of_others_are_left_alone(self, content: str | None, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("x")
        if content is not None:
            (tmp_path / "localization.json").write_text(content)
        with pytest.raises(InputError, match="not listed as those of an earlier run; give another folder"):
            own_files(tmp_path)


def test_messages_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger.name):
        say_coordinates(Path("x.png"), None)
    assert len(caplog.records) == 1
