"""Features of a model's frozen towers for the lists of an experiment: made once, kept for all folds and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from batches.augmentation import Augmentation, normalise, right_angle_views
from batches.batch import Batch, Captions
from batches.features import NO_FEATURES, ListFeatures
from data.annotations import Annotations, check_images
from data.feature_store import FeatureStore, FeatureTable, SequenceTable, key_of
from data.image_store import ImageStore
from data.images import mark_of
from dataloader import stored_batches
from layers.base import RetrievalModel
from layers.folding import folded
from option import Options
from runs.loaders import queries_of
from runtime.progress import progress_bar
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


def quick_start(model: RetrievalModel, options: Options, device: torch.device) -> Callable[[Batch], Batch] | None:
    """For training steps whose features are not kept: the frozen part of the image encoder with folded batch norms.

    Returns:
        What puts features into a batch in place of its images; None where nothing of the encoder is frozen, or has a
        batch norm to fold, or all of it is compiled.
    """
    part = model.frozen_image()
    if part is None or options.optim.compile:
        return None
    quick = _quick(part, options.dataset.image_size, device)
    if quick is part:
        return None

    @torch.no_grad()
    def begin(batch: Batch) -> Batch:
        images = batch.need("images").contiguous(memory_format=torch.channels_last)
        return replace(batch, images=None, image_features=quick(images))

    return begin


def _quick(part: nn.Module, size: int, device: torch.device) -> nn.Module:
    """A frozen part with folded batch norms."""
    black = torch.zeros(1, 3, size, size, device=device)
    return folded(part.eval(), lambda network: cast(Tensor, network(black)))


def sizes_of_features(
    model: RetrievalModel, options: Options, annotations: Annotations, vocabulary: Vocabulary
) -> Sizes:
    """What `list_features` keeps of a train list at most; nothing is computed but one feature of each kind.

    Args:
        model: on the CPU.
        options: of the experiment.
        annotations: the list.
        vocabulary: the words whose ids the captions become.
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
        different = sorted(set(annotations.captions))
        count, kind = len(different), "captions"
        if gives_states(text, torch.device("cpu")):
            count, kind = int(Captions.encode(different, vocabulary).lengths.sum()), "tokens of captions"
        numbers = numbers_of(text, torch.ones(1, 1, dtype=torch.int64))
        found[f"{count:,} {kind} x {numbers:,} numbers"] = 4 * count * numbers
    return found


def image_features(
    part: nn.Module, options: Options, annotations: Annotations, views: int, device: torch.device
) -> FeatureTable:
    """The features of each view of each image, views of an image one after the other."""
    dataset, size = options.dataset, options.dataset.image_size
    check_images(annotations, dataset.image_folder)
    paths = [dataset.image_folder / name for name in annotations.image_names]
    digests = [f"{file_sha256(path)}{mark_of(path, dataset.rule)}" for path in paths]
    recipe = {"part": _digest(part), "side": size, "preparation": PREPARATION, "precision": options.optim.amp}
    store = FeatureStore(dataset.feature_path, recipe)
    keys = [key_of(f"{digest} {view}".encode()) for digest in digests for view in range(views)]
    images = ImageStore(paths, size, "off", Path(), device, dataset.rule)
    quick = _quick(part, size, device)
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
) -> FeatureTable | SequenceTable:
    """The features of each caption; where they are states of its tokens, a row for each, without padding."""
    captions = queries_of(options, annotations, vocabulary)
    recipe = {"part": _digest(part), "words": vocabulary.digest, "precision": options.optim.amp}
    store = FeatureStore(options.dataset.feature_path, recipe)
    by_token = gives_states(part, device)
    counts = captions.lengths if by_token else torch.ones_like(captions.lengths)
    # Captions of like length together: padding costs as much as words do.
    order = captions.lengths.argsort(stable=True)
    owner = order.repeat_interleave(counts[order])  # [R] the caption of each row
    starts = counts[order].cumsum(0) - counts[order]
    number = torch.arange(len(owner)) - starts.repeat_interleave(counts[order])  # [R] of the row in its caption
    contents = [row[:length].numpy().tobytes() for row, length in zip(captions.tokens, captions.lengths, strict=True)]
    mark = " {}" if by_token else ""
    keys = [
        key_of(contents[caption] + mark.format(place).encode())
        for caption, place in zip(owner.tolist(), number.tolist(), strict=True)
    ]
    precise = autocast(device, options.optim.amp)

    @torch.no_grad()
    def make(wanted: Sequence[int]) -> Iterable[Tensor]:
        rows = torch.tensor(wanted)
        found, held = owner[rows].unique_consecutive(return_counts=True)
        for chunk, many in zip(found.split(BATCH), held.split(BATCH), strict=True):
            tokens = captions.batch(chunk).need("tokens").to(device)
            with precise:
                made = part(tokens).float().cpu()
            here, rows = rows[: many.sum()], rows[many.sum() :]
            row_of = torch.arange(len(chunk)).repeat_interleave(many)
            yield made[row_of, number[here]] if by_token else made[row_of]

    size = 4 * numbers_of(part, torch.ones(1, 1, dtype=torch.int64, device=device))
    _fill(store, part, keys, make, size, f"caption features ({annotations.name})")
    place = order.argsort()
    if by_token:
        return SequenceTable(store.table(keys), starts[place], captions.lengths)
    return store.table([keys[row] for row in place.tolist()])


@torch.no_grad()
def gives_states(part: nn.Module, device: torch.device) -> bool:
    """Whether a frozen part gives a row for each token of a caption, not one for all."""
    return cast(Tensor, part.eval()(torch.ones(1, 2, dtype=torch.int64, device=device))).ndim == 3


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
        with progress_bar(total=len(wanted), desc=title, unit="row") as bar:
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
