"""What texts search with: captions, keywords, or both (`model.keywords.mode`).

Letters: N images, M captions, L words, K = 2 P numbers of P keywords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from batches.batch import Captions, QueryMode
from data.annotations import Annotations, read_annotations
from data.keywords.file import NO_WORD, Keyword, keyword_list, keywords_of, read_keywords
from utils import InputError
from vocab import UNKNOWN, Vocabulary


def build_queries(annotations: Annotations, vocabulary: Vocabulary, mode: QueryMode, folder: Path) -> Captions:
    """The text query that stands for each caption of a list.

    Args:
        annotations: M captions.
        vocabulary: the words whose ids the queries hold.
        mode: "none": captions without keywords; "both": captions with the keywords of their images; "keywords": the
            words of these keywords in place of the caption, too, so that the captions of an image are one query;
            "sentence": captions, and each of their words that the train list's keywords hold as a keyword.
        folder: of the files of keywords.

    Raises:
        InputError: the keywords can't be read; see `data.keywords.file`.
    """
    if mode in ("none", "sentence"):
        return typed_queries(annotations.captions, vocabulary, mode, annotations.folder, folder)
    captions = Captions.encode(annotations.captions, vocabulary)
    own = keyword_ids(keywords_of(annotations, folder), vocabulary)[torch.from_numpy(annotations.caption_image)]
    if mode == "both":
        return replace(captions, keywords=own)
    return Captions(*compact(own, own != 0), own)


def typed_queries(
    sentences: Sequence[str], vocabulary: Vocabulary, mode: QueryMode, data_folder: Path, folder: Path
) -> Captions:
    """Queries made of sentences alone, without an image.

    Args:
        sentences: one per query.
        vocabulary: the words whose ids the queries hold.
        mode: "none" or "sentence", see `build_queries`.
        data_folder: of the data set that the model was trained on.
        folder: of its files of keywords.

    Raises:
        InputError: the keywords can't be read, or `mode` takes those of an image.
    """
    if mode not in ("none", "sentence"):
        raise InputError(
            f"model.keywords.mode={mode} takes the keywords of an image, which a sentence alone has none of; "
            "give --set model.keywords.mode=sentence."
        )
    captions = Captions.encode(sentences, vocabulary)
    if mode == "none":
        return captions
    known = train_words(data_folder, folder, vocabulary)
    return replace(captions, keywords=sentence_keywords(captions.tokens, known))


def keyword_ids(keywords: Sequence[Sequence[Keyword]], vocabulary: Vocabulary) -> Tensor:
    """Word ids of each image's keywords, [N, K] int64, padded with zeros; the id of `-` is 0, too."""
    index = vocabulary.word2idx | {NO_WORD: 0}
    rows = [[index.get(word, index[UNKNOWN]) for keyword in row for word in keyword] for row in keywords]
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def known_words(keywords: Sequence[Sequence[Keyword]], vocabulary: Vocabulary) -> Tensor:
    """Ids of all words of the vocabulary that occur in keywords, rising, [W] int64; neither `-` nor `<unk>`."""
    ids = keyword_ids(keywords, vocabulary).unique()
    return ids[(ids != 0) & (ids != vocabulary.word2idx[UNKNOWN])]


def sentence_keywords(tokens: Tensor, known: Tensor) -> Tensor:
    """Each known word of a sentence as a keyword without a fine-grained word.

    Args:
        tokens: [M, L] word ids, zero-padded.
        known: [W] ids, see `known_words`.

    Returns:
        [M, K] int64, K at least 2.
    """
    words, _ = compact(tokens, torch.isin(tokens, known))
    return torch.stack([torch.zeros_like(words), words], dim=-1).flatten(1)


def compact(ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Move what is kept of each row to its front, in order.

    Args:
        ids: [M, L].
        kept: [M, L] bool.

    Returns:
        [M, longest row, at least 1], zero-padded, and how many numbers each row has [M].
    """
    counts = kept.sum(dim=1)
    order = (~kept).long().argsort(dim=1, stable=True)
    return (ids * kept).gather(1, order)[:, : max(1, int(counts.max()))], counts


def train_words(data_folder: Path, folder: Path, vocabulary: Vocabulary) -> Tensor:
    """`known_words` of the train list's keywords.

    Args:
        data_folder: of the data set.
        folder: of the files of keywords.
        vocabulary: the words.

    Raises:
        InputError: the list or its keywords can't be read.
    """
    images = len(read_annotations(data_folder, "train").image_names)
    return known_words(read_keywords(keyword_list(folder, "train"), images), vocabulary)
