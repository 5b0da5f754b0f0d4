"""A model with what its inputs need: images, sentences and sounds become embeddings exactly as in evaluation.

Letters: B batch, D embedding, S image side in pixels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from batches.augmentation import normalise
from batches.batch import Batch, Captions
from batches.queries import sentence_keywords, train_words
from data.audio.sounds import read_sound
from data.audio.spectrogram import mel_power, to_image
from data.images import to_square
from data.lists import shown
from data.regions.file import SHAPES, RegionFile, Regions, read_regions, region_fields
from engine import embed, image_verb
from layers.base import RetrievalModel
from layers.folding import folded, precast
from layers.registry import registered
from option import Options
from utils import InputError
from vocab import UNKNOWN, Vocabulary, english_stop_words, respelled, tokenize


def keyword_ids(options: Options, vocabulary: Vocabulary) -> list[int] | None:
    """Ids of the words that count as keywords in a sentence; None for a model that takes none from it.

    Raises:
        InputError: the keywords of the data set can't be read.
    """
    if registered()[options.model.name].model.query_mode(options.model) != "sentence":
        return None
    dataset = options.dataset
    return train_words(dataset.folder, dataset.keywords_folder, vocabulary).tolist()


@dataclass(eq=False)
class Encoder:
    """Embeds images, sentences and sounds with the model of one checkpoint.

    Attributes:
        model: of the options, with its weights, on the device.
        options: of the experiment.
        vocabulary: the words that the model reads.
        device: where the model is.
        keyword_ids: what the function of this name gives.
    """

    model: RetrievalModel
    options: Options
    vocabulary: Vocabulary
    device: torch.device
    keyword_ids: Sequence[int] | None = None

    @property
    def reads_regions(self) -> bool:
        """Whether the model reads the regions of an image."""
        return self.model.uses_regions and self.options.dataset.local_path is not None

    @cached_property
    def region_file(self) -> RegionFile | None:
        """The regions of the archive's images, which queries do without; None where the model reads none.

        Raises:
            InputError: the file can't be read.
        """
        path = self.options.dataset.local_path
        return read_regions(path) if path is not None and self.reads_regions else None

    @property
    def dim(self) -> int:
        """Length of an embedding, D, found out on a black image.

        Raises:
            InputError: it is not finite.
        """
        return self._embed(self._quick.encode_image, self._black(), "image").shape[1]

    def check_regions(self, names: Sequence[str]) -> None:
        """Find out before the work whether images lack regions that the model reads.

        Raises:
            InputError: some do, and `dataset.missing_regions` does not allow it.
        """
        if self.region_file is not None:
            self.region_file.check(names, self.options.dataset.missing_regions)

    def images(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Embed images of the archive.

        Args:
            pixels: [B, 3, S, S] uint8.
            names: of the B images; those that the region file lacks count as images without regions.

        Returns:
            [B, D] float32, on the device.

        Raises:
            InputError: an embedding is not finite.
        """
        return self._images(pixels, None if self.region_file is None else self.region_file.take(names))

    def image(self, image: Image.Image) -> Tensor:
        """Embed a query image, RGB of any size, [1, D]; see `query_images`."""
        return self.query_images([image])

    def query_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed query images, RGB of any size, [B, D].

        Raises:
            InputError: the model reads regions and may not do without (`dataset.missing_regions`).
        """
        if self.reads_regions and self.options.dataset.missing_regions != "zeros":
            raise InputError(
                f"{self.options.model.name} reads the regions of an image, and a query image has none. Index "
                "with --set dataset.missing_regions=zeros to let it count as one without regions, or with "
                "dataset.local_path=null if the model was trained so."
            )
        side = self.options.dataset.image_size
        pixels = torch.stack([torch.from_numpy(to_square(image, side)) for image in images])
        return self._images(pixels, self._no_regions(len(images)))

    def check_sentence(self, sentence: str) -> None:
        """Find out whether a sentence can be embedded.

        Raises:
            InputError: it is empty, or the vocabulary has none of its words.
        """
        if not sentence.strip():
            raise InputError("the sentence is empty: say what the image shows.")
        tokens = [token for token in tokenize(self.read(sentence)) if token != UNKNOWN]
        if self.reads_all:
            if not any(map(str.isalnum, sentence)):
                raise InputError(f"{shown(sentence)} has no word: say what the image shows.")
        elif not any(map(self.vocabulary.knows, tokens)):
            words = self.vocabulary.word2idx
            raise InputError(
                f"the model knows no word of {sentence.strip()[:200]!r}: its vocabulary has {len(words)} words, such "
                f"as {', '.join(list(words)[:5])}. Use words of the captions that it learned."
            )

    @cached_property  # a tokenizer takes a tenth of a second to read
    def reads_all(self) -> bool:
        """Whether the model spells words that it has not learned, so that none is unknown."""
        return self.model.own_vocabulary(self.options.model) is not None

    def read(self, sentence: str) -> str:
        """A sentence as the model is given it; see `vocab.respelled`."""
        return sentence if self.reads_all else respelled(sentence, self.vocabulary)

    def unread(self, sentence: str) -> str:
        """The end of a sentence that is longer than the model reads; mostly nothing."""
        if not self.reads_all:  # which reads a text of any length
            return ""
        words = sentence.split()

        def is_all(count: int) -> bool:
            return self.vocabulary.encode(" ".join(words[:count])) == whole

        whole = self.vocabulary.encode(" ".join(words))
        if len(words) < 2 or not is_all(len(words) - 1):
            return ""
        end = " ".join(words[bisect_left(range(len(words)), True, key=is_all) :])
        return end if any(map(str.isalnum, end)) else ""

    def remarks(self, sentences: Iterable[str]) -> list[str]:
        """What is to be said of how sentences are read: words that are unknown, and ends that are not read."""
        said = []
        for sentence in sentences:
            if unknown := self.unknown_words(sentence):
                said.append(f"words that the model does not know: {', '.join(unknown)}")
            if unread := self.unread(sentence):
                said.append(f"the sentence is longer than the model reads, which leaves out its end: {shown(unread)}")
        return said

    def prepare(self) -> None:
        """Do now what the first sentence would have to wait for."""
        self.remarks(["a plane"])  # the tokenizer, a second
        with suppress(InputError):  # of a model that takes no sentences: each is told so
            self._reader  # noqa: B018

    def texts(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences, [B, D].

        Raises:
            InputError: the vocabulary has no word of one, or the model takes an image's keywords as queries.
        """
        for sentence in sentences:
            self.check_sentence(sentence)
        return self._embed(self._reader.encode_text, self._queries([*map(self.read, sentences)]), "caption")

    def text(self, sentence: str) -> Tensor:
        """Embed a sentence, [1, D]; see `texts`."""
        return self.texts([sentence])

    def unknown_words(self, sentence: str) -> list[str]:
        """Words of a sentence that the model reads as unknown, each once, but for stop words, which say little."""
        passed = english_stop_words()
        tokens = dict.fromkeys(tokenize(self.read(sentence)))
        return [word for word in tokens if word not in passed and not self.vocabulary.knows(word)]

    def sound(self, path: Path) -> Tensor:
        """Embed a WAV file, drawn as `python -m data.audio wav` draws it, [1, D].

        Raises:
            InputError: the model hears nothing, or the file can't be read.
        """
        if not self.model.uses_audio:
            raise InputError(f"{self.options.model.name} has no audio encoder: search with a sentence or an image.")
        drawn = Image.fromarray(to_image(mel_power(read_sound(path)))).convert("RGB")
        pixels = torch.from_numpy(to_square(drawn, self.options.dataset.image_size))[None]
        return self._embed(self.model.encode_audio, Batch(audio=normalise(pixels.to(self.device))), "audio")

    def _queries(self, sentences: Sequence[str]) -> Batch:
        """What the model reads of sentences; see `texts`."""
        queries = Captions.encode(sentences, self.vocabulary)
        mode = self.model.query_mode(self.options.model)
        if mode in ("keywords", "both"):
            raise InputError(
                "the index expects queries of an image's keywords (model.keywords.mode), which a sentence does not "
                "have: index with --set model.keywords.mode=sentence."
            )
        if self.keyword_ids is not None:
            queries = replace(queries, keywords=sentence_keywords(queries.tokens, torch.tensor(self.keyword_ids)))
        return queries.batch(torch.arange(len(sentences)))

    @cached_property
    def _reader(self) -> RetrievalModel:
        """The model for sentences, its linear maps cast once where it computes in mixed precision."""
        sample = self._queries(["a"])
        return precast(self.model.eval(), lambda model: self._embed(model.encode_text, sample, "caption"))

    def _no_regions(self, count: int = 1) -> Regions | None:
        """The regions of images in which none were found; None for a model that reads no regions."""
        return Regions(*(torch.zeros(count, *shape) for shape in SHAPES.values())) if self.reads_regions else None

    def _black(self) -> Batch:
        """A black image without regions."""
        side = self.options.dataset.image_size
        return self._seen(torch.zeros(1, 3, side, side, dtype=torch.uint8), self._no_regions())

    @cached_property
    def _quick(self) -> RetrievalModel:
        """The model for images, its batch norms folded into its convolutions."""
        black = self._black()
        return folded(self.model.eval(), lambda model: model.encode_image(black))

    def _seen(self, pixels: Tensor, regions: Regions | None) -> Batch:
        local = region_fields(regions, torch.arange(len(pixels)))
        return Batch(images=normalise(pixels.to(self.device)), **local).to(self.device)

    def _images(self, pixels: Tensor, regions: Regions | None) -> Tensor:
        verb = image_verb(self._quick, self.options.dataset.test_views)
        return self._embed(verb, self._seen(pixels, regions), "image")

    def _embed(self, verb: Callable[[Batch], Tensor], batch: Batch, kind: str) -> Tensor:
        return embed(self.model, verb, [batch.to(self.device)], kind, self.device, self.options.optim.amp)
