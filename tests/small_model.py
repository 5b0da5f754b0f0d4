"""A retrieval model that trains in milliseconds, for tests of what happens around a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import preflight.training
from batches.batch import Batch
from layers.base import Encodings, RetrievalModel
from runs import models

BeforeLoss = Callable[[Batch], None]


class SmallModel(RetrievalModel):
    """Mean colours and mean word vectors; `before_loss` sees every training batch first."""

    def __init__(self, words: int, before_loss: BeforeLoss | None = None) -> None:
        super().__init__()
        self.colours = nn.Linear(3, 8)
        self.words = nn.Embedding(words + 1, 8, padding_idx=0)
        self.before_loss = before_loss

    def encode_image(self, batch: Batch) -> Tensor:
        return self.colours(batch.need("images").mean(dim=(2, 3)))

    def encode_text(self, batch: Batch) -> Tensor:
        return self.words(batch.need("tokens")).sum(1) / batch.need("lengths")[:, None]

    def encodings(self, batch: Batch) -> Encodings:
        if self.before_loss is not None:
            self.before_loss(batch)
        return super().encodings(batch)


def use_small_model(patch: pytest.MonkeyPatch, before_loss: BeforeLoss | None = None) -> None:
    """Let train.py and test.py build the small model, whatever the options name."""

    def build(options: object, vocabulary: list[str], load_weights: bool = True) -> SmallModel:
        return SmallModel(len(vocabulary), before_loss)

    patch.setattr(models, "build_model", build)
    patch.setattr(preflight.training, "build_model", build)


def out_of_memory_above(items: int, fault: Exception) -> BeforeLoss:
    """What a device does that has room for some items only."""

    def refuse(batch: Batch) -> None:
        if len(batch) > items:
            raise fault

    return refuse


CUDA_FAULT = torch.cuda.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."
)
CPU_FAULT = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000 bytes. Error code 12 (Cannot allocate memory)"
)
