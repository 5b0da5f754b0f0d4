"""`train.py --check`: options, lists, vocabulary, images, regions, weights, earlier runs, memory and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch

import vocab
from batches.augmentation import audio_margin_size, margin_size
from batches.sampling import SAMPLERS, batches_of
from data.annotations import FOLDER, Annotations, blank_captions, check_images, list_files, read_annotations
from data.lists import read_lines
from data.scenes import UNNAMED_SCENE, scene_classes
from data.splits import fold_annotations
from layers import build_model
from layers.base import RetrievalModel
from layers.losses.objective import build_objective
from option import Options
from preflight.findings import Findings
from preflight.resources import (
    check_headers,
    check_memory,
    check_output,
    checkpoint_bytes,
    describe_headers,
    each_weight_alone,
)
from runs.checkpoints import fit_weights, load_weights
from runs.features import sizes_of_features
from runs.folders import experiment_folder, run_folder
from runs.loaders import queries_of, read_vocabulary, repeats_of, split_of
from runs.media import audio_folder_of, regions_of
from runs.provenance import check_data_set
from runs.resume import begun_run
from runs.sets import describe_sets, joined_sets, with_joined
from runs.trackers import require_trackers
from runtime.machine import free_bytes, in_words
from utils import Gate
from vocab import Vocabulary

MOST_UNKNOWN = 0.9
"""Share of unknown words above which the vocabulary must be another data set's; the published ones reach a half."""


def check_training(
    source: str, options: Options, folds: Sequence[int], device: torch.device, resume: bool, gate: Gate
) -> str:
    """Read everything that a training needs.

    Args:
        source: the options' file, for the headline.
        options: the experiment.
        folds: those to be trained.
        device: where.
        resume: go on with what was begun.
        gate: whether the user insists on weights of another vocabulary, model or data set.

    Returns:
        What would be trained, on what, in a paragraph.

    Raises:
        InputError: lists all faults that were found.
    """
    found = Findings()
    vocabulary = found.attempt("Vocabulary", partial(read_vocabulary, options))
    joined = found.attempt("Sets", partial(with_joined, options))
    if joined is None:
        found.refuse(source)
    assert joined is not None
    options, dataset = joined, joined.dataset
    lists = _read_lists(found, options)
    splits = [split for fold in folds if (split := found.attempt("Folds", partial(_split, options, fold, resume)))]
    for side in lists:
        found.attempt("Images", partial(check_images, side, dataset.image_folder))
    names = [name for side in lists for name in side.image_names]
    headers = check_headers(found, "Images", dataset.image_folder, names, dataset)
    _check_spectrograms(found, options, lists)
    if lists:
        found.attempt("Regions", partial(regions_of, options, list(dict.fromkeys(names))))
    if vocabulary is not None:
        for side in lists:
            found.attempt("Keywords", partial(queries_of, options, side, vocabulary))
    words = _check_words(found, lists, vocabulary)
    if splits:
        train, _ = splits[0]
        found.attempt("Sets", partial(repeats_of, dataset.weights, train))
        found.attempt("Losses", lambda: build_objective(options.optim).prepare(train))
    found.attempt("Trackers", partial(require_trackers, options.logs.trackers))
    data = found.attempt("Scene classes", partial(_describe_data, lists))
    model = None if vocabulary is None else _check_weights(found, options, vocabulary, folds, resume, gate)
    room = _check_room(found, options, lists, model, folds, device)
    features = ""
    if model is not None and vocabulary is not None and lists:
        features = _check_features(found, options, model, lists[0], vocabulary)
    found.refuse(source)
    assert model is not None
    return " ".join(
        [
            f"{source}: no faults.",
            _describe_work(options, model, splits, device),
            *describe_sets(joined_sets(dataset)),
            f"{data} Images are {describe_headers(headers)}.",
            words,
            *([features] if features else []),
            room,
        ]
    )


