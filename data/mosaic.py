"""Lays a data set's images out as one large image with known places: `python -m data.mosaic`."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.annotations import Annotations, Split, check_images, read_annotations
from data.images import DEFAULT_RULE, load_square
from data.polygons import Place, write_places
from data.rasters.survey import settled
from data.scenes import scene_classes
from option import load_image_rule
from option.images import ImageRule
from runtime.arguments import add_image_settings
from runtime.entry_point import run_entry_point
from runtime.progress import progress_bar
from utils import InputError, write_atomic

IMAGE, PLACES = "mosaic.tif", "anno.json"


def class_blocks(classes: Sequence[str], rows: int, columns: int, generator: np.random.Generator) -> NDArray[np.str_]:
    """A class for each block [rows, columns]: each class equally often, as far as that goes, in random places."""
    count = rows * columns
    order = [name for _ in range(-(-count // len(classes))) for name in generator.permutation(classes)][:count]
    return np.asarray(generator.permutation(order)).reshape(rows, columns)


def common_captions(annotations: Annotations, classes: Sequence[str]) -> dict[str, str]:
    """The most frequent caption of each class; of equally frequent ones the first in the list."""
    captions: dict[str, list[str]] = defaultdict(list)
    for caption, image in zip(annotations.captions, annotations.caption_image, strict=True):
        if caption.strip():
            captions[classes[image]].append(caption.strip())
    return {name: Counter(found).most_common(1)[0][0] for name, found in captions.items()}


def places_of(blocks: NDArray[np.str_], captions: dict[str, str], block_side: int, side: int) -> list[Place]:
    """One entry per class, with a rectangle for each of its blocks in an image of `side` pixels.

    A block has `block_side` pixels; the last one of a row or column is cut off at the image's edge.
    """
    places = []
    for name in sorted(set(blocks.flat) & captions.keys()):
        corners = np.argwhere(blocks == name)[:, ::-1] * block_side  # x, y
        ends = np.minimum(corners + block_side, side) - 1
        rectangles = [
            np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float64)
            for (left, top), (right, bottom) in zip(corners, ends, strict=True)
        ]
        places.append(Place(IMAGE, captions[name], tuple(rectangles)))
    return places


def lay_out(
    blocks: NDArray[np.str_],
    images: dict[str, list[Path]],
    tile: int,
    tiles_per_block: int,
    side: int,
    seed: int,
    rule: ImageRule = DEFAULT_RULE,
) -> NDArray[np.uint8]:
    """The image [side, side, 3]: every block is filled with random images of its class.

    Args:
        blocks: class of each block.
        images: files of each class.
        tile: side of an image in the mosaic, pixels; the last one of a row or column is cut off.
        tiles_per_block: images side by side in a block.
        side: pixels.
        seed: of the choice.
        rule: how images are read.
    """
    generator = np.random.default_rng(seed)
    mosaic = np.zeros((side, side, 3), dtype=np.uint8)
    count = -(-side // tile)
    rule = settled(rule, [file for files in images.values() for file in files])
    for row in progress_bar(range(count), desc="rows of tiles", unit="row"):
        for column in range(count):
            files = images[str(blocks[row // tiles_per_block, column // tiles_per_block])]
            square = load_square(files[generator.integers(len(files))], tile, rule).transpose(1, 2, 0)
            part = mosaic[row * tile :, column * tile :][:tile, :tile]
            part[:] = square[: part.shape[0], : part.shape[1]]
    return mosaic


def main(arguments: Sequence[str] | None = None) -> None:
    """Write mosaic.tif and anno.json."""
    parser = argparse.ArgumentParser(
        prog="python -m data.mosaic",
        description="Lay a data set's images out as one large image with known places, to measure localization on.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the data set, with images/ in it")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=f"gets {IMAGE} and {PLACES}")
    parser.add_argument("--split", choices=get_args(Split), default="test", help="which list (test)")
    parser.add_argument("--size", type=int, default=10_000, help="side of the mosaic in pixels (10000)")
    parser.add_argument("--tile", type=int, default=256, help="side of an image in it (256)")
    parser.add_argument("--block", type=int, default=4, help="images side by side in a block of one class (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the places (0)")
    add_image_settings(parser)
    given = parser.parse_args(arguments)
    rule = load_image_rule(given.set)
    for name, least in (("tile", 2), ("block", 1), ("size", given.tile), ("seed", 0)):
        if getattr(given, name) < least:
            raise InputError(f"--{name} {getattr(given, name)}: expected at least {least}.")
    annotations = read_annotations(given.folder, given.split)
    image_folder = given.folder / "images"
    check_images(annotations, image_folder)
    classes = scene_classes(annotations)
    images: dict[str, list[Path]] = defaultdict(list)
    for name, scene in zip(annotations.image_names, classes, strict=True):
        images[scene].append(image_folder / name)
    block_side = given.tile * given.block
    count = -(-given.size // block_side)
    blocks = class_blocks(sorted(images), count, count, np.random.default_rng(given.seed))
    places = places_of(blocks, common_captions(annotations, classes), block_side, given.size)
    mosaic = Image.fromarray(lay_out(blocks, images, given.tile, given.block, given.size, given.seed, rule))
    write_atomic(given.out / IMAGE, lambda file: mosaic.save(file, format="TIFF"))
    write_places(given.out / PLACES, places)
    print(f"{given.out / IMAGE}: {given.size} x {given.size} pixels, {len(places)} classes; places in {PLACES}")


if __name__ == "__main__":
    run_entry_point(main)
