"""Mosaics: every tile is an image of the class that its place is annotated with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import mosaic
from data.images import load_square
from data.polygons import read_places
from localization.indicators import inside
from tests.tiny import make_precomp
from utils import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_precomp(tmp_path_factory.mktemp("set") / "tiny_precomp")


def test_every_tile_is_an_image_of_its_place(folder: Path, tmp_path: Path) -> None:
    mosaic.main([str(folder), "--out", str(tmp_path), "--size", "100", "--tile", "16", "--block", "2"])
    image = np.asarray(Image.open(tmp_path / "mosaic.tif"))
    assert image.shape == (100, 100, 3)
    places = read_places(tmp_path / "anno.json")
    kinds = ("field", "pond", "roof")
    assert [place.caption.split()[4] for place in places] == list(kinds)
    masks = [inside(place.polygons, (100, 100)) for place in places]
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in masks), np.ones((100, 100)))
    tiles = {
        kind: [load_square(path, 16).transpose(1, 2, 0) for path in (folder / "images").glob(f"{kind}_test*")]
        for kind in kinds
    }
    for row in range(0, 100, 16):
        for column in range(0, 100, 16):
            found = image[row : row + 16, column : column + 16]
            kind = kinds[[mask[row, column] for mask in masks].index(True)]
            height, width = found.shape[:2]
            assert any((found == tile[:height, :width]).all() for tile in tiles[kind])


def test_the_same_seed_gives_the_same_mosaic(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        mosaic.main([str(folder), "--out", str(tmp_path / name), "--size", "64", "--tile", "16", "--seed", seed])
    first, same, other = ((tmp_path / name / "mosaic.tif").read_bytes() for name in "abc")
    assert first == same
    assert first != other


def test_classes_are_as_frequent_as_can_be() -> None:
    blocks = mosaic.class_blocks(["a", "b", "c"], 4, 5, np.random.default_rng(0))
    assert blocks.shape == (4, 5)
    assert sorted(Counter(blocks.flat).values()) == [6, 7, 7]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tile", "1"], "--tile 1: expected at least 2"),
        (["--block", "0"], "--block 0"),
        (["--size", "100"], "--size 100: expected at least 256"),
        (["--seed", "-1"], "--seed -1"),
    ],
)
def test_faults_of_the_command_line(folder: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mosaic.main([str(folder), "--out", str(tmp_path), *flags])


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_filename\.txt"):
        mosaic.main([str(tmp_path), "--out", str(tmp_path)])
