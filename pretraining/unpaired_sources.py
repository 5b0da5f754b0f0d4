"""From the options of a pretraining without pairs to its loaders: images, captions and spectrograms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from batches.augmentation import audio_margin_size, margin_size
from batches.batch import Captions
from data.annotations import Annotations, check_images, read_annotations
from data.image_library import ImageLibrary
from data.images import image_names
from layers.mcrn import Modality
from option import ModalityOptions
from option.pretraining import UnpairedSources
from pretraining.unpaired import CaptionLoader, ImageLoader, Schedule, SpectrogramLoader, StoredLoader, ViewLoader
from runs.images import note_images
from runs.loaders import warn_of_blanks
from runs.ranges import with_range
from utils import InputError, derive_seed, logger
from vocab import UNKNOWN, Vocabulary

FEWEST_ITEMS = 4
"""Of one modality: two to train on and two to validate with, since batch norms need two."""

NamedFiles = tuple[Path, tuple[str, ...]]
"""A folder and names in it."""
SIZES: dict[type[StoredLoader], tuple[Callable[[int], int], str]] = {
    ImageLoader: (margin_size, "images"),
    SpectrogramLoader: (audio_margin_size, "spectrograms"),
}
"""Stored side for the side of the views, and the title of the progress bar."""


@dataclass(frozen=True)
class Sources:
    """The loaders of each modality that there is something of: most of the items to train on, the rest to validate."""

    train: dict[Modality, ViewLoader]
    val: dict[Modality, ViewLoader]

    @property
    def steps(self) -> int:
        """Batches of all modalities together: the steps of an epoch."""
        return sum(map(len, self.train.values()))


class _Items(NamedTuple):
    """The items of one modality: how many, and what makes a loader of some of them."""

    number: int
    loader: Callable[[Tensor, Schedule], ViewLoader]


@dataclass(frozen=True)
class SourceFiles:
    """Which files a pretraining without pairs reads; None where there is nothing of a modality.

    Attributes:
        annotations: captions and their images.
        images: the images' folder and their names in it.
        audio: the spectrograms' folder and the names of the different ones.
    """

    annotations: Annotations | None
    images: NamedFiles | None
    audio: NamedFiles | None


def find_sources(dataset: UnpairedSources) -> SourceFiles:
    """The files of whatever modalities the options name.

    Raises:
        InputError: a list or a file is missing or at fault.
    """
    annotations, images, audio = None, None, None
    if dataset.data_path is not None:
        annotations = read_annotations(dataset.data_path, "train", dataset.audio_path)
        image_folder = dataset.image_path or dataset.data_path / "images"
        check_images(annotations, image_folder)
        images = image_folder, annotations.image_names
    elif dataset.image_path is not None:
        images = dataset.image_path, image_names(dataset.image_path)
    if dataset.audio_path is not None:
        spoken = annotations.audio_names if annotations is not None else None
        audio = dataset.audio_path, tuple(dict.fromkeys(spoken)) if spoken else image_names(dataset.audio_path)
    return SourceFiles(annotations, images, audio)


def open_sources(options: ModalityOptions, vocabulary: Vocabulary, cache_folder: Path, device: torch.device) -> Sources:
    """Open whatever modalities the options name.

    Args:
        options: the pretraining.
        vocabulary: the words whose ids the captions become.
        cache_folder: where a cache on disk goes.
        device: where the batches go.

    Raises:
        InputError: a file is missing or at fault, or a modality has too few items.
    """
    files, folder = find_sources(options.dataset), cache_folder.parent
    named = {name: place / name for place, names in filter(None, (files.images, files.audio)) for name in names}
    note_images(folder, named, (folder / "last.pth").is_file())
    items: dict[Modality, _Items] = {}
    if files.images is not None:
        items["image"] = _stored(ImageLoader, options, files.images, cache_folder, device)
    if files.annotations is not None:
        items["text"] = _captions(options, files.annotations, vocabulary, device)
    if files.audio is not None:
        items["audio"] = _stored(SpectrogramLoader, options, files.audio, cache_folder, device)
    if len(items) == 1:
        logger.warning("Only one modality (%s): there is nothing for the discriminator to tell apart.", *items)
    return _split(items, options)


def _split(items: dict[Modality, _Items], options: ModalityOptions) -> Sources:
    """Part the items of each modality into those to train on and those to validate with."""
    dataset, seed = options.dataset, options.optim.seed
    sources = Sources({}, {})
    for modality, (count, loader) in items.items():
        if count < FEWEST_ITEMS:
            raise InputError(f"{modality}: {count} items are too few to pretrain with, at least {FEWEST_ITEMS}.")
        generator = torch.Generator().manual_seed(derive_seed(seed, "split", modality))
        order = torch.randperm(count, generator=generator)
        held = min(max(2, round(dataset.val_share * count)), count - 2)
        for side, ids, batch_size in (
            (sources.val, order[:held].sort().values, dataset.batch_size_val),
            (sources.train, order[held:].sort().values, dataset.batch_size),
        ):
            side[modality] = loader(ids, Schedule(len(ids), batch_size, derive_seed(seed, "order", modality)))
        logger.info("%s: %d items to train on, %d to validate with", modality, count - held, held)
    return sources


def _stored(
    kind: type[StoredLoader], options: ModalityOptions, files: NamedFiles, cache_folder: Path, device: torch.device
) -> _Items:
    """Each image, or each different spectrogram."""
    dataset, (folder, names) = options.dataset, files
    size, title = SIZES[kind]
    rule = with_range(options, [folder / name for name in names]).dataset
    store, rows = ImageLibrary(rule, folder, cache_folder, names, device).open(names, size(dataset.image_size), title)

    def loader(ids: Tensor, schedule: Schedule) -> ViewLoader:
        return kind(schedule, store, rows[ids], image_size=dataset.image_size, workers=dataset.workers, device=device)

    return _Items(len(names), loader)


def _captions(
    options: ModalityOptions, annotations: Annotations, vocabulary: Vocabulary, device: torch.device
) -> _Items:
    """The captions of each image that has one with a word."""
    captions = Captions.encode(annotations.captions, vocabulary)
    usable = ~warn_of_blanks(annotations)
    of_image = torch.from_numpy(annotations.caption_image)
    grouped = [ids[usable[ids]] for ids in torch.arange(len(usable)).split(of_image.bincount().tolist())]
    images = [ids for ids in grouped if len(ids)]

    def loader(ids: Tensor, schedule: Schedule) -> ViewLoader:
        own = [images[image] for image in ids.tolist()]
        dropout, unknown = options.optim.word_dropout, vocabulary.word2idx[UNKNOWN]
        return CaptionLoader(schedule, captions, own, word_dropout=dropout, unknown=unknown, device=device)

    return _Items(len(images), loader)
