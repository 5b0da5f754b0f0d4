"""From options to the objects of one run: folders, vocabulary, pictures, loaders."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import option
import vocab
from augmentation import audio_margin_size, margin_size
from checkpoints import FORMAT, load_weights
from data.annotations import Annotations, blank_captions, check_images, describe_blank
from data.picture_store import PictureStore, choose_cache
from data.region_file import RegionFile, Regions, read_regions
from dataloader import Captions, EvaluationLoader, Spectrograms, TrainLoader
from distributed import ALONE, World
from engine import Plan
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from mismatch import Gate
from optimisation import build_optimizer, build_scheduler, build_warmup, moving_average
from option import ModalityOptions, Options
from option.schema import Descent, Logs, Pictures, Training
from provenance import check_model
from queries import build_queries, typed_queries
from training_state import TrainingState
from utils import InputError, derive_seed, logger
from vocab import Vocabulary

Module = TypeVar("Module", bound=nn.Module)


def entry_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that every entry point of an experiment takes."""
    parser = argparse.ArgumentParser(description=description)
    add_experiment(parser)
    return parser


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose the options and the device."""
    parser.add_argument("--path_opt", required=True, help="the experiment's YAML")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override options")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The argument that chooses the device."""
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: CUDA where there is one")


def add_folds(parser: argparse.ArgumentParser) -> None:
    """The argument that chooses folds."""
    parser.add_argument("--folds", help="only these folds, e.g. 0,2")


