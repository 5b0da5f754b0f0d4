"""The typed tree of a scene pretraining (`pretrain.py`): a YAML with a block `backbone` in the place of `model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from layers.registry import Parameters
from option.schema import FolderName, GivenPath, Logs, Pictures, Training


class SceneBackbone(Parameters):
    """Block `backbone`: the network that learns the scene classes."""

    architecture: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ] = Field(
        default="resnet50", description="torchvision's name; SWAN starts from a resnet50, the others from a resnet18"
    )
    pretrained: str = Field(default="none", description="none (random), imagenet, or the path of a state dict")


class ScenePictures(Pictures):
    """Block `dataset` of a scene pretraining: pictures whose class is known by name."""

    data_path: GivenPath | None = Field(
        default=None, description="data set's folder: only the pictures of its train_filename.txt are read"
    )
    image_path: GivenPath | None = Field(
        default=None, description="folder of the pictures; null: <data_path>/images; alone: all pictures below it"
    )
    exclude: GivenPath | None = Field(
        default=None, description="list of file names that must not be seen, such as a test_filename.txt"
    )
    val_share: float = Field(default=0.1, gt=0, lt=1, description="share of each class kept to choose the best epoch")

    @model_validator(mode="after")
    def _some_folder(self) -> ScenePictures:
        if self.data_path is None and self.image_path is None:
            raise ValueError("one of dataset.data_path and dataset.image_path is needed")
        return self


class SceneTraining(Training):
    """Block `optim` of a scene pretraining: cross-entropy, Adam."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")


class SceneLogs(Logs):
    """Block `logs` of a scene pretraining."""

    experiment_name: FolderName = Field(description="name of the run's folder below ckpt_save_path")


class SceneOptions(Parameters):
    """All options of a scene pretraining. `load_scene_options` makes them."""

    backbone: SceneBackbone = Field(default_factory=SceneBackbone, description="the network")
    dataset: ScenePictures = Field(description="pictures and their classes")
    optim: SceneTraining = Field(default_factory=SceneTraining, description="loss, optimiser and schedule")
    logs: SceneLogs = Field(description="reports and folder")
