"""What a map finds, as a table and as GeoJSON: attention centres, and areas above a threshold.

Letters: H W image in pixels, K centres, V vertices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.rasters.places import Georeference
from localization.indicators import TOP_LEVEL, opencv
from localization.windows import MeanMap

COLUMNS = ("number", "query", "x_pixel", "y_pixel", "x", "y", "score", "level")
KEPT = ("query", "score", "level")


@dataclass(frozen=True)
class Area:
    """Pixels that touch and lie above a threshold.

    Attributes:
        rings: the outline, then the holes, each [V, 2] as x and y in pixels from the upper left corner.
        pixels: how many.
        mean: of the map, 0 to 1.
        highest: of the map, 0 to 1.
    """

    rings: Sequence[NDArray[np.float64]]
    pixels: int
    mean: float
    highest: float


def areas_above(levels: NDArray[np.uint8], threshold: float) -> Iterator[Area]:
    """The areas of a map in 0..255 that reach `threshold` in 0..1, above 0; in reading order."""
    from rasterio.features import shapes

    cv2 = opencv()
    above = (levels >= max(1, threshold * TOP_LEVEL)).astype(np.uint8)
    kinds = (4, cv2.CV_16U, cv2.CCL_DEFAULT)
    _, labels, figures, _ = cv2.connectedComponentsWithStatsWithAlgorithm(above, *kinds)
    for shape, label in shapes(labels, mask=above.view(bool), connectivity=4):
        left, top, width, height, count = figures[int(label)]
        box = np.s_[top : top + height, left : left + width]
        own = levels[box][labels[box] == int(label)]
        rings = [np.array(ring, dtype=np.float64) for ring in shape["coordinates"]]
        yield Area(rings, int(count), float(own.mean()) / TOP_LEVEL, float(own.max()) / TOP_LEVEL)


def centre_rows(
    number: int,
    query: str,
    centres: NDArray[np.float64],
    mean: MeanMap,
    levels: NDArray[np.uint8],
    georeference: Georeference | None,
) -> list[dict[str, Any]]:
    """The rows of the table of centres [K, 2], see `COLUMNS`; x and y are None where the image has no coordinates."""
    if not len(centres):
        return []
    places = [(None, None)] * len(centres) if georeference is None else georeference.xy(centres + 0.5).tolist()
    columns, rows = centres.round().astype(int).T
    return [
        dict(zip(COLUMNS, (number, query, *centre, *place, score, level / TOP_LEVEL), strict=True))
        for centre, place, score, level in zip(
            centres.tolist(), places, mean.at(centres).tolist(), levels[rows, columns].tolist(), strict=True
        )
    ]


def as_geojson(
    query: str, rows: Sequence[dict[str, Any]], areas: Sequence[Area], mean: MeanMap, georeference: Georeference | None
) -> dict[str, Any]:
    """Centres as points and areas as polygons, in the image's coordinates; in pixels where it has none.

    The coordinate system is named as GeoJSON of 2008 did, since that of 2016 allows degrees of WGS 84 alone.
    """
    names = ("x_pixel", "y_pixel") if georeference is None else ("x", "y")
    features = [
        _feature("Point", [row[name] for name in names], kind="centre", **{key: row[key] for key in KEPT})
        for row in rows
    ]
    spread = mean.highest - mean.lowest
    for area in areas:
        rings = [(ring if georeference is None else georeference.xy(ring)).tolist() for ring in area.rings]
        figures = {"score": mean.lowest + spread * area.mean, "level": area.mean, "highest_level": area.highest}
        features.append(_feature("Polygon", rings, kind="area", query=query, **figures, pixels=area.pixels))
    named = {} if georeference is None else crs_member(georeference.crs)
    pixels = {"coordinates": "pixels, x to the right, y down"} if georeference is None else {}
    return {"type": "FeatureCollection", **named, **pixels, "features": features}


def crs_member(crs: Any | None) -> dict[str, Any]:
    """The member `crs` of a GeoJSON file; none where the coordinate system is not known, or is that of GeoJSON.

    One that has no number is named by its WKT: without a name, its coordinates would count as degrees.
    """
    authority = None if crs is None else crs.to_authority()
    if crs is None or authority == ("EPSG", "4326"):
        return {}
    name = crs.to_wkt() if authority is None else f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"
    return {"crs": {"type": "name", "properties": {"name": name}}}


def _feature(form: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": form, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}
