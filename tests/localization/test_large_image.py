"""Images read in parts: the same colours as Pillow decodes, coordinates kept, one message for each fault."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from data.images import decode
from localization.large_image import open_large, write_geotiff
from option.images import ImageRule
from tests.rasters import north_up, placeless
from utils import InputError

RULE = ImageRule(range="full")
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (40, 56, 3), dtype=np.uint8)
OPAQUE = RANDOM.integers(1, 256, (40, 56), dtype=np.uint8)
GREY_16 = RANDOM.integers(0, 2**16, (40, 56), dtype=np.uint16)


def write_bands(path: Path, bands: NDArray[Any], **form: Any) -> Path:
    """A TIFF of bands [b, h, w] by rasterio."""
    count, height, width = bands.shape
    with (
        placeless(),
        rasterio.open(
            path, "w", driver="GTiff", dtype=bands.dtype, count=count, height=height, width=width, **form
        ) as dataset,
    ):
        dataset.write(bands)
    return path


def images() -> dict[str, Image.Image]:
    colour = Image.fromarray(RGB)
    return {
        "RGB": colour,
        "grey": colour.convert("L"),
        "palette": colour.quantize(17),
        "alpha": Image.fromarray(np.dstack([RGB, OPAQUE])),
        "grey with alpha": Image.fromarray(np.dstack([RGB[..., 0], OPAQUE]), mode="LA"),
        "CMYK": colour.convert("CMYK"),
        "16-bit grey": Image.fromarray(GREY_16),
    }


@pytest.mark.parametrize(
    ("kind", "ending"),
    [(kind, ending) for kind in images() for ending in (".tif", ".png") if kind != "CMYK"] + [("CMYK", ".tif")],
)
def test_a_part_has_the_colours_that_pillow_decodes(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{ending}"
    images()[kind].save(path)
    whole = np.asarray(decode(path, RULE))
    with open_large(path, RULE) as image:
        assert (image.height, image.width) == (40, 56)
        np.testing.assert_array_equal(np.asarray(image.read(3, 20, 17, 36).filled()), whole[3:20, 20:56])
        np.testing.assert_array_equal(np.asarray(image.overview(56).filled()), whole)


@pytest.mark.parametrize(
    "form",
    [
        {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"},
        {"compress": "lzw", "blockysize": 7},
        {"interleave": "band"},
        {"BIGTIFF": "YES"},
    ],
    ids=str,
)
def test_tiles_strips_and_bands(form: dict[str, Any], tmp_path: Path) -> None:
    path = write_bands(tmp_path / "image.tif", RGB.transpose(2, 0, 1), photometric="RGB", **form)
    with open_large(path, RULE) as image:
        np.testing.assert_array_equal(np.asarray(image.read(5, 9, 30, 40).image), RGB[5:35, 9:49])
        assert image.georeference is None


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_an_overview_is_the_mean_of_the_pixels(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{ending}"
    Image.fromarray(RGB).save(path)
    blocks = RGB.reshape(5, 8, 7, 8, 3).mean(axis=(1, 3))
    with open_large(path, RULE) as image:
        small = image.overview(7).image
        assert small.size == (7, 5)
        np.testing.assert_allclose(np.asarray(small, dtype=float), blocks, atol=1)


def test_a_map_keeps_the_coordinates_of_its_image(tmp_path: Path) -> None:
    transform = north_up(500_000, 4_600_000, 0.5)
    path = write_bands(tmp_path / "utm.tif", RGB.transpose(2, 0, 1), crs="EPSG:32633", transform=transform)
    levels = RANDOM.integers(0, 256, (40, 56), dtype=np.uint8)
    with open_large(path, RULE) as image:
        assert image.georeference is not None
        write_geotiff(tmp_path / "map.tif", levels, image.georeference, "two planes")
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.crs.to_epsg() == 32633
        assert written.transform == transform
        assert written.descriptions == ("two planes",)
        assert written.scales == (1 / 255,)
        np.testing.assert_array_equal(written.read(1), levels)


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_too_many_pixels_are_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"large{ending}"
    Image.fromarray(RGB).save(path)
    with (
        pytest.raises(InputError, match=r"56 x 40 pixels, at most 2239 are allowed"),
        open_large(path, ImageRule(max_pixels=2239)),
    ):
        pass


@pytest.mark.parametrize("kept", [0, 3, 6, 100, 3000])
@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_an_image_cut_short_ends_in_one_message(ending: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"short{ending}"
    Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=re.escape(str(path))), open_large(path, RULE) as image:
        image.read(0, 0, 40, 56)


def test_a_tiff_without_its_last_rows_is_noticed_when_they_are_read(tmp_path: Path) -> None:
    path = write_bands(tmp_path / "short.tif", RGB.transpose(2, 0, 1), photometric="RGB", blockysize=4)
    path.write_bytes(path.read_bytes()[:-2000])
    with open_large(path, RULE) as image:
        np.testing.assert_array_equal(np.asarray(image.read(0, 0, 20, 56).image), RGB[:20])
        with pytest.raises(InputError, match="damaged or cut short"):
            image.read(20, 0, 20, 56)


@pytest.mark.parametrize("name", ["nothing.tif", "."])
def test_an_image_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such image|can't be read"), open_large(tmp_path / name, RULE):
        pass


def test_without_rasterio_a_tiff_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"environment\.sh geo"), open_large(tmp_path / "image.tif", RULE):
        pass
