"""Files as archives have them, written small and compared with what NumPy makes of the same numbers."""

from __future__ import annotations

import logging
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp

from data.images import decode, image_names, mark_of
from data.rasters.survey import settled
from data.rasters.values import TURNS, limits_of
from option.images import ImageRule
from tests.rasters import placeless
from utils import InputError, logger

HEIGHT, WIDTH = 32, 48
RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 3061, (6, HEIGHT, WIDTH), dtype=np.uint16)
BYTES = RANDOM.integers(0, 256, (6, HEIGHT, WIDTH), dtype=np.uint8)
SMOOTH = np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 2).astype(np.uint8)
BLUE, GREEN, RED, OTHER = ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined
RANGE = (0.0, 3060.0)
RULE = ImageRule(range=RANGE)


def write(path: Path, bands: NDArray[Any], kinds: Any = None, mask: NDArray[Any] | None = None, **form: Any) -> Path:
    """A raster of bands [b, h, w] by rasterio."""
    count, height, width = bands.shape
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore")
        whole = {"driver": "GTiff", "dtype": bands.dtype, "count": count, "height": height, "width": width, **form}
        with rasterio.open(path, "w", **whole) as dataset:
            dataset.write(bands)
            if kinds is not None:
                dataset.colorinterp = kinds
            if mask is not None:
                dataset.write_mask(mask)
    return path


def scaled(bands: NDArray[Any], limits: tuple[float, float] = RANGE) -> NDArray[np.uint8]:
    """Bands [1 or 3, h, w] as RGB [h, w, 3] by definition."""
    share = (bands.astype(np.float64) - limits[0]) / (limits[1] - limits[0])
    grey = np.floor(255 * share.clip(0, 1) + 0.5).astype(np.uint8)
    return np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0)


def rgb(bands: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.broadcast_to(bands, (3, *bands.shape[1:])).transpose(1, 2, 0)


LAYOUTS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "bands": {"interleave": "band"},
    "strips": {"blockysize": 5},
    "tiles": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "tiles of bands": {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band"},
    "deflate": {"compress": "deflate", "predictor": 2},
    "LZW, bands": {"compress": "lzw", "interleave": "band"},
    "zstd": {"compress": "zstd"},
    "BigTIFF": {"BIGTIFF": "YES"},
    "COG": {"driver": "COG"},
    "big endian": {"ENDIANNESS": "BIG"},
}
BANDS: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[np.uint8]]] = {
    "8-bit grey": (BYTES[:1], {}, rgb(BYTES[:1])),
    "8-bit RGB": (BYTES[:3], {"photometric": "RGB"}, rgb(BYTES[:3])),
    "8-bit RGBN": (BYTES[:4], {"photometric": "RGB", "alpha": "NO"}, rgb(BYTES[:3])),
    "8-bit 3 bands": (BYTES[:3], {"photometric": "MINISBLACK"}, rgb(BYTES[:3])),
    "16-bit grey": (DEEP[:1], {}, scaled(DEEP[:1])),
    "16-bit RGB": (DEEP[:3], {"photometric": "RGB"}, scaled(DEEP[:3])),
    "16-bit BGRN": (DEEP[:4], {"kinds": (BLUE, GREEN, RED, OTHER)}, scaled(DEEP[[2, 1, 0]])),
    "signed": (DEEP[:3].astype(np.int16) - 9, {}, scaled(DEEP[:3].astype(np.int16) - 9)),
    "float": (DEEP[:3].astype(np.float32), {}, scaled(DEEP[:3])),
    "float64": (DEEP[:1].astype(np.float64), {}, scaled(DEEP[:1])),
}


COG = {"8-bit RGBN": {"kinds": (RED, GREEN, BLUE, OTHER)}, "16-bit BGRN": {"kinds": (BLUE, GREEN, RED, OTHER)}}
"""What this driver has to be told otherwise."""


