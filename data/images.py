"""Images: what a file becomes as red, green and blue.

Rules of decoding, whatever the file is called: its content must be JPEG, PNG or TIFF.

- Grey (1 to 8 bits) and palette images become RGB of the same look; CMYK and YCbCr are converted by Pillow.
- 16-bit grey is scaled from its full range: 0 to 65535 becomes 0 to 255, to the nearest value.
- 16 bits per colour keep their upper 8 bits.
- Alpha, a transparent colour and a fourth band are dropped, nothing is composited.
- 32-bit grey (whole numbers or floats), signed 16-bit grey, Lab and more than four bands have no range or colours that
  could be known, and are refused.
- An orientation in JPEG or PNG metadata is ignored; the orientation tag of a TIFF, which says in what order its rows
  are stored, is followed. Of several images in a file the first counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.lists import refuse_outside
from utils import InputError

DECODING_RULES = 1
"""Raised when a change above makes pixels that were stored earlier outdated."""

MAX_PIXELS = 100_000_000
"""The most that the commands which make data let an image have."""

MAX_SIDE = 65_535
"""Pixels of a side, as many as JPEG allows: a resize of a narrow image of 100 million rows takes gigabytes."""

ENDINGS = (".jpeg", ".jpg", ".png", ".tif", ".tiff")
"""Of the files that count as images where no list names them."""

_LFS_POINTER = b"version https://git-lfs"
_FORMATS = ("JPEG", "PNG", "TIFF")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}


def image_names(folder: Path) -> tuple[str, ...]:
    """The images below a folder by their endings, as paths relative to it, in alphabetical order.

    Hidden files and folders, whose names begin with a full stop, are passed over.

    Raises:
        InputError: there is none, or some lie outside of the folder behind symbolic links.
    """
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not paths:
        raise InputError(f"{folder}: no image there ({', '.join(ENDINGS)}).")
    refuse_outside(paths, folder)
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def decode(path: Path, max_pixels: int) -> Image.Image:
    """Decode an image to 8-bit RGB by the rules at the top of this module.

    Args:
        path: a JPEG, PNG or TIFF file.
        max_pixels: the most pixels that its header may announce; checked before anything is decoded. Pillow refuses
            about 179 million in any case.

    Raises:
        InputError: the file is missing, empty, damaged, too large (`MAX_SIDE`, too), or of a kind that is not read.
    """
    with opened(path, max_pixels) as image:
        return _to_rgb(image)


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image of which only the header is read so far; whatever goes wrong with it meanwhile names the file.

    Raises:
        InputError: see `decode`.
    """
    try:
        refuse_special(path)
        # Opened by name, Pillow 13 maps an uncompressed TIFF into memory and mixes up the rows of a turned one.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels, at most {max_pixels} are allowed "
                    "(dataset.max_pixels): scale the image down, or cut it into tiles"
                )
            if max(image.size) > MAX_SIDE:
                raise InputError(
                    f"{path}: {image.width} x {image.height} pixels, at most {MAX_SIDE} a side are allowed: cut it "
                    "into tiles"
                )
            _refuse_unknown_mode(path, image)
            yield image
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


def load_square(path: Path, size: int, max_pixels: int) -> np.ndarray:
    """`decode` an image and resize it to a square, bilinear with antialiasing, as the published transform does.

    Returns:
        [3, S, S] uint8, S = `size` pixels.
    """
    return to_square(decode(path, max_pixels), size)


def to_square(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image as `load_square` gives it, [3, S, S] uint8."""
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))  # [3, S, S]


def _to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB, by the rules of this module."""
    grey_of_16_bits = _is_16_bit_grey(image)
    image.load()
    if grey_of_16_bits:
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _is_16_bit_grey(image: Image.Image) -> bool:
    # Pillow 10.0 gives 16-bit PNG, but no other PNG, the mode of 32-bit grey.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _refuse_unknown_mode(path: Path, image: Image.Image) -> None:
    if image.mode not in _MODES and not _is_16_bit_grey(image):
        raise InputError(
            f"{path}: pixels of kind {image.mode!r} (Pillow's name) have no known range of brightness or colours; "
            "convert the image to 8-bit RGB or 16-bit grey"
        )


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
            "not an image of a kind that is read: expected JPEG, PNG, or TIFF with at most four bands of 8 or 16 "
            "bits; convert it, or copy it again if it is damaged"
        )
    return f"the image is damaged or cut short ({type(error).__name__}: {error}): copy it again"
