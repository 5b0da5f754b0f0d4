"""Search in an index: a sentence, an image or a sound in, images with their scores out.

Letters: N images, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from archive import exact, nearest, store
from archive.arguments import KINDS
from archive.encoder import Encoder
from archive.exact import Ranked, Scorer
from archive.index_folder import IndexFolder
from archive.presence import Presence
from archive.question import Question
from data.images import DECODING_RULES
from data.lists import shown
from layers.base import l2norm
from runs.models import load_model
from runs.ready.folder import ready_weights
from runtime.devices import choose_device
from utils import InputError, file_sha256

DEEPEST = 10_000
"""Images that are looked at for those that differ."""
Named = list[tuple[str, float]]
"""Names and scores, the best first, as a vector store gives them."""
BY_COSINE = "Images are compared by the cosine of their embeddings, not by the model's score."
"""To be said of a query image where the model scores by more than a cosine."""
READ_OTHERWISE = (
    "is of an earlier version, which read turned images and those with more than 8 bits, alpha or nodata otherwise. "
    "Run search.py index as you did then: where there are no such images it encodes nothing (docs/images.md)."
)


@dataclass(frozen=True)
class Hit:
    """An image that was found: its name relative to the folder of the images, its score, and its row.

    The row is None where a vector store found it. `alike` counts further images that are nearly the same, and left out.
    """

    name: str
    score: float
    row: int | None
    alike: int = 0

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
        gone: images that would stand among them, but whose files are gone.
    """

    hits: list[Hit]
    encode_ms: float
    search_ms: float
    gone: int = 0


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
        presence: which of the images are there.
        kind: of the search: `exact`, one of `archive.arguments.KINDS`, or `store`.
    """

    def __init__(self, index: IndexFolder, encoder: Encoder, images: Path | None, kind: str) -> None:
        """See `open`."""
        self.index = index
        self.encoder = encoder
        self.images = images or index.manifest.images
        self.kind = kind
        self.presence = Presence(self.images)
        self._given_images = images
        self._store_lock = Lock()  # Milvus Lite does not say that it takes threads
        self._nearest = nearest.Nearest.open(index, kind) if kind in KINDS else None
        self._store = store.open_full_store(index.folder, index.manifest, len(index)) if kind == "store" else None
        self._most = len(index) if self._store is None else min(len(index), store.MOST_HITS)

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
            raise InputError(f"{folder} {READ_OTHERWISE}")
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
        return self._found(started, embedding, score, k, offset, keep)

    def ask(self, question: Question, k: int, distinct: float | None = None, least: float | None = None) -> Answer:
        """The images that fit a question best.

        Args:
            question: what to search with.
            k: how many.
            distinct: of images whose embeddings have at least this cosine only the best is given; None: all are.
            least: score of those that are given; None: any.

        Raises:
            InputError: a part of it can't be read, see `Encoder`.
        """
        started = time.perf_counter()
        parts = question.parts(self.encoder)
        vector, deepest = parts.vector(), max(k, DEEPEST)
        depth = k if distinct is None else min(2 * k, deepest)
        while True:
            answer = self._found(started, vector, parts.scores, depth, 0, None)
            hits = answer.hits if distinct is None else self._distinct(answer.hits, distinct)
            if self._store is not None:  # which compares directions alone
                hits = [replace(hit, score=hit.score * float(vector.norm())) for hit in hits]
            if len(hits) >= k or len(answer.hits) < depth or depth >= deepest:
                return replace(answer, hits=[hit for hit in hits[:k] if least is None or hit.score >= least])
            depth = min(4 * depth, deepest)

    def _distinct(self, hits: list[Hit], cosine: float) -> list[Hit]:
        """The best of each group of hits that are nearly the same; those that were left out are counted."""
        if not hits:
            return hits
        vectors, chosen, alike = l2norm(self._vectors(hits)), [0], [0] * len(hits)
        for place in range(1, len(hits)):
            cosines = vectors[chosen] @ vectors[place]
            if cosines.max() >= cosine:
                alike[chosen[int(cosines.argmax())]] += 1
            else:
                chosen.append(place)
        return [replace(hits[place], alike=alike[place]) for place in chosen]

    def _vectors(self, hits: Sequence[Hit]) -> Tensor:
        """The embeddings of hits [n, D]."""
        if self._store is not None:
            with self._store_lock:
                return torch.from_numpy(self._store.vectors([hit.name for hit in hits]))
        assert self.index.embeddings is not None
        return self.index.embeddings.rows(np.array([hit.row for hit in hits]))

    def similar(self, row: int, k: int, offset: int = 0, keep: NDArray[np.bool_] | None = None) -> Answer:
        """The images that resemble one of the index most, itself first; see `image`."""
        started = time.perf_counter()
        query = self._vectors([Hit(self.index.name(row), 1.0, row)]).to(self.encoder.device)
        return replace(self._found(started, query, exact.cosine, k, offset, keep), encode_ms=0.0)

    def answers(self, sentences: Sequence[Sentence], keep: NDArray[np.bool_] | None = None) -> list[Answer]:
        """What `text` gives for some sentences at once; the times are those of all together."""
        started = time.perf_counter()
        embeddings = self.encoder.texts([sentence.text for sentence in sentences])
        encoded, score = time.perf_counter(), self.encoder.model.score
        deepest = max(sentence.offset + sentence.k for sentence in sentences)
        found = self._search(embeddings, score, deepest, keep)
        hits = [
            self._present(ranked, deepest, query[None], score, sentence.k, sentence.offset, keep)
            for ranked, query, sentence in zip(found, embeddings, sentences, strict=True)
        ]
        times = 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded)
        return [Answer(mine, *times, gone) for mine, gone in hits]

    def _found(
        self, started: float, query: Tensor, score: Scorer, k: int, offset: int, keep: NDArray[np.bool_] | None
    ) -> Answer:
        """The answer to a query [1, D] that is embedded by now."""
        encoded = time.perf_counter()
        (ranked,) = self._search(query, score, offset + k, keep)
        hits, gone = self._present(ranked, offset + k, query, score, k, offset, keep)
        return Answer(hits, 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded), gone)

    def _present(
        self,
        ranked: Ranked | Named,
        depth: int,
        query: Tensor,
        score: Scorer,
        k: int,
        offset: int,
        keep: NDArray[np.bool_] | None,
    ) -> tuple[list[Hit], int]:
        """Those k hits after `offset` whose files are there, and how many were left out up to the last of them.

        Args:
            ranked: the best images of the query; more are searched for where too few of them are there.
            depth: how many were searched for.
            query: [1, D].
            score: of the model.
            k: hits.
            offset: hits to pass over.
            keep: see `text`.
        """
        if not self.presence.known():
            return [self._hit(ranked, place) for place in range(offset, min(offset + k, _length(ranked)))], 0
        hits: list[Hit] = []
        passed = left_out = place = 0
        while True:
            known = self.presence.gone()
            for place in range(place, _length(ranked)):  # noqa: B020 (goes on where it was)
                key = _key(ranked, place)
                if key in known:
                    left_out += 1
                elif passed < offset:  # not looked for: it was when its page was shown
                    passed += 1
                elif self.presence.there(key, (hit := self._hit(ranked, place)).name):
                    hits.append(hit)
                else:
                    left_out += 1
                if len(hits) == k:
                    return hits, left_out
            if _length(ranked) < depth or depth >= self._most:
                return hits, left_out
            place, depth = depth, min(4 * depth, self._most)
            (ranked,) = self._search(query, score, depth, keep)

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

    def _hit(self, found: Ranked | Named, place: int) -> Hit:
        """One of those that a search found."""
        if isinstance(found, list):
            return Hit(*found[place], None)
        row = int(found[1][place])
        return Hit(self.index.name(row), float(found[0][place]), row)


def _length(found: Ranked | Named) -> int:
    return len(found) if isinstance(found, list) else len(found[1])


def _key(found: Ranked | Named, place: int) -> int | str:
    """Row or name of an image that was found."""
    return found[place][0] if isinstance(found, list) else int(found[1][place])


def _kind(index: IndexFolder, kind: str | None) -> str:
    """How to search, where that is possible in an index."""
    stored = index.manifest.store is not None
    if kind is None:
        return "store" if stored else "exact"
    if stored and kind != "store":
        raise InputError(f"--index {kind}: {index.folder} keeps its embeddings in a vector store; leave --index out.")
    return kind
