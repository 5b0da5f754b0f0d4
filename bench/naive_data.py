"""Data and evaluation as the published code has them: images from their files each time, encoded anew for each block.

Letters: B batch, N images, M captions, S image side, R side before the crop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from batches.augmentation import Draws, audio_margin_size, margin_size, normalise
from batches.batch import Batch, Captions
from bench.subject import Experiment
from data.images import load_square
from data.regions.file import region_fields
from dataloader import EvaluationLoader
from layers.base import RetrievalModel
from layers.registry import registered
from runs.media import audio_folder_of, regions_of

BLOCK = 128
"""Images and captions of a block in the published evaluation."""


def decode(path: Path, size: int) -> Tensor:
    """An image from its file, [3, size, size] uint8."""
    return torch.from_numpy(load_square(path, size))


def view_from_file(path: Path, size: int, draws: Draws, row: int) -> Tensor:
    """A training view: decoded, rotated and cut with Pillow, normalised: [3, S, S] float."""
    square = Image.fromarray(decode(path, margin_size(size)).permute(1, 2, 0).numpy())
    left, top = draws.offsets[row].tolist()
    cut = square.rotate(float(draws.angles[row])).crop((left, top, left + size, top + size))
    if draws.flips is not None:
        for wanted, flip in zip(
            draws.flips[row], (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True
        ):
            cut = cut.transpose(flip) if wanted else cut
    return normalise(torch.from_numpy(np.array(cut)).permute(2, 0, 1)[None])[0].contiguous()


class FileBatches:
    """Training batches in random order, with every image of every pair read from its file."""

    def __init__(self, experiment: Experiment) -> None:
        options, annotations = experiment.options, experiment.annotations
        kind = registered()[options.model.name].model
        self.views = ("images", "second_view") if kind.uses_second_view else ("images",)
        self.captions = Captions.encode(annotations.captions, experiment.vocabulary)
        self.caption_image = torch.from_numpy(annotations.caption_image)
        self.images = [options.dataset.image_folder / name for name in annotations.image_names]
        folder = audio_folder_of(options)
        names = annotations.audio_names or ()
        self.audio = None if folder is None else [folder / name for name in names]
        self.regions = regions_of(options, annotations.image_names)
        self.batch_size, self.size = options.dataset.batch_size, options.dataset.image_size

    def epoch(self, number: int) -> Iterator[Batch]:
        """All captions once."""
        generator = torch.Generator().manual_seed(number)
        for caption_ids in torch.randperm(len(self.caption_image), generator=generator).split(self.batch_size):
            image_ids = self.caption_image[caption_ids]
            fields: dict[str, Any] = {}
            for field in self.views:
                draws = Draws.draw(len(caption_ids), margin_size(self.size) - self.size, generator, field != "images")
                images = [view_from_file(self.images[i], self.size, draws, row) for row, i in enumerate(image_ids)]
                fields[field] = torch.stack(images)
            if self.audio is not None:
                fields["audio"] = torch.stack([self._heard(self.audio[i], generator) for i in caption_ids])
            fields |= region_fields(self.regions, image_ids)
            yield replace(self.captions.batch(caption_ids), image_ids=image_ids, **fields)

    def _heard(self, path: Path, generator: torch.Generator) -> Tensor:
        """A spectrogram, read from its file and cut: [3, S, S]."""
        larger = audio_margin_size(self.size)
        left, top = torch.randint(0, larger - self.size + 1, (2,), generator=generator).tolist()
        whole = decode(path, larger)
        return normalise(whole[None, :, top : top + self.size, left : left + self.size])[0]


@dataclass(frozen=True)
class BlockTimes:
    """What an evaluation by blocks took.

    Attributes:
        scores: [N, M]; zero where a block was left out.
        seconds: scaled to all blocks where some were left out.
        share: of the blocks that were computed.
    """

    scores: Tensor
    seconds: float
    share: float


def blockwise_scores(
    model: RetrievalModel, loader: EvaluationLoader, tokens: Tensor, lengths: Tensor, limit: int | None = None
) -> BlockTimes:
    """The score matrix as the published evaluation makes it.

    Every image is read from its file once per caption and kept as float64; each block of up to 128 images with up
    to 128 captions goes through both encoders, whose activations keep their graph.

    Args:
        model: in evaluation mode.
        loader: of the data set; its paths and regions are used.
        tokens: [M, L] of all captions, padded to the longest.
        lengths: [M].
        limit: blocks to compute; the time is then scaled, decoding by captions and blocks by images encoded.
    """
    images, captions, size = len(loader.image_ids), len(tokens), loader.store.size
    blocks = [(i, j) for i in range(0, images, BLOCK) for j in range(0, captions, BLOCK)]
    chosen = blocks[:limit]
    needed = (loader.text_image < chosen[-1][0] + BLOCK).nonzero().squeeze(1)
    started = time.perf_counter()
    pixels = np.zeros((captions, 3, size, size))
    for caption in needed.tolist():
        path = loader.store.paths[loader.image_ids[loader.text_image[caption]]]
        pixels[caption] = normalise(decode(path, size)[None])[0].numpy()
    first = [int((loader.text_image == image).nonzero()[0]) for image in range(images)]
    decoded = time.perf_counter()
    scores = torch.zeros(images, captions)
    for i, j in chosen:
        rows, columns = torch.arange(i, min(i + BLOCK, images)), slice(j, j + BLOCK)
        batch = Batch(
            images=torch.from_numpy(pixels[[first[row] for row in rows]]).float(),
            tokens=tokens[columns],
            lengths=lengths[columns],
            **region_fields(loader.regions, rows),
        ).to(loader.device)
        block = model.score(model.encode_image(batch), model.encode_text(batch))
        scores[i : i + BLOCK, columns] = block.detach().cpu()
    ended = time.perf_counter()
    encoded = _images_encoded(chosen, images) / _images_encoded(blocks, images)
    seconds = (decoded - started) * captions / len(needed) + (ended - decoded) / encoded
    return BlockTimes(scores, seconds, len(chosen) / len(blocks))


def _images_encoded(blocks: Sequence[tuple[int, int]], images: int) -> int:
    return sum(min(BLOCK, images - start) for start, _ in blocks)
