"""The second stage of a search: the first images of an answer, read from their files, in the order of another model.

Letters: K images, P sentences, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import option
from archive.encoder import Encoder, keyword_ids
from archive.question import Question
from archive.searcher import Answer, Hit, Searcher
from data.images import load_square
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.ranges import begun_with
from utils import InputError, logger


@dataclass(frozen=True)
class Reranker:
    """A model that has the last word on the first images of a search.

    Attributes:
        searcher: the first stage.
        encoder: the second model.
        top: images of an answer that it puts in order, K.
    """

    searcher: Searcher
    encoder: Encoder
    top: int

    @classmethod
    def open(cls, searcher: Searcher, path_opt: str, checkpoint: Path, top: int) -> Reranker:
        """Load the second model; images with more than 8 bits are read in its own range, or else in the index's.

        Raises:
            InputError: options, vocabulary or checkpoint can't be read, or don't fit each other.
        """
        options = option.load_options(path_opt)
        vocabulary, device = read_vocabulary(options), searcher.encoder.device
        words = keyword_ids(options, vocabulary)
        model, content = load_model(options, vocabulary, checkpoint, device)
        for known in (content, {"options": searcher.index.manifest.options}):
            options = begun_with(options, known)
        return cls(searcher, Encoder(model.reranker(), options, vocabulary, device, words), top)

    def ask(self, question: Question, k: int, distinct: float | None = None, least: float | None = None) -> Answer:
        """The images that fit a question best; see `Searcher.ask`, of which the first K are put in order.

        An image whose file can't be read any more is left out, with a warning.

        Raises:
            InputError: one of the models can't read the question, or the images are not where the index says.
        """
        found = self.searcher.ask(question, self.top, distinct)
        started = time.perf_counter()
        parts = question.parts(self.encoder)
        hits, pixels = self._read(found.hits)
        scores: list[float] = []
        batch = self.encoder.options.dataset.batch_size_val
        for start in range(0, len(hits), batch):
            names = [hit.name for hit in hits[start : start + batch]]
            images = self.encoder.images(pixels[start : start + batch], names)  # [K, D]
            with torch.no_grad():
                scores += parts.scores(images, parts.texts[0])[:, 0].tolist()
        order = sorted(range(len(hits)), key=lambda place: -scores[place])  # of equal ones the first stays first
        best = [replace(hits[place], score=scores[place]) for place in order]
        model, spent = self.encoder.options.model.name, 1000 * (time.perf_counter() - started)
        logger.info("The first %d images in the order of %s: %.0f ms.", len(hits), model, spent)
        kept = [hit for hit in best[:k] if least is None or hit.score >= least]
        return replace(found, hits=kept, search_ms=found.search_ms + spent)

    def _read(self, hits: Sequence[Hit]) -> tuple[list[Hit], Tensor]:
        """Those hits whose files can be read, and their pixels [K, 3, S, S] uint8."""
        folder, dataset = self.searcher.images, self.encoder.options.dataset
        if not folder.is_dir():
            raise InputError(
                f"{folder}: the second stage reads the images, and they are not there; --images says where."
            )
        self.encoder.check_regions([hit.name for hit in hits])
        readable, squares = [], []
        for hit in hits:
            try:
                squares.append(load_square(folder / hit.name, dataset.image_size, dataset.rule))
            except InputError as fault:
                logger.warning("left out of the answer: %s", fault)
            else:
                readable.append(hit)
        side = dataset.image_size
        return readable, torch.from_numpy(np.stack(squares) if squares else np.empty((0, 3, side, side), np.uint8))
