"""Search in an index: a sentence, an image or a sound in, images with their scores out.

Letters: N images, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from archive import exact, nearest, store
from archive.arguments import KINDS
from archive.encoder import Encoder
from archive.exact import Ranked, Scorer
from archive.index_folder import IndexFolder
from data.images import DECODING_RULES
from data.lists import shown
from runs.models import load_model
from runs.ready.folder import ready_weights
from runtime.devices import choose_device
from utils import InputError, file_sha256, logger

Named = list[tuple[str, float]]
"""Names and scores, the best first, as a vector store gives them."""
BY_COSINE = "Images are compared by the cosine of their embeddings, not by the model's score."
"""To be said of a query image where the model scores by more than a cosine."""
READ_OTHERWISE = (
    "%s is of an earlier version, which read turned images and those with more than 8 bits, alpha or nodata otherwise: "
    "if there are such, index again (docs/images.md)."
)


@dataclass(frozen=True)
class Hit:
    """An image that was found: its name relative to the folder of the images, its score, and its row.

    The row is None where a vector store found it.
    """

    name: str
    score: float
    row: int | None

    @property
    def label(self) -> str:
        """The name, with what can't be printed escaped."""
        return printable(self.name)


def printable(name: str) -> str:
    """A name, with what can't be printed escaped."""
    return name if name.isprintable() else shown(name)


@dataclass(frozen=True)
class Answer:
    """What a query found, the best first, and how long that took.

    Attributes:
        hits: the images.
        encode_ms: milliseconds from the query to its embedding.
        search_ms: milliseconds from there to the hits.
    """

    hits: list[Hit]
    encode_ms: float
    search_ms: float


@dataclass(frozen=True)
class Sentence:
    """A sentence to search with, and the hits that are wanted: k after the best `offset`."""

    text: str
    k: int
    offset: int = 0


