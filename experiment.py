"""From options to the objects of one run: folders, vocabulary, pictures, model, checkpoints."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import option
import vocab
from data.annotations import Annotations, blank_captions, check_images, describe_blank
from data.picture_store import PictureStore, choose_cache
from data.region_file import RegionFile, Regions, read_regions
from dataloader import Captions, EvaluationLoader, TrainLoader, margin_size
from layers.base import RetrievalModel
from layers.registry import registered
from layers.released import load_released
from option import Options
from utils import InputError, derive_seed, first_line, logger, write_atomic
from vocab import Vocabulary

FORMAT = "rsretrieval-1"


def entry_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every entry point takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--path_opt", required=True, help="the experiment's YAML")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override options")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: CUDA where there is one")
    parser.add_argument("--folds", help="only these folds, e.g. 0,2")
    return parser


def command(script: str, path_opt: str, overrides: Sequence[str], *flags: str) -> str:
    """The command that a message tells the user to type."""
    repeated = ["--set", *overrides] if overrides else []
    return " ".join(["python", script, "--path_opt", path_opt, *flags, *repeated])


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


def read_vocabulary(options: Options) -> Vocabulary:
    """The vocabulary of `dataset.vocab_path`.

    Raises:
        InputError: it is missing (the message names the command that makes it) or broken.
    """
    path = Path(options.dataset.vocab_path)
    if not path.is_file():
        raise InputError(
            f"dataset.vocab_path: no vocabulary {path}. Make it with: "
            f"python -m vocab --data_path {options.dataset.data_path} --data_name NAME --out {path}"
        )
    return Vocabulary.load(path)


class PictureLibrary:
    """The pictures of an experiment and their regions, read once and shared by its folds."""

    def __init__(self, options: Options, names: Sequence[str], device: torch.device) -> None:
        """Name the pictures; nothing is decoded yet.

        Args:
            options: `dataset.image_path`, `cache` and `max_pixels` are read.
            names: file names in the image folder; order and repeats do not matter.
            device: where the batches will go.
        """
        self.options = options
        self.names = sorted(set(names))
        self.row = {name: row for row, name in enumerate(self.names)}
        self.device = device
        self.stores: dict[int, PictureStore] = {}
        self.region_file: RegionFile | None = None

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
        store, rows = self.stores[size], torch.tensor([self.row[name] for name in names])
        store.load(rows, title)
        return store, rows

    def regions(self, names: Sequence[str]) -> Regions | None:
        """The regions of some pictures, where the model uses them and `dataset.local_path` names a file."""
        dataset = self.options.dataset
        if dataset.local_path is None or not registered()[self.options.model.name].model.uses_regions:
            return None
        if self.region_file is None:
            self.region_file = read_regions(dataset.local_path)
        return self.region_file.of(names, dataset.missing_regions)

    def _store(self, size: int) -> PictureStore:
        dataset = self.options.dataset
        cache = choose_cache(dataset.cache, len(self.names), size, self.device)
        logger.info("Pictures of %d pixels: cache %s, %.0f MiB", size, cache, len(self.names) * 3 * size**2 / 2**20)
        return PictureStore(
            [dataset.image_folder / name for name in self.names],
            size,
            cache,
            experiment_folder(self.options) / "cache",
            self.device,
            dataset.max_pixels,
        )


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
    library: PictureLibrary,
    device: torch.device,
) -> TrainLoader:
    """Training pairs of a fold; captions without a word are left out."""
    check_images(annotations, options.dataset.image_folder)
    size = options.dataset.image_size
    store, rows = library.open(annotations.image_names, margin_size(size), f"pictures ({annotations.name})")
    return TrainLoader(
        annotations,
        Captions.encode(annotations.captions, vocabulary),
        ~warn_of_blanks(annotations),
        store,
        rows,
        batch_size=options.dataset.batch_size,
        image_size=size,
        workers=options.dataset.workers,
        seed=derive_seed(options.optim.seed, "order", fold),
        device=device,
        regions=library.regions(annotations.image_names),
    )


def evaluation_loader(
    options: Options,
    annotations: Annotations,
    vocabulary: Vocabulary,
    library: PictureLibrary,
    device: torch.device,
) -> EvaluationLoader:
    """Pictures and captions of a val or test list, ready to be encoded."""
    check_images(annotations, options.dataset.image_folder)
    warn_of_blanks(annotations)
    store, rows = library.open(annotations.image_names, options.dataset.image_size, f"pictures ({annotations.name})")
    return EvaluationLoader(
        annotations,
        Captions.encode(annotations.captions, vocabulary),
        store,
        rows,
        batch_size=options.dataset.batch_size_val,
        workers=options.dataset.workers,
        device=device,
        regions=library.regions(annotations.image_names),
    )


def place(model: RetrievalModel, device: torch.device) -> RetrievalModel:
    """Put a model on a device, its convolutions in the channels-last layout that CPUs and tensor cores prefer."""
    model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def save_checkpoint(path: Path, state: dict[str, Any], options: Options, vocabulary: Vocabulary, fold: int) -> None:
    """Write a checkpoint of ours: a state, and what it takes to know whether it fits."""
    content = {
        "format": FORMAT,
        "options": option.dump(options),
        "vocabulary": vocabulary.digest,
        "fold": fold,
        **state,
    }
    write_atomic(path, lambda file: torch.save(content, file))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, or one that the models' authors published, without running code from it.

    Raises:
        InputError: the file is missing, or is not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as fault:
        raise InputError(f"{path} can't be read as a checkpoint: {first_line(fault)}") from fault
    except Exception as fault:  # pickle's own errors share no useful base class
        raise InputError(
            f"{path} was refused: it holds more than tensors and plain values ({first_line(fault)})."
        ) from fault
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is not a checkpoint: expected a dictionary with the weights under the key `model`.")
    return content


def load_weights(model: RetrievalModel, path: Path, options: Options, vocabulary: Vocabulary) -> dict[str, Any]:
    """Load a checkpoint, ours or a published one, into a model built from `options`.

    Returns:
        The whole checkpoint.

    Raises:
        InputError: see `read_checkpoint` and `fit_weights`.
    """
    content = read_checkpoint(path)
    if content.get("format") == FORMAT:
        fit_weights(model, content, path, options, vocabulary)
    else:
        load_released(model, content["model"])
        logger.info("Loaded the released checkpoint %s.", path)
    return content


def fit_weights(
    model: RetrievalModel, content: dict[str, Any], path: Path, options: Options, vocabulary: Vocabulary
) -> None:
    """Load the weights of a checkpoint of ours.

    Raises:
        InputError: they do not fit the model or the vocabulary; the message says in which options they differ.
    """
    if content["vocabulary"] != vocabulary.digest:
        raise InputError(
            f"{path} was trained with another vocabulary than {options.dataset.vocab_path}: its word ids mean other "
            "words. Give the vocabulary that it was trained with (--set dataset.vocab_path=FILE)."
        )
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as fault:
        raise InputError(
            f"{path} does not fit {options.model.name} as built from these options."
            + _differences(content["options"], option.dump(options))
        ) from fault


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """Which options that decide what is built differ between a checkpoint and what is given."""
    stored_flat, given_flat = _flat(stored), _flat(given)
    lines = [
        f"\n  {key}: {stored_flat.get(key)} in the checkpoint, {given_flat.get(key)} now"
        for key in sorted(stored_flat.keys() | given_flat.keys())
        if key.startswith(("model.", "dataset.image_size", "dataset.local_path"))
        and stored_flat.get(key) != given_flat.get(key)
    ]
    return " They differ in:" + "".join(lines) + "\nGive the same --set as in training." if lines else ""


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
