"""The files that localization writes of each query, and the summary of all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.rasters.places import Georeference, world_endings
from localization.drawing import SIDE, draw_map
from localization.finds import COLUMNS, areas_above, as_geojson, centre_rows
from localization.indicators import Indicators, attention_centres, indicators
from localization.large_image import LargeImage, write_geotiff
from localization.tasks import Task
from localization.windows import MeanMap
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, as_csv, logger, markdown, write_atomic, write_text_atomic

SUMMARY, CENTRES = "localization.json", "centres.csv"


@dataclass(frozen=True)
class Settings:
    """Of maps: the side of the median filter in pixels, and from where on a level in 0..1 counts as found."""

    median: int
    threshold: float


def write_maps(
    out: Path, task: Task, image: LargeImage, maps: Iterable[MeanMap], settings: Settings
) -> Iterator[dict[str, Any]]:
    """Write the files of each query of an image: a drawing, and the map itself where no annotations measure it.

    Args:
        out: folder of the files.
        task: the queries.
        image: their image, open.
        maps: of each query.
        settings: of the maps.

    Yields:
        The entry of each query in `localization.json`.
    """
    if not task.places:
        say_coordinates(task.image, image.georeference)
    overview = image.overview(SIDE).filled()
    for index, (number, query, mean) in enumerate(zip(task.numbers, task.queries, maps, strict=True)):
        name = f"{number:03d}_{re.sub(r'[^a-z0-9]+', '_', query.lower())[:40].strip('_')}"
        levels, known = mean.levels(settings.median), mean.known()
        centres = attention_centres(levels, known)
        polygons = task.places[index].polygons if task.places else ()
        drawing = draw_map(overview, levels, query, centres, polygons, (mean.lowest, mean.highest), known)
        write_atomic(out / f"{name}.png", partial(drawing.save, format="PNG"))
        entry = {"number": number, "image": str(task.image), "query": query}
        entry |= {"lowest": mean.lowest, "highest": mean.highest}
        entry |= {"range": image.limits} if image.limits is not None else {}
        entry["attention_centres"] = centres.round(1).tolist()
        entry["centre_scores"] = [round(score, 6) for score in mean.at(centres).tolist()] if len(centres) else []
        if task.places:
            entry["indicators"] = asdict(indicators(levels, centres, polygons))
        else:
            rows = centre_rows(number, query, centres, mean, levels, image.georeference)
            _write_map(out / name, query, mean, levels, known, rows, image, settings.threshold)
            entry["centres"] = rows
            print(f"{name}: attention centres at (x, y) {centres.round().astype(int).tolist()}")
        yield entry


def _write_map(
    stem: Path,
    query: str,
    mean: MeanMap,
    levels: NDArray[np.uint8],
    known: NDArray[np.bool_] | None,
    rows: Sequence[dict[str, Any]],
    image: LargeImage,
    threshold: float,
) -> None:
    """The map as numbers, as GeoTIFF where the image has coordinates, and what it finds as GeoJSON."""
    write_atomic(stem.with_name(f"{stem.name}.npy"), partial(np.save, arr=levels))
    if image.georeference is not None:
        write_geotiff(stem.with_name(f"{stem.name}.tif"), levels, image.georeference, query, known)
    areas = list(areas_above(levels, threshold))
    found = as_geojson(query, rows, areas, mean, image.georeference)
    write_text_atomic(stem.with_name(f"{stem.name}.geojson"), json.dumps(found) + "\n")


def say_coordinates(path: Path, georeference: Georeference | None) -> None:
    """Say what is missing where a map can't have all coordinates."""
    if georeference is None:
        logger.warning(
            "%s has no coordinates (no transform, control points or world file such as %s): maps are written without a "
            "GeoTIFF, places in pixels.",
            *(path, path.with_suffix(world_endings(path)[0]).name),
        )
    elif georeference.crs is None:
        logger.warning(
            "%s does not name its coordinate system (no %s beside it): neither do the files that are written.",
            *(path, path.with_suffix(".prj").name),
        )


def summarise(entries: Sequence[dict[str, Any]], sides: Sequence[int], settings: Settings) -> dict[str, Any]:
    """The content of `localization.json`: the settings, the entries by number, and the means of their indicators."""
    ordered = sorted(entries, key=lambda entry: entry["number"])
    summary: dict[str, Any] = {"windows": list(sides), **asdict(settings), "queries": ordered}
    if "indicators" in ordered[0]:
        names = [field.name for field in fields(Indicators)]
        summary["mean"] = {name: fmean(entry["indicators"][name] for entry in ordered) for name in names}
    return summary


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write `localization.json`, and `centres.csv` where places were looked for."""
    rows = [row for entry in summary["queries"] for row in entry.pop("centres", ())]
    if "mean" not in summary:
        write_text_atomic(out / CENTRES, as_csv(rows) if rows else ",".join(COLUMNS) + "\n")
    summary["files"] = sorted(path.name for path in out.iterdir())
    write_text_atomic(out / SUMMARY, json.dumps(summary, indent=2) + "\n")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to write into; at its end its files take the place of those that an earlier run left in `out`.

    Raises:
        InputError: see `own_files`.
    """
    before = own_files(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".unfinished-", dir=out) as name:
            new = Path(name)
            yield new
            written = {path.name for path in new.iterdir()}
            for path in sorted(new.iterdir(), key=lambda path: path.name == SUMMARY):  # the list of them last
                path.replace(out / path.name)
    finally:
        if not any(out.iterdir()):
            out.rmdir()
    for gone in before - written:
        (out / gone).unlink(missing_ok=True)


def own_files(out: Path) -> set[str]:
    """What an earlier run has written into a folder.

    Raises:
        InputError: the folder holds files that no earlier run has listed as its own.
    """
    if not out.is_dir() or not any(not path.name.startswith(".") for path in out.iterdir()):
        return set()
    try:
        content = parse_json(read_bytes(out / SUMMARY))
    except (OSError, ValueError):
        content = None
    files = content.get("files") if isinstance(content, dict) else None
    plain = isinstance(files, list) and all(isinstance(name, str) and Path(name).name == name != ".." for name in files)
    if not isinstance(files, list) or not plain:
        raise InputError(
            f"--out {out}: it holds files that are not listed as those of an earlier run; give another folder."
        )
    return {*files, SUMMARY}


def indicator_table(summary: dict[str, Any]) -> str:
    """A Markdown table of the four indicators of each entry, and their means."""
    mean = summary["mean"]
    cells = [["entry", *(name.capitalize() for name in mean), "image", "caption"]]
    for entry in summary["queries"]:
        values = [f"{value:.4f}" for value in entry["indicators"].values()]
        cells.append([str(entry["number"]), *values, Path(entry["image"]).name, entry["query"][:60]])
    return markdown([*cells, ["mean", *(f"{value:.4f}" for value in mean.values()), "", ""]])
