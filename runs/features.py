"""Features of a model's frozen towers for the lists of an experiment: made once, kept for all folds and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from batches.augmentation import Augmentation, normalise, right_angle_views
from batches.features import NO_FEATURES, ListFeatures
from data.annotations import Annotations, check_images
from data.feature_store import FeatureStore, FeatureTable, key_of
from data.image_store import ImageStore
from dataloader import stored_batches
from layers.base import RetrievalModel
from layers.folding import folded
from option import Options
from runs.loaders import queries_of
from training.epoch import autocast
from utils import file_sha256, logger
from vocab import Vocabulary

PREPARATION = "square, bilinear, ImageNet's mean and deviation"
"""How images become what a frozen part sees; another text makes other stores."""
BATCH = 64  # images, or captions, that are encoded at a time
WHY_NOT = "dataset.augmentation {}: every step draws another view, so features of the frozen image tower are not kept."
Sizes = dict[str, int]
"""Of features that would be kept: what of, in words -> bytes."""


def train_views(options: Options) -> int | None:
    """How many views of a training image there are; None where every step draws another one."""
    return Augmentation.of(options.dataset).views


def test_views(options: Options) -> int:
    """How many views of an image are scored."""
    return 1 if options.dataset.test_views == "one" else 8


def list_features(
    model: RetrievalModel,
    options: Options,
    annotations: Annotations,
    vocabulary: Vocabulary,
    views: int | None,
    device: torch.device,
) -> ListFeatures:
    """What a model's frozen parts make of a list; computed as far as it is not kept already.

    Args:
        model: on the device.
        options: of the experiment.
        annotations: the list.
        vocabulary: the words whose ids the captions become.
        views: of each image; None: images are not kept.
        device: where the model is.

    Raises:
        InputError: an image can't be read, or features can't be kept.
    """
    if options.dataset.features == "off":
        return NO_FEATURES
    image, text = model.frozen_image(), model.frozen_text()
    if image is not None and views is None:
        logger.info(WHY_NOT.format(options.dataset.augmentation))
    images = None
    if image is not None and views is not None:
        images = image_features(image, options, annotations, views, device)
    captions = None if text is None else caption_features(text, options, annotations, vocabulary, device)
    return ListFeatures(images, captions, views or 1)


def sizes_of_features(model: RetrievalModel, options: Options, annotations: Annotations) -> Sizes:
    """What `list_features` keeps of a train list at most; nothing is computed but one feature of each kind.

    Args:
        model: on the CPU.
        options: of the experiment.
        annotations: the list.
    """
    if options.dataset.features == "off":
        return {}
    found: Sizes = {}
    image, text, views = model.frozen_image(), model.frozen_text(), train_views(options)
    if image is not None and views is not None:
        size, count = options.dataset.image_size, len(annotations.image_names)
        numbers = numbers_of(image, torch.zeros(1, 3, size, size))
        of_views = "" if views == 1 else f" x {views} views"
        found[f"{count:,} images{of_views} x {numbers:,} numbers"] = 4 * count * views * numbers
    if text is not None:
        count = len(set(annotations.captions))
        numbers = numbers_of(text, torch.ones(1, 1, dtype=torch.int64))
        found[f"{count:,} captions x {numbers:,} numbers"] = 4 * count * numbers
    return found


def image_features(
    part: nn.Module, options: Options, annotations: Annotations, views: int, device: torch.device
) -> FeatureTable:
    """The features of each view of each image, views of an image one after the other."""
    dataset, size = options.dataset, options.dataset.image_size
    check_images(annotations, dataset.image_folder)
    paths = [dataset.image_folder / name for name in annotations.image_names]
    digests = [file_sha256(path) for path in paths]
    recipe = {"part": _digest(part), "side": size, "preparation": PREPARATION, "precision": options.optim.amp}
    store = FeatureStore(dataset.feature_path, recipe)
    keys = [key_of(f"{digest} {view}".encode()) for digest in digests for view in range(views)]
    images = ImageStore(paths, size, "off", Path(), device, dataset.max_pixels)
    quick = folded(part, torch.zeros(1, 3, size, size, device=device)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precise = autocast(device, options.optim.amp)

    @torch.no_grad()
    def make(wanted: Sequence[int]) -> Iterable[Tensor]:
        chunks = torch.tensor(wanted).split(BATCH)  # places of views
        needed = [(chunk // views).unique() for chunk in chunks]
        for chunk, rows, stored in zip(chunks, needed, stored_batches(images, needed, dataset.workers), strict=True):
            seen = normalise(stored.to(device))
            every = torch.stack([view for view, _ in zip(right_angle_views(seen), range(views), strict=False)], dim=1)
            place = torch.searchsorted(rows, chunk // views)
            with precise:
                yield quick(every[place, chunk % views].contiguous(memory_format=torch.channels_last)).float().cpu()

    one = numbers_of(part, torch.zeros(1, 3, size, size, device=device))
    _fill(store, part, keys, make, 4 * one, f"features ({annotations.name})")
    return store.table(keys)


def caption_features(
    part: nn.Module, options: Options, annotations: Annotations, vocabulary: Vocabulary, device: torch.device
) -> FeatureTable:
    """The features of each caption."""
    captions = queries_of(options, annotations, vocabulary)
    recipe = {"part": _digest(part), "words": vocabulary.digest, "precision": options.optim.amp}
    store = FeatureStore(options.dataset.feature_path, recipe)
    keys = [
        key_of(row[:length].numpy().tobytes()) for row, length in zip(captions.tokens, captions.lengths, strict=True)
    ]
    # Captions of like length together: padding costs as much as words do.
    order = captions.lengths.argsort(stable=True)
    precise = autocast(device, options.optim.amp)

    @torch.no_grad()
    def make(wanted: Sequence[int]) -> Iterable[Tensor]:
        for chunk in order[torch.tensor(wanted)].split(BATCH):
            tokens = captions.batch(chunk).need("tokens").to(device)
            with precise:
                yield part(tokens).float().cpu()

    size = 4 * numbers_of(part, torch.ones(1, 1, dtype=torch.int64, device=device))
    ordered = [keys[place] for place in order.tolist()]
    _fill(store, part, ordered, make, size, f"caption features ({annotations.name})")
    return store.table(keys)


@torch.no_grad()
def numbers_of(part: nn.Module, one: Tensor) -> int:
    """How many numbers a frozen part makes of one image [1, 3, S, S] or caption [1, L]."""
    return cast(Tensor, part.eval()(one)).numel()


def _fill(
    store: FeatureStore,
    part: nn.Module,
    keys: Sequence[str],
    make: Callable[[Sequence[int]], Iterable[Tensor]],
    size: int,
    title: str,
) -> None:
    """Make what is missing, with a bar, and say it."""
    part.eval()

    def told(wanted: Sequence[int]) -> Iterable[Tensor]:
        with tqdm(total=len(wanted), desc=title, unit="row", disable=None) as bar:
            for features in make(wanted):
                yield features
                bar.update(len(features))

    made = store.fill(keys, told, size)
    if made:
        logger.info("Frozen %s: %d of %d computed, kept in %s", title, made, len(keys), store.folder)


def _settings(module: nn.Module) -> Iterable[tuple[str, str]]:
    """What a module was told in words and numbers, but for where it came from and whether it trains."""
    for name, value in vars(module).items():
        told = isinstance(value, bool | int | float | str) and not name.startswith("_")
        if told and name not in ("training", "name_or_path", "from_package"):
            yield name, repr(value)


def _digest(part: nn.Module) -> str:
    """SHA-256 of a network: its build, every weight, and the plain settings of its modules.

    The settings, because a build does not show them all: the pooling of a tower, the heads of an attention.
    """
    digest = hashlib.sha256(repr(part).encode())
    for name, module in part.named_modules():
        digest.update(repr((name, sorted(_settings(module)))).encode())
    for name, value in [*part.named_parameters(), *part.named_buffers()]:
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
