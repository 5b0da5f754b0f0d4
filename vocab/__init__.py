"""The token rule and the vocabulary: from a caption to the ids that a text encoder reads."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.imports import import_nltk
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, write_text_atomic

if TYPE_CHECKING:
    from nltk.stem.porter import PorterStemmer
    from nltk.tokenize import NLTKWordTokenizer

UNKNOWN = "<unk>"
DROPPED_TOKENS = frozenset(",.:;?()[]&!*@#$%")

_OTHER = re.compile(r"[^\w']+|_")
"""What is neither in words nor between them and a suffix."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@cache
def _tokenizer() -> NLTKWordTokenizer:
    """Imported at the first caption, which many commands never see: even alone NLTK takes 0.4 s."""
    made: NLTKWordTokenizer = import_nltk("tokenize").NLTKWordTokenizer()
    return made


def tokenize(caption: str, punctuation: bool = False) -> list[str]:
    """Tokens of a caption, lower-case and in order; empty for a blank caption.

    Sentences end after `.`, `!` or `?` followed by white space; each is cut by NLTK's `NLTKWordTokenizer` (which splits
    off a full stop only at the end of its input); the punctuation in `DROPPED_TOKENS` is left out unless asked for.
    """
    return [token for token in _tokens(caption) if punctuation or token not in DROPPED_TOKENS]


@lru_cache(maxsize=2**17)
def _tokens(caption: str) -> tuple[str, ...]:
    """Remembered, because every fold asks for the same captions again."""
    sentences = _SENTENCE_END.split(caption.lower())
    return tuple(token for sentence in sentences for token in _tokenizer().tokenize(sentence))


@cache
def _stemmer() -> PorterStemmer:
    made: PorterStemmer = import_nltk("stem.porter").PorterStemmer()
    return made


@lru_cache(maxsize=2**16)
def stem(token: str) -> str:
    """The Porter stem of a token, lower-case."""
    return str(_stemmer().stem(token))


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids 1..n, one of them `<unk>`; id 0 is padding and belongs to no word.

    Attributes:
        word2idx: id of every word.

    Raises:
        ValueError: the ids are not exactly 1..n, or `<unk>` is missing.
    """

    word2idx: dict[str, int]

    def __post_init__(self) -> None:
        """Check the ids, so that every vocabulary in use is a sound one."""
        _check_word2idx(self.word2idx)

    def __len__(self) -> int:
        """Number of entries, `<unk>` included, the padding id 0 not counted."""
        return len(self.word2idx)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the words in the order of their ids: equal for vocabularies that encode alike."""
        # A JSON list keeps the words apart whatever characters they hold.
        words = json.dumps(sorted(self.word2idx, key=self.word2idx.__getitem__))
        return hashlib.sha256(words.encode("ascii")).hexdigest()

    def encode(self, caption: str) -> list[int]:
        """Ids of the caption's tokens, each in 1..len; a caption without tokens gives the id of `<unk>` alone."""
        unknown = self.word2idx[UNKNOWN]
        return [self.word2idx.get(token, unknown) for token in tokenize(caption)] or [unknown]

    def knows(self, word: str) -> bool:
        """Whether a token is read as itself, not as `<unk>`."""
        return word in self.word2idx

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read the JSON file that `save` writes, which is also the published form.

        Raises:
            InputError: the file is missing, is not JSON, or contradicts itself; the message names the file.
        """
        try:
            return cls(_word2idx_of(parse_json(read_bytes(Path(path)))))
        except OSError as error:
            raise InputError(
                f"{path}: can't read the vocabulary ({error.strerror}). Check dataset.vocab_path, or build the file "
                "with `python -m vocab --data_path <data set's folder> --data_name <name>`."
            ) from error
        except ValueError as error:
            raise InputError(
                f"{path}: not a vocabulary file: {error}. Build it anew with "
                "`python -m vocab --data_path <data set's folder> --data_name <name>`."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write `{"word2idx": {word: id}, "idx2word": {"id": word}, "idx": next free id}` as JSON, atomically."""
        content = {
            "word2idx": self.word2idx,
            "idx2word": {str(index): word for word, index in self.word2idx.items()},
            "idx": len(self) + 1,
        }
        write_text_atomic(Path(path), json.dumps(content) + "\n")


