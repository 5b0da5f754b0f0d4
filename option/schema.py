"""The typed tree of options: every key of an experiment's YAML with its type, range, default and purpose.

The `model` block belongs to the model that `model.name` selects: its parameters are registered in `layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator

from option.dataset import Dataset
from option.optim import Optim
from option.parameters import LARGEST_SEED, MOST_EPOCHS, MOST_ITEMS, MOST_STEPS, GivenPath, ModelParameters, Parameters

MOST_FOLDS = 1000
LONGEST_NAME = 200  # bytes; file systems take 255


def _plain_folder_name(name: str) -> str:
    """Refuse what would write elsewhere than into one folder."""
    plain = name == name.strip() and name not in ("", ".", "..") and not set(name) & set("/\\")
    if not plain or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"allowed: a plain folder name of at most {LONGEST_NAME} bytes, without slashes or blanks at its ends, "
            "and not . or .."
        )
    return name


FolderName = Annotated[str, AfterValidator(_plain_folder_name)]


class Logs(Parameters):
    """Block `logs`: how often to report and to whom, and where runs are kept."""

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
    trackers: list[Literal["mlflow", "wandb"]] = Field(
        default=[],
        description="trackers that get what TensorBoard gets, offline (extras mlflow, wandb; docs/trackers.md)",
    )
    group: FolderName | None = Field(
        default=None, description="experiment of MLflow, group of wandb, that runs belong to; null: experiment_name"
    )


class ExperimentLogs(Logs):
    """Block `logs` of an experiment."""

    examples: int = Field(
        default=4,
        ge=0,
        le=64,
        description="captions of val, always the same, whose searches are drawn at each validation, and those of their "
        "images; 0: none [captions]",
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
    logs: ExperimentLogs = Field(default_factory=ExperimentLogs, description="reports and folders")
    k_fold: KFold = Field(description="the experiment's name and its folds")
    rerank: Rerank = Field(default_factory=Rerank, description="constants of test.py --rerank")


def dump(options: Parameters, given: bool = False) -> dict[str, Any]:
    """The options as nested dicts of text, numbers, booleans and None: every key, or only those that were given."""
    tree = options.model_dump(mode="json", by_alias=True, exclude_unset=given)
    return {name: block for name, block in tree.items() if block != {}} if given else tree


def to_yaml(options: Parameters, given: bool = False) -> str:
    """The options as a YAML text, which reads back to equal options: every key, or only those that were given."""
    return yaml.safe_dump(dump(options, given), sort_keys=False, allow_unicode=True)
