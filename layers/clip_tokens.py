"""What the text towers of open_clip read, as a vocabulary: CLIP's byte pairs, or the pieces of another tokenizer."""

from __future__ import annotations

from typing import Any, cast

from layers.clip_files import tokenizer_folder
from layers.clip_library import architecture_name, configuration, import_open_clip, longest_text
from layers.sentences import WordPieces, import_transformers
from utils import InputError, first_line
from vocab import UNKNOWN, Vocabulary


class BytePairs(Vocabulary):
    """The byte pairs of an open_clip tokenizer as a vocabulary: no word is unknown to it.

    Ids are the tokenizer's plus 1, since 0 is padding here.
    """

    padding = 0

    def __init__(self, tokenizer: Any) -> None:
        """Take the pieces of a tokenizer of the kind that CLIP was published with."""
        pieces = sorted(tokenizer.encoder, key=tokenizer.encoder.__getitem__)
        super().__init__({piece: index for index, piece in enumerate([*pieces, UNKNOWN], start=1)})
        object.__setattr__(self, "tokenizer", tokenizer)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption between the marks of its start and end, cut to what the model reads."""
        tokenizer = cast(Any, self).tokenizer
        ids = tokenizer(caption)[0]
        end = int((ids == tokenizer.eot_token_id).nonzero()[0])
        return [int(index) + 1 for index in ids[: end + 1]]

    def knows(self, word: str) -> bool:
        """Every word can be spelled."""
        return True


class HubPieces(WordPieces):
    """The pieces of a tokenizer of transformers, of texts that open_clip has cleaned for it.

    Attributes:
        padding: the tokenizer's own id of what fills a text up; SigLIP's towers attend to it.
    """

    padding: int

    def __init__(self, cleaned: Any) -> None:
        """Take an HFTokenizer of open_clip.

        Raises:
            ValueError: it can't fill texts up.
        """
        if cleaned.tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token")
        super().__init__(cleaned.tokenizer, cleaned.context_length)
        object.__setattr__(self, "cleaned", cleaned)
        object.__setattr__(self, "padding", int(cleaned.tokenizer.pad_token_id))

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption as open_clip has them, without the padding at their end."""
        ids = cast(Any, self).cleaned(caption)[0].tolist()
        while len(ids) > 1 and ids[-1] == self.padding:
            ids.pop()
        return [index + 1 for index in ids]


ClipTokens = BytePairs | HubPieces


def read_tokens(architecture: str, pretrained: str, tokenizer: str | None, context_length: int | None) -> ClipTokens:
    """The tokenizer of an architecture.

    Args:
        architecture: see `architecture_name`.
        pretrained: the weights; a tokenizer in their folder stands in for one of the hub that the architecture names.
        tokenizer: stands before both: a folder of transformers, or a name on the hub.
        context_length: see `longest_text`.

    Raises:
        InputError: it can't be had.
    """
    open_clip, text = import_open_clip(), configuration(architecture)["text_cfg"]
    longest, named = longest_text(architecture, context_length), text.get("hf_tokenizer_name")
    source = tokenizer or (named and (tokenizer_folder(pretrained) or named))
    if not source:
        return BytePairs(open_clip.get_tokenizer(architecture_name(architecture), context_length=longest))
    import_transformers()
    settings = dict(text.get("tokenizer_kwargs", {}))
    if text.get("tokenizer_mode"):
        settings["tokenizer_mode"] = text["tokenizer_mode"]
    try:
        return HubPieces(open_clip.tokenizer.HFTokenizer(source, context_length=longest, **settings))
    except Exception as fault:  # a folder that is none, a hub out of reach, sentencepiece: each has errors of its own
        raise InputError(
            f"model.tokenizer: the tokenizer {source} can't be had ({first_line(fault)}). Give a folder of it "
            "in the form of transformers: --set model.tokenizer=FOLDER"
        ) from fault


def padding_of(vocabulary: Vocabulary, clip: Any) -> int:
    """The tokenizer's id of what fills a text up.

    Raises:
        InputError: the tokenizer has more pieces than a network has embeddings for.
    """
    if not isinstance(vocabulary, HubPieces):
        return 0
    pieces, rows = len(cast(Any, vocabulary).tokenizer), int(clip.vocab_size)
    if pieces > rows:
        raise InputError(
            f"model.tokenizer: it has {pieces:,} pieces, the text tower embeds {rows:,}: it is not the one that the "
            "weights were trained with. Give that, or leave model.tokenizer out."
        )
    return vocabulary.padding
