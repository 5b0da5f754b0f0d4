"""Keywords of images from their captions: which words name things, and which words stand before them.

A rule on neighbouring words and their counts, of our own design; no trained tagger, nothing to download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import vocab
from data.annotations import Annotations
from data.keywords.file import NO_WORD, Keyword

UNNAMED: Keyword = (NO_WORD, "unknown")
"""Of an image whose captions hold no content word."""
LEAST_ENDING = 0.5
"""Of the phrases that a target word is in, the share that it ends."""

_WORDS = {
    kind: frozenset(words.split())
    for kind, _, words in (
        line.partition(":")
        for line in Path(__file__).with_name("function_words.txt").read_text(encoding="utf-8").splitlines()
    )
}
QUANTITIES = _WORDS["quantities"]
"""Fine-grained words where nothing else describes the thing; never targets."""
OPENERS = _WORDS["openers"]
"""Determiners and prepositions: what stands before a noun, or before the adjective of one."""
OTHERS = _WORDS["others"]
"""What else ends a phrase and is no part of a keyword: function words, words of place, common verbs."""
COUNTERS = _WORDS["counters"]
"""Left out before `of`: "rows of trees" are trees."""


@dataclass(frozen=True)
class Lexicon:
    """What the captions of a list teach.

    Attributes:
        targets: words that name things, with the number of images whose captions hold them.
        describing: words that can be fine-grained words.
    """

    targets: dict[str, int]
    describing: frozenset[str]


def learn_lexicon(annotations: Annotations, min_images: int) -> Lexicon:
    """Find the words that name things.

    A phrase begins after a determiner, a preposition or a quantity. A content word names a thing if the captions of at
    least `min_images` images hold it and it ends at least half of the phrases that it begins: "the airport." speaks
    for `airport`, "the white house" against `white`. Then the second words of phrases are judged alike where the first
    names nothing ("two tennis courts near"). Words in -ed and -ing need a plural, too (`buildings`).
    """
    images: dict[str, set[int]] = {}
    first, second = Counter[tuple[str, bool]](), Counter[tuple[str, str, bool]]()
    for image, caption in zip(annotations.caption_image.tolist(), annotations.captions, strict=True):
        for before, previous, word, following in _windows(caption):
            if not _is_content(word):
                continue
            images.setdefault(word, set()).add(image)
            if following in ("and", "or", ","):  # after adjectives as after nouns
                continue
            # A participle belongs to what comes after it: "boats docked at the harbor".
            ends = not _is_content(following) or following.endswith("ed")
            if _opens(previous):
                first[word, ends] += 1
            elif _is_content(previous) and _opens(before):
                second[previous, word, ends] += 1
    frequent = {word: len(seen) for word, seen in images.items() if len(seen) >= min_images}
    named = _naming(frequent, first)
    for (previous, word, ends), count in second.items():
        if previous not in named:
            first[word, ends] += count
    named |= _naming(frequent, first)
    return Lexicon({word: frequent[word] for word in frequent if word in named}, frozenset(frequent) | QUANTITIES)


def keywords_from_captions(annotations: Annotations, lexicon: Lexicon, most: int) -> list[tuple[Keyword, ...]]:
    """The keywords of each image of a list, 1 to `most`."""
    images = range(len(annotations.image_names))
    return [extract_keywords(annotations.captions_of(image), lexicon, most) for image in images]


def extract_keywords(captions: Sequence[str], lexicon: Lexicon, most: int) -> tuple[Keyword, ...]:
    """The 1 to `most` keywords of an image, first those that most of its captions name.

    The forms of one stem are one target word, written as most captions do; its fine-grained word is the one that most
    often stands before that form, a quantity only where no other does. Of two target words in a row the last one
    counts, described by the first. Without a target word: the most frequent content word, or `UNNAMED`.
    """
    mentions, content = Counter[str](), Counter[str]()
    forms: dict[str, Counter[str]] = {}
    describing: dict[str, Counter[str]] = {}
    for caption in captions:
        stems = set()
        for _, previous, word, following in _windows(caption):
            if _is_content(word):
                content[word] += 1
            if word in lexicon.targets and following not in lexicon.targets:
                stems.add(vocab.stem(word))
                forms.setdefault(vocab.stem(word), Counter())[word] += 1
                if previous in lexicon.describing and (_is_content(previous) or previous in QUANTITIES):
                    describing.setdefault(word, Counter())[previous] += 1
        mentions.update(stem for stem in forms if stem in stems)  # a set has no order of its own
    if not mentions:
        return ((NO_WORD, content.most_common(1)[0][0]) if content else UNNAMED,)
    targets = [forms[stem].most_common(1)[0][0] for stem, _ in mentions.most_common(most)]
    return tuple((_fine_grained(describing.get(target, {})), target) for target in targets)


def _fine_grained(describing: Mapping[str, int]) -> str:
    """The most frequent of the words before a target word, quantities last."""
    return max(describing, key=lambda word: (word not in QUANTITIES, describing[word]), default=NO_WORD)


def _naming(frequent: Iterable[str], phrases: Counter[tuple[str, bool]]) -> set[str]:
    """The words that end enough of their phrases; `phrases` counts (word, whether it ends the phrase)."""
    words = set(frequent)
    return {
        word
        for word in words
        if phrases[word, True] > 0
        and phrases[word, True] >= LEAST_ENDING * (phrases[word, True] + phrases[word, False])
        and (not word.endswith(("ed", "ing")) or f"{word}s" in words)
    }


def _windows(caption: str) -> Iterator[tuple[str, str, str, str]]:
    """Each token with the two before it and the one after it, "" beyond the ends."""
    tokens = vocab.tokenize(caption, punctuation=True)
    pairs = zip(tokens, [*tokens[1:], ""], strict=False)
    kept = [token for token, after in pairs if after != "of" or token not in COUNTERS]
    padded = ["", "", *kept, ""]
    return zip(padded, padded[1:], padded[2:], padded[3:], strict=False)


def _opens(word: str) -> bool:
    return word in OPENERS or word in QUANTITIES


def _is_content(word: str) -> bool:
    """Whether a token can be a part of a keyword by itself: letters, no function word, no quantity, no adverb."""
    plain = len(word) > 1 and word.replace("-", "").isalpha() and not word.endswith("ly")
    return plain and not (_opens(word) or word in OTHERS)
