"""Data and evaluation as the published code has them: pictures from their files each time, encoded anew for each block.

Letters: B batch, N images, M captions, S image side, R side before the crop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augmentation import Draws, audio_margin_size, margin_size, normalise
from data.pictures import load_square
from data.region_file import region_fields
from dataloader import Batch, EvaluationLoader, TrainLoader, batches_of
from layers.base import RetrievalModel
from utils import derive_seed

BLOCK = 128
"""Pictures and captions of a block in the published evaluation."""
MAX_PIXELS = 100_000_000


def decode(path: Path, size: int) -> Tensor:
    """A picture from its file, [3, size, size] uint8."""
    return torch.from_numpy(load_square(path, size, MAX_PIXELS))


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


def train_batches(loader: TrainLoader, epoch: int) -> Iterator[Batch]:
    """The batches of `TrainLoader.epoch`, with every picture of every pair read from its file."""
    generator = torch.Generator().manual_seed(derive_seed(loader.seed, "epoch", epoch))
    order = loader.pairs[torch.randperm(len(loader.pairs), generator=generator)]
    size = loader.image_size
    for caption_ids in batches_of(order, loader.batch_size):
        image_ids, count = loader.caption_image[caption_ids], len(caption_ids)
        paths = [loader.store.paths[row] for row in loader.picture_ids[image_ids].tolist()]
        fields = {}
        for field in ("images", "second_view") if loader.two_views else ("images",):
            draws = Draws.draw(count, margin_size(size) - size, generator, flips=field == "second_view")
            fields[field] = torch.stack([view_from_file(path, size, draws, row) for row, path in enumerate(paths)])
        if loader.audio is not None:
            fields["audio"] = torch.stack(_heard(loader, caption_ids, generator))
        fields |= region_fields(loader.regions, image_ids)
        yield replace(loader.captions.batch(caption_ids), image_ids=image_ids, **fields)


def _heard(loader: TrainLoader, caption_ids: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Spectrograms [3, S, S] of some captions, read from their files and cut."""
    assert loader.audio is not None
    size, larger = loader.image_size, audio_margin_size(loader.image_size)
    spectrograms = []
    for row in loader.audio.rows[caption_ids].tolist():
        left, top = torch.randint(0, larger - size + 1, (2,), generator=generator).tolist()
        whole = decode(loader.audio.store.paths[row], larger)
        spectrograms.append(normalise(whole[None, :, top : top + size, left : left + size])[0])
    return spectrograms


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

    Every picture is read from its file once per caption and kept as float64; each block of up to 128 pictures with up
    to 128 captions goes through both encoders, whose activations keep their graph.

    Args:
        model: in evaluation mode.
        loader: of the data set; its paths and regions are used.
        tokens: [M, L] of all captions, padded to the longest.
        lengths: [M].
        limit: blocks to compute; the time is then scaled, decoding by captions and blocks by pictures encoded.
    """
    images, captions, size = len(loader.picture_ids), len(tokens), loader.store.size
    blocks = [(i, j) for i in range(0, images, BLOCK) for j in range(0, captions, BLOCK)]
    chosen = blocks[:limit]
    needed = (loader.text_image < chosen[-1][0] + BLOCK).nonzero().squeeze(1)
    started = time.perf_counter()
    pictures = np.zeros((captions, 3, size, size))
    for caption in needed.tolist():
        path = loader.store.paths[loader.picture_ids[loader.text_image[caption]]]
        pictures[caption] = normalise(decode(path, size)[None])[0].numpy()
    first = [int((loader.text_image == image).nonzero()[0]) for image in range(images)]
    decoded = time.perf_counter()
    scores = torch.zeros(images, captions)
    for i, j in chosen:
        rows, columns = torch.arange(i, min(i + BLOCK, images)), slice(j, j + BLOCK)
        batch = Batch(
            images=torch.from_numpy(pictures[[first[row] for row in rows]]).float(),
            tokens=tokens[columns],
            lengths=lengths[columns],
            **region_fields(loader.regions, rows),
        )
        block = model.score(model.encode_image(batch), model.encode_text(batch))
        scores[i : i + BLOCK, columns] = block.detach()
    ended = time.perf_counter()
    encoded = _pictures_encoded(chosen, images) / _pictures_encoded(blocks, images)
    seconds = (decoded - started) * captions / len(needed) + (ended - decoded) / encoded
    return BlockTimes(scores, seconds, len(chosen) / len(blocks))


def _pictures_encoded(blocks: Sequence[tuple[int, int]], images: int) -> int:
    return sum(min(BLOCK, images - start) for start, _ in blocks)
