"""Where the images that were found lie, as GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archive.index_folder import IndexFolder
from archive.searcher import Hit
from archive.store import NameRows
from data.rasters.places import Bounds
from utils import logger, named_by, write_text_atomic

DATE_LINE = 180.0


def write_places(path: Path, query: str, index: IndexFolder, hits: Sequence[Hit]) -> None:
    """Write a GeoJSON file of the hits of a query, the best first; how many have no place is said.

    Raises:
        InputError: the index is damaged, or the file can't be written.
    """
    rows = NameRows(index) if any(hit.row is None for hit in hits) else None
    features, lost = [], 0
    for rank, hit in enumerate(hits, start=1):
        row = hit.row if rows is None else rows.row(hit.name)
        bounds = None if row is None else index.bounds(row)
        lost += bounds is None
        properties = {"rank": rank, "score": hit.score, "name": hit.label, "query": query}
        geometry = None if bounds is None else rectangle(bounds)
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    with named_by("--geojson", path):
        write_text_atomic(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
    if lost:
        logger.warning(
            "%s: %d of %d images have no place: their files know none, or an earlier version made the index.",
            *(path, lost, len(hits)),
        )


def rectangle(bounds: Bounds) -> dict[str, Any]:
    """The geometry of west, south, east and north; of two parts where it lies across the date line."""
    west, south, east, north = bounds
    spans = [(west, east)] if west <= east else [(west, DATE_LINE), (-DATE_LINE, east)]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in spans]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}
