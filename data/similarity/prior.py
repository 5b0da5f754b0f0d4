"""Prior similarity of captions and images, which AMFMN's dynamic margin starts from.

Yuan et al., "Exploring a Fine-Grained Multiscale Method for Cross-Modal Remote Sensing Image Retrieval", TGRS 2022.
Letters: N images, C captions per image, M captions. A feature is a stemmed n-gram and the number of times that it was
seen before in its caption: the clipped matches of BLEU are then the shared members of two sets.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vocab
from data.annotations import Annotations
from data.lists import LONGEST_LINE
from data.similarity.ragged import Ragged, shared
from runtime.locks import waiting_lock
from runtime.progress import progress_bar
from runtime.untrusted import read_arrays
from utils import InputError, first_line, logger, remove_unfinished, write_atomic

RULE = "prior-1"
"""Names what is computed here, so that files of another rule are not taken for this one."""
ORDERS = (1, 2, 3, 4)
COLUMNS = ("word_shares", "lengths", "wording", "caption_image")
CAPTIONS_PER_BLOCK = 512


def stems(caption: str) -> list[str]:
    """Porter stems of all tokens, punctuation among them."""
    return [vocab.stem(token) for token in vocab.tokenize(caption.strip(), punctuation=True)]


def content_stems(caption_stems: Sequence[str]) -> list[str]:
    """Stems that are no stop words; `this`, `was`, `has`, stemmed before, stay as `thi`, `wa`, `ha` (as released)."""
    dropped = vocab.english_stop_words() | {",", "."}
    return [stem for stem in caption_stems if stem not in dropped]


@dataclass(frozen=True, eq=False)
class PriorSimilarity:
    """S of any caption and image of one list.

    Attributes:
        caption_grams: for each order of n-grams the features of the M captions.
        image_grams: the same of the N images: those of any of their captions.
        caption_words: different content stems of the M captions.
        image_words: the same of the N images.
        word_shares: float64, for each of `image_words.values` the mean over the image's captions of 1 / (content stems
            of the caption) where it has that stem, else 0; captions without any are left out.
        lengths: [M] int64 stems per caption.
        wording: [M] int64, equal for word-for-word equal captions.
        caption_image: [M] int64, the image of each caption.
    """

    caption_grams: tuple[Ragged, ...]
    image_grams: tuple[Ragged, ...]
    caption_words: Ragged
    image_words: Ragged
    word_shares: np.ndarray
    lengths: np.ndarray
    wording: np.ndarray
    caption_image: np.ndarray

    @classmethod
    def build(cls, annotations: Annotations) -> PriorSimilarity:
        """Count the n-grams and content stems of a list's captions."""
        text_of = [caption.strip() for caption in annotations.captions]
        stems_of = {text: stems(text) for text in dict.fromkeys(text_of)}
        own = np.split(np.arange(len(text_of)), annotations.caption_counts.cumsum()[:-1])  # of each image
        grams = []
        for order in ORDERS:
            numbers: dict[tuple[tuple[str, ...], int], int] = {}
            grams.append({text: _features(found, order, numbers) for text, found in stems_of.items()})
        numbers_of_words: dict[str, int] = {}
        content = {text: content_stems(found) for text, found in stems_of.items()}
        words = {
            text: {numbers_of_words.setdefault(stem, len(numbers_of_words)) for stem in found}
            for text, found in content.items()
        }
        shares = [_shares([(words[text_of[c]], len(content[text_of[c]])) for c in captions]) for captions in own]
        wordings: dict[str, int] = {}
        return cls(
            tuple(Ragged.of(features[text] for text in text_of) for features in grams),
            tuple(Ragged.of(set().union(*(features[text_of[c]] for c in row)) for row in own) for features in grams),
            Ragged.of(words[text] for text in text_of),
            Ragged.of(shares),
            np.array([share[word] for share in shares for word in sorted(share)], dtype=np.float64),
            np.array([len(stems_of[text]) for text in text_of], dtype=np.int64),
            np.array([wordings.setdefault(text, len(wordings)) for text in text_of], dtype=np.int64),
            np.asarray(annotations.caption_image, dtype=np.int64),
        )

    @classmethod
    def cached(cls, annotations: Annotations, folder: Path) -> PriorSimilarity:
        """`build`, or what an earlier run kept of the same captions in a folder.

        Raises:
            InputError: the kept file can't be read.
        """
        path = folder / f"prior-{captions_digest(annotations)[:16]}.npz"
        if not path.is_file():
            with waiting_lock(path):
                remove_unfinished(folder, path.name)
                if not path.is_file():
                    captions = len(annotations.captions)
                    logger.info("Counts n-grams of %d captions for the prior similarity: %s", captions, path)
                    cls.build(annotations).save(path)
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write all counts, a few MB, as NumPy arrays."""
        grams = {"caption_grams": self.caption_grams, "image_grams": self.image_grams}
        sets = {f"{name}{order}": each for name in grams for order, each in zip(ORDERS, grams[name], strict=True)}
        sets |= {"caption_words": self.caption_words, "image_words": self.image_words}
        arrays = {f"{name}/{part}": array for name, each in sets.items() for part, array in vars(each).items()}
        arrays |= {name: getattr(self, name) for name in COLUMNS}
        write_atomic(path, lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> PriorSimilarity:
        """Read what `save` wrote.

        Raises:
            InputError: it can't be read.
        """
        try:
            arrays = read_arrays(path)

            def ragged(name: str) -> Ragged:
                return Ragged(arrays[f"{name}/values"], arrays[f"{name}/starts"])

            found = cls(
                tuple(ragged(f"caption_grams{order}") for order in ORDERS),
                tuple(ragged(f"image_grams{order}") for order in ORDERS),
                ragged("caption_words"),
                ragged("image_words"),
                *(arrays[name] for name in COLUMNS),
            )
            if not found._is_sound():
                raise ValueError("its arrays contradict each other")
            return found
        except (OSError, ValueError, LookupError, TypeError) as fault:
            raise InputError(
                f"{path}: not a file of prior similarities ({first_line(fault)}). Delete it: it is made anew."
            ) from fault

    def _is_sound(self) -> bool:
        """Whether all arrays have the types and sizes that belong together."""
        captions, images = len(self.lengths), len(self.image_words)
        sides = (*self.caption_grams, self.caption_words), (*self.image_grams, self.image_words)
        columns = self.lengths, self.wording, self.caption_image
        return (
            all(part.is_sound(rows) for side, rows in zip(sides, (captions, images), strict=True) for part in side)
            and all(column.dtype.kind == "i" and column.shape == (captions,) for column in columns)
            and 0 < images <= captions
            and np.array_equal(np.unique(self.caption_image), np.arange(images))
            and bool((np.diff(self.caption_image) >= 0).all())
            and bool((self.lengths >= 0).all() and (self.lengths <= LONGEST_LINE).all())
            and self.word_shares.dtype.kind == "f"
            and self.word_shares.shape == self.image_words.values.shape
            and bool(np.isfinite(self.word_shares).all())
        )

    def between(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """S of some images [n] and some captions [m], given by their places in the list, also repeated.

        S = (s1 + s2) / 2. s1 is NLTK's sentence BLEU-4 of the caption against all captions of the image, without
        smoothing, or 1 if it is one of them; where an order of n-grams has no match NLTK gives less than 1e-76, which
        is 0 here. s2 is the mean over the image's captions of the share of their content stems that the caption has.

        Returns:
            [n, m] float64 in [0, 1].
        """
        product = np.ones((len(images), len(captions)))
        for order, image_side, caption_side in zip(ORDERS, self.image_grams, self.caption_grams, strict=True):
            possible = np.maximum(self.lengths[captions] - order + 1, 1)
            product *= shared(image_side, images, caption_side, captions, None) / possible
        bleu = np.sqrt(np.sqrt(product)) * self._brevity(images, captions)
        bleu[self._stands_under(images, captions)] = 1
        words = shared(self.image_words, images, self.caption_words, captions, self.word_shares)
        return (bleu + words) / 2

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All of S in blocks of captions, with a progress bar: their places [m] and S [N, m]."""
        images = np.arange(len(self.image_words))
        captions = np.arange(len(self.lengths))
        chunks = np.split(captions, range(CAPTIONS_PER_BLOCK, len(captions), CAPTIONS_PER_BLOCK))
        for chunk in progress_bar(chunks, desc="prior similarity", unit="block"):
            yield chunk, self.between(images, chunk)

    def _of_images(self, per_caption: np.ndarray, images: np.ndarray) -> np.ndarray:
        """What each caption has, of the captions of some images: [n, C]; the last fills up rows of fewer than C."""
        counts = np.bincount(self.caption_image)  # [N]
        starts = counts.cumsum() - counts
        places = np.minimum(np.arange(counts.max()), counts[images, None] - 1)  # [n, C]
        return per_caption[starts[images, None] + places]

    def _brevity(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """BLEU's penalty for captions shorter than the image's caption of the nearest length, [n, m]."""
        longest = int(self.lengths.max())
        own = np.sort(self._of_images(self.lengths, images), axis=1)  # of two equally near ones the shorter counts
        every = np.arange(longest + 1)
        nearest = np.take_along_axis(own, np.abs(own[:, :, None] - every).argmin(axis=1), axis=1)  # [n, longest + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            penalty = np.where(every >= nearest, 1.0, np.exp(1 - nearest / every))
        penalty[:, 0] = 0
        return penalty[:, self.lengths[captions]]

    def _stands_under(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Whether a caption is, word for word, one of an image's, [n, m] bool."""
        found = np.zeros((len(images), len(captions)), dtype=bool)
        for place in self._of_images(self.wording, images).T:
            found |= place[:, None] == self.wording[captions]
        return found


def captions_digest(annotations: Annotations) -> str:
    """SHA-256 (hexadecimal) of the captions, in order and by image, and of the rule that compares them."""
    content = [RULE, annotations.caption_counts.tolist(), *annotations.captions]
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def _features(caption_stems: Sequence[str], order: int, numbers: dict[tuple[tuple[str, ...], int], int]) -> set[int]:
    """Numbers of a caption's n-grams, the second occurrence of one apart from the first; new ones are numbered."""
    seen: Counter[tuple[str, ...]] = Counter()
    found = set()
    for start in range(len(caption_stems) - order + 1):
        gram = tuple(caption_stems[start : start + order])
        found.add(numbers.setdefault((gram, seen[gram]), len(numbers)))
        seen[gram] += 1
    return found


def _shares(captions: Sequence[tuple[set[int], int]]) -> dict[int, float]:
    """For the different content stems of an image's captions, each with how many it has: `word_shares` by stem."""
    counted = [(words, count) for words, count in captions if count]
    shares: dict[int, float] = defaultdict(float)
    for words, count in counted:
        for word in words:
            shares[word] += 1 / (count * len(counted))
    return shares
