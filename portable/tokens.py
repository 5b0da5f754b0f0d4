"""What turns a sentence into ids outside of this project: a `tokenizer.json`, or rules of regular expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from layers.base import RetrievalModel
from layers.clip_tokens import BytePairs, HubPieces
from layers.sentences import WordPieces
from portable import TOKENIZER
from runtime.imports import import_nltk
from utils import InputError, import_extra, write_text_atomic
from vocab import DROPPED_TOKENS, UNKNOWN, Vocabulary

JSON = "tokenizer.json"
SENTENCE_END = r"(?<=[.!?])\s+"
CLIP_PIECES = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def check_tokenizer(vocabulary: Vocabulary) -> None:
    """Refuse a tokenizer that can't be written.

    Raises:
        InputError: it is one of those.
    """
    if isinstance(vocabulary, HubPieces):
        raise InputError(
            "python -m portable: of CLIP's tokenizers only byte pairs can be written, and this model "
            "has another. Search with the checkpoint itself (search.py), or take an architecture such as ViT-B-16."
        )


def write_tokenizer(vocabulary: Vocabulary, model: RetrievalModel, folder: Path) -> dict[str, Any]:
    """Write what an encoder brings of its own into the folder `tokenizer`, and say how sentences become ids.

    Returns:
        The entry `text` of `preprocessing.json`. Ids in the folder's tokenizer count from 0, those of the graphs from
        1: add `first_id`.
    """
    own, place = cast(Any, vocabulary), folder / TOKENIZER
    if isinstance(vocabulary, WordPieces):
        own.tokenizer.save_pretrained(place)
        cast(Any, model).text_tower.network.config.save_pretrained(place)
        library = import_extra("tokenizers", "a tokenizer of transformers needs tokenizers", "weights")
        fast = library.Tokenizer.from_file(str(place / JSON))
        longest = own.longest
    elif isinstance(vocabulary, BytePairs):
        fast, longest = byte_pairs(own.tokenizer), own.tokenizer.context_length
    else:
        return {
            "sentence_end": SENTENCE_END,
            "rules": word_rules(),
            "dropped": sorted(DROPPED_TOKENS),
            "unknown": vocabulary.word2idx[UNKNOWN],
            "ids": vocabulary.word2idx,
        }
    fast.no_padding()
    fast.enable_truncation(longest)
    write_text_atomic(place / JSON, fast.to_str(pretty=True))
    return {"tokenizer": f"{TOKENIZER}/{JSON}", "first_id": 1}


def word_rules() -> list[list[str]]:
    """NLTK's word tokenizer as pairs of pattern and replacement: applied in order, then cut at white space."""
    rules = import_nltk("tokenize").NLTKWordTokenizer
    pairs: list[tuple[Any, str]] = [
        *rules.STARTING_QUOTES,
        *rules.PUNCTUATION,
        rules.PARENS_BRACKETS,
        rules.DOUBLE_DASHES,
    ]
    found = [(expression.pattern, replacement) for expression, replacement in pairs]
    found.append((r"\A|\Z", " "))
    found += [(expression.pattern, replacement) for expression, replacement in rules.ENDING_QUOTES]
    contractions = [*rules.CONTRACTIONS2, *rules.CONTRACTIONS3]
    found += [(expression.pattern, r" \1 \2 ") for expression in contractions]
    # Python 3.10 has no possessive `*+`; behind it stands `\s*$` alone, so that a plain `*` matches the same.
    return [[pattern.replace("*+", "*"), replacement] for pattern, replacement in found]


def byte_pairs(tokenizer: Any) -> Any:
    """CLIP's byte pairs as a tokenizer of the library tokenizers.

    Differs from open_clip's: NFC stands in place of ftfy's repair of broken text, and HTML entities stay.
    """
    library = import_extra("tokenizers", "CLIP's tokenizer needs tokenizers", "weights")
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    fast = library.Tokenizer(
        library.models.BPE(vocab=tokenizer.encoder, merges=merges, end_of_word_suffix="</w>", fuse_unk=False)
    )
    normal, split = library.normalizers, library.pre_tokenizers
    fast.normalizer = normal.Sequence(
        [normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Strip(), normal.Lowercase()]
    )
    fast.pre_tokenizer = split.Sequence(
        [
            split.Split(library.Regex(CLIP_PIECES), behavior="removed", invert=True),
            split.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (("<start_of_text>", tokenizer.sot_token_id), ("<end_of_text>", tokenizer.eot_token_id))
    fast.post_processor = library.processors.TemplateProcessing(
        single=f"{start[0]} $A {end[0]}", special_tokens=[start, end]
    )
    return fast
