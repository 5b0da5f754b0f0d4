"""How a file becomes red, green and blue: what a YAML says of it in its `dataset` block (docs/images.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from option.parameters import Parameters

MOST_PIXELS = 100_000_000
"""What an image may have unless something else is said."""


def _one_or_three(bands: tuple[int, ...]) -> tuple[int, ...]:
    if len(bands) not in (1, 3):
        raise ValueError("allowed: the number of one band (grey), or of three (red, green and blue)")
    return bands


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("allowed: two numbers, the lower one first")
    return limits


BandNumber = Annotated[int, Field(ge=1, le=2**16)]
Bands = Annotated[tuple[BandNumber, ...], AfterValidator(_one_or_three)]
Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class ImageRule(Parameters):
    """What decides the pixels of an image beside its file."""

    max_pixels: int = Field(
        default=MOST_PIXELS, ge=1, le=10**9, description="images with more pixels are refused undecoded [pixels]"
    )
    bands: Bands | None = Field(
        default=None,
        description="of TIFF and JPEG 2000: the bands that are red, green and blue, such as [3, 2, 1], or grey; null: "
        "as the file declares",
    )
    range: Literal["auto", "own", "full"] | Range = Field(
        default="auto",
        description="beyond 8 bits: values that become black and white, such as [0, 3000]; auto: the archive's "
        "percentiles; own: each image's; full: the type's",
    )
    nodata: Literal["auto", "none"] | float = Field(
        default="auto",
        description="pixels that hold no data; auto: by the file's nodata value, mask or alpha; a number: those of "
        "this value, too; none: no pixel",
    )

    @property
    def rule(self) -> ImageRule:
        """The rule alone, small enough to be sent to worker processes."""
        return ImageRule(max_pixels=self.max_pixels, bands=self.bands, range=self.range, nodata=self.nodata)

    def deciding(self) -> list[Any]:
        """What pixels depend on: equal for rules that read every file alike."""
        return [self.bands, self.range, self.nodata]


class ImageOptions(Parameters):
    """What commands without a YAML are told of images."""

    dataset: ImageRule = ImageRule()
