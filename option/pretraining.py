"""The typed trees of `pretrain.py`: YAMLs without folds, whose run is named in `logs.experiment_name`.

A block `backbone` trains a backbone on scene classes or views, a block `model` a retrieval model without pairs.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SerializeAsAny, model_validator

from option.architecture import Architecture
from option.dataset import AugmentedReading, ImageReading
from option.optim import Descent, Training
from option.parameters import MOST_EPOCHS, MOST_STEPS, GivenPath, ModelParameters, Parameters
from option.schema import FolderName, Logs


class PretrainedBackbone(Parameters):
    """Block `backbone`: the network that learns."""

    architecture: Architecture = Field(
        default="resnet50",
        description="as model.backbone.architecture; SWAN starts from a resnet50, the others from what they say there",
    )
    pretrained: str = Field(default="none", description="none (random), imagenet, installed (extra weights), or a file")


class BackboneImages(AugmentedReading):
    """Block `dataset` of a backbone's pretraining: images, for scene classes those whose class is known by name."""

    data_path: GivenPath | None = Field(
        default=None, description="data set's folder: only the images of its train_filename.txt are read"
    )
    image_path: GivenPath | None = Field(
        default=None, description="folder of the images; null: <data_path>/images; alone: all images below it"
    )
    exclude: GivenPath | None = Field(
        default=None, description="list of file names that must not be seen, such as a test_filename.txt"
    )
    val_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the images (scenes: of each class) kept to choose the best epoch [share]",
    )

    @model_validator(mode="after")
    def _some_folder(self) -> BackboneImages:
        if self.data_path is None and self.image_path is None:
            raise ValueError("one of dataset.data_path and dataset.image_path is needed")
        return self


class BackboneTraining(Training):
    """Block `optim` of a backbone's pretraining."""

    task: Literal["scenes", "views"] = Field(
        default="scenes",
        description="what is learned; scenes: to tell the classes apart, by cross-entropy; views: which two views are "
        "of one image, by InfoNCE (SimCLR)",
    )
    temperature: float = Field(default=0.1, ge=0.01, le=1, description="of InfoNCE (task views)")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target spread over all classes (task scenes) [share]"
    )

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: each task has a constant of its own."""
        key = "optim.temperature" if self.task == "scenes" else "optim.label_smoothing"
        return {key: f"optim.task is {self.task}"}


class PretrainingLogs(Logs):
    """Block `logs` of a pretraining."""

    experiment_name: FolderName = Field(description="name of the run's folder below ckpt_save_path")


class BackboneOptions(Parameters):
    """All options of a backbone's pretraining. `load_pretraining_options` makes them."""

    backbone: PretrainedBackbone = Field(default_factory=PretrainedBackbone, description="the network")
    dataset: BackboneImages = Field(description="images")
    optim: BackboneTraining = Field(default_factory=BackboneTraining, description="loss, optimiser and schedule")
    logs: PretrainingLogs = Field(description="reports and folder")


class UnpairedSources(ImageReading):
    """Block `dataset` of a pretraining without pairs: images, captions and spectrograms, as far as there are any."""

    data_path: GivenPath | None = Field(
        default=None, description="data set's folder: the images and captions of its train lists are read"
    )
    image_path: GivenPath | None = Field(
        default=None, description="folder of the images; null: <data_path>/images; alone: all images below it"
    )
    audio_path: GivenPath | None = Field(
        default=None, description="folder of the spectrograms, of the train captions or alone; null: none are used"
    )
    vocab_path: GivenPath = Field(description="vocabulary JSON, made by `python -m vocab`; it sizes the word table")
    val_share: float = Field(default=0.1, gt=0, lt=1, description="share of each modality kept for validation [share]")

    @model_validator(mode="after")
    def _some_source(self) -> UnpairedSources:
        if self.data_path is None and self.image_path is None and self.audio_path is None:
            raise ValueError("one of dataset.data_path, dataset.image_path and dataset.audio_path is needed")
        return self


class AdversarialTraining(Descent):
    """Block `optim` of a pretraining without pairs; `lr` is the generator's, that is the retrieval model's."""

    lr_D: float = Field(default=2e-4, gt=0, description="learning rate of the discriminator's Adam at the start")
    lr_D_decay_param: float = Field(default=0.7, gt=0, le=1, description="factor on lr_D at each decay")
    lr_D_update_epoch: int = Field(
        default=20, ge=1, le=MOST_EPOCHS, description="epochs from one decay of lr_D to the next [epochs]"
    )
    generator_every: int = Field(
        default=3, ge=1, le=MOST_STEPS, description="steps of the discriminator per step of the generator [steps]"
    )
    word_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="share of a caption's words hidden in each view [share]"
    )


class ModalityOptions(Parameters):
    """All options of a pretraining without pairs. `load_pretraining_options` makes them."""

    model: SerializeAsAny[ModelParameters] = Field(description="the model and its parameters")
    dataset: UnpairedSources = Field(description="images, captions and spectrograms")
    optim: AdversarialTraining = Field(default_factory=AdversarialTraining, description="optimisers and schedules")
    logs: PretrainingLogs = Field(description="reports and folder")


PretrainingOptions = BackboneOptions | ModalityOptions
"""What `pretrain.py` trains by."""