@pytest.mark.parametrize("bands", BANDS)
def test_every_layout_of_every_kind_gives_its_numbers(bands: str, tmp_path: Path) -> None:
    values, form, expected = BANDS[bands]
    for layout, own in LAYOUTS.items():
        if values.dtype.kind == "f" and "predictor" in own:
            own = own | {"predictor": 3}
        told = COG.get(bands, {}) if own.get("driver") == "COG" else form
        path = write(tmp_path / "image.tif", values, **told, **own)
        np.testing.assert_array_equal(np.asarray(decode(path, RULE)), expected, err_msg=layout)


@pytest.mark.parametrize(
    "form", [{"compress": "webp", "webp_lossless": True}, {"compress": "jpeg", "jpeg_quality": 95}]
)
def test_webp_and_jpeg_in_a_tiff(form: dict[str, Any], tmp_path: Path) -> None:
    smooth = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]])
    tolerance = 0 if "webp_lossless" in form else 8
    for interleave in ("pixel", "band"):
        if interleave == "pixel" or form["compress"] == "jpeg":
            path = write(tmp_path / "image.tif", smooth, photometric="RGB", interleave=interleave, **form)
            found = np.asarray(decode(path)).astype(int)
            assert np.abs(found - rgb(smooth)).max() <= tolerance


@pytest.mark.parametrize("name", ["x.webp", "x.bmp", "x.gif", "x.jp2", "x.png"])
def test_other_formats(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    colour = Image.fromarray(rgb(BYTES[:3]))
    if name.endswith("jp2"):
        write(path, BYTES[:3], driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    elif name.endswith("gif"):
        colour = colour.quantize(64).convert("RGB")
        frames = [colour.quantize(64), Image.new("P", colour.size)]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    else:
        colour.save(path, lossless=True)
    np.testing.assert_array_equal(np.asarray(decode(path)), np.asarray(colour))
    assert image_names(tmp_path) == (name,)


WHOLE: dict[str, dict[str, Any]] = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "8-bit tif", "16-bit tif", "16-bit png"])
def test_orientations(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind.split()[-1]}"
    stored = scaled(DEEP[:1]) if kind.startswith("16") else rgb(np.stack([SMOOTH] * 3))
    # The published table of EXIF: where the first row and the first column of what is stored are seen.
    seen = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(stored),
    }
    assert seen.keys() == TURNS.keys()
    for turn, expected in seen.items():
        exif = Image.Exif()
        exif[274] = turn
        form: dict[str, Any] = {"tiffinfo": {274: turn}} if kind.endswith("tif") else {"exif": exif}
        form |= WHOLE.get(kind, {})
        Image.fromarray(DEEP[0] if kind.startswith("16") else stored).save(path, **form)
        found = np.asarray(decode(path, RULE))
        np.testing.assert_allclose(found, expected, atol=2 if kind == "jpg" else 0, err_msg=str(turn))


