"""The range of an archive of images with more than 8 bits, measured once so that all of them are read alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.rasters.reader import open_raster
from data.rasters.tags import BITS, Tags, kind_of_file
from data.rasters.values import PERCENTILES, Limits, limits_of, type_limits
from option.images import ImageRule
from utils import InputError, logger

LOOKED_AT = 500  # files whose kind is looked up, evenly spread over the archive
MEASURED = 48  # of those with more than 8 bits
FAR_BELOW = 0.25  # of the range: numbers that fill less leave images nearly black, white or grey
MAY_BE_WIDE = (".jp2", ".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Survey:
    """What some images of an archive with more than 8 bits have in common.

    Attributes:
        types: of their numbers.
        lowest: number.
        highest: number.
        limits: the percentiles of the numbers of all.
        count: how many images were measured.
        full: all that the first one's type holds.
    """

    types: tuple[str, ...]
    lowest: float
    highest: float
    limits: Limits
    count: int
    full: Limits


def settled(rule: ImageRule, paths: Sequence[Path]) -> ImageRule:
    """A rule whose range is numbers, where it is `auto` and some images have more than 8 bits; what was found is said.

    Args:
        rule: how the images are to be read.
        paths: all of them, in any order.
    """
    found = survey(paths, rule)
    if found is None or rule.range == "own":
        return rule
    held = f"{' and '.join(found.types)}, {found.lowest:g} to {found.highest:g} in {found.count} that were looked at"
    if rule.range != "auto":
        given = rule.range if isinstance(rule.range, str) else "[{:g},{:g}]".format(*rule.range)
        logger.info("Images with more than 8 bits (%s) are read with dataset.range=%s.", held, given)
        _warn_of_misfit(found, found.full if rule.range == "full" else rule.range)
        return rule
    if len(found.types) > 1:
        logger.warning(
            "Images with more than 8 bits are of several types (%s): each is read in a range of its own. Keep one type "
            "in an archive, or give dataset.range.",
            held,
        )
        return rule
    low, high = (float(f"{limit:.4g}") for limit in found.limits)
    low, high = (low, high) if low < high else found.limits
    shown = f"[{low:g},{high:g}]"
    logger.info(
        "Images with more than 8 bits (%s): %g to %g become black to white, percentiles %g and %g (dataset.range=%s).",
        *(held, low, high, *PERCENTILES, shown),
    )
    return rule.model_copy(update={"range": (low, high)})


def _warn_of_misfit(found: Survey, limits: Limits) -> None:
    """Warn where nearly all numbers become black, white or the same grey."""
    low, high = limits
    filled = min(found.highest, high) - max(found.lowest, low)
    if filled < FAR_BELOW * (high - low) or found.limits[1] - low > (high - low) / FAR_BELOW:
        logger.warning(
            "Images with more than 8 bits hold %g to %g, but dataset.range makes black of %g and white of %g: they "
            "will hardly show anything. Try dataset.range=auto.",
            *(found.lowest, found.highest, low, high),
        )


def survey(paths: Sequence[Path], rule: ImageRule) -> Survey | None:
    """Measure some images with more than 8 bits, evenly spread over those given; None where none is found.

    Images that can't be read are passed over: whoever reads them says so.
    """
    candidates = _spread(sorted(path for path in paths if path.suffix.lower() in MAY_BE_WIDE), LOOKED_AT)
    samples: dict[str, list[NDArray[Any]]] = {}
    full: Limits | None = None
    for path in _spread([path for path in candidates if _is_wide(path)], MEASURED):
        try:
            with open_raster(path, rule) as raster:
                if raster.is_wide and raster.palette is None and len(sample := raster.sample()):
                    samples.setdefault(str(raster.dtype), []).append(sample)
                    full = full or type_limits(raster.dtype, raster.bits)
        except (InputError, OSError):
            continue
    if full is None:
        return None
    pooled = [sample.astype(np.float64) for of_type in samples.values() for sample in of_type]
    lowest, highest = min(float(sample.min()) for sample in pooled), max(float(sample.max()) for sample in pooled)
    return Survey(tuple(sorted(samples)), lowest, highest, limits_of(pooled), len(pooled), full)


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """So many of some paths, evenly spread over them."""
    if len(paths) <= most:
        return list(paths)
    return [paths[place] for place in np.linspace(0, len(paths) - 1, most).round().astype(int)]


def _is_wide(path: Path) -> bool:
    """Whether a file may hold more than 8 bits; of JPEG 2000 that is found out when it is opened."""
    if not path.is_file():  # a named pipe would never end
        return False
    try:
        kind = kind_of_file(path)
        return bool(kind) and (kind != "TIFF" or max(Tags.of(path)[BITS]) > 8)
    except Exception:  # on damaged bytes Pillow's readers raise errors of nearly any class
        return False
