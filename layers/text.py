"""The caption encoder that AMFMN, GaLR and MCRN share: skip-thoughts or a plain GRU, and a projection.

Letters: B batch, L words, E word vector, H state, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.skip_thoughts import RELEASED_GATES, SKIP_THOUGHTS, last_gru_states, load_skip_thoughts
from option.parameters import MOST_WIDTH, Parameters
from utils import InputError, logger

LONGEST_LINE = 2**20  # bytes
LARGEST = torch.finfo(torch.float32).max


class Seq2VecParameters(Parameters):
    """`model.seq2vec`: how a caption becomes one vector."""

    arch: Literal["skipthoughts", "gru"] = Field(
        default="skipthoughts", description="skipthoughts: the published encoder; gru: a plain GRU on word vectors"
    )
    dir_st: Path | None = Field(
        default=None, description="arch skipthoughts: folder of the published weight files; absent or null: random"
    )
    type: Literal["BayesianUniSkip", "UniSkip", "BiSkip", "DropUniSkip"] = Field(
        default="BayesianUniSkip", description="arch skipthoughts: which of its encoders"
    )
    dropout: float = Field(default=0.25, ge=0, lt=1, description="dropout inside the recurrent encoder [probability]")
    equal_captions: Literal["each", "once"] = Field(
        default="each",
        description="of a training batch; once: encoded once, so that they share their dropout; each: published",
    )
    fixed_emb: bool = Field(default=False, description="true: the word vectors stay as they start")
    word_dim: int = Field(default=300, ge=1, le=MOST_WIDTH, description="arch gru: length of a word vector [numbers]")
    hidden_dim: int = Field(default=1024, ge=1, le=MOST_WIDTH, description="arch gru: width of the state [numbers]")

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: what belongs to the other encoder."""
        of_skip_thoughts = ("model.seq2vec.dir_st", "model.seq2vec.type")
        of_gru = ("model.embed.glove", "model.seq2vec.word_dim", "model.seq2vec.hidden_dim")
        return dict.fromkeys(of_skip_thoughts if self.arch == "gru" else of_gru, f"model.seq2vec.arch is {self.arch}")


class EmbedParameters(Parameters):
    """`model.embed`: the common space."""

    embed_dim: int = Field(default=512, ge=1, le=MOST_WIDTH, description="width of the common space, D [numbers]")
    glove: Path | None = Field(
        default=None, description="arch gru: GloVe text file for the word vectors; absent: random"
    )


