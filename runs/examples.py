"""A few searches of val, always the same, drawn at each validation from the scores that it makes anyway.

Letters: N images, M captions, E examples, n images of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

import metrics
from data.annotations import Annotations
from dataloader import EvaluationLoader
from option import Options
from runs.example_sheet import SIDE, Search, draw_sheet
from utils import InputError, derive_seed

FOUND = 5  # images of a caption
NAMED = 3  # captions of an image
KEPT = 1000  # thumbnails that wait for the next validation, of 37 KiB each


class Examples:
    """Captions and their images, whose scores are noted while all scores are ranked."""

    def __init__(self, annotations: Annotations, loader: EvaluationLoader, count: int, seed: int) -> None:
        """Choose `count` captions, each of another image, by a seed; of fewer images as many as there are.

        Args:
            annotations: N images and M captions.
            loader: of the same.
            count: E.
            seed: of the choice.
        """
        self.loader = loader
        self.texts, self.text_image = annotations.captions, loader.text_image
        self.captions = choose(self.text_image, count, seed)  # [E]
        self.images = self.text_image[self.captions]  # [E]
        self._by_caption: list[Tensor] = []
        self._by_image: list[Tensor] = []
        self._thumbnail = lru_cache(KEPT)(self._read)

    @classmethod
    def of(cls, options: Options, fold: int, val: Annotations, loader: EvaluationLoader) -> Examples:
        """Those of a fold."""
        return cls(val, loader, options.logs.examples, derive_seed(options.optim.seed, "examples", fold))

    def watch(self, blocks: metrics.Blocks) -> metrics.Blocks:
        """The same blocks, from which the scores of the examples are noted each time that they pass."""
        if not len(self.captions):
            return blocks

        def passing() -> Iterator[Tensor]:
            by_caption: list[Tensor] = []
            by_image: dict[int, Tensor] = {}
            start = 0
            for block in blocks():
                by_caption.append(block[:, self.captions.to(block.device)].cpu())
                rows = {image: image - start for image in self.images.tolist()}
                by_image |= {image: block[row].cpu() for image, row in rows.items() if 0 <= row < len(block)}
                start += len(block)
                yield block
            self._by_caption = list(torch.cat(by_caption).T)
            self._by_image = [by_image[image] for image in self.images.tolist()]

        return passing

    def sheet(self) -> Image.Image:
        """What the scores that passed last have found, drawn."""
        return draw_sheet(self.searches())

    def searches(self) -> list[Search]:
        """What the scores that passed last have found."""
        pairs = zip(self.captions.tolist(), self.images.tolist(), self._by_caption, self._by_image, strict=True)
        return [self._search(*pair) for pair in pairs]

    def _search(self, caption: int, image: int, of_images: Tensor, of_texts: Tensor) -> Search:
        """A caption and its image, with the scores of all images [N] for it and of all captions [M] for the image."""
        own = self.text_image == image  # [M]
        return Search(
            caption=self.texts[caption],
            image=self._thumbnail(image),
            place=place(of_images.where(torch.arange(len(of_images)) != image, -torch.inf), of_images[image]),
            images=len(of_images),
            found=[(self._thumbnail(number), number == image) for number in first(of_images, FOUND)],
            text_place=place(of_texts.where(~own, -torch.inf), of_texts[own].max()),
            texts=len(of_texts),
            named=self._named(of_texts, own),
        )

    def _named(self, scores: Tensor, own: Tensor) -> list[tuple[str, bool]]:
        """The first different captions by their scores [M], and whether each is one of those that are own [M]."""
        mine = {self.texts[number] for number in own.nonzero()[:, 0].tolist()}
        named: dict[str, bool] = {}
        for number in first(scores, len(scores)):
            named[self.texts[number]] = self.texts[number] in mine
            if len(named) == NAMED:
                break
        return list(named.items())

    def _read(self, image: int) -> Image.Image | None:
        """A thumbnail of what the model sees; None for an image that can't be read any more."""
        try:
            pixels = self.loader.store.batch(self.loader.image_ids[[image]])[0]
        except InputError:
            return None
        shown = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
        return shown.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def choose(text_image: Tensor, count: int, seed: int) -> Tensor:
    """Captions of different images, [min(count, N)] int64, by a seed and the image of each caption [M]."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(text_image), generator=generator)  # [M]
    chosen: dict[int, int] = {}
    for caption in order.tolist():
        if len(chosen) == count:
            break
        chosen.setdefault(int(text_image[caption]), caption)
    return torch.tensor(list(chosen.values()), dtype=torch.int64)


def first(scores: Tensor, count: int) -> list[int]:
    """Where the highest scores stand, falling; of equal ones the first."""
    order: list[int] = scores.argsort(descending=True, stable=True)[:count].tolist()
    return order


def place(others: Tensor, own: Tensor) -> tuple[int, int]:
    """First and last place, from 1, that a score can have among others, by how equal ones are ordered."""
    return int((others > own).sum()) + 1, int((others >= own).sum()) + 1
