"""The model and the data of an experiment as one side of a comparison has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import option
from batches.batch import Captions
from bench.naive import published_twin
from bench.variants import Variant
from data.annotations import Annotations, Split, read_annotations
from layers import build_model
from layers.base import RetrievalModel
from option import Options
from runs.checkpoints import load_weights
from runs.loaders import read_vocabulary
from runs.media import Media, audio_folder_of
from runs.models import place
from utils import derive_seed
from vocab import Vocabulary


@dataclass(frozen=True)
class Experiment:
    """An experiment's options, its words, one of its lists, and the files that the list names."""

    options: Options
    vocabulary: Vocabulary
    annotations: Annotations
    media: Media
    device: torch.device

    @classmethod
    def of(
        cls, path_opt: str, overrides: list[str], split: Split, device: torch.device, most: int | None = None
    ) -> Experiment:
        """Read the options and the list `train` or `test`; no image is decoded yet.

        Args:
            path_opt: the experiment's YAML.
            overrides: as for `--set`.
            split: which list.
            device: where the batches go.
            most: images to take at random from a longer list; None: all.

        Raises:
            InputError: options or data are at fault.
        """
        options = option.load_options(path_opt, overrides)
        annotations = read_annotations(options.dataset.folder, split, audio_folder_of(options))
        if most is not None:
            draw = torch.Generator().manual_seed(0)
            annotations = annotations.subset(
                torch.randperm(len(annotations.image_names), generator=draw)[:most].numpy()
            )
        media = Media.of(options, [annotations], device)
        return cls(options, read_vocabulary(options), annotations, media, device)

    def model(self, variant: Variant, checkpoint: Path | None = None) -> RetrievalModel:
        """The model: with a checkpoint's weights, else with random ones, the same on every side.

        Raises:
            InputError: the checkpoint can't be read or does not fit.
        """
        torch.manual_seed(derive_seed(self.options.optim.seed, "bench"))
        model = build_model(self.options, self.vocabulary, load_weights=False)
        if checkpoint is not None:
            load_weights(model, checkpoint, self.options, self.vocabulary)
        if not variant.ours:
            model = published_twin(model)
        return place(model, self.device) if variant.channels_last else model.to(self.device)

    def captions(self) -> tuple[Tensor, Tensor]:
        """All captions [M, L], padded to the longest, and their lengths [M]."""
        captions = Captions.encode(self.annotations.captions, self.vocabulary)
        return captions.tokens, captions.lengths
