"""Block `dataset` of an experiment, and what it has in common with that of a pretraining."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from option.images import ImageRule
from option.parameters import MOST_ITEMS, GivenPath, Parameters
from utils import InputError

Angles = Literal["published", "overhead", "right_angles", "none"]
Views = Literal["one", "right_angles"]
Batching = Literal["pairs", "images", "one_caption"]
MOST_SIDE = 4096  # pixels
Weight = Annotated[int, Ge(1), Le(1000)]
ANEW = "join the sets by python -m data.join, make it for the joined folder, and name that folder there"
OF_ONE_SET = {
    "image_path": "say there where the images of a set lie: {path: FOLDER, image_path: FOLDER}",
    "audio_path": f"sounds are those of one set: {ANEW}",
    "local_path": f"a region file is that of one set: {ANEW}",
    "keywords_path": "keywords are joined, too, where each set's folder has them: take this key out (null)",
    "set_weights": "say there how often: {path: FOLDER, weight: 2}",
}
"""Keys beside a `data_path` of several sets that would be those of one: what to do instead."""


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
        default=2,
        ge=0,
        le=256,
        description="processes that read images; 0: threads of the main one, quicker where no GPU computes [processes]",
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


class TrainingSet(Parameters):
    """A data set among several that are joined to train on."""

    path: GivenPath = Field(description="folder of the caption and file-name lists")
    weight: Weight = Field(default=1, description="how often an epoch shows its images")
    image_path: GivenPath | None = Field(default=None, description="folder of the images; null: <path>/images")

    @property
    def name(self) -> str:
        """What its images lie below in the joined set: `rsicd` for `data/rsicd_precomp`."""
        return set_name(self.path)

    @property
    def image_folder(self) -> Path:
        """The folder of the images."""
        return self.image_path or self.path / "images"


def set_name(folder: Path) -> str:
    """The name of a data set that lies in a folder."""
    return Path(os.path.abspath(folder)).name.removesuffix("_precomp")


def _training_set(entry: Any, number: int) -> TrainingSet:
    """An entry of a list of sets; a folder alone has weight 1."""
    try:
        return TrainingSet.model_validate(entry if isinstance(entry, (Mapping, TrainingSet)) else {"path": entry})
    except ValidationError as error:
        details = [f"{detail['loc'][0]}: {detail['msg']}" for detail in error.errors(include_url=False)]
        raise ValueError(
            f"its entry {number}: {', '.join(details)}; expected a folder, or {{path: FOLDER, weight: 2}} (weight: an "
            "integer, 1 to 1000), also with image_path"
        ) from error


class Dataset(AugmentedReading):
    """Block `dataset`: where captions and images lie and how they are read."""

    datatype: str | None = Field(default=None, description="name of the data set, for the reader only")
    data_path: GivenPath | tuple[TrainingSet, ...] = Field(
        description="folder of the caption and file-name lists; or of several sets to train on, such as `[data/a, "
        "{path: data/b, weight: 2}]`: data/README.md"
    )
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

    test_views: Literal["one", "right_angles"] = Field(
        default="one",
        description="of an image in test.py and search indexes; right_angles: the mean over 8, turned and mirrored",
    )

    set_weights: dict[str, Weight] = Field(
        default={},
        description="of a list that data.join made: how often an epoch shows the images of a set, such as {rsitmd: 2}",
    )

    length_buckets: bool = Field(
        default=False, description="true: the captions of a training batch are of like length; false: as they come"
    )

    _joined: Path | None = PrivateAttr(default=None)

    @field_validator("data_path", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        sets = tuple(_training_set(entry, number) for number, entry in enumerate(value, 1))
        names = [each.name for each in sets]
        if len(set(names)) < max(2, len(names)) or "" in names:
            raise ValueError(f"allowed: two or more folders of different names; found {', '.join(names) or 'none'}")
        return sets

    @field_validator(*OF_ONE_SET)
    @classmethod
    def _of_one_set(cls, value: Any, info: ValidationInfo) -> Any:
        if value and isinstance(info.data.get("data_path"), tuple):
            raise ValueError(f"dataset.data_path names several sets; {OF_ONE_SET[str(info.field_name)]}")
        return value

    @property
    def sets(self) -> tuple[TrainingSet, ...]:
        """The sets that `data_path` lists; none where it is one folder."""
        return self.data_path if isinstance(self.data_path, tuple) else ()

    @property
    def title(self) -> str:
        """The data set's name, or those of several."""
        return " + ".join(each.name for each in self.sets) or self.folder.name

    @property
    def folder(self) -> Path:
        """The folder of the lists: `data_path`, or where its sets were joined.

        Raises:
            InputError: they were not.
        """
        if isinstance(self.data_path, Path):
            return self.data_path
        if self._joined is None:
            raise InputError(
                f"dataset.data_path: names several sets ({self.title}), and one folder is needed here: give one of "
                f"them (--set dataset.data_path={self.sets[0].path}), or what python -m data.join makes of them."
            )
        return self._joined

    @property
    def weights(self) -> dict[str, int]:
        """How often an epoch shows the images of a set, by its name; those not named once."""
        return {each.name: each.weight for each in self.sets if each.weight > 1} or self.set_weights

    @property
    def image_folder(self) -> Path:
        """The folder of the images: `image_path`, or `images` in `folder`."""
        return self.image_path or self.folder / "images"

    @property
    def keywords_folder(self) -> Path:
        """The folder of the keywords: `keywords_path`, or `folder`."""
        return self.keywords_path or self.folder

    def joined_at(self, folder: Path) -> Dataset:
        """The same, of whose sets it is known where they were joined."""
        joined = self.model_copy()
        joined._joined = folder
        return joined

    def alone(self, part: TrainingSet) -> Dataset:
        """The same with one of the sets in place of all."""
        return self.model_copy(update={"data_path": part.path, "image_path": part.image_path})
