"""What an archive is asked: sentences, an image or a sound, and what the images should not show.

Letters: N images, B of a block, P parts of a question, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from archive import exact
from archive.encoder import Encoder
from archive.exact import Scorer
from layers.base import l2norm

WITHOUT = 0.5
"""What the score of a sentence counts that is not wanted: the score of all that is wanted counts 1."""


@dataclass(frozen=True)
class Question:
    """What to search with: at least a sentence, an image or a sound.

    The score of an image is the mean of its scores for the sentences; with a query image, too, the weighted sum of that
    and the cosine of the two images; less `WITHOUT` times its mean score for what is not wanted.

    Attributes:
        sentences: that all describe what is wanted.
        image: that resembles it.
        sound: a spoken caption, a WAV file.
        without: sentences that describe what is not wanted.
        weight: of the image where there are sentences or a sound, too: 0 to 1.
    """

    sentences: tuple[str, ...] = ()
    image: Image.Image | None = None
    sound: Path | None = None
    without: tuple[str, ...] = ()
    weight: float = 0.5

    def parts(self, encoder: Encoder) -> Parts:
        """The embeddings that score an image.

        Raises:
            InputError: see `Encoder`.
        """
        sentences = [*self.sentences, *self.without]  # encoded together, so that they have one form
        embedded = list(encoder.texts(sentences)) if sentences else []
        texts, unwanted = embedded[: len(self.sentences)], embedded[len(self.sentences) :]
        if self.sound is not None:
            texts += list(encoder.sound(self.sound))
        images = list(encoder.image(self.image)) if self.image is not None else []
        of_images = (self.weight if texts else 1.0) if images else 0.0
        weights = [*[(1 - of_images) / max(1, len(texts))] * len(texts)]
        weights += [-WITHOUT / max(1, len(unwanted))] * len(unwanted)
        return Parts(texts + unwanted, weights, images, of_images, encoder.model.score)


@dataclass(frozen=True)
class Parts:
    """A question that was embedded.

    Attributes:
        texts: P embeddings [D] of sentences and sounds.
        weights: of their scores.
        images: the embedding [D] of the query image, if there is one.
        of_images: the weight of its cosine.
        score: of the model.
    """

    texts: list[Tensor]
    weights: list[float]
    images: list[Tensor]
    of_images: float
    score: Scorer

    def vector(self) -> Tensor:
        """The embedding [1, D] whose inner product with a normalised image is its score, where scores are cosines."""
        every, weights = torch.stack(self.texts + self.images), [*self.weights, *[self.of_images] * len(self.images)]
        return torch.tensor(weights, device=every.device)[None] @ l2norm(every)

    def scores(self, images: Tensor, query: Tensor) -> Tensor:
        """Scores of images [B, D] as a `Scorer` of one query gives them, [B, 1]."""
        total = images.new_zeros(len(images), 1)
        if self.texts:
            weights = torch.tensor(self.weights, device=images.device)
            total += self.score(images, torch.stack(self.texts)) @ weights[:, None]
        if self.images:
            total += self.of_images * exact.cosine(images, torch.stack(self.images))
        return total
