"""From options to the objects of one run: folders, vocabulary, images, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import option
import vocab
from batches.augmentation import Augmentation, audio_margin_size, margin_size
from batches.batch import Captions
from batches.queries import build_queries, typed_queries
from data.annotations import Annotations, blank_captions, check_images, describe_blank
from dataloader import EvaluationLoader, TrainLoader
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from option import ModalityOptions, Options
from option.schema import Descent, Logs, Training
from runs.checkpoints import FORMAT, load_weights
from runs.media import Media
from runs.provenance import check_model
from runtime.distributed import ALONE, World
from training.epoch import Plan
from training.optimiser import build_optimizer, build_scheduler, build_warmup, moving_average
from training.state import TrainingState
from utils import Gate, InputError, derive_seed, logger
from vocab import Vocabulary

Module = TypeVar("Module", bound=nn.Module)


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
        raise InputError(
            f"dataset.vocab_path: no vocabulary {path}. Make it with: "
            f"python -m vocab --data_path {options.dataset.data_path} --data_name NAME --out {path}"
        )
    return Vocabulary.load(path)


def queries_of(options: Options, annotations: Annotations, vocabulary: Vocabulary) -> Captions:
    """What the captions of a list become for the model, see `batches.queries.build_queries`."""
    mode = registered()[options.model.name].model.query_mode(options.model)
    return build_queries(annotations, vocabulary, mode, options.dataset.keywords_folder)


def typed_queries_of(options: Options, sentences: Sequence[str], vocabulary: Vocabulary) -> Captions:
    """What sentences that belong to no image become for the model, see `batches.queries.typed_queries`."""
    mode, dataset = registered()[options.model.name].model.query_mode(options.model), options.dataset
    return typed_queries(sentences, vocabulary, mode, dataset.data_path, dataset.keywords_folder)


def warn_of_blanks(annotations: Annotations) -> Tensor:
    """Say in one line which captions have no word, if any has none.

    Returns:
        [M] bool, True for a caption without a word.
    """
    blank = blank_captions(annotations, vocab.tokenize)
    if blank.any():
        logger.warning("%s", describe_blank(annotations, blank))
    return torch.from_numpy(blank)


def train_loader(
    options: Options,
    fold: int,
    vocabulary: Vocabulary,
    annotations: Annotations,
    media: Media,
    device: torch.device,
    world: World = ALONE,
) -> TrainLoader:
    """Training pairs of a fold, of which each rank gets its share; captions without a word are left out."""
    check_images(annotations, options.dataset.image_folder)
    size = options.dataset.image_size
    store, rows = media.images.open(annotations.image_names, margin_size(size), f"images ({annotations.name})")
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
        augmentation=Augmentation.of(options.dataset),
        length_buckets=options.dataset.length_buckets,
        batching=options.dataset.batching,
        world=world,
    )


def evaluation_loader(
    options: Options,
    annotations: Annotations,
    vocabulary: Vocabulary,
    media: Media,
    device: torch.device,
    world: World = ALONE,
) -> EvaluationLoader:
    """Images, captions and spectrograms of a val or test list, ready to be encoded; each rank gets its share."""
    check_images(annotations, options.dataset.image_folder)
    warn_of_blanks(annotations)
    size, names, views = options.dataset.image_size, annotations.image_names, None
    store, rows = media.images.open(names, size, f"images ({annotations.name})")
    if registered()[options.model.name].model.uses_second_view:
        views, _ = media.images.open(names, margin_size(size), f"images ({annotations.name})")
    return EvaluationLoader(
        annotations,
        queries_of(options, annotations, vocabulary),
        store,
        rows,
        batch_size=options.dataset.batch_size_val,
        workers=options.dataset.workers,
        device=device,
        regions=media.regions(names, options.dataset.missing_regions),
        audio=media.spectrograms(annotations, size),
        views=views,
        world=world,
    )


def load_model(
    options: Options, vocabulary: Vocabulary, path: Path, device: torch.device, gate: Gate | None = None
) -> tuple[RetrievalModel, dict[str, Any]]:
    """The model of one checkpoint, ready to encode, and all else that the checkpoint holds.

    Raises:
        InputError: see `load_weights` and `check_model`.
    """
    model = build_model(options, vocabulary, load_weights=False)
    content = load_weights(model, path, options, vocabulary, gate)
    if content.get("format") == FORMAT:
        check_model(content, path, option.dump(options), gate)
    logger.info("%s: epoch %s", path, content.get("epoch", "unknown"))
    return place(model, device), content


def place(model: Module, device: torch.device) -> Module:
    """Put a model on a device, its convolutions in the channels-last layout that CPUs and tensor cores prefer."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def plan_of(optim: Training, logs: Logs, select: str) -> Plan:
    """How the engine is to train; the best epoch has the highest validation score `select`."""
    return Plan(
        epochs=optim.epochs,
        eval_step=logs.eval_step,
        print_freq=logs.print_freq,
        patience=optim.patience,
        accumulate=optim.accumulate,
        grad_clip=optim.grad_clip,
        amp=optim.amp,
        on_oom=optim.on_oom,
        select=select,
        save_minutes=logs.save_minutes,
    )


def start_state(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    optim: Descent,
    device: torch.device,
    objective: nn.Module | None = None,
    ema: float = 0.0,
) -> TrainingState:
    """Optimiser, learning rates, loss scale and moving average of a run before its first epoch.

    Args:
        model: placed on the device already.
        groups: its parameters in groups for the optimiser, each with its learning rate.
        optim: the optimiser and the schedule, and whether losses are scaled.
        device: where the model is.
        objective: on the device already; its parameters learn at the rate of the first group.
        ema: decay of the moving average of the weights; 0: there is none.
    """
    learned = [] if objective is None else list(objective.parameters())
    if learned:
        groups = [*groups, {"params": learned, "lr": groups[0]["lr"]}]
    optimizer = build_optimizer(groups, optim)
    scheduler = build_scheduler(optimizer, optim)
    return TrainingState(
        model,
        optimizer,
        scheduler,
        torch.amp.GradScaler(device.type, enabled=optim.amp == "fp16"),
        objective=objective or nn.Identity(),
        warmup=build_warmup(optimizer, optim.warmup_steps),
        average=moving_average(model, ema) if ema > 0 else None,
    )
