"""Images: what a file becomes as red, green and blue.

What a file is, its content says, whatever it is called. Plain ones are read by Pillow: JPEG, PNG, WebP, BMP, GIF, and
TIFFs of at most 8 bits that declare nothing but common colours. All other TIFFs, JPEG 2000 and PNGs of 16 bits are
rasters, read by rasterio (`data.rasters`): the bands that are declared red, green and blue, or those that the rule
names, are scaled from the rule's range to 8 bits. For both:

- Grey, palette, CMYK and YCbCr images become RGB of the same look.
- Pixels that hold no data (nodata value, mask, alpha 0, a transparent colour) take the mean colour of the others.
- The orientation that a file declares is followed. Of several images in a file the first counts.
- What is not certain is refused: bands that do not say what they show, Lab, complex numbers.

docs/images.md says the same for users.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.lists import refuse_outside
from data.rasters.reader import open_raster
from data.rasters.tags import FORMATS, Tags, kind_of_file, orientation_of
from data.rasters.values import TURNS, Part
from option.images import ImageRule
from utils import InputError, logger

DECODING_RULES = 2
"""Raised when a change above makes pixels that were stored earlier outdated."""

MAX_SIDE = 65_535
"""Pixels of a side, as many as JPEG allows: a resize of a narrow image of 100 million rows takes gigabytes."""

ENDINGS = (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of the files that count as images where no list names them."""

BESIDE = (".aux.xml", ".ovr", ".msk", ".prj", ".tfw", ".tifw", ".jgw", ".pgw", ".wld")
"""Of files that belong to an image beside them."""

DEFAULT_RULE = ImageRule()
NAMED_ENDINGS = 4  # of files that are passed over
_LFS_POINTER = b"version https://git-lfs"
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_WITH_ALPHA = {"LA", "PA", "RGBA"}


def image_names(folder: Path) -> tuple[str, ...]:
    """The images below a folder by their endings, as paths relative to it, in alphabetical order.

    Hidden files and folders, whose names begin with a full stop, are passed over.

    Raises:
        InputError: there is none, or some lie outside of the folder behind symbolic links.
    """
    files = sorted(path for path in folder.rglob("*") if not _is_hidden(path, folder) and path.is_file())
    paths = [path for path in files if path.suffix.lower() in ENDINGS]
    if not paths:
        raise InputError(f"{folder}: no image there ({', '.join(ENDINGS)}).{_passed_over(files)}")
    refuse_outside(paths, folder)
    if over := _passed_over(files):
        _say_once(f"{folder}: {len(paths)} {'image' if len(paths) == 1 else 'images'}.{over}")
    return tuple(path.relative_to(folder).as_posix() for path in paths)


@cache
def _say_once(text: str) -> None:
    logger.info("%s", text)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _passed_over(files: Iterable[Path]) -> str:
    """How many files are no images by their endings, in words; those that belong to an image are not counted."""
    endings = Counter(
        path.suffix.lower() or "no ending"
        for path in files
        if path.suffix.lower() not in ENDINGS and not path.name.lower().endswith(BESIDE)
    )
    if not endings:
        return ""
    named = [f"{count} of {ending}" for ending, count in endings.most_common(NAMED_ENDINGS)]
    more = ", ..." if len(endings) > NAMED_ENDINGS else ""
    return f" Passed over as no images by their endings: {', '.join(named)}{more}."


def decode(path: Path, rule: ImageRule = DEFAULT_RULE) -> Image.Image:
    """Decode an image to 8-bit RGB by what is said at the top of this module.

    Args:
        path: the file.
        rule: its `max_pixels` is compared with what the header announces before anything is decoded. Pillow refuses
            about 179 million in any case.

    Raises:
        InputError: the file is missing, empty, damaged, too large (`MAX_SIDE`, too), of a kind that is not read, or
            without any pixel that holds data.
    """
    part = read(path, rule)
    if part.valid is not None and not part.valid.any():
        raise InputError(f"{path}: no pixel holds data, by its nodata value, mask or alpha (dataset.nodata)")
    return part.filled()


def read(path: Path, rule: ImageRule) -> Part:
    """An image as its file holds it, and which of its pixels hold data; see `decode`."""
    with _told(path):
        if not is_raster(path, rule):
            with opened(path, rule) as image:
                return to_part(image, rule)
        with open_raster(path, rule) as raster:
            _refuse_large(path, raster.width, raster.height, rule.max_pixels)
            return raster.whole()


