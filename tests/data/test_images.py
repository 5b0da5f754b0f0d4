"""Decoding by the stated rules."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import decode, load_square
from option.images import ImageRule
from utils import InputError

LIMIT = ImageRule(max_pixels=10_000, range="full")


def _png(bits: int, colour: int, width: int, row: bytes, extra: bytes = b"") -> bytes:
    """A PNG of one row, for what Pillow reads but does not write."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + body + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _tiff(bits: int, bands: int, pixels: bytes, sample_format: int = 1) -> bytes:
    """A TIFF of one pixel, uncompressed."""
    ends = 8 + 2 + 12 * 9 + 4
    many = struct.pack(f"<{bands}H", *[bits] * bands)
    entries = [
        (256, 1, 1),
        (257, 1, 1),
        (258, bands, bits if bands <= 2 else ends),
        (259, 1, 1),
        (262, 1, 1 if bands == 1 else 2),
        (273, 1, ends + len(many)),
        (277, 1, bands),
        (279, 1, len(pixels)),
        (339, 1, sample_format),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 3, count, value) for tag, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + many + pixels


def _pixels(path: Path) -> list[list[int]]:
    image = decode(path, LIMIT)
    assert image.mode == "RGB"
    return np.asarray(image).reshape(-1, 3).tolist()


def _saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def _of(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


PALETTE = _chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
RAW_CASES = {
    "grey, 1 bit": (_png(1, 0, 2, b"\x80"), [[255] * 3, [0] * 3]),
    "grey, 4 bits": (_png(4, 0, 2, b"\x1f"), [[17] * 3, [255] * 3]),
    # 128 is the last value nearer to 0 and 129 the first nearer to 1: the steps are 257 wide
    "grey, 16 bits": (
        _png(16, 0, 6, struct.pack(">6H", 0, 128, 129, 257, 1000, 65535)),
        [[value] * 3 for value in (0, 0, 1, 1, 4, 255)],
    ),
    "grey, 16 bits, TIFF": (_tiff(16, 1, struct.pack("<H", 1000)), [[4] * 3]),
    "grey with a transparent value": (_png(8, 0, 2, b"\0\5", _chunk(b"tRNS", b"\0\5")), [[0] * 3, [0] * 3]),
    "grey and alpha": (_png(8, 4, 2, b"\x10\x01\x20\x00"), [[16] * 3, [16] * 3]),
    "grey and alpha, 16 bits": (_png(16, 4, 2, struct.pack(">4H", 1000, 9, 70, 0)), [[4] * 3, [4] * 3]),
    "colour, 16 bits": (_png(16, 2, 1, struct.pack(">3H", 1000, 65535, 255)), [[4, 255, 1]]),
    "colour with a transparent value": (
        _png(8, 2, 2, b"\1\2\3\4\5\6", _chunk(b"tRNS", b"\0\1\0\2\0\3")),
        [[4, 5, 6], [4, 5, 6]],
    ),
    "palette": (_png(8, 3, 2, b"\1\0", PALETTE), [[40, 50, 60], [10, 20, 30]]),
    "palette, transparent": (
        _png(8, 3, 2, b"\1\0", PALETTE + _chunk(b"tRNS", b"\0\x80")),
        [[40, 50, 60], [40, 50, 60]],
    ),
    "four bands, TIFF": (_tiff(8, 4, b"\1\2\3\4"), [[1, 2, 3]]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", RAW_CASES)
def test_raw_images(tmp_path: Path, case: str) -> None:
    content, expected = RAW_CASES[case]
    (tmp_path / "x").write_bytes(content)
    assert _pixels(tmp_path / "x") == expected


def test_modes_as_pillow_writes_them(tmp_path: Path) -> None:
    colour = _of("RGB", (1, 2, 3), (250, 128, 7))
    for suffix in (".png", ".tif"):
        assert _pixels(_saved(tmp_path / f"rgb{suffix}", colour)) == [[1, 2, 3], [250, 128, 7]]
        assert _pixels(_saved(tmp_path / f"l{suffix}", _of("L", 9, 200))) == [[9] * 3, [200] * 3]
        assert _pixels(_saved(tmp_path / f"1{suffix}", _of("1", 255, 0))) == [[255] * 3, [0] * 3]
        assert _pixels(_saved(tmp_path / f"a{suffix}", _of("RGBA", (7, 8, 9, 1), (0, 0, 0, 0)))) == [[7, 8, 9]] * 2
        assert _pixels(_saved(tmp_path / f"la{suffix}", _of("LA", (7, 1)))) == [[7] * 3]
    assert _pixels(_saved(tmp_path / "cmyk.tif", _of("CMYK", (0, 255, 51, 0), (0, 0, 0, 255)))) == [
        [255, 0, 204],
        [0, 0, 0],
    ]
    cmyk = _pixels(_saved(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 51, 0)), quality=100))
    np.testing.assert_allclose(cmyk, [[255, 0, 204]] * 64, atol=2)
    assert _pixels(_saved(tmp_path / "grey.jpg", Image.new("L", (8, 8), 77), quality=100)) == [[77] * 3] * 64
    assert _pixels(_saved(tmp_path / "ycc.tif", _of("YCbCr", (90, 128, 128)), compression="tiff_lzw")) == [[90] * 3]


def test_big_endian_16_bit_grey(tmp_path: Path) -> None:
    little = _tiff(16, 1, struct.pack("<H", 65278))
    path = _saved(tmp_path / "big.tif", Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 65278, 257)))
    assert _pixels(path) == [[254] * 3, [1] * 3]
    (tmp_path / "little.tif").write_bytes(little)
    assert _pixels(tmp_path / "little.tif") == [[254] * 3]


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    (tmp_path / "really_png.jpg").write_bytes(RAW_CASES["palette"][0])
    assert _pixels(tmp_path / "really_png.jpg") == [[40, 50, 60], [10, 20, 30]]


