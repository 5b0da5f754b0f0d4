"""Block `dataset` of an experiment, and what it has in common with that of a pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import Field

from option.images import ImageRule
from option.parameters import MOST_ITEMS, GivenPath

Angles = Literal["published", "overhead", "right_angles", "none"]
Views = Literal["one", "right_angles"]
Batching = Literal["pairs", "images", "one_caption"]
MOST_SIDE = 4096  # pixels


class ImageReading(ImageRule):
    """What the `dataset` block of every entry point says about reading images."""

    batch_size: int = Field(
        default=100,
        ge=2,
        le=MOST_ITEMS,
        description="items per training batch, of each device; where they are pairs, every other pair of the batch is "
        "a negative [items]",
    )
    batch_size_val: int = Field(
        default=70, ge=1, le=MOST_ITEMS, description="images or captions encoded at a time in evaluation [items]"
    )
    workers: int = Field(
        default=2, ge=0, le=256, description="processes that read images; 0: the main process does [processes]"
    )
    image_size: int = Field(
        default=256,
        ge=64,
        le=MOST_SIDE,
        description="side of the images that the model sees; AMFMN, GaLR, SWAN, MCRN: a multiple of 32; CLIP: its "
        "architecture's [pixels]",
    )
    cache: Literal["auto", "device", "ram", "disk", "off"] = Field(
        default="auto",
        description="where decoded images are kept; device: the GPU; off: nowhere, each epoch decodes them again; "
        "auto: the fastest place with room for them",
    )


class AugmentedReading(ImageReading):
    """What the `dataset` block says where images are trained on, in views that are drawn anew each time."""

    augmentation: Angles = Field(
        default="published",
        description="of training images: published or overhead views of a random crop, one of the image's right_angles "
        "views, or none",
    )
    smallest_part: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="a training view is a part of the crop, at least of this area, enlarged; 1: the whole crop [share]",
    )
    colour_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="brightness, contrast and saturation of training images are multiplied by up to 1 plus or minus "
        "this; 0: they stay",
    )


class Dataset(AugmentedReading):
    """Block `dataset`: where captions and images lie and how they are read."""

    datatype: str | None = Field(default=None, description="name of the data set, for the reader only")
    data_path: GivenPath = Field(description="folder of the caption and file-name lists")
    image_path: GivenPath | None = Field(default=None, description="folder of the images; null: <data_path>/images")
    audio_path: GivenPath | None = Field(
        default=None, description="folder of the spectrogram images, made by `python -m data.audio` (MCRN)"
    )
    vocab_path: GivenPath = Field(
        description="vocabulary JSON, made by `python -m vocab`; CLIP brings its own and reads none"
    )
    local_path: GivenPath | None = Field(
        default=None, description="region file, made by `python -m data.regions`; null: GaLR is global only"
    )
    batching: Batching = Field(
        default="pairs",
        description="what batch_size counts; images: images with all their captions; one_caption: images, each with "
        "one drawn anew per epoch",
    )
    features: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: what frozen towers make of an item is computed once and kept; off: in every step",
    )
    feature_path: GivenPath = Field(
        default=Path("cache"), description="folder of kept features, shared by all runs; it may be deleted"
    )
    missing_regions: Literal["error", "zeros"] = Field(
        default="error",
        description="when the region file lacks an image; error: the run ends; zeros: it counts as one without regions",
    )
    keywords_path: GivenPath | None = Field(
        default=None,
        description="folder of train_keywords.txt and test_keywords.txt, made by `python -m data.keywords` (AMFMN); "
        "null: data_path",
    )

    @property
    def keywords_folder(self) -> Path:
        """The folder of the keywords: `keywords_path`, or `data_path`."""
        return self.keywords_path or self.data_path

    test_views: Literal["one", "right_angles"] = Field(
        default="one",
        description="of an image in test.py and search indexes; right_angles: the mean over 8, turned and mirrored",
    )

    set_weights: dict[str, Annotated[int, Ge(1), Le(1000)]] = Field(
        default={},
        description="of a list that data.join made: how often an epoch shows the images of a set, such as {rsitmd: 2}",
    )

    length_buckets: bool = Field(
        default=False, description="true: the captions of a training batch are of like length; false: as they come"
    )

    @property
    def image_folder(self) -> Path:
        """The folder of the images: `image_path`, or `images` in `data_path`."""
        return self.image_path or self.data_path / "images"