def is_raster(path: Path, rule: ImageRule) -> bool:
    """Whether rasterio has to read a file; raises nearly anything for a damaged one."""
    kind = kind_of_file(path)
    if kind != "TIFF":
        return bool(kind)
    asked = rule.bands is not None or not isinstance(rule.nodata, str)
    beside = any(path.with_name(path.name + ending).exists() for ending in (".aux.xml", ".msk"))
    return asked or beside or not Tags.of(path).is_plain()


def mark_of(path: Path, rule: ImageRule) -> str:
    """What the pixels of a file depend on beside its content: equal marks, equal pixels.

    Empty for a file that has been read alike under all rules so far: 8 bits, upright, every pixel holding data.

    Raises:
        InputError: see `decode`.
    """
    with _told(path):
        if not is_raster(path, rule):
            with opened(path, rule) as image:
                if orientation_of(image) == 1 and not _has_alpha(image):
                    return ""
    return f" {json.dumps([DECODING_RULES, *rule.deciding()])}"


@contextmanager
def opened(path: Path, rule: ImageRule) -> Iterator[Image.Image]:
    """An image of which only the header is read so far, by Pillow; whatever goes wrong meanwhile names the file.

    Raises:
        InputError: see `decode`.
    """
    # Opened by name, Pillow 13 maps an uncompressed TIFF into memory and mixes up the rows of a turned one.
    with _told(path), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        _refuse_large(path, image.width, image.height, rule.max_pixels)
        if image.mode not in _MODES:
            raise InputError(
                f"{path}: pixels of kind {image.mode!r} (Pillow's name) have no known range of brightness or colours; "
                "convert the image to 8-bit RGB"
            )
        yield image


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Puts whatever goes wrong with a file into an InputError that names it."""
    try:
        refuse_special(path)
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        away = "" if path.parent.is_dir() else "; its folder is not there either: is the disk mounted?"
        raise InputError(f"{path}: no such image{away}") from error
    except Exception as error:  # on damaged bytes Pillow's readers raise errors of nearly any class
        raise InputError(f"{path}: {_reason(path, error)}") from error


def refuse_special(path: Path) -> None:
    """Raise an InputError for a named pipe or a device, which would never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: not an image: no regular file")


def _refuse_large(path: Path, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise InputError(
            f"{path}: {width} x {height} pixels, at most {most} are allowed (dataset.max_pixels): scale the image "
            "down, or cut it into tiles"
        )
    if max(width, height) > MAX_SIDE:
        raise InputError(f"{path}: {width} x {height} pixels, at most {MAX_SIDE} a side are allowed: cut it into tiles")


def load_square(path: Path, size: int, rule: ImageRule = DEFAULT_RULE) -> np.ndarray:
    """`decode` an image and resize it to a square, bilinear with antialiasing, as the published transform does.

    Returns:
        [3, S, S] uint8, S = `size` pixels.
    """
    return to_square(decode(path, rule), size)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as `load_square` gives it, [3, S, S] uint8."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [3, S, S]


def to_part(image: Image.Image, rule: ImageRule) -> Part:
    """An image that Pillow has opened, upright as RGB, with the pixels that hold data."""
    turn = 1 if image.format == "TIFF" else orientation_of(image)  # a TIFF's is followed as it is loaded
    image.load()
    valid = None
    if _has_alpha(image) and rule.nodata != "none":
        image = image.convert("RGBA")
        valid = np.asarray(image.getchannel("A")) > 0
        valid = None if valid.all() else valid
    image.info.pop("transparency", None)
    image = image.convert("RGB")
    if turn == 1:
        return Part(image, valid)
    upright = Image.fromarray(np.ascontiguousarray(TURNS[turn].applied(np.asarray(image))))
    return Part(upright, None if valid is None else TURNS[turn].applied(valid))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _reason(path: Path, error: Exception) -> str:
    """Why Pillow could not read an image, in words for the reader."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"the header announces more pixels than Pillow allows ({error}): cut the image into tiles"
    if isinstance(error, OSError) and error.errno is not None:
        return f"can't be read ({error.strerror})"
    if path.stat().st_size == 0:
        return "the image is empty (0 bytes): copy it again"
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return "a pointer of Git LFS, not the image itself: fetch the images with git lfs pull"
        return (
            "not an image of a kind that is read (JPEG, PNG, TIFF, JPEG 2000, WebP, BMP, GIF): convert it, or copy it "
            "again if it is damaged"
        )
    return f"the image is damaged or cut short ({type(error).__name__}: {error}): copy it again"