def add_force(parser: argparse.ArgumentParser) -> None:
    """The argument that lets mismatches through, see `mismatch.Gate`."""
    parser.add_argument(
        "--force", action="store_true", help="load weights of another vocabulary, model or data set all the same"
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """The argument that only looks for faults, see `preflight`."""
    parser.add_argument(
        "--check", action="store_true", help="read everything that the run needs, list all faults, and do no work"
    )


def command(script: str, path_opt: str, overrides: Sequence[str], *flags: str) -> str:
    """The command that a message tells the user to type."""
    repeated = ["--set", *overrides] if overrides else []
    return shlex.join(["python", script, "--path_opt", path_opt, *flags, *repeated])


def experiment_folder(options: Options) -> Path:
    """Where all folds of an experiment write."""
    return Path(options.logs.ckpt_save_path) / options.k_fold.experiment_name


def run_folder(options: Options, fold: int) -> Path:
    """Where one fold writes."""
    return experiment_folder(options) / str(fold)


def best_checkpoint(options: Options, fold: int) -> Path:
    """The weights of a fold that were best on val."""
    return run_folder(options, fold) / f"{options.model.name}_best.pth.tar"


def parse_folds(text: str | None, count: int) -> list[int]:
    """Folds chosen by `--folds 0,2`; all of them without it.

    Raises:
        InputError: not a list of numbers in 0..count - 1.
    """
    if text is None:
        return list(range(count))
    try:
        folds = sorted({int(part) for part in text.split(",")})
    except ValueError as fault:
        raise InputError(f"--folds {text}: expected numbers with commas between them, e.g. --folds 0,2.") from fault
    if folds[0] < 0 or folds[-1] >= count:
        raise InputError(f"--folds {text}: this experiment has the folds 0 to {count - 1} (k_fold.nums).")
    return folds


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


class PictureLibrary:
    """The pictures of an experiment, read once and shared by its folds."""

    def __init__(
        self,
        pictures: Pictures,
        folder: Path,
        cache_folder: Path,
        names: Sequence[str],
        device: torch.device,
        processes: int = 1,
        beside: list[PictureStore] | None = None,
    ) -> None:
        """Name the pictures; nothing is decoded yet.

        Args:
            pictures: how to read them.
            folder: where they lie.
            cache_folder: where a cache on disk goes.
            names: file names in the image folder; order and repeats do not matter.
            device: where the batches will go.
            processes: how many of this machine hold a library of the same pictures.
            beside: all stores that take memory of this process; the library's own are added.
        """
        self.pictures = pictures
        self.folder = folder
        self.cache_folder = cache_folder
        self.names = sorted(set(names))
        self.row = {name: row for row, name in enumerate(self.names)}
        self.device = device
        self.processes = processes
        self.stores: dict[int, PictureStore] = {}
        self.beside = [] if beside is None else beside

    def holds(self, names: Sequence[str]) -> bool:
        """Whether all these pictures belong to the library."""
        return self.row.keys() >= set(names)

    def open(self, names: Sequence[str], size: int, title: str) -> tuple[PictureStore, Tensor]:
        """A store that holds pictures at a size, and the row of each name in it [N].

        Args:
            names: the pictures that are needed now; those not yet held are decoded, unless `dataset.cache` is `off`.
            size: side in pixels.
            title: of the progress bar.
        """
        if size not in self.stores:
            self.stores[size] = self._store(size)
            self.beside.append(self.stores[size])
        store, rows = self.stores[size], torch.tensor([self.row[name] for name in names])
        store.load(rows, title)
        return store, rows

    def _store(self, size: int) -> PictureStore:
        promised = {"ram": sum(store.promised for store in self.beside)}
        cache = choose_cache(self.pictures.cache, len(self.names), size, self.device, self.processes, promised)
        logger.info("Pictures of %d pixels: cache %s, %.0f MiB", size, cache, len(self.names) * 3 * size**2 / 2**20)
        paths = [self.folder / name for name in self.names]
        return PictureStore(paths, size, cache, self.cache_folder, self.device, self.pictures.max_pixels)


@dataclass(frozen=True)
class Media:
    """What a retrieval experiment reads once for all its folds.

    Attributes:
        images: the pictures.
        audio: the spectrograms; None where the model uses no sound.
        region_file: regions of pictures; None where the model uses none.
    """

    images: PictureLibrary
    audio: PictureLibrary | None
    region_file: RegionFile | None

    @classmethod
    def of(cls, options: Options, lists: Sequence[Annotations], device: torch.device, processes: int = 1) -> Media:
        """The files that some lists name, for each of some processes of this machine; no picture is decoded yet.

        Raises:
            InputError: the region file is missing or broken, or there is no folder of spectrograms for a model that
                needs one.
        """
        dataset, cache_folder = options.dataset, experiment_folder(options) / "cache"
        image_names = [name for annotations in lists for name in annotations.image_names]
        stores: list[PictureStore] = []
        images = PictureLibrary(dataset, dataset.image_folder, cache_folder, image_names, device, processes, stores)
        audio_folder, region_file = audio_folder_of(options), region_file_of(options)
        if audio_folder is None:
            return cls(images, None, region_file)
        audio_names = [name for annotations in lists for name in annotations.audio_names or ()]
        audio = PictureLibrary(dataset, audio_folder, cache_folder, audio_names, device, processes, stores)
        return cls(images, audio, region_file)

    def holds(self, annotations: Annotations) -> bool:
        """Whether all files of a list belong to it."""
        heard = self.audio is None or self.audio.holds(annotations.audio_names or ())
        return heard and self.images.holds(annotations.image_names)

    def spectrograms(self, annotations: Annotations, size: int) -> Spectrograms | None:
        """The spectrograms of a list's captions at a size, where there are any."""
        if self.audio is None or annotations.audio_names is None:
            return None
        return Spectrograms(*self.audio.open(annotations.audio_names, size, f"spectrograms ({annotations.name})"))

    def regions(self, names: Sequence[str], missing: str) -> Regions | None:
        """The regions of some pictures, where there are any; `missing` as for `RegionFile.of`."""
        return None if self.region_file is None else self.region_file.of(names, missing)


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
    """The regions of some pictures, where the model uses them and `dataset.local_path` names a file."""
    file = region_file_of(options)
    return None if file is None else file.of(names, options.dataset.missing_regions)


def queries_of(options: Options, annotations: Annotations, vocabulary: Vocabulary) -> Captions:
    """What the captions of a list become for the model, see `queries.build_queries`."""
    mode = registered()[options.model.name].model.query_mode(options.model)
    return build_queries(annotations, vocabulary, mode, options.dataset.keywords_folder)


def typed_queries_of(options: Options, sentences: Sequence[str], vocabulary: Vocabulary) -> Captions:
    """What sentences that belong to no image become for the model, see `queries.typed_queries`."""
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
    store, rows = media.images.open(annotations.image_names, margin_size(size), f"pictures ({annotations.name})")
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
        augmentation=options.dataset.views,
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
    """Pictures, captions and spectrograms of a val or test list, ready to be encoded; each rank gets its share."""
    check_images(annotations, options.dataset.image_folder)
    warn_of_blanks(annotations)
    size, names, views = options.dataset.image_size, annotations.image_names, None
    store, rows = media.images.open(names, size, f"pictures ({annotations.name})")
    if registered()[options.model.name].model.uses_second_view:
        views, _ = media.images.open(names, margin_size(size), f"pictures ({annotations.name})")
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
