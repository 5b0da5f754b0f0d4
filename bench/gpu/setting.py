"""What the parts of the check work on: how much of it, which data set, which options, and where their text goes."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import vocab
from bench.encode import NETWORKS
from bench.train import TrainingSteps
from bench.variants import OURS
from data.annotations import read_annotations
from data.lists import read_lines, write_lines
from data.toy.dataset import make_toy
from layers.installed import PACKAGES, installed_file
from utils import InputError, markdown, write_text_atomic

AMFMN, DUAL = "AMFMN", "dual encoder"
MODELS = {AMFMN: "option/RSICD_AMFMN.yaml", DUAL: "option/RSICD_DUAL.yaml"}
RSICD = "rsicd_precomp"
SMALL_AMFMN = (
    *("seq2vec.arch=gru", "seq2vec.word_dim=16", "seq2vec.hidden_dim=32", "embed.embed_dim=32"),
    "backbone.architecture=timm/test_efficientnet",
)
SMALL_TOWERS = ("image.architecture=timm/test_efficientnet", "text.word_dim=16", "text.hidden_dim=32", "head.width=16")


class Skipped(Exception):
    """A part that has nothing to work with here; the message says what is missing."""


@dataclass(frozen=True)
class Sizes:
    """How much the parts do.

    Attributes:
        side: of the images, pixels.
        drawn: images of each class of the toy set, where there is no RSICD.
        drawn_side: of those, pixels.
        copies: of each of them in the train list.
        batch: pairs; None: as the YAML says.
        epoch_seconds: after which an epoch is broken off.
        steps: timed at a time with and without `optim.compile`.
        backend: of torch.compile.
        compared: images whose scores on both devices are compared.
        encoded: images of the throughput; `encode_batch` at a time.
        networks: that encode.
        vectors: of the search.
        tests: where pytest looks for tests marked for CUDA.
    """

    side: int = 224
    drawn: int = 20
    drawn_side: int = 128
    copies: int = 24
    batch: int | None = None
    epoch_seconds: float = 30
    steps: int = 10
    backend: str = "inductor"
    compared: int = 32
    encoded: int = 2048
    encode_batch: int = 256
    networks: Sequence[str] = NETWORKS
    vectors: int = 200_000
    tests: str = "tests"


FULL = Sizes()
SMALL = Sizes(
    side=64,
    drawn=2,
    drawn_side=64,
    copies=2,
    batch=16,
    epoch_seconds=600,
    steps=2,
    backend="eager",
    compared=8,
    encoded=16,
    encode_batch=8,
    networks=("resnet18", "timm/no_such_network"),
    vectors=2000,
    tests="tests/metrics/test_scene_recall.py",
)


@dataclass(frozen=True)
class Setting:
    """One check: the device, whether it is the small form, and the folder of its files."""

    device: torch.device
    small: bool
    folder: Path

    @property
    def sizes(self) -> Sizes:
        """How much is done."""
        return SMALL if self.small else FULL

    @property
    def vocabulary(self) -> Path:
        """The words of the train list."""
        return self.folder / "vocab.json"

    def weights(self, model: str) -> Path:
        """Where the epoch of one of `MODELS` leaves its weights."""
        return self.folder / f"{model}.pth"

    @property
    def rsicd(self) -> Path | None:
        """RSICD's folder, where it is used."""
        return None if self.small else real_data()

    @property
    def toy(self) -> Path:
        """Where the toy set is drawn else."""
        return self.folder / "toy_precomp"

    def data(self) -> Path:
        """The data set's folder.

        Raises:
            Skipped: the part `data` did not come to its end.
        """
        if not self.vocabulary.is_file():
            raise Skipped("the part `data` made no data set")
        return self.rsicd or self.toy

    def overrides(self, model: str, *further: str) -> list[str]:
        """Options of one of `MODELS` on this data set: bf16, images on the device, all of the model learns."""
        sizes, data = self.sizes, self.data()
        own = self._of_amfmn() if model == AMFMN else self._of_dual()
        batch = [] if sizes.batch is None else [f"dataset.batch_size={sizes.batch}"]
        return [
            *(f"model.{value}" for value in own),
            f"dataset.data_path={data}",
            f"dataset.vocab_path={self.vocabulary}",
            f"dataset.image_size={sizes.side}",
            "dataset.cache=device",
            "dataset.augmentation=published",
            *batch,
            "optim.amp=bf16",
            f"logs.ckpt_save_path={self.folder / 'checkpoint'}",
            *further,
        ]

    def _of_amfmn(self) -> list[str]:
        random = ["backbone.pretrained=none", f"seq2vec.dir_st={self.folder / 'absent'}"]
        return [*random, *(SMALL_AMFMN if self.small else ())]

    def _of_dual(self) -> list[str]:
        """Both towers learn; each has the weights of its package, or random ones where that is missing."""
        if importlib.util.find_spec("timm") is None:
            raise Skipped("the dual encoder needs timm: bash exec/environment.sh weights")
        trained = ["image.train=all", "text.train=all"]
        image = "installed" if not self.small and has_weights("timm/tf_efficientnet_lite0") else "none"
        text = "installed/minilm" if not self.small and has_weights("installed/minilm") else "gru"
        return [*trained, f"image.pretrained={image}", f"text.encoder={text}", *(SMALL_TOWERS if self.small else ())]

    def steps(self, model: str, most: int | None = None, *further: str) -> TrainingSteps:
        """Training steps of one of `MODELS`, in bf16; `most` images of the train list, None: all."""
        variant = replace(OURS, amp="bf16")
        overrides = self.overrides(model, *further)
        return TrainingSteps(MODELS[model], overrides, variant, str(self.device), self.sizes.steps, most)


