"""Rasters by rasterio: which bands are red, green and blue, what they become in 8 bits, which pixels hold data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.rasters.tags import Tags, exif_turn, kind_of_file
from data.rasters.values import TURNS, Limits, Part, Turn, limits_of, to_8_bits, type_limits
from option.images import ImageRule
from utils import InputError, first_line, import_extra

CACHE_MEGABYTES = 64  # of decoded strips and tiles; GDAL's own choice is a share of the machine's memory
MOST_BLOCK = 2**31  # bytes of a strip or tile with all its bands, which is decoded as a whole
SAMPLE = 256  # pixels of the longer side of what a range is measured on
DRIVERS = {"TIFF": "GTiff", "JP2": "JP2OpenJPEG", "PNG16": "PNG"}
_COLOURS = ("red", "green", "blue")
_ASK = "say which are red, green and blue, or which one is grey, by their numbers (--set dataset.bands=[3,2,1])"
_opening = Lock()  # what warns is silenced for the whole process


@contextmanager
def open_raster(path: Path, rule: ImageRule) -> Iterator[Raster]:
    """Open a TIFF, a JPEG 2000 or a 16-bit PNG.

    Raises:
        InputError: it is damaged, too large, or does not say which bands are its colours; or rasterio is missing.
    """
    kind = kind_of_file(path)
    rasterio = import_extra("rasterio", f"{path}: {_why(kind)}", "geo")
    try:
        tags = Tags.of(path) if kind == "TIFF" else None
        turn = exif_turn(path) if kind == "PNG16" else 1 if tags is None else tags.orientation
    except Exception as fault:  # on damaged bytes Pillow's readers raise errors of nearly any class
        raise damaged(path, fault) from fault
    if kind == "PNG16":  # its colours are always known
        rule = rule.model_copy(update={"bands": None, "nodata": "none" if rule.nodata == "none" else "auto"})
    # Without a list of the folder, which may be long: a mask or world file beside the image is looked for by name.
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MEGABYTES, GDAL_DISABLE_READDIR_ON_OPEN=True):
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            try:
                dataset = rasterio.open(path, driver=DRIVERS[kind])
            except rasterio.errors.RasterioError as fault:
                raise damaged(path, fault) from fault
        with dataset:
            yield Raster(path, dataset, tags, turn, rule)


def _why(kind: str) -> str:
    names = {"JP2": "JPEG 2000", "PNG16": "a PNG of 16 bits per colour"}
    return f"{names.get(kind, 'a TIFF that is not plain 8-bit, or a part of one,')} is read with rasterio"


class Raster:
    """An open raster.

    Attributes:
        path: its file.
        dataset: of rasterio.
        width: as it is seen, pixels.
        height: as it is seen, pixels.
        bands: the numbers of those that are grey, or red, green and blue, or of a palette.
    """

    def __init__(self, path: Path, dataset: Any, tags: Tags | None, turn: int, rule: ImageRule) -> None:
        """Decide how it is read.

        Raises:
            InputError: see `open_raster`.
        """
        self.path, self.dataset, self.tags, self.rule = path, dataset, tags, rule
        self.turn: Turn = TURNS[turn]
        self.width, self.height = self.turn.size(dataset.width, dataset.height)
        _refuse_large(path, dataset, rule.max_pixels)
        self.kinds = [kind.name for kind in dataset.colorinterp]
        self.palette = _palette(dataset, self.kinds)
        self.bands = [1] if self.palette is not None else _chosen_bands(path, self.kinds, tags, rule)
        self.dtype = np.dtype(_one_type(path, {dataset.dtypes[band - 1] for band in self.bands}))
        self.white_is_zero = tags is not None and tags.white_is_zero

    @property
    def end(self) -> float:
        """Where its last strip or tile ends in the file; infinite where that is not known."""
        return float("inf") if self.tags is None else self.tags.end

    @property
    def mode(self) -> str:
        """Type and number of its bands, for a reader."""
        return f"{self.dtype} x {self.dataset.count}"

    @property
    def is_wide(self) -> bool:
        """Whether its numbers are of more than 8 bits, so that a range decides what is black and white."""
        return self.dtype != np.uint8

    @cached_property
    def bits(self) -> int | None:
        """Bits of a number that are used, where the file says so."""
        said = self.dataset.tags(self.bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "")
        return int(said) if said.isdigit() else None

    @cached_property
    def limits(self) -> Limits:
        """What becomes black and white."""
        if not self.is_wide or self.rule.range == "full":
            return type_limits(self.dtype, self.bits)
        return limits_of([self.sample()]) if isinstance(self.rule.range, str) else self.rule.range

    def sample(self) -> NDArray[Any]:
        """Numbers of some pixels of its bands that hold data, [*]."""
        shape = fitted(self.dataset.width, self.dataset.height, SAMPLE)[::-1]
        values, valid = self._stored(out_shape=(len(self.bands), *shape))
        return values.reshape(-1) if valid is None else values[:, valid].reshape(-1)

    def read(self, row: int, column: int, height: int, width: int) -> Part:
        """A part of it, as it is seen.

        Raises:
            InputError: the file is damaged.
        """
        y, x, h, w = self.turn.stored(row, column, height, width, (self.width, self.height))
        return self._part(window=((y, y + h), (x, x + w)))

    def whole(self) -> Part:
        """All of it; see `read`."""
        return self._part()

    def overview(self, side: int) -> Part:
        """The whole, scaled so that the longer side has at most `side` pixels; see `read`."""
        from rasterio.enums import Resampling

        # The mean of two numbers in a palette is another colour; the mean of data and a number that stands for none
        # is neither.
        exact = self.palette is not None or not isinstance(self.rule.nodata, str)
        width, height = fitted(self.dataset.width, self.dataset.height, side)
        method = Resampling.nearest if exact else Resampling.average
        return self._part(out_shape=(len(self.bands), height, width), resampling=method)

    def valid(self) -> NDArray[np.bool_] | None:
        """Which pixels [H, W] hold data; None: all of them."""
        if not self.may_lack_data:
            return None
        found = np.empty((self.height, self.width), bool)
        step = max(1, 2**24 // self.width)
        for row in range(0, self.height, step):
            part = self.read(row, 0, min(step, self.height - row), self.width)
            found[row : row + step] = True if part.valid is None else part.valid
        return None if found.all() else found

    @property
    def may_lack_data(self) -> bool:
        """Whether it can have pixels without data."""
        return self.dtype.kind == "f" or not isinstance(self.rule.nodata, str) or self._masks or self._alpha is not None

    @cached_property
    def _masks(self) -> bool:
        """Whether GDAL's masks say which pixels hold data."""
        return self.rule.nodata != "none" and self._flags != {"all_valid"} and not self._shadows

    @cached_property
    def _flags(self) -> set[str]:
        return {flag.name for band in self.bands for flag in self.dataset.mask_flag_enums[band - 1]}

    @property
    def _shadows(self) -> bool:
        """Whether a nodata value keeps alpha out of GDAL's masks: then both are looked at here."""
        return self._alpha is not None and "nodata" in self._flags

    @property
    def _empty(self) -> list[float]:
        """Numbers that stand for no data, beside those of GDAL's masks."""
        given = [] if isinstance(self.rule.nodata, str) else [self.rule.nodata]
        return [*given, self.dataset.nodata] if self._shadows else given

    @cached_property
    def _alpha(self) -> int | None:
        """The band that is alpha."""
        found = self.kinds.index("alpha") + 1 if "alpha" in self.kinds else None
        return None if self.rule.nodata == "none" or found in self.bands else found

    def _part(self, **part: Any) -> Part:
        """What rasterio reads, as RGB."""
        values, valid = self._stored(**part)
        if self.palette is not None:
            pixels = self.palette[values[0]]
        else:
            full = self.dtype == np.uint8 and self.bits in (None, 8)
            scaled = values if full else np.stack([to_8_bits(band, self.limits) for band in values])
            scaled = 255 - scaled if self.white_is_zero else scaled
            pixels = np.broadcast_to(scaled, (3, *scaled.shape[1:])).transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(self.turn.applied(pixels)))
        return Part(image, None if valid is None else self.turn.applied(valid))

    def _stored(self, **part: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Numbers [C, h, w] as they are stored, and which pixels [h, w] hold data."""
        from rasterio.errors import RasterioError

        flat = {key: value for key, value in part.items() if key != "resampling"}
        try:
            values = self.dataset.read(self.bands, **part)
            checks = []
            if self._masks:
                checks.append(self.dataset.read_masks(self.bands, **flat).any(axis=0))
            if self._alpha is not None:
                one = flat | ({"out_shape": flat["out_shape"][1:]} if "out_shape" in flat else {})
                checks.append(self.dataset.read(self._alpha, **one) > 0)
        except (RasterioError, MemoryError) as fault:
            raise damaged(self.path, fault) from fault
        checks += [(values != number).any(axis=0) for number in self._empty]
        if self.dtype.kind == "f":
            checks.append(np.isfinite(values).all(axis=0))
        return values, np.logical_and.reduce(checks) if checks else None


def _refuse_large(path: Path, dataset: Any, most: int) -> None:
    width, height = dataset.width, dataset.height
    if width * height > most:
        raise InputError(
            f"{path}: {width} x {height} pixels, at most {most} are allowed (dataset.max_pixels): cut the image into "
            f"tiles, or allow more (--set dataset.max_pixels={width * height}; in localize.py a pixel takes about 6 "
            "bytes)"
        )
    rows, columns = dataset.block_shapes[0]
    block = rows * columns * dataset.count * np.dtype(_one_type(path, {dataset.dtypes[0]})).itemsize
    if block > MOST_BLOCK:
        raise InputError(
            f"{path}: a strip or tile of {columns} x {rows} pixels and {dataset.count} bands takes {block / 2**30:.1f} "
            "GiB: save it in tiles (gdal_translate -co TILED=YES)"
        )


def _one_type(path: Path, types: set[str]) -> str:
    """The type of some bands, which must be one and have an order."""
    if len(types) > 1 or any(kind.startswith("complex") for kind in types):
        raise InputError(
            f"{path}: bands of {', '.join(sorted(types))} are not read as colours; choose others (dataset.bands)"
        )
    return next(iter(types))


def _chosen_bands(path: Path, kinds: list[str], tags: Tags | None, rule: ImageRule) -> list[int]:
    """The bands that are grey, or red, green and blue; numbers from 1.

    Raises:
        InputError: the file does not say, or has no such bands.
    """
    if tags is not None and tags.colours is None:
        raise InputError(f"{path}: colours of a kind that is not read ({tags.colour_name}); convert it to RGB")
    if rule.bands is not None:
        if max(rule.bands) > len(kinds):
            raise InputError(
                f"{path}: {len(kinds)} bands, but dataset.bands asks for number {max(rule.bands)}; give others"
            )
        return list(rule.bands)
    if all(kinds.count(colour) == 1 for colour in _COLOURS):
        return [kinds.index(colour) + 1 for colour in _COLOURS]
    rest = [number for number, kind in enumerate(kinds, start=1) if kind != "alpha"]
    undeclared = not {kinds[number - 1] for number in rest} - {"gray", "undefined"}
    if undeclared and len(rest) in (1, 3):
        return rest
    if kinds.count("gray") == 1 and len(rest) == 1:
        return rest
    raise InputError(f"{path}: {len(kinds)} bands ({', '.join(kinds)}) do not say what they show: {_ASK}")


def _palette(dataset: Any, kinds: list[str]) -> NDArray[np.uint8] | None:
    """The colours [65536 or 256, 3] that an only band's numbers stand for, None where they are brightness."""
    if kinds[0] != "palette":
        return None
    colours = np.zeros((2**16 if dataset.dtypes[0] == "uint16" else 2**8, 3), dtype=np.uint8)
    for number, colour in dataset.colormap(1).items():
        colours[number] = colour[:3]
    return colours


def damaged(path: Path, fault: Exception) -> InputError:
    """An error that says so."""
    reason = fault.__cause__ if isinstance(fault.__cause__, Exception) else fault  # rasterio says only where to look
    return InputError(f"{path}: the image is damaged or cut short ({first_line(reason)}): copy it again")


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with a longer side of at most `side`."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
