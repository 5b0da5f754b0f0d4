"""From options to vocabulary, lists, queries and loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

import vocab
from batches.augmentation import Augmentation, audio_margin_size, margin_size
from batches.batch import Captions
from batches.features import NO_FEATURES, ListFeatures
from batches.pairs import PairSource
from batches.queries import build_queries, typed_queries
from data.annotations import Annotations, blank_captions, check_images, describe_blank
from data.similarity.prior import PriorSimilarity
from data.splits import recorded_or_new
from dataloader import EvaluationLoader, TrainLoader
from layers.losses.objective import uses_prior
from layers.registry import registered
from option import ModalityOptions, Options
from runs.folders import experiment_folder, run_folder
from runs.media import Media, audio_folder_of
from runs.sets import joined_sets, tell_sets
from runtime.distributed import ALONE, World
from utils import InputError, derive_seed, logger
from vocab import Vocabulary


def read_vocabulary(options: Options | ModalityOptions) -> Vocabulary:
    """The words that the model reads: its own where it brings them, else those of `dataset.vocab_path`.

    Raises:
        InputError: it is missing (the message names the command that makes it) or broken.
    """
    own = registered()[options.model.name].model.own_vocabulary(options.model)
    if own is not None:
        return own
    path = Path(options.dataset.vocab_path)
    if not path.is_file():
        several = options.dataset.data_path if isinstance(options.dataset.data_path, tuple) else ()
        folders = " ".join(str(each.path) for each in several) or options.dataset.data_path
        raise InputError(
            f"dataset.vocab_path: no vocabulary {path}. Make it with: "
            f"python -m vocab --data_path {folders} --data_name NAME --out {path}"
        )
    return Vocabulary.load(path)


def split_of(options: Options, fold: int, begun: bool) -> tuple[Annotations, Annotations]:
    """Train and val list of a fold; of one that was begun, those that it was begun with."""
    k_fold, data_path, folder = options.k_fold, options.dataset.folder, run_folder(options, fold)
    audio_folder = audio_folder_of(options)
    tell_sets(joined_sets(options.dataset))
    return recorded_or_new(data_path, folder, k_fold.strategy, fold, k_fold.nums, k_fold.seed, begun, audio_folder)


def queries_of(options: Options, annotations: Annotations, vocabulary: Vocabulary) -> Captions:
    """What the captions of a list become for the model, see `batches.queries.build_queries`."""
    mode = registered()[options.model.name].model.query_mode(options.model)
    return build_queries(annotations, vocabulary, mode, options.dataset.keywords_folder)


def typed_queries_of(options: Options, sentences: Sequence[str], vocabulary: Vocabulary) -> Captions:
    """What sentences that belong to no image become for the model, see `batches.queries.typed_queries`."""
    mode, dataset = registered()[options.model.name].model.query_mode(options.model), options.dataset
    known = (dataset.folder, dataset.keywords_folder) if mode == "sentence" else (Path(), Path())  # else not read
    return typed_queries(sentences, vocabulary, mode, *known)


def warn_of_blanks(annotations: Annotations) -> Tensor:
    """Say in one line which captions have no word, if any has none.

    Returns:
        [M] bool, True for a caption without a word.
    """
    blank = blank_captions(annotations, vocab.tokenize)
    if blank.any():
        logger.warning("%s", describe_blank(annotations, blank))
    return torch.from_numpy(blank)


def repeats_of(weights: Mapping[str, int], annotations: Annotations) -> Tensor | None:
    """How often an epoch sees each image of a list that `data.join` made of several sets, [N] int64; None: once.

    Args:
        weights: set -> how often; once those that are not named.
        annotations: the list; an image lies below the name of its set.

    Raises:
        InputError: the list has no images of a set.
    """
    if not weights:
        return None
    sets = [PurePosixPath(name).parts[0] for name in annotations.image_names]
    if unknown := sorted(weights.keys() - set(sets)):
        raise InputError(
            f"dataset.set_weights: {', '.join(unknown)}: no image of {annotations.names_file} lies below that name; "
            "the weights are those of sets that python -m data.join has joined."
        )
    return torch.tensor([weights.get(name, 1) for name in sets])


def train_loader(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    annotations: Annotations,
    media: Media,
    device: torch.device,
    world: World = ALONE,
    features: ListFeatures = NO_FEATURES,
) -> TrainLoader:
    """Training pairs of a fold, of which each rank gets its share; captions without a word are left out."""
    check_images(annotations, options.dataset.image_folder)
    size, augmentation = options.dataset.image_size, Augmentation.of(options.dataset)
    store, rows = None, torch.arange(len(annotations.image_names))
    if features.images is None:
        title = f"images ({annotations.name})"
        store, rows = media.images.open(annotations.image_names, augmentation.stored_size(size), title)
    return TrainLoader(
        annotations,
        queries_of(options, annotations, vocabulary),
        ~warn_of_blanks(annotations),
        store,
        rows,
        batch_size=options.dataset.batch_size,
        image_size=size,
        workers=options.dataset.workers,
        seed=derive_seed(options.optim.seed, "order", fold),
        device=device,
        regions=media.regions(annotations.image_names, options.dataset.missing_regions),
        audio=media.spectrograms(annotations, audio_margin_size(size)),
        two_views=registered()[options.model.name].model.uses_second_view,
        augmentation=augmentation,
        length_buckets=options.dataset.length_buckets,
        batching=options.dataset.batching,
        repeats=repeats_of(options.dataset.weights, annotations),
        features=features,
        world=world,
    )


def evaluation_loader(
    options: Options,
    annotations: Annotations,
    vocabulary: Vocabulary,
    media: Media,
    device: torch.device,
    world: World = ALONE,
    features: ListFeatures = NO_FEATURES,
    load: bool = True,
) -> EvaluationLoader:
    """Images, captions and spectrograms of a val or test list, ready to be encoded; each rank gets its share.

    Without `load`, images, their second views and spectrograms are decoded when they are asked for, not before.
    """
    check_images(annotations, options.dataset.image_folder)
    warn_of_blanks(annotations)
    size, names, views = options.dataset.image_size, annotations.image_names, None
    title = f"images ({annotations.name})"
    if features.images is None:
        store, rows = media.images.open(names, size, title, load)
    else:
        store, rows = media.images.unkept(names, size)
    if registered()[options.model.name].model.uses_second_view:
        views, _ = media.images.open(names, margin_size(size), title, load)
    return EvaluationLoader(
        annotations,
        queries_of(options, annotations, vocabulary),
        store,
        rows,
        batch_size=options.dataset.batch_size_val,
        workers=options.dataset.workers,
        device=device,
        regions=media.regions(names, options.dataset.missing_regions),
        audio=media.spectrograms(annotations, size, load),
        views=views,
        features=features,
        world=world,
    )


def pair_source(options: Options, train: Annotations) -> PairSource:
    """What is known of the pairs of a training list, as far as the loss uses it."""
    prior = None
    if uses_prior(options.optim):
        prior = PriorSimilarity.cached(train, experiment_folder(options) / "cache")
    return PairSource(train, options.optim.mask, prior)
