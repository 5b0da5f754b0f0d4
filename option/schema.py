"""The typed tree of options: every key of an experiment's YAML with its type, range, default and purpose.

The `model` block belongs to the model that `model.name` selects: its parameters are registered in `layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Le
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    field_validator,
)

from option.images import ImageRule
from option.parameters import MOST_EPOCHS, MOST_STEPS, ModelParameters, Parameters, loss_blocks

Angles = Literal["published", "overhead", "right_angles", "none"]
Views = Literal["one", "right_angles"]
Batching = Literal["pairs", "images", "one_caption"]

# numpy takes seeds below 2**32, and a fold adds its number to the seed
LARGEST_SEED = 2**31 - 1
MOST_ITEMS = 2**16  # of a batch
MOST_SIDE = 4096  # pixels
MOST_FOLDS = 1000
# bytes; file systems take 255
LONGEST_NAME = 200


def _not_blank(value: Any) -> Any:
    """Refuse an empty path, which would silently mean the working directory."""
    if isinstance(value, str) and not value.strip():
        raise ValueError("a path must not be empty")
    return value


def _path_or_false(value: Any) -> Any:
    """Read the published `resume: False` as no path."""
    word = str(value).lower()
    if word in ("false", "off", "no", "0"):
        return None
    if word in ("true", "on", "yes", "1"):
        raise ValueError("allowed: false, or the path of a checkpoint")
    return value


def _plain_folder_name(name: str) -> str:
    """Refuse what would write elsewhere than into one folder."""
    plain = name == name.strip() and name not in ("", ".", "..") and not set(name) & set("/\\")
    if not plain or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"allowed: a plain folder name of at most {LONGEST_NAME} bytes, without slashes or blanks at its ends, "
            "and not . or .."
        )
    return name


GivenPath = Annotated[Path, BeforeValidator(_not_blank)]
FolderName = Annotated[str, AfterValidator(_plain_folder_name)]


class ImageReading(ImageRule):
    """What the `dataset` block of every entry point says about reading images."""

    batch_size: int = Field(
        default=100,
        ge=2,
        le=MOST_ITEMS,
        description="items per training batch, of each device; where they are pairs, every other pair of the batch is "
        "a negative [items]",
    )
    batch_size_val: int = Field(
        default=70, ge=1, le=MOST_ITEMS, description="images or captions encoded at a time in evaluation [items]"
    )
    workers: int = Field(
        default=2, ge=0, le=256, description="processes that read images; 0: the main process does [processes]"
    )
    image_size: int = Field(
        default=256,
        ge=64,
        le=MOST_SIDE,
        description="side of the images that the model sees; AMFMN, GaLR, SWAN, MCRN: a multiple of 32; CLIP: its "
        "architecture's [pixels]",
    )
    cache: Literal["auto", "device", "ram", "disk", "off"] = Field(
        default="auto",
        description="where decoded images are kept; device: the GPU; off: nowhere, each epoch decodes them again; "
        "auto: the fastest place with room for them",
    )


class AugmentedReading(ImageReading):
    """What the `dataset` block says where images are trained on, in views that are drawn anew each time."""

    augmentation: Angles = Field(
        default="published",
        description="of training images: published or overhead views of a random crop, one of the image's right_angles "
        "views, or none",
    )
    smallest_part: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="a training view is a part of the crop, at least of this area, enlarged; 1: the whole crop [share]",
    )
    colour_jitter: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="brightness, contrast and saturation of training images are multiplied by up to 1 plus or minus "
        "this; 0: they stay",
    )


class Dataset(AugmentedReading):
    """Block `dataset`: where captions and images lie and how they are read."""

    datatype: str | None = Field(default=None, description="name of the data set, for the reader only")
    data_path: GivenPath = Field(description="folder of the caption and file-name lists")
    image_path: GivenPath | None = Field(default=None, description="folder of the images; null: <data_path>/images")
    audio_path: GivenPath | None = Field(
        default=None, description="folder of the spectrogram images, made by `python -m data.audio` (MCRN)"
    )
    vocab_path: GivenPath = Field(
        description="vocabulary JSON, made by `python -m vocab`; CLIP brings its own and reads none"
    )
    local_path: GivenPath | None = Field(
        default=None, description="region file, made by `python -m data.regions`; null: GaLR is global only"
    )
    batching: Batching = Field(
        default="pairs",
        description="what batch_size counts; images: images with all their captions; one_caption: images, each with "
        "one drawn anew per epoch",
    )
    features: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: what frozen towers make of an item is computed once and kept; off: in every step",
    )
    feature_path: GivenPath = Field(
        default=Path("cache"), description="folder of kept features, shared by all runs; it may be deleted"
    )
    missing_regions: Literal["error", "zeros"] = Field(
        default="error",
        description="when the region file lacks an image; error: the run ends; zeros: it counts as one without regions",
    )
    keywords_path: GivenPath | None = Field(
        default=None,
        description="folder of train_keywords.txt and test_keywords.txt, made by `python -m data.keywords` (AMFMN); "
        "null: data_path",
    )

    @property
    def keywords_folder(self) -> Path:
        """The folder of the keywords: `keywords_path`, or `data_path`."""
        return self.keywords_path or self.data_path

    test_views: Literal["one", "right_angles"] = Field(
        default="one",
        description="of an image in test.py and search indexes; right_angles: the mean over 8, turned and mirrored",
    )

    set_weights: dict[str, Annotated[int, Ge(1), Le(1000)]] = Field(
        default={},
        description="of a list that data.join made: how often an epoch shows the images of a set, such as {rsitmd: 2}",
    )

    length_buckets: bool = Field(
        default=False, description="true: the captions of a training batch are of like length; false: as they come"
    )

    @property
    def image_folder(self) -> Path:
        """The folder of the images: `image_path`, or `images` in `data_path`."""
        return self.image_path or self.data_path / "images"


class Descent(Parameters):
    """What the `optim` block of every entry point says about optimisers and their schedules."""

    epochs: int = Field(default=70, ge=1, le=MOST_EPOCHS, description="passes over the training items [epochs]")
    optimizer: Literal["adam", "adamw"] = Field(
        default="adam", description="torch.optim's; adamw keeps the weight decay out of the gradient"
    )
    weight_decay: float = Field(
        default=0.0, ge=0, description="of matrices and kernels, not of biases, norms and other vectors; 0: off"
    )
    lr: float = Field(default=2e-4, gt=0, description="learning rate at the start")
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=MOST_STEPS,
        description="optimiser steps over which learning rates rise from 0 to the schedule [steps]",
    )
    lr_decay_param: float = Field(
        default=0.7, gt=0, le=1, description="factor on the learning rate at each decay (schedule step)"
    )
    lr_update_epoch: int = Field(
        default=20, ge=1, le=MOST_EPOCHS, description="epochs from one decay to the next (schedule step) [epochs]"
    )
    schedule: Literal["step", "cosine"] = Field(
        default="step", description="step: lr_decay_param every lr_update_epoch; cosine: to 0 over schedule_epochs"
    )
    schedule_epochs: int | None = Field(
        default=None,
        ge=1,
        le=MOST_EPOCHS,
        description="schedule cosine: epochs from the start to 0; null: as many as epochs [epochs]",
    )
    grad_clip: float = Field(default=0.0, ge=0, description="largest norm of the gradient, clipped above it; 0: off")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="root of all randomness but the splits")
    amp: Literal["off", "bf16", "fp16"] = Field(
        default="off", description="mixed precision of training and evaluation; off: float32"
    )


class Training(Descent):
    """What the `optim` block says where one loss is brought down and a validation score chooses the best epoch."""

    accumulate: int = Field(
        default=1,
        ge=1,
        le=MOST_ITEMS,
        description="batches whose gradients are summed for one optimiser step [batches]",
    )
    on_oom: Literal["stop", "halve"] = Field(
        default="stop",
        description="when memory runs out in a step; stop: say what would fit; halve: batches in 2, 4, ... parts with "
        "negatives of their own",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=MOST_EPOCHS,
        description="validations without a better score before stopping; 0: never [validations]",
    )


def _weight_of_one(value: Any) -> Any:
    """Read the name of a loss as that loss alone."""
    return {value: 1.0} if isinstance(value, str) else value


class Optim(Training):
    """Block `optim`: the loss, the optimiser and its schedule; `whole` adds the blocks of all registered losses."""

    loss: Mapping[str, float] = Field(default={"triplet": 1.0})
    mask: Literal["none", "image", "caption"] = Field(
        default="none",
        description="pairs of a batch that are no negatives; image: of one image; caption: of equal captions, too",
    )
    lr_backbone: float = Field(
        default=1.0, gt=0, le=1, description="factor on the learning rate of the backbones of images and sounds"
    )
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights that is scored; 0: off"
    )
    max_violation: bool = Field(
        default=False,
        description="negatives that count; true: the hardest of each query; false: the sum over all of them",
    )
    methods: Literal["all", "tpt"] = Field(
        default="all", description="MCRN's fine-tuning; tpt: triplets alone; all: views and modalities aligned, too"
    )
    lr_finetune: float = Field(
        default=3e-4,
        gt=0,
        description="MCRN's fine-tuning: learning rate of the shared module; encoders take 0.3 of it",
    )
    margin: float = Field(
        default=0.2,
        ge=0,
        le=2,
        description="by how much a match must score above a wrong pair to cost nothing [cosine]",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="several GPUs (torchrun): batch norms take their statistics over the batches of all",
    )
    compile: bool = Field(
        default=False, description="torch.compile of the encoders in training: slow first steps, then maybe faster"
    )
    resume: Annotated[Path | None, BeforeValidator(_not_blank), BeforeValidator(_path_or_false)] = Field(
        default=None,
        description="checkpoint whose weights to start from, or false; an interrupted run goes on by itself",
    )

    @classmethod
    def whole(cls) -> type[Optim]:
        """See `Parameters.whole`: the names of all losses, and their blocks."""
        return _optim_with_losses()


@cache
def _optim_with_losses() -> type[Optim]:
    blocks = loss_blocks()
    weights: Any = dict[Literal[tuple(blocks)], PositiveFloat]  # type: ignore[misc]  # names that plug in
    fields: dict[str, Any] = {
        "loss": (
            Annotated[weights, BeforeValidator(_weight_of_one)],
            Field(
                default={"triplet": 1.0},
                min_length=1,
                description="one loss, or the weights of several that are summed",
            ),
        )
    }
    for name, block in blocks.items():
        if block.parameters is not None:
            fields[name] = (block.parameters, Field(default_factory=block.parameters))
    if taken := fields.keys() & Optim.model_fields.keys() - {"loss"}:
        raise ValueError(f"a loss has the name of another key of optim: {', '.join(sorted(taken))}")
    return create_model("Optim", __base__=Optim, **fields)


class Logs(Parameters):
    """Block `logs`: how often to report, and where runs are kept."""

    eval_step: int = Field(
        default=1, ge=1, le=MOST_EPOCHS, description="epochs from one validation to the next [epochs]"
    )
    print_freq: int = Field(
        default=10, ge=1, le=MOST_STEPS, description="training steps from one report to the next [steps]"
    )
    save_minutes: float = Field(
        default=10.0,
        ge=0,
        le=1_000_000,
        description="time from one save inside an epoch to the next, by which a killed run goes on; 0: only after "
        "epochs and signals [minutes]",
    )
    ckpt_save_path: GivenPath = Field(
        default=Path("checkpoint"), description="folder of all runs: <ckpt_save_path>/<experiment_name>/<fold>"
    )


class KFold(Parameters):
    """Block `k_fold`: the experiment's name and the splits of its folds."""

    experiment_name: FolderName = Field(description="name of the experiment's folder below logs.ckpt_save_path")
    nums: int = Field(default=1, ge=1, le=MOST_FOLDS, description="number of folds, each a training of its own [folds]")
    strategy: Literal["random", "kfold", "stratified", "blocks", "captions", "all", "fixed"] = Field(
        default="random",
        description="random: 80/20 (published); stratified: by class; captions: none on both sides; kfold; blocks; "
        "fixed; all; see docs/recipes.md",
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=LARGEST_SEED,
        description="seed of the splits: fold i uses seed + i; kfold: one shuffle; blocks and fixed don't use it",
    )

    @field_validator("strategy")
    @classmethod
    def _folds_to_part(cls, strategy: str, info: ValidationInfo) -> str:
        if strategy == "kfold" and info.data.get("nums") == 1:
            raise ValueError("a partition needs k_fold.nums of at least 2; with 1 fold use random")
        return strategy