class TestBands:
    def test_numbers_choose_colours(self, tmp_path: Path) -> None:
        path = write(tmp_path / "six.tif", DEEP)
        with pytest.raises(InputError, match=r"six\.tif: 6 bands \(gray, undefined, .*--set dataset\.bands=\[3,2,1\]"):
            decode(path, RULE)
        chosen = RULE.model_copy(update={"bands": (4, 3, 2)})
        np.testing.assert_array_equal(np.asarray(decode(path, chosen)), scaled(DEEP[[3, 2, 1]]))
        grey = RULE.model_copy(update={"bands": (5,)})
        np.testing.assert_array_equal(np.asarray(decode(path, grey)), scaled(DEEP[4:5]))
        with pytest.raises(InputError, match=r"6 bands, but dataset\.bands asks for number 7"):
            decode(path, ImageRule(bands=(7, 6, 5)))

    @pytest.mark.parametrize("count", [2, 4, 5])
    def test_bands_that_say_nothing_are_refused(self, count: int, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", BYTES[:count], photometric="MINISBLACK", alpha="NO")
        with pytest.raises(InputError, match=rf"{count} bands \(gray, .*do not say what they show"):
            decode(path)

    def test_declared_colours_count_in_any_order(self, tmp_path: Path) -> None:
        path = write(tmp_path / "bgr.tif", BYTES[:3], kinds=(BLUE, GREEN, RED))
        np.testing.assert_array_equal(np.asarray(decode(path)), rgb(BYTES[[2, 1, 0]]))

    def test_palette_cmyk_and_white_is_zero(self, tmp_path: Path) -> None:
        colour = Image.fromarray(rgb(BYTES[:3]))
        colour.quantize(17).save(tmp_path / "palette.tif")
        expected = np.asarray(colour.quantize(17).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(decode(tmp_path / "palette.tif")), expected)
        ink = BYTES[:4]
        for interleave in ("pixel", "band"):
            path = write(tmp_path / "cmyk.tif", ink, photometric="CMYK", interleave=interleave)
            light = (255 - ink[:3].astype(float)) * (255 - ink[3]) / 255
            np.testing.assert_allclose(np.asarray(decode(path)), light.transpose(1, 2, 0), atol=1)
        path = write(tmp_path / "white.tif", DEEP[:1], photometric="MINISWHITE")
        np.testing.assert_array_equal(np.asarray(decode(path, RULE)), 255 - scaled(DEEP[:1]))

    def test_complex_numbers_are_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", DEEP[:1].astype(np.complex64))
        with pytest.raises(InputError, match="bands of complex64 are not read as colours"):
            decode(path)


class TestNodata:
    HELD = SMOOTH > 60

    def expected(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        filled = pixels.copy()
        filled[~self.HELD] = np.round(pixels[self.HELD].mean(axis=0))
        return filled

    @pytest.mark.parametrize("way", ["nodata", "alpha", "alpha, nodata", "mask", "mask beside", "NaN", "given", "PNG"])
    def test_what_holds_no_data_takes_the_mean_colour_of_the_rest(self, way: str, tmp_path: Path) -> None:
        bands = BYTES[:3].clip(1, 254)
        empty = np.where(self.HELD, bands, 255)
        path, rule = tmp_path / f"x.{'png' if way == 'PNG' else 'tif'}", ImageRule()
        form: dict[str, Any] = {"photometric": "RGB"}
        alpha = np.where(self.HELD, 7, 0).astype(np.uint8)
        if way == "nodata":
            write(path, empty, nodata=255, **form)
        elif way.startswith("alpha"):
            both: dict[str, Any] = {"nodata": 255} if "nodata" in way else {}
            if both:  # each of the two says it of a half
                bands[:, :, : WIDTH // 2], alpha[:, : WIDTH // 2] = empty[:, :, : WIDTH // 2], 7
            write(path, np.concatenate([bands, alpha[None]]), alpha="YES", interleave="band", **form, **both)
        elif way == "PNG":
            Image.fromarray(np.dstack([rgb(bands), alpha])).save(path)
        elif way == "mask":
            write(path, bands, mask=self.HELD, **form)
        elif way == "mask beside":
            with placeless(), rasterio.open(write(path, bands, **form), "r+") as dataset:
                dataset.write_mask(self.HELD)
        elif way == "NaN":
            write(path, np.where(self.HELD, bands, np.nan).astype(np.float32))
            rule = ImageRule(range=(0, 255))
        else:
            write(path, empty, **form)
            rule = ImageRule(nodata=255)
        np.testing.assert_array_equal(np.asarray(decode(path, rule)), self.expected(rgb(bands)))
        assert mark_of(path, rule) != ""

    def test_a_pixel_is_empty_only_where_all_its_bands_are(self, tmp_path: Path) -> None:
        bands = np.full((3, 1, 2), 9, np.uint8)
        bands[0, 0, 0] = 0
        path = write(tmp_path / "x.tif", bands, photometric="RGB", nodata=0)
        assert np.asarray(decode(path)).tolist() == [[[0, 9, 9], [9, 9, 9]]]

    def test_nothing_is_left_out_where_that_is_asked(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB", nodata=int(BYTES[0, 0, 0]))
        np.testing.assert_array_equal(np.asarray(decode(path, ImageRule(nodata="none"))), rgb(BYTES[:3]))

    def test_an_image_without_data_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", np.zeros((1, 4, 4), np.uint8), nodata=0)
        with pytest.raises(InputError, match=r"no pixel holds data.*dataset\.nodata"):
            decode(path)


class TestRange:
    def test_16_bits_in_a_narrow_range_look_as_in_8(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """The same image as reflectance from 0 to 3060 and in 8 bits: grey and RGB, TIFF and PNG."""
        deep = (BYTES[:3].astype(np.uint16) * 12).clip(0, 3060)
        paths = [
            write(tmp_path / "rgb.tif", deep, photometric="RGB"),
            write(tmp_path / "rgb.png", deep, driver="PNG"),
            write(tmp_path / "grey.tif", deep[:1]),
        ]
        with caplog.at_level(logging.INFO, logger.name):
            rule = settled(ImageRule(), paths)
        assert "uint16, 0 to 3060 in 3 that were looked at" in caplog.text
        assert isinstance(rule.range, tuple)
        assert f"dataset.range=[{rule.range[0]:g},{rule.range[1]:g}]" in caplog.text
        values = np.concatenate([deep.reshape(-1), deep.reshape(-1), deep[0].reshape(-1)])
        np.testing.assert_allclose(rule.range, np.percentile(values, [1, 99]), rtol=1e-3)
        for path in paths:
            expected = BYTES[:1] if path.stem == "grey" else BYTES[:3]
            found = np.asarray(decode(path, rule)).astype(int)
            assert np.abs(found - rgb(expected)).max() <= 4
            assert len(np.unique(np.asarray(decode(path, ImageRule())))) > 200  # even where nobody settled a range

    @pytest.mark.parametrize(
        ("dtype", "limits", "warned"),
        [
            (np.uint16, "full", "black of 0 and white of 65535"),
            (np.int16, "full", "black of -32768 and white of 32767"),
            (np.uint16, (0, 12_500), "white of 12500"),
            (np.uint16, (0, 12_000), None),
            (np.uint16, (0, 740), "white of 740"),
            (np.uint16, (0, 800), None),
            (np.float32, "full", "white of 1:"),
            (np.uint16, (5000, 9000), "black of 5000"),
        ],
    )
    def test_a_range_that_images_do_not_fill_or_far_exceed_is_warned_of(
        self, dtype: Any, limits: Any, warned: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / "x.tif", DEEP[:3].astype(dtype))
        settled(ImageRule(range=limits), [path])
        assert ("will hardly show anything" in caplog.text) == (warned is not None)
        assert warned is None or warned in caplog.text

    def test_a_given_range_that_leaves_images_black_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / "x.tif", DEEP[:3])
        rule = ImageRule(range="full")
        assert settled(rule, [path]) == rule
        assert f"hold 0 to {DEEP[:3].max()}, but dataset.range makes black of 0 and white of 65535" in caplog.text
        np.testing.assert_array_equal(np.asarray(decode(path, rule)), scaled(DEEP[:3], (0, 65535)))

    def test_several_types_have_no_range_in_common(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        paths = [write(tmp_path / "a.tif", DEEP[:1]), write(tmp_path / "b.tif", DEEP[:1].astype(np.float32) / 3060)]
        assert settled(ImageRule(), paths).range == "auto"
        assert "several types (float32 and uint16" in caplog.text
        first, second = (np.asarray(decode(path)).astype(int) for path in paths)
        assert np.abs(first - second).max() <= 1

    def test_images_of_8_bits_need_no_range(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = write(tmp_path / "x.tif", BYTES[:3], photometric="RGB")
        with caplog.at_level(logging.INFO, logger.name):
            assert settled(ImageRule(), [path]) == ImageRule()
        assert caplog.text == ""
        np.testing.assert_array_equal(np.asarray(decode(path, RULE)), rgb(BYTES[:3]))

    def test_what_is_no_file_is_passed_over(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.tif")
        (tmp_path / "folder.tif").mkdir()
        (tmp_path / "broken.tif").write_bytes(b"II*\0")
        assert settled(ImageRule(), sorted(tmp_path.iterdir())) == ImageRule()

    def test_bits_that_are_used_are_the_full_range(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", DEEP[:1].clip(0, 4095), nbits=12)
        np.testing.assert_array_equal(np.asarray(decode(path, ImageRule(range="full"))), scaled(DEEP[:1], (0, 4095)))

    def test_a_range_always_rises(self) -> None:
        assert limits_of([np.full(9, 5)]) == (5.0, 6.0)


class TestFiles:
    def test_the_place_of_a_directory_does_not_make_a_bigtiff(self, tmp_path: Path) -> None:
        """Its second byte is a plus here, which in the place of the version would."""
        place, path = 0x2B00, tmp_path / "x.tif"
        form = {256: WIDTH, 257: HEIGHT, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: HEIGHT, 279: 2 * WIDTH * HEIGHT}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in form.items())
        directory = struct.pack("<H", len(form)) + entries + bytes(4)
        pixels = DEEP[0].astype("<u2").tobytes().ljust(place - 8, b"\0")
        path.write_bytes(b"II*\0" + struct.pack("<I", place) + pixels + directory)
        np.testing.assert_array_equal(np.asarray(decode(path, RULE)), scaled(DEEP[:1]))

    @pytest.mark.parametrize("form", [{"interleave": "band"}, {"compress": "deflate"}, {"driver": "JP2OpenJPEG"}])
    def test_a_file_cut_short_ends_in_one_message(self, form: dict[str, Any], tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", DEEP[:3], **form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=r"x\.tif: the image is damaged or cut short"):
            decode(path, RULE)

    def test_too_many_pixels_are_refused_undecoded(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.tif", DEEP[:3])
        with pytest.raises(InputError, match=r"48 x 32 pixels, at most 1000 are allowed \(dataset\.max_pixels\)"):
            decode(path, ImageRule(max_pixels=1000))


def test_marks_tell_what_depends_on_the_rule(tmp_path: Path) -> None:
    colour = Image.fromarray(rgb(BYTES[:3]))
    for name in ("x.png", "x.tif", "x.jpg"):
        colour.save(tmp_path / name)
        assert {mark_of(tmp_path / name, rule) for rule in (ImageRule(), RULE)} == {""}
    deep = write(tmp_path / "deep.tif", DEEP[:1])
    rules = [ImageRule(), RULE, ImageRule(bands=(1,)), ImageRule(nodata=0)]
    assert len({mark_of(deep, rule) for rule in rules}) == 4


def test_files_that_are_passed_over_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    for name in ("b.txt", "c.txt", "d.nc", "a.pgw", "a.png.aux.xml"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.INFO, logger.name):
        assert image_names(tmp_path) == ("a.png",)
    assert "1 image. Passed over as no images by their endings: 2 of .txt, 1 of .nc." in caplog.text


def test_without_rasterio_plain_files_are_read_and_others_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write(tmp_path / "plain.tif", BYTES[:3], photometric="RGB")
    deep = write(tmp_path / "deep.tif", DEEP[:3], photometric="RGB")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    np.testing.assert_array_equal(np.asarray(decode(plain)), rgb(BYTES[:3]))
    with pytest.raises(InputError, match=r"deep\.tif: .*environment\.sh geo"):
        decode(deep)