def _read_lists(found: Findings, options: Options) -> list[Annotations]:
    """The train list and, where there is one, the test list."""
    folder, lists = options.dataset.folder, []
    audio_folder = found.attempt("Spectrograms", partial(audio_folder_of, options))
    for split in ("train", "test"):
        names, captions = list_files(folder, split)
        if split == "test" and not (names.exists() or captions.exists()):
            continue
        annotations = found.attempt("Captions", partial(read_annotations, folder, split))
        if annotations is None:
            found.attempt("Captions", partial(read_lines, captions, FOLDER))  # it may have faults of its own
        elif audio_folder is not None:
            heard = found.attempt("Spectrograms", partial(read_annotations, folder, split, audio_folder))
            lists.append(heard or annotations)
        else:
            lists.append(annotations)
    return lists


def _split(options: Options, fold: int, resume: bool) -> tuple[Annotations, Annotations]:
    """The split that training would take; nothing is written."""
    k_fold, folder = options.k_fold, run_folder(options, fold)
    recorded = all((folder / "split" / f"{side}.txt").exists() for side in ("train", "val"))
    if resume and recorded and (folder / "last.pth").exists():
        return split_of(options, fold, begun=True)
    data_path, audio_folder = options.dataset.folder, audio_folder_of(options)
    return fold_annotations(data_path, k_fold.strategy, fold, k_fold.nums, k_fold.seed, audio_folder)


def _check_spectrograms(found: Findings, options: Options, lists: Sequence[Annotations]) -> None:
    audio_folder = options.dataset.audio_path
    names = [name for annotations in lists for name in annotations.audio_names or ()]
    if audio_folder is not None and names:
        check_headers(found, "Spectrograms", audio_folder, names, options.dataset)


def _check_words(found: Findings, lists: Sequence[Annotations], vocabulary: Vocabulary | None) -> str:
    """How much of the captions the vocabulary knows."""
    if vocabulary is None or not lists:
        return ""
    counts = vocab.count_tokens(caption for annotations in lists for caption in annotations.captions)
    unknown = Counter({word: count for word, count in counts.items() if not vocabulary.knows(word)})
    if not counts:
        found.add("Captions", f"{lists[0].folder}: none of the captions has a word; mend them")
    share = unknown.total() / max(counts.total(), 1)
    if share > MOST_UNKNOWN:
        frequent = ", ".join(word for word, _ in unknown.most_common(5))
        found.add(
            "Vocabulary",
            f"dataset.vocab_path: {100 * share:.1f} % of the captions' words are not in it ({frequent}): it is of "
            "other captions. Build one: python -m vocab --data_path FOLDER --data_name NAME",
        )
    return (
        f"The vocabulary has {len(vocabulary):,} entries; {100 * share:.1f} % of all words of the captions are unknown "
        f"to it ({len(unknown):,} of {len(counts):,} different ones)."
    )


def _check_weights(
    found: Findings, options: Options, vocabulary: Vocabulary, folds: Sequence[int], resume: bool, gate: Gate
) -> RetrievalModel | None:
    """Build the model from every file that the options name, and fit what earlier runs have left."""
    started = found.attempt("Weights", partial(build_model, options, vocabulary))
    if started is None:
        for block in each_weight_alone(options.model):
            alone = options.model_copy(update={"model": block})
            found.attempt("Weights", partial(build_model, alone, vocabulary))
    model = started or found.attempt("Weights", partial(build_model, options, vocabulary, False))
    if model is None:
        return None
    if options.optim.resume is not None:
        found.attempt("Weights", partial(load_weights, model, options.optim.resume, options, vocabulary, gate))
    for fold in folds:
        folder = run_folder(options, fold)
        begun = found.attempt("Earlier runs", partial(begun_run, folder, options, resume, "k_fold.experiment_name"))
        if begun is not None:
            last, data_path = folder / "last.pth", options.dataset.folder
            found.attempt("Earlier runs", partial(check_data_set, begun, last, data_path, gate))
            found.attempt("Earlier runs", partial(fit_weights, model, begun, last, options, vocabulary, gate))
    return model