class Rerank(Parameters):
    """Block `rerank`: what `test.py --rerank` orders anew, and how."""

    candidates: int = Field(
        default=30,
        ge=10,
        le=MOST_ITEMS,
        description="first items of each search that are ordered anew; R@10 looks at 10 of them [items]",
    )
    w1: float = Field(default=0.30, ge=0, description="multivariate: weight of the saliency, p1")
    w2: float = Field(default=1.1, ge=0, description="multivariate: weight of the search back, p3")


def _with_losses(optim: Any) -> Any:
    """Read a mapping with the blocks of the losses."""
    return Optim.whole().model_validate(optim) if isinstance(optim, Mapping) else optim


class Options(Parameters):
    """All options of one experiment. `load_options` makes them."""

    model: SerializeAsAny[ModelParameters] = Field(
        description="the model and its parameters, as registered in `layers`"
    )
    dataset: Dataset = Field(description="captions and images")
    optim: Annotated[SerializeAsAny[Optim], BeforeValidator(_with_losses)] = Field(
        default_factory=lambda: Optim.whole()(), description="loss, optimiser and schedule"
    )
    logs: Logs = Field(default_factory=Logs, description="reports and folders")
    k_fold: KFold = Field(description="the experiment's name and its folds")
    rerank: Rerank = Field(default_factory=Rerank, description="constants of test.py --rerank")


def dump(options: Parameters, given: bool = False) -> dict[str, Any]:
    """The options as nested dicts of text, numbers, booleans and None: every key, or only those that were given."""
    tree = options.model_dump(mode="json", by_alias=True, exclude_unset=given)
    return {name: block for name, block in tree.items() if block != {}} if given else tree


def to_yaml(options: Parameters, given: bool = False) -> str:
    """The options as a YAML text, which reads back to equal options: every key, or only those that were given."""
    return yaml.safe_dump(dump(options, given), sort_keys=False, allow_unicode=True)
