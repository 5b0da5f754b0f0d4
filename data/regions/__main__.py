"""Make and look at GaLR's region files: `python -m data.regions convert`, `build`, `show`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.images import decode, image_names
from data.rasters.survey import settled
from data.regions.coco import read_detections
from data.regions.drawing import draw_regions
from data.regions.file import by_region_name, read_regions, region_name, write_regions
from data.regions.graph import DESIGN, MAX_COSINE, MAX_IOU, region_arrays
from data.regions.proposals import APPEARANCES, propose_in_all
from data.regions.published import read_published
from option import load_image_rule
from option.images import MOST_PIXELS, ImageRule
from runtime.arguments import add_image_settings
from runtime.entry_point import run_entry_point
from utils import InputError, write_atomic

CONVERTED = "published arrays, converted; the meaning of their columns was never published"


def convert(given: argparse.Namespace) -> None:
    """`convert PUBLISHED.npy OUT.h5`."""
    arrays = read_published(given.published)
    write_regions(given.out, arrays, CONVERTED, given.published.name)
    print(f"{given.out}: regions of {len(arrays)} images")


def _rule(given: argparse.Namespace) -> ImageRule:
    return load_image_rule([f"dataset.max_pixels={given.max_pixels}", *given.set])


def build(given: argparse.Namespace) -> None:
    """`build --images FOLDER` or `build --detections JSON`, with `--out OUT.h5`."""
    if given.images is not None:
        names = by_region_name(image_names(given.images))
        paths = [given.images / name for name in names.values()]
        rule = settled(_rule(given), paths)
        detections = propose_in_all(given.images, list(names.values()), given.workers, rule)
        source, classes = "built-in proposals: segments of even colour scored by contrast", list(APPEARANCES)
    else:
        detections, classes = read_detections(given.detections)
        names, source = by_region_name(detections), f"detections of {given.detections.name}"
    arrays = {
        region: region_arrays(detections[name], given.max_iou, given.max_cosine) for region, name in names.items()
    }
    write_regions(given.out, arrays, DESIGN, source, classes)
    found = [int((nodes != 0).any(axis=1).sum()) for nodes, _ in arrays.values()]
    print(
        f"{given.out}: regions of {len(arrays)} images ({source}), {np.mean(found):.1f} per image, "
        f"{found.count(0)} images without any. This is our own design, not the published DREA."
    )


def show(given: argparse.Namespace) -> None:
    """`show IMAGE --regions OUT.h5 --out PNG`."""
    regions = read_regions(given.regions)
    parts = given.image.parts
    names = [region_name("/".join(parts[start:])) for start in range(len(parts))]
    name = next((name for name in names if name in regions.row), None)
    if name is None:
        raise InputError(f"{given.regions}: no regions of {names[-1]} ({len(regions.row)} other images are there).")
    if not regions.classes:
        raise InputError(f"{given.regions}: the meaning of its columns is not known, so no boxes can be drawn.")
    row = regions.row[name]
    image = decode(given.image, _rule(given))
    drawn = draw_regions(image, regions.nodes[row], regions.adjacency[row], regions.classes)
    write_atomic(given.out, lambda file: drawn.save(file, format="PNG"))
    print(given.out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(prog="python -m data.regions", description="Make and look at GaLR's region files.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    converting = command("convert", convert, "convert a published .npy without running anything from it")
    converting.add_argument("published", type=Path, metavar="PUBLISHED.npy")
    converting.add_argument("out", type=Path, metavar="OUT.h5")

    building = command("build", build, "build regions and their graph (our own design)")
    source = building.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="FOLDER", help="propose regions in every image below a folder")
    source.add_argument("--detections", type=Path, metavar="JSON", help="take a detector's output in COCO's form")
    building.add_argument("--out", type=Path, required=True, metavar="OUT.h5")
    building.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (all cores)")
    building.add_argument(
        "--max-iou", type=float, default=MAX_IOU, help="drop a box that overlaps a better one by more (0.5)"
    )
    building.add_argument(
        "--max-cosine",
        type=float,
        default=MAX_COSINE,
        help="drop an object whose row is closer to a better one (0.999)",
    )

    showing = command("show", show, "draw an image's regions and their graph")
    showing.add_argument("image", type=Path, metavar="IMAGE")
    showing.add_argument("--regions", type=Path, required=True, metavar="OUT.h5")
    showing.add_argument("--out", type=Path, required=True, metavar="PNG")
    for reading in (building, showing):
        reading.add_argument("--max-pixels", type=int, default=MOST_PIXELS, help="refuse larger images (1e8)")
        add_image_settings(reading)
    given = parser.parse_args(arguments)
    given.run(given)


if __name__ == "__main__":
    run_entry_point(main)