def _check_room(
    found: Findings,
    options: Options,
    lists: Sequence[Annotations],
    model: RetrievalModel | None,
    folds: Sequence[int],
    device: torch.device,
) -> str:
    """Where decoded images are kept, and whether there is room for them and for what the run writes."""
    size = options.dataset.image_size
    # Every fold trains on other images of the train list, at the larger size, and validates on the rest.
    kept = len(lists[0].image_names) if lists else 0
    kept_audio = len(set(lists[0].audio_names or ())) if lists else 0
    stores = [(kept, size), (kept, margin_size(size)), (kept_audio, size), (kept_audio, audio_margin_size(size))]
    memory, on_disk = check_memory(found, options.dataset, [store for store in stores if store[0]], device)
    last, best = (0, 0) if model is None else checkpoint_bytes(model, options.optim.ema > 0)
    begun = sum((run_folder(options, fold) / "last.pth").is_file() for fold in folds)
    output = check_output(found, experiment_folder(options), on_disk + (len(folds) - begun) * (last + best) + last)
    return f"Decoded images are kept in: {memory}. {output}."


def _check_features(
    found: Findings, options: Options, model: RetrievalModel, train: Annotations, vocabulary: Vocabulary
) -> str:
    """What is kept of frozen towers, and whether there is room for it beside what is there already."""
    sizes, folder = sizes_of_features(model, options, train, vocabulary), options.dataset.feature_path
    if not sizes:
        return ""
    needed, free = sum(sizes.values()), free_bytes(folder)
    there = sum(file.stat().st_size for file in folder.glob("*/*.npy"))
    if needed > free + there:
        found.add(
            "Output",
            f"{folder}: features of frozen towers take {in_words(needed)}, {in_words(free)} are free; free some space, "
            "set dataset.feature_path to another disk, or dataset.features to off",
        )
    kinds = ", ".join(f"{what} ({in_words(size)})" for what, size in sizes.items())
    return f"Features of frozen towers are computed once and kept in {folder}: at most {kinds}."


def _describe_work(
    options: Options,
    model: RetrievalModel,
    splits: Sequence[tuple[Annotations, Annotations]],
    device: torch.device,
) -> str:
    optim, (train, val) = options.optim, splits[0]
    parameters = list(model.parameters())
    trained = sum(weight.numel() for weight in parameters if weight.requires_grad)
    words = torch.from_numpy(~blank_captions(train, vocab.tokenize))
    usable, batching = int(words.sum()), options.dataset.batching
    repeats = repeats_of(options.dataset.weights, train)
    items = len(SAMPLERS[batching](torch.from_numpy(train.caption_image), words, repeats))
    steps = len(batches_of(torch.arange(items), options.dataset.batch_size)) if usable else 0
    return (
        f"{options.model.name} with {sum(map(torch.numel, parameters)):,} weights, of which {trained:,} are trained: "
        f"{len(splits)} fold{'s' if len(splits) > 1 else ''} on {device}, at most {optim.epochs} epochs of {steps:,} "
        f"steps (batches of {options.dataset.batch_size} {batching}, loss {' + '.join(optim.loss)}). A fold trains on "
        f"{usable:,} captions of {len(train.image_names):,} images and validates on {len(val.image_names):,} "
        "images."
    )


def _describe_data(lists: Sequence[Annotations]) -> str:
    parts = [
        f"{len(annotations.image_names):,} images with {len(annotations.captions):,} captions in {annotations.name}"
        for annotations in lists
    ]
    blank = sum(int(blank_captions(annotations, vocab.tokenize).sum()) for annotations in lists)
    classes = {scene for annotations in lists for scene in scene_classes(annotations)} - {UNNAMED_SCENE}
    return f"Data: {', '.join(parts)}, {blank:,} captions without a word; {len(classes) or 'no'} scene classes."