def has_weights(architecture: str) -> bool:
    """Whether the package with an architecture's weights is installed, and what reads them."""
    if importlib.util.find_spec("transformers" if architecture.startswith("installed/") else "timm") is None:
        return False
    try:
        installed_file(PACKAGES[architecture])
    except InputError:
        return False
    return True


def real_data() -> Path | None:
    """RSICD, where `RSR_DATA` or `data/` has it."""
    places = [Path(os.environ["RSR_DATA"])] if "RSR_DATA" in os.environ else []
    return next((place / RSICD for place in [*places, Path("data")] if (place / RSICD / "images").is_dir()), None)


def make_data(setting: Setting) -> str:
    """Draw the toy set where there is no RSICD, and keep the words of the train list; returns what the images are."""
    sizes, data, kind = setting.sizes, setting.rsicd, "RSICD"
    if data is None:
        data, kind = (
            setting.toy,
            f"Toy set, {sizes.drawn} images of a class, each {sizes.copies} times in the train list",
        )
        make_toy(data, sizes.drawn, sizes.drawn_side)
        enlarge(data, sizes.copies)
    vocab.build(read_annotations(data, "train").captions, min_count=1).save(setting.vocabulary)
    return kind


def enlarge(data: Path, copies: int) -> None:
    """Give each image of a train list, with its captions, `copies` times, each under a name of its own."""
    names_file, captions_file = data / "train_filename.txt", data / "train_caps.txt"
    names, captions = read_lines(names_file), read_lines(captions_file)
    more = [f"{number}_{name}" for number in range(1, copies) for name in names]
    for name in more:
        shutil.copy(data / "images" / name.partition("_")[2], data / "images" / name)
    write_lines(names_file, [*names, *more])
    write_lines(captions_file, captions * copies)


@dataclass
class Section:
    """The text of a part, written at each addition: what was found stays where the part is ended from outside."""

    path: Path
    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Add a paragraph."""
        self.lines.append(text)
        self.write()

    def table(self, head: Sequence[str]) -> Table:
        """Begin a table with the head alone."""
        self.add(markdown([list(head)]))
        return Table(self, len(self.lines) - 1, [list(head)])

    def write(self) -> None:
        """Write all of it."""
        write_text_atomic(self.path, "\n\n".join(self.lines) + "\n")


@dataclass
class Table:
    """A table that grows, in its place among the paragraphs of a section."""

    section: Section
    place: int
    rows: list[list[str]]

    def row(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(list(cells))
        self.section.lines[self.place] = markdown(self.rows)
        self.section.write()
