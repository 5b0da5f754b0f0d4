"""The files that localization writes of each query, and the summary of all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from localization.drawing import SIDE, draw_map
from localization.indicators import Indicators, attention_centres, indicators
from localization.large_image import LargeImage, write_geotiff
from localization.tasks import Task
from localization.windows import MeanMap
from utils import markdown, write_atomic


def write_maps(
    out: Path, task: Task, image: LargeImage, maps: Iterable[MeanMap], median: int
) -> Iterator[dict[str, Any]]:
    """Write the files of each query of an image: a drawing, and the map itself where no annotations measure it.

    Args:
        out: folder of the files.
        task: the queries.
        image: their image, open.
        maps: of each query.
        median: side of the median filter, see `MeanMap.levels`.

    Yields:
        The entry of each query in `localization.json`.
    """
    overview = image.overview(SIDE)
    for index, (number, query, mean) in enumerate(zip(task.numbers, task.queries, maps, strict=True)):
        name = f"{number:03d}_{re.sub(r'[^a-z0-9]+', '_', query.lower())[:40].strip('_')}"
        levels = mean.levels(median)
        centres = attention_centres(levels)
        polygons = task.places[index].polygons if task.places else ()
        drawing = draw_map(overview, levels, query, centres, polygons)
        write_atomic(out / f"{name}.png", partial(drawing.save, format="PNG"))
        entry = {"number": number, "image": str(task.image), "query": query}
        entry |= {"lowest": float(mean.values.min()), "highest": float(mean.values.max())}
        entry["attention_centres"] = centres.round(1).tolist()
        if task.places:
            entry["indicators"] = asdict(indicators(levels, centres, polygons))
        else:
            write_atomic(out / f"{name}.npy", partial(np.save, arr=levels))
            if image.georeference is not None:
                write_geotiff(out / f"{name}.tif", levels, image.georeference, query)
            print(f"{name}: attention centres at (x, y) {centres.round().astype(int).tolist()}")
        yield entry


def summarise(entries: Sequence[dict[str, Any]], sides: Sequence[int], median: int) -> dict[str, Any]:
    """The content of `localization.json`: the settings, the entries by number, and the means of their indicators."""
    ordered = sorted(entries, key=lambda entry: entry["number"])
    summary: dict[str, Any] = {"windows": list(sides), "median": median, "queries": ordered}
    if "indicators" in ordered[0]:
        names = [field.name for field in fields(Indicators)]
        summary["mean"] = {name: fmean(entry["indicators"][name] for entry in ordered) for name in names}
    return summary


def indicator_table(summary: dict[str, Any]) -> str:
    """A Markdown table of the four indicators of each entry, and their means."""
    mean = summary["mean"]
    cells = [["entry", *(name.capitalize() for name in mean), "image", "caption"]]
    for entry in summary["queries"]:
        values = [f"{value:.4f}" for value in entry["indicators"].values()]
        cells.append([str(entry["number"]), *values, Path(entry["image"]).name, entry["query"][:60]])
    return markdown([*cells, ["mean", *(f"{value:.4f}" for value in mean.values()), "", ""]])
