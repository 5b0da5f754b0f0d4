"""`pretrain.py --check`: what `train.py --check` looks at, as far as a pretraining needs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from batches.augmentation import audio_margin_size, margin_size
from layers.mcrn import MCRN
from option import BackboneOptions, ModalityOptions
from preflight.findings import Findings
from preflight.resources import (
    Stored,
    check_headers,
    check_memory,
    check_output,
    checkpoint_bytes,
    describe_headers,
    each_weight_alone,
)
from pretraining.scenes import SceneClassifier, list_images
from pretraining.unpaired_sources import find_sources
from pretraining.views import ViewMatcher, list_names
from runs.loaders import read_vocabulary
from runs.resume import begun_run
from runs.trackers import require_trackers


def check_pretraining(
    source: str, options: BackboneOptions | ModalityOptions, device: torch.device, resume: bool
) -> str:
    """Read everything that a pretraining needs.

    Args:
        source: the options' file, for the headline.
        options: the run.
        device: where to train.
        resume: go on with what was begun.

    Returns:
        What would be trained, on what, in a paragraph.

    Raises:
        InputError: lists all faults that were found.
    """
    found = Findings()
    if isinstance(options, BackboneOptions):
        data, stores, model = _check_backbone(found, options)
    else:
        data, stores, model = _check_modalities(found, options)
    folder = Path(options.logs.ckpt_save_path) / options.logs.experiment_name
    begun = found.attempt("Earlier runs", partial(begun_run, folder, options, resume, "logs.experiment_name"))
    found.attempt("Trackers", partial(require_trackers, options.logs.trackers))
    memory, on_disk = check_memory(found, options.dataset, stores, device)
    last, best = (0, 0) if model is None else checkpoint_bytes(model, averaged=False)
    output = check_output(found, folder, on_disk + last + (0 if begun else last + 2 * best))
    found.refuse(source)
    return (
        f"{source}: no faults. {data} {options.optim.epochs} epochs on {device}. Decoded images are kept in: "
        f"{memory}. {output}."
    )


Checked = tuple[str, list[Stored], nn.Module | None]


def _check_backbone(found: Findings, options: BackboneOptions) -> Checked:
    """Images, weights and memory of a backbone's task."""
    dataset, backbone = options.dataset, options.backbone
    if options.optim.task == "views":
        named = found.attempt("Images", partial(list_names, dataset))
        folder, names = named if named is not None else (None, ())
        learns, val_size = "which two views are of one image", margin_size(dataset.image_size)
        build: Callable[[], nn.Module] = partial(ViewMatcher, backbone.architecture, backbone.pretrained)
    else:
        images = found.attempt("Images", partial(list_images, dataset))
        folder, names = (images.folder, images.names) if images is not None else (None, ())
        classes = 2 if images is None else len(images.classes)
        learns, val_size = f"{classes} scene classes", dataset.image_size
        build = partial(SceneClassifier, backbone.architecture, backbone.pretrained, classes)
    model = found.attempt("Weights", build)
    if folder is None:
        return "", [], model
    headers = check_headers(found, "Images", folder, names, dataset)
    count = len(names)
    text = (
        f"{backbone.architecture} learns {learns} from {count:,} images of {describe_headers(headers)}, "
        f"{100 * dataset.val_share:.0f} % of them held out."
    )
    sizes = dict.fromkeys((margin_size(dataset.image_size), val_size))  # a store for each
    return text, [(count, size) for size in sizes], model


def _check_modalities(found: Findings, options: ModalityOptions) -> Checked:
    dataset, parts, stores = options.dataset, [], list[Stored]()
    vocabulary = found.attempt("Vocabulary", partial(read_vocabulary, options))
    files = found.attempt("Sources", partial(find_sources, dataset))
    images, audio = (files.images, files.audio) if files else (None, None)
    for kind, named, stored_size in (("images", images, margin_size), ("spectrograms", audio, audio_margin_size)):
        if named:
            folder, names = named
            headers = check_headers(found, kind.capitalize(), folder, names, dataset)
            parts.append(f"{len(names):,} {kind} of {describe_headers(headers)}")
            stores.append((len(names), stored_size(dataset.image_size)))
    if files and files.annotations:
        parts.append(f"{len(files.annotations.captions):,} captions")
    model = None
    if vocabulary is not None:
        build = partial(MCRN.from_parameters, image_size=dataset.image_size, vocabulary=vocabulary, load_weights=True)
        model = found.attempt("Weights", partial(build, options.model))
        for block in each_weight_alone(options.model) if model is None else ():
            found.attempt("Weights", partial(build, block))
    return f"MCRN learns without pairs from {', '.join(parts)}.", stores, model
