"""The files of an experiment's media: images, spectrograms, regions, as far as its model uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.annotations import Annotations
from data.image_library import ImageLibrary
from data.image_store import ImageStore
from data.regions.file import RegionFile, Regions, read_regions
from dataloader import Spectrograms
from layers.registry import registered
from option import Options
from runs.folders import experiment_folder
from utils import InputError


@dataclass(frozen=True)
class Media:
    """What a retrieval experiment reads once for all its folds.

    Attributes:
        images: the images.
        audio: the spectrograms; None where the model uses no sound.
        region_file: regions of images; None where the model uses none.
    """

    images: ImageLibrary
    audio: ImageLibrary | None
    region_file: RegionFile | None

    @classmethod
    def of(cls, options: Options, lists: Sequence[Annotations], device: torch.device, processes: int = 1) -> Media:
        """The files that some lists name, for each of some processes of this machine; no image is decoded yet.

        Raises:
            InputError: the region file is missing or broken, or there is no folder of spectrograms for a model that
                needs one.
        """
        dataset, cache_folder = options.dataset, experiment_folder(options) / "cache"
        image_names = [name for annotations in lists for name in annotations.image_names]
        stores: list[ImageStore] = []
        images = ImageLibrary(dataset, dataset.image_folder, cache_folder, image_names, device, processes, stores)
        audio_folder, region_file = audio_folder_of(options), region_file_of(options)
        if audio_folder is None:
            return cls(images, None, region_file)
        audio_names = [name for annotations in lists for name in annotations.audio_names or ()]
        audio = ImageLibrary(dataset, audio_folder, cache_folder, audio_names, device, processes, stores)
        return cls(images, audio, region_file)

    def holds(self, annotations: Annotations) -> bool:
        """Whether all files of a list belong to it."""
        heard = self.audio is None or self.audio.holds(annotations.audio_names or ())
        return heard and self.images.holds(annotations.image_names)

    def files(self, *lists: Annotations) -> dict[str, Path]:
        """All files that some lists are read from, by their names there."""
        named = {name: self.images.folder / name for each in lists for name in each.image_names}
        if self.audio is not None:
            named |= {name: self.audio.folder / name for each in lists for name in each.audio_names or ()}
        return named if self.region_file is None else named | {"regions": self.region_file.path}

    def spectrograms(self, annotations: Annotations, size: int, load: bool = True) -> Spectrograms | None:
        """The spectrograms of a list's captions at a size, where there are any; `load` as for `ImageLibrary.open`."""
        if self.audio is None or annotations.audio_names is None:
            return None
        title = f"spectrograms ({annotations.name})"
        return Spectrograms(*self.audio.open(annotations.audio_names, size, title, load))

    def regions(self, names: Sequence[str], missing: str) -> Regions | None:
        """The regions of some images, where there are any; `missing` as for `RegionFile.of`."""
        return None if self.region_file is None else self.region_file.of(names, missing)


def image_files(options: Options, *lists: Annotations) -> list[Path]:
    """The image files that some lists name."""
    return [options.dataset.image_folder / name for listed in lists for name in listed.image_names]


def audio_folder_of(options: Options) -> Path | None:
    """The folder of the spectrograms, None for a model that uses no sound.

    Raises:
        InputError: the model needs it and `dataset.audio_path` is not given.
    """
    if not registered()[options.model.name].model.uses_audio:
        return None
    if options.dataset.audio_path is None:
        raise InputError(
            f"dataset.audio_path: missing; {options.model.name} needs the spectrograms of the spoken captions. Make "
            "them with python -m data.audio (docs/audio.md)."
        )
    return options.dataset.audio_path


def region_file_of(options: Options) -> RegionFile | None:
    """The region file, where the model uses one and `dataset.local_path` names it.

    Raises:
        InputError: it is missing or broken.
    """
    path = options.dataset.local_path
    if path is None or not registered()[options.model.name].model.uses_regions:
        return None
    return read_regions(path)


def regions_of(options: Options, names: Sequence[str]) -> Regions | None:
    """The regions of some images, where the model uses them and `dataset.local_path` names a file."""
    file = region_file_of(options)
    return None if file is None else file.of(names, options.dataset.missing_regions)