class Searcher:
    """An index with its model, open for queries; may be used by several threads at once.

    Attributes:
        index: the folder.
        encoder: the model.
        images: folder of the images.
        kind: of the search: `exact`, one of `archive.arguments.KINDS`, or `store`.
    """

    def __init__(self, index: IndexFolder, encoder: Encoder, images: Path | None, kind: str) -> None:
        """See `open`."""
        self.index = index
        self.encoder = encoder
        self.images = images or index.manifest.images
        self.kind = kind
        self._given_images = images
        self._store_lock = Lock()  # Milvus Lite does not say that it takes threads
        self._nearest = nearest.Nearest.open(index, kind) if kind in KINDS else None
        self._store = store.open_full_store(index.folder, index.manifest, len(index)) if kind == "store" else None

    @classmethod
    def open(
        cls,
        folder: Path,
        device: str | None = None,
        kind: str | None = None,
        checkpoint: Path | None = None,
        images: Path | None = None,
    ) -> Searcher:
        """Open an index and load its model.

        Args:
            folder: of the index.
            device: `cpu`, `cuda`, `cuda:NUMBER`; None: CUDA where there is one.
            kind: `exact` or one of `archive.arguments.KINDS`; None: the vector store of the index, or else exact.
            checkpoint: where the weights are now, if not where they were.
            images: where the images are now, if not where they were.

        Raises:
            InputError: the index is missing, damaged or of another version; the checkpoint is missing or another one;
                this kind of search is not built, or is not the model's score.
        """
        index = IndexFolder.open(folder)
        manifest = index.manifest
        kind = _kind(index, kind)
        path = checkpoint or (ready_weights() if manifest.ready else manifest.checkpoint)
        if not path.is_file():
            raise InputError(
                f"no checkpoint {path}, with which {folder} was made; give it by --checkpoint FILE if it is elsewhere."
            )
        if file_sha256(path) != manifest.checkpoint_sha256:
            raise InputError(
                f"{path} is not the checkpoint that {folder} was made with: its embeddings would mean something else. "
                "Give that one by --checkpoint FILE, or index again."
            )
        options, vocabulary, place = manifest.typed_options(), index.vocabulary(), choose_device(device)
        if kind != "exact":
            nearest.refuse_pair_scores(options.model.name, "a vector index can't search for that; use --index exact.")
        if manifest.decoding != DECODING_RULES:
            logger.warning(READ_OTHERWISE, folder)
        model, _ = load_model(options, vocabulary, path, place)
        encoder = Encoder(model, options, vocabulary, place, manifest.keyword_ids)
        return cls(index, encoder, images, kind)

    def reopened(self) -> Searcher:
        """The same search, with the model that is loaded, in what the folder holds by now.

        Raises:
            InputError: as `open`; or it was made anew with another model.
        """
        self.index.check()
        return Searcher(IndexFolder.open(self.index.folder), self.encoder, self._given_images, self.kind)

    def __len__(self) -> int:
        """Images, N."""
        return len(self.index)

    def text(self, query: str, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None) -> list[Hit]:
        """The images that fit a sentence best.

        Args:
            query: the sentence.
            k: how many.
            offset: how many of the best to pass over: of page p it is p * k.
            keep: [N] which images count, by row; None: all. Searched exactly, whatever the kind.

        Raises:
            InputError: the vocabulary has none of its words.
        """
        return self.answer(query, k, offset, keep).hits

    def image(self, query: Image.Image, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None) -> list[Hit]:
        """The images that resemble an RGB image most, by the cosine of embeddings whatever the model; see `text`.

        Raises:
            InputError: the model needs regions, which the image does not have.
        """
        return self.answer(query, k, offset, keep).hits

    def audio(self, query: Path, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None) -> list[Hit]:
        """The images that fit a spoken caption best, a WAV file; see `text`.

        Raises:
            InputError: the model has no audio encoder, or the file can't be read.
        """
        return self.answer(query, k, offset, keep).hits

    def answer(
        self, query: str | Image.Image | Path, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None
    ) -> Answer:
        """What `text`, `image` or `audio` gives, with the time that it took."""
        if isinstance(query, str):
            return self.answers([Sentence(query, k, offset)], keep)[0]
        started = time.perf_counter()
        score: Scorer = self.encoder.model.score
        if isinstance(query, Path):
            embedding = self.encoder.sound(query)
        else:
            embedding, score = self.encoder.image(query), exact.cosine
        encoded = time.perf_counter()
        (found,) = self._search(embedding, score, offset + k, keep)
        hits = self._hits(found, k, offset)
        return Answer(hits, 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded))

    def similar(self, row: int, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None) -> Answer:
        """The images that resemble one of the index most, itself first; see `image`.

        Raises:
            ValueError: a vector store holds the embeddings.
        """
        if self.index.embeddings is None:
            raise ValueError("the embeddings are in a vector store")
        started = time.perf_counter()
        query = self.index.embeddings.rows(np.array([row])).to(self.encoder.device)
        (found,) = self._search(query, exact.cosine, offset + k, keep)
        return Answer(self._hits(found, k, offset), 0.0, 1000 * (time.perf_counter() - started))

    def answers(self, sentences: Sequence[Sentence], keep: NDArray[np.bool_] | None = None) -> list[Answer]:
        """What `text` gives for some sentences at once; the times are those of all together."""
        started = time.perf_counter()
        embeddings = self.encoder.texts([sentence.text for sentence in sentences])
        encoded = time.perf_counter()
        deepest = max(sentence.offset + sentence.k for sentence in sentences)
        found = self._search(embeddings, self.encoder.model.score, deepest, keep)
        searched = time.perf_counter()
        times = 1000 * (encoded - started), 1000 * (searched - encoded)
        return [
            Answer(self._hits(ranked, sentence.k, sentence.offset), *times)
            for ranked, sentence in zip(found, sentences, strict=True)
        ]

    def _search(self, queries: Tensor, score: Scorer, k: int, keep: NDArray[np.bool_] | None) -> list[Ranked | Named]:
        """The best of each query [Q, D]."""
        self.index.check()
        if self._store is not None:
            if keep is not None:
                raise InputError("an index in a vector store can't be searched in part; leave the filter out.")
            with self._store_lock:
                return [self._store.search(query.cpu().numpy(), k) for query in queries]
        embeddings = self.index.embeddings
        assert embeddings is not None
        if self._nearest is None or keep is not None:
            return [*exact.search(embeddings.blocks(), queries, score, k, keep)]
        return [self._nearest.search(query, score, k) for query in queries]

    def _hits(self, found: Ranked | Named, k: int, offset: int) -> list[Hit]:
        """Those that are wanted of what a search found."""
        if isinstance(found, list):
            return [Hit(name, score, None) for name, score in found[offset : offset + k]]
        scores, rows = (part[offset : offset + k].tolist() for part in found)
        return [Hit(self.index.name(row), value, row) for value, row in zip(scores, rows, strict=True)]


def _kind(index: IndexFolder, kind: str | None) -> str:
    """How to search, where that is possible in an index."""
    stored = index.manifest.store is not None
    if kind is None:
        return "store" if stored else "exact"
    if stored and kind != "store":
        raise InputError(f"--index {kind}: {index.folder} keeps its embeddings in a vector store; leave --index out.")
    return kind