class PlainGru(nn.Module):
    """Word vectors and a GRU: the state after the last word."""

    def __init__(self, words: int, word_dim: int, hidden_dim: int, dropout: float, fixed_embedding: bool) -> None:
        """Make a table of `words` + 1 rows (row 0 is padding) and the GRU; `dropout` acts on word vectors."""
        super().__init__()
        self.output_dim = hidden_dim
        self.embedding = nn.Embedding(words + 1, word_dim, padding_idx=0)
        self.embedding.weight.requires_grad_(not fixed_embedding)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.GRU(word_dim, hidden_dim, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """State after the last word: tokens [B, L], lengths [B] (CPU) -> [B, H]."""
        order = lengths.argsort(descending=True, stable=True)
        words = self.dropout(self.embedding(tokens[order.to(tokens.device)]))  # [B, L, E]
        states = last_gru_states(self.rnn, words, lengths[order])
        return states[order.argsort().to(states.device)]


class CaptionEncoder(nn.Module):
    """A sequence encoder and a projection: t = ReLU(W h + b)."""

    def __init__(self, sequence: nn.Module, width: int, embed_dim: int, equal_once: bool = False) -> None:
        """Project the states [B, `width`] that `sequence` makes of (tokens, lengths) to `embed_dim` numbers.

        Differs from the released code: with `equal_once` equal captions of a training batch are encoded once. They
        share their dropout then; but for that, scores and gradients are the same.
        """
        super().__init__()
        self.equal_once = equal_once
        self.sequence = sequence
        self.projection = nn.Linear(width, embed_dim)

    @property
    def word_table(self) -> nn.Embedding:
        """The word vectors, [words + 1, E]; row 0 is padding."""
        return cast(nn.Embedding, self.sequence.embedding)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embed captions: tokens [B, L] zero-padded, lengths [B] (CPU) -> [B, D], not negative."""
        if not (self.equal_once and self.training):
            return F.relu(self.projection(self.sequence(tokens, lengths)))
        tokens, rows = tokens.unique(dim=0, return_inverse=True)
        lengths = (tokens != 0).sum(dim=1).cpu()
        return F.relu(self.projection(self.sequence(tokens, lengths)))[rows]


RELEASED_CAPTIONS: dict[str, str | None] = {
    "text_feature.seq2vec.": "caption_encoder.sequence.",
    **{f"text_feature.seq2vec.{old}": f"caption_encoder.sequence.{new}" for old, new in RELEASED_GATES.items()},
    "text_feature.to_out.": "caption_encoder.projection.",
}


def caption_encoder(
    parameters: Seq2VecParameters, embed: EmbedParameters, word2idx: Mapping[str, int], load_weights: bool
) -> CaptionEncoder:
    """Build the caption encoder that the options choose; with `load_weights`, start it from the files that are there.

    Raises:
        InputError: a weight file is there but is not what it should be.
    """
    words, once = max(word2idx.values()), parameters.equal_captions == "once"
    if parameters.arch == "gru":
        plain = PlainGru(words, parameters.word_dim, parameters.hidden_dim, parameters.dropout, parameters.fixed_emb)
        if load_weights:
            load_glove(plain.embedding, embed.glove, word2idx)
        return CaptionEncoder(plain, plain.output_dim, embed.embed_dim, once)
    encoder = SKIP_THOUGHTS[parameters.type](words, parameters.dropout, parameters.fixed_emb)
    if load_weights:
        load_skip_thoughts(encoder, parameters.dir_st, word2idx)
    return CaptionEncoder(encoder, encoder.output_dim, embed.embed_dim, once)


def load_glove(embedding: nn.Embedding, path: Path | None, word2idx: Mapping[str, int]) -> None:
    """Fill a word table from a GloVe text file, read line by line; words that it lacks keep their random row.

    A word that the file lacks is tried again without `-`, `.`, blanks and `'`, and then up to its first `/`.

    Args:
        embedding: table [words + 1, E], changed in place.
        path: a word and E numbers per line; None or an absent file means random vectors, said in one line.
        word2idx: row of each word.

    Raises:
        InputError: a line that is needed does not hold E numbers, a line is too long, or the file can't be read.
    """
    if path is None:
        return
    if not path.is_file():
        logger.warning("Word vectors start random: no file %s (model.embed.glove).", path)
        return
    wanted = {spelling for word in word2idx for spelling in _spellings(word) if spelling}  # nothing is left of `-`
    found = _read_glove(path, wanted, embedding.embedding_dim)
    filled = 0
    with torch.no_grad():
        for word, row in word2idx.items():
            vector = next((found[spelling] for spelling in _spellings(word) if spelling in found), None)
            if vector is not None:
                embedding.weight[row] = torch.tensor(vector)
                filled += 1
    logger.info("Word vectors: %d of %d words found in %s.", filled, len(word2idx), path)


def _spellings(word: str) -> tuple[str, str, str]:
    """A word as it is, without `-`, `.`, blanks and `'`, and that up to its first `/`; in the order to try them."""
    bare = word.translate(str.maketrans("", "", "-. '"))
    return word, bare, bare.split("/")[0]


def _read_glove(path: Path, wanted: Collection[str], numbers: int) -> dict[str, list[float]]:
    """The vectors of the wanted words, from one pass over the file."""
    found = {}
    try:
        file = path.open("rb")
    except OSError as fault:
        raise InputError(f"{path}: can't be read ({fault.strerror}); check model.embed.glove.") from fault
    with file:
        for line_number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}:{line_number}: more than {LONGEST_LINE:,} bytes; is this a GloVe text file?")
            word, *values = line.decode("utf-8", errors="replace").rstrip().split(" ")
            if word not in wanted or word in found:
                continue
            try:
                vector = [float(value) for value in values]
            except ValueError:
                vector = []
            if len(vector) != numbers or not all(abs(value) <= LARGEST for value in vector):
                shown = " ".join(values)[:60]
                raise InputError(f"{path}:{line_number}: expected {numbers} numbers after {word!r}, found {shown!r}.")
            found[word] = vector
    return found
