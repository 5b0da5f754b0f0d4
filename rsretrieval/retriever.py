"""A trained model in a few lines of Python.

Letters: N images, M sentences, D embedding, K best.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import option
from archive.encoder import Encoder, keyword_ids
from archive.exact import cosine, search
from archive.index_folder import IndexFolder
from archive.searcher import Hit, Searcher
from data.images import decode, to_part
from option import Options
from portable import CONFIG
from portable.folder import read_folder
from portable.hub import PREFIX, download
from runs.checkpoints import FORMAT, typed_options
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.ready import OPTIONS, PACKED, READY
from runs.ready import WEIGHTS as READY_WEIGHTS
from runs.ready.folder import ready_weights
from runtime.devices import choose_device
from runtime.weights import read_checkpoint
from utils import InputError, file_sha256

ImageLike = str | Path | Image.Image | NDArray[np.uint8]
"""A file; an image of Pillow; or an array, [H, W, 3] RGB or [H, W] grey."""
Embeddings = NDArray[np.float32]


class Retriever:
    """A model that embeds images and sentences and searches with them, see `load`.

    Attributes:
        options: that it was trained with.
        device: where it computes.
    """

    def __init__(self, encoder: Encoder, digests: frozenset[str]) -> None:
        """See `load`; `digests` are the SHA-256 of files with these weights, which indexes name."""
        self._encoder, self._digests = encoder, digests

    @classmethod
    def load(
        cls, source: str | Path | None = None, device: str | None = None, revision: str | None = None
    ) -> Retriever:
        """Load a model.

        Args:
            source: a folder of `python -m portable`; a checkpoint of `train.py`, with its vocabulary where it was in
                training, seen from the checkpoint's folder or one above it; a folder of `python -m runs.ready`;
                `hf://OWNER/NAME`, a folder of `python -m portable` on the hub; None: the ready model.
            device: `cpu`, `cuda` or `cuda:NUMBER`; None: CUDA where there is one.
            revision: of a model on the hub, the commit.

        Raises:
            InputError: there is no model, it is damaged, or packages are missing; says what to do.
        """
        place = choose_device(device)
        if isinstance(source, str) and source.startswith(PREFIX):
            source = download(source.removeprefix(PREFIX), revision)
        path = READY if source is None else Path(source).expanduser()
        if (path / CONFIG).is_file():
            read = read_folder(path, place)
            encoder = Encoder(read.model, read.options, read.vocabulary, place)
            return cls(encoder, frozenset({str(read.facts.get("source_sha256"))}))
        if path.is_dir() and (path / OPTIONS).is_file():
            weights = ready_weights() if path == READY else path / READY_WEIGHTS
            return cls._of(option.load_options(path / OPTIONS), weights, place)
        if not path.is_file():
            raise InputError(
                f"{path}: no model there. Give a folder of `python -m portable`, or a checkpoint of train.py."
            )
        if path.suffix == PACKED:
            raise InputError(f"{path}: give the folder that it lies in.")
        return cls._of(_options_of(path), path, place)

    @classmethod
    def _of(cls, options: Options, weights: Path, place: torch.device) -> Retriever:
        vocabulary = read_vocabulary(options)
        words = keyword_ids(options, vocabulary)
        model, _ = load_model(options, vocabulary, weights, place)
        return cls(Encoder(model.eval(), options, vocabulary, place, words), frozenset({file_sha256(weights)}))

    @property
    def options(self) -> Options:
        """What the model was trained with."""
        return self._encoder.options

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._encoder.device

    @cached_property
    def dim(self) -> int:
        """Length of an embedding, D."""
        return self._encoder.dim

    def image(self, images: Sequence[ImageLike], batch_size: int = 32) -> Embeddings:
        """Embed images.

        Args:
            images: N of them, of any size.
            batch_size: how many go through the model at once.

        Returns:
            [N, D] float32, not normalised.

        Raises:
            InputError: it is no list, or one can't be read; or the model reads regions and may not do without.
        """
        if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4):
            raise InputError("image takes a list of images: image([one]).")
        parts = [
            self._encoder.query_images([self._decoded(image) for image in images[start : start + batch_size]])
            for start in range(0, len(images), batch_size)
        ]
        return self._array(parts)

    def text(self, sentences: Sequence[str], batch_size: int = 256) -> Embeddings:
        """Embed sentences.

        Args:
            sentences: M of them.
            batch_size: how many go through the model at once.

        Returns:
            [M, D] float32, not normalised.

        Raises:
            InputError: the model knows no word of one.
        """
        if isinstance(sentences, str):
            raise InputError(f"text takes a list of sentences: text([{sentences!r}]).")
        starts = range(0, len(sentences), batch_size)
        return self._array([self._encoder.texts(sentences[start : start + batch_size]) for start in starts])

    def score(self, images: Embeddings, texts: Embeddings) -> Embeddings:
        """The model's score of every pair: [N, D] and [M, D] -> [N, M] in -1 to 1; InputError for another D."""
        with torch.no_grad():
            return self._array([self._encoder.model.score(self._tensor(images), self._tensor(texts))])

    def search(self, index: Embeddings | str | Path, query: str | ImageLike, k: int = 10) -> list[Hit]:
        """The images that fit a query best.

        Args:
            index: what `image` gave, [N, D]; or the folder of an index that search.py made with the same model.
            query: a sentence; or an image: a `Path`, an image of Pillow or an array, compared by the cosine.
            k: how many, at least 1.

        Returns:
            The best first: `score`; `row`, of the index; `name` of the image, empty where the index is an array.

        Raises:
            InputError: the query can't be embedded, or the index is one of another model.
        """
        if k < 1:
            raise InputError(f"k is {k}: ask for at least one image.")
        asked = query if isinstance(query, str) else self._decoded(query)
        if isinstance(index, (str, Path)):
            return self._open(Path(index)).answer(asked, k).hits
        embedded = self._encoder.text(asked) if isinstance(asked, str) else self._encoder.image(asked)
        score = self._encoder.model.score if isinstance(asked, str) else cosine
        ((scores, rows),) = search([self._tensor(index)], embedded, score, k)
        return [Hit("", value, row) for value, row in zip(scores.tolist(), rows.tolist(), strict=True)]

    def _open(self, folder: Path) -> Searcher:
        index = IndexFolder.open(folder)
        if index.manifest.checkpoint_sha256 not in self._digests:
            raise InputError(f"{folder} was made with another model: its embeddings would mean something else.")
        return Searcher(
            index, self._encoder, index.manifest.images, "exact" if index.manifest.store is None else "store"
        )

    def _decoded(self, image: ImageLike) -> Image.Image:
        if isinstance(image, (str, Path)):
            return decode(Path(image), self.options.dataset.rule)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
                raise InputError(
                    f"expected an array [H, W, 3] or [H, W] of uint8, got {list(image.shape)} of {image.dtype}."
                )
            image = Image.fromarray(image)
        return to_part(image.copy(), self.options.dataset.rule).filled()

    def _tensor(self, values: Embeddings) -> Tensor:
        found = np.asarray(values, np.float32)
        if found.ndim != 2 or found.shape[1] != self.dim:
            raise InputError(f"expected embeddings [N, {self.dim}] of this model, got {list(found.shape)}.")
        return torch.as_tensor(found, device=self.device)

    def _array(self, parts: Sequence[Tensor]) -> Embeddings:
        if not parts:
            return np.empty((0, self.dim), np.float32)
        return torch.cat([part.float().cpu() for part in parts]).numpy()


def _options_of(checkpoint: Path) -> Options:
    """The options that a checkpoint of ours holds, its vocabulary found from the folders that it lies in.

    Raises:
        InputError: it is none of ours, or its vocabulary is not there.
    """
    content = read_checkpoint(checkpoint)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{checkpoint}: a published checkpoint says nothing of its options. Write a folder first: "
            "python -m portable --path_opt YAML --checkpoint FILE --out FOLDER"
        )
    tree = content["options"]
    options = typed_options(tree, str(checkpoint), "write a folder of it where it was trained: python -m portable")
    words = options.dataset.vocab_path
    places = [Path(), *checkpoint.resolve().parents]
    found = next((place / words for place in places if (place / words).is_file()), words)
    return options.model_copy(update={"dataset": options.dataset.model_copy(update={"vocab_path": found})})