def test_orientation(tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[274] = 6
    assert decode(_saved(tmp_path / "x.jpg", grey, exif=exif), LIMIT).size == (2, 3)
    for name, options in (("x.png", {"exif": exif}), ("x.tif", {"tiffinfo": {274: 6}})):
        turned = decode(_saved(tmp_path / name, grey, **options), LIMIT)
        assert np.asarray(turned)[:, :, 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_the_first_image_of_a_file_counts(tmp_path: Path) -> None:
    path = _saved(tmp_path / "x.tif", _of("L", 5), save_all=True, append_images=[_of("L", 6)])
    assert _pixels(path) == [[5] * 3]


def _cut(missing: int, kind: str) -> Callable[[Path], object]:
    """Writes an image of noise without its last bytes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

    def make(path: Path) -> None:
        noise.save(path, kind)
        path.write_bytes(path.read_bytes()[:-missing])

    return make


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such image"),
    "folder": (lambda path: path.mkdir(), "can't be read (Is a directory)"),
    "empty": (_write(b""), "the image is empty (0 bytes): copy it again"),
    "text": (_write(b"<html>not found</html>"), "not an image of a kind that is read (JPEG, PNG, TIFF, JPEG 2000,"),
    "cut JPEG": (_cut(1000, "JPEG"), "the image is damaged or cut short (OSError: image file is truncated"),
    "cut PNG": (_cut(500, "PNG"), "the image is damaged or cut short (OSError: image file is truncated"),
    "PNG cut in its header": (_write(RAW_CASES["palette"][0][:30]), "or copy it again if it is damaged"),
    "wrong PNG": (_write(RAW_CASES["palette"][0].replace(b"IDAT", b"IDOT")), "copy it again"),
    "cut TIFF": (_write(_tiff(8, 3, b"\1")), "the image is damaged or cut short ("),
    "transparent": (lambda path: _of("LA", (5, 0)).save(path, "PNG"), "no pixel holds data"),
    "Lab": (lambda path: _of("LAB", (1, 2, 3)).save(path, "TIFF"), "colours of a kind that is not read (Lab)"),
    "large": (
        lambda path: Image.new("1", (101, 100)).save(path, "PNG"),
        "101 x 100 pixels, at most 10000 are allowed (dataset.max_pixels): scale the image down",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(tmp_path: Path, case: str) -> None:
    make, expected = FAULTS[case]
    path = tmp_path / "image.jpg"
    make(path)
    with pytest.raises(InputError) as caught:
        decode(path, LIMIT)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    )
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match="more pixels than Pillow allows"):
        decode(tmp_path / "x.png", LIMIT)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(InputError, match="30000 x 30000 pixels, at most 10000 are allowed"):
        decode(tmp_path / "x.png", LIMIT)


def test_load_square(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    path = _saved(tmp_path / "x.png", Image.fromarray(values))
    square = load_square(path, 5, LIMIT)
    assert (square.shape, square.dtype) == ((3, 5, 5), np.uint8)
    assert square.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(square, _resize(values.astype(float), 5).transpose(2, 0, 1), atol=1)
    np.testing.assert_array_equal(
        load_square(_saved(tmp_path / "y.png", Image.fromarray(values[:12])), 12, LIMIT), values[:12].transpose(2, 0, 1)
    )


def _resize(values: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resizing with antialiasing by definition: a triangle as wide as the step at each output's centre."""
    for axis in (0, 1):
        count = values.shape[axis]
        scale = count / size
        centres = (np.arange(size) + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs(np.arange(count) + 0.5 - centres[:, None]) / max(scale, 1))
        weights /= weights.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values