def respelled(sentence: str, vocabulary: Vocabulary) -> str:
    """A sentence in which what would be unknown alone is cut at its punctuation, as `trees/houses` or `field…`.

    The token rule leaves such characters in their words, and published vocabularies and captions are made by it. So a
    word is changed only where the vocabulary lacks some token of it.
    """
    return " ".join(
        word if all(map(vocabulary.knows, tokenize(word))) else _OTHER.sub(" ", unicodedata.normalize("NFKC", word))
        for word in sentence.split()
    )


def build(captions: Iterable[str], min_count: int = 5, stop_words: bool = True) -> Vocabulary:
    """Vocabulary of the captions: frequent tokens in the order of their first appearance, `<unk>` last.

    Args:
        captions: the captions, in the order that decides the ids.
        min_count: how often a token has to occur to be kept, at least 1.
        stop_words: drop English stop words (the published way, which turns nearly half of all tokens into `<unk>`);
            False keeps them as words like any other.

    Raises:
        ValueError: `min_count` is below 1.
    """
    return from_counts(count_tokens(captions), min_count, stop_words)


def count_tokens(captions: Iterable[str]) -> Counter[str]:
    """How often each token occurs in the captions, keyed in the order of first appearance."""
    return Counter(token for caption in captions for token in tokenize(caption))


def from_counts(counts: Mapping[str, int], min_count: int = 5, stop_words: bool = True) -> Vocabulary:
    """`build` for tokens that are counted already (`count_tokens`)."""
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    dropped = english_stop_words() if stop_words else frozenset()
    words = [word for word, count in counts.items() if count >= min_count and word not in dropped]
    return Vocabulary({word: index for index, word in enumerate([*words, UNKNOWN], start=1)})


@lru_cache(maxsize=1)
def english_stop_words() -> frozenset[str]:
    """NLTK's classic English stop words (179); kept here as a file because NLTK would have to download them."""
    return frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


def _check_word2idx(word2idx: Mapping[str, int]) -> None:
    """Raise a ValueError unless the ids are the whole numbers 1..n, each used once, and `<unk>` has one."""
    if UNKNOWN not in word2idx:
        raise ValueError(f"the entry {UNKNOWN!r}, which stands for all other words, is missing")
    word_of: dict[int, str] = {}
    for word, index in word2idx.items():
        if type(index) is not int or not 1 <= index <= len(word2idx):
            raise ValueError(f"the id of {word!r} must be a whole number from 1 to {len(word2idx)}, found {index!r}")
        if index in word_of:
            raise ValueError(f"id {index} is given to both {word_of[index]!r} and {word!r}")
        word_of[index] = word


def _word2idx_of(content: object) -> dict[str, int]:
    """The word -> id table of a parsed vocabulary file, once its three parts agree; ValueError if they don't."""
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    word2idx, idx2word = (_table(content, name) for name in ("word2idx", "idx2word"))
    _check_word2idx(word2idx)
    for word, index in word2idx.items():
        if idx2word.get(str(index)) != word:
            raise ValueError(f"word2idx gives {word!r} the id {index}, idx2word has {idx2word.get(str(index))!r} there")
    if len(idx2word) != len(word2idx):
        raise ValueError(f"word2idx has {len(word2idx)} entries, idx2word has {len(idx2word)}")
    if content.get("idx") != len(word2idx) + 1:
        raise ValueError(f"'idx', the next free id, must be {len(word2idx) + 1}, found {content.get('idx')!r}")
    return word2idx


def _table(content: dict[str, object], name: str) -> dict[str, int]:
    """One of the two tables of a vocabulary file."""
    table = content.get(name)
    if not isinstance(table, dict):
        raise ValueError(f"{name!r} must be a JSON object, found {type(table).__name__}")
    return table
