"""Skip-thoughts sentence encoders, and the published weights that they can start from.

Skip-Thought Vectors (Kiros et al., 2015); the Bayesian variant holds its dropout masks over a sentence (Gal and
Ghahramani, 2016). Letters: B batch, L words, E word vector (620), H state (2400).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from layers.bayesian_gru import final_states, packed_rows
from runtime.untrusted import read_array, read_arrays, read_bytes
from utils import InputError, logger

WORD_DIM = 620
STATE_DIM = 2400
Weights = Mapping[str, NDArray[np.float32]]


def last_states(step: Callable[[int, Tensor], Tensor], lengths: list[int], state: Tensor) -> Tensor:
    """Run a recurrent step over sequences of falling length and keep each one's state after its last word.

    A finished sequence leaves the computation, so that padding costs nothing and can't reach a state.

    Args:
        step: (position, states of the n sequences still running [n, H]) -> their next states [n, H].
        lengths: words of each sequence, falling, at least 1.
        state: first state [B, H].

    Returns:
        [B, H] in the given order.
    """
    finished: list[Tensor] = []
    for position in range(lengths[0]):
        running = sum(length > position for length in lengths)
        if running < len(state):
            finished.append(state[running:])
            state = state[:running]
        state = step(position, state)
    return torch.cat([state, *reversed(finished)])


class SkipThoughts(nn.Module):
    """Base of the four encoders: word table, order of lengths, published weights."""

    table_file = "utable.npy"
    weight_file = "uni_skip.npz"
    output_dim = STATE_DIM
    directions: Mapping[str, str] = MappingProxyType({"encoder": "_l0"})
    """How the arrays of each direction of the GRU begin in a published file, and how PyTorch's names of them end."""

    def __init__(self, words: int, dropout: float, fixed_embedding: bool) -> None:
        """Make the word table of `words` + 1 rows (row 0 is padding)."""
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(words + 1, WORD_DIM, padding_idx=0)
        self.embedding.weight.requires_grad_(not fixed_embedding)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """State after the last word of each caption.

        Args:
            tokens: [B, L] word ids, zero-padded.
            lengths: [B] words per caption, at least 1, on the CPU.

        Returns:
            [B, 2400].
        """
        order = lengths.argsort(descending=True, stable=True)
        sorted_lengths = lengths[order]
        words = self.embedding(tokens[order.to(tokens.device)][:, : int(sorted_lengths[0])])  # [B, L, E]
        states = self.encode_sorted(words, sorted_lengths)
        return states[order.argsort().to(states.device)]

    def encode_sorted(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Encode captions of falling length: words [B, L, E], lengths [B] -> [B, 2400]."""
        raise NotImplementedError

    def released_state(self, weights: Weights) -> dict[str, NDArray[np.float32]]:
        """Name the arrays of a published weight file as this encoder's parameters."""
        both = [stacked_gates(weights, prefix, suffix) for prefix, suffix in self.directions.items()]
        return {f"rnn.{name}": value for gates in both for name, value in gates.items()}

    def mask(self, like: Tensor) -> Tensor:
        """A dropout mask [B, K] with inverted scaling for `like` [B, ..., K], one for all its time steps."""
        return F.dropout(like.new_ones(like.shape[0], like.shape[-1]), self.dropout)


class BayesianUniSkip(SkipThoughts):
    """GRU with one dropout mask per gate for the input and for the state, drawn per caption and held over its words."""

    def __init__(self, words: int, dropout: float, fixed_embedding: bool) -> None:
        super().__init__(words, dropout, fixed_embedding)
        self.input_reset = nn.Linear(WORD_DIM, STATE_DIM)
        self.input_update = nn.Linear(WORD_DIM, STATE_DIM)
        self.input_new = nn.Linear(WORD_DIM, STATE_DIM)
        self.state_reset = nn.Linear(STATE_DIM, STATE_DIM, bias=False)
        self.state_update = nn.Linear(STATE_DIM, STATE_DIM, bias=False)
        self.state_new = nn.Linear(STATE_DIM, STATE_DIM, bias=False)

    def encode_sorted(self, words: Tensor, lengths: Tensor) -> Tensor:
        """See `SkipThoughts`. Only real words are computed, and the input's products of all are one per gate."""
        packed = pack_padded_sequence(words, lengths, batch_first=True)
        batch_sizes = packed.batch_sizes.tolist()
        gates = (self.input_reset, self.input_update, self.input_new)
        weights = (self.state_reset.weight, self.state_update.weight, self.state_new.weight)
        if not self.training or self.dropout == 0:
            return final_states([gate(packed.data) for gate in gates], weights, None, batch_sizes)
        rows = packed_rows(batch_sizes).to(words.device)
        inputs = [gate(packed.data * self.mask(words)[rows]) for gate in gates]  # 3 x [W, H]
        state = words.new_empty(len(words), STATE_DIM)
        return final_states(inputs, weights, [self.mask(state) for _ in gates], batch_sizes)

    def released_state(self, weights: Weights) -> dict[str, NDArray[np.float32]]:
        """See `SkipThoughts`."""
        reset, update = np.split(weights["encoder_W"].T, 2)
        reset_bias, update_bias = np.split(weights["encoder_b"], 2)
        state_reset, state_update = np.split(weights["encoder_U"].T, 2)
        return {
            "input_reset.weight": reset,
            "input_reset.bias": reset_bias,
            "input_update.weight": update,
            "input_update.bias": update_bias,
            "input_new.weight": weights["encoder_Wx"].T,
            "input_new.bias": weights["encoder_bx"],
            "state_reset.weight": state_reset,
            "state_update.weight": state_update,
            "state_new.weight": weights["encoder_Ux"].T,
        }


class UniSkip(SkipThoughts):
    """The plain GRU; `dropout` has no effect on its one layer, as released."""

    def __init__(self, words: int, dropout: float, fixed_embedding: bool) -> None:
        super().__init__(words, dropout, fixed_embedding)
        count = len(self.directions)
        self.rnn = nn.GRU(WORD_DIM, STATE_DIM // count, batch_first=True, bidirectional=count == 2)

    def encode_sorted(self, words: Tensor, lengths: Tensor) -> Tensor:
        """See `SkipThoughts`."""
        return last_gru_states(self.rnn, words, lengths)


class BiSkip(UniSkip):
    """Two GRUs of 1,200 units, one from each end; their final states side by side."""

    table_file = "btable.npy"
    weight_file = "bi_skip.npz"
    directions = MappingProxyType({"encoder": "_l0", "encoder_r": "_l0_reverse"})


class DropUniSkip(SkipThoughts):
    """GRU cell with one dropout mask for the word and one for the state that is carried on, held over a caption."""

    directions = MappingProxyType({"encoder": ""})

    def __init__(self, words: int, dropout: float, fixed_embedding: bool) -> None:
        super().__init__(words, dropout, fixed_embedding)
        self.rnn = nn.GRUCell(WORD_DIM, STATE_DIM)

    def encode_sorted(self, words: Tensor, lengths: Tensor) -> Tensor:
        """See `SkipThoughts`."""
        first = words.new_zeros(len(words), STATE_DIM)
        drop = self.training and self.dropout > 0
        state_mask = self.mask(first) if drop else None
        inputs = (words * self.mask(words)[:, None] if drop else words).unbind(1)  # L times [B, E]

        def step(position: int, state: Tensor) -> Tensor:
            running = len(state)
            carried = state if state_mask is None else state * state_mask[:running]
            return cast(Tensor, self.rnn(inputs[position][:running], carried))

        return last_states(step, lengths.tolist(), first)


SKIP_THOUGHTS: dict[str, type[SkipThoughts]] = {
    encoder.__name__: encoder for encoder in (BayesianUniSkip, UniSkip, BiSkip, DropUniSkip)
}

RELEASED_GATES = {
    "rnn.gru_cell.weight_ir.": "input_reset.",
    "rnn.gru_cell.weight_ii.": "input_update.",
    "rnn.gru_cell.weight_in.": "input_new.",
    "rnn.gru_cell.weight_hr.": "state_reset.",
    "rnn.gru_cell.weight_hi.": "state_update.",
    "rnn.gru_cell.weight_hn.": "state_new.",
}


def last_gru_states(rnn: nn.GRU, words: Tensor, lengths: Tensor) -> Tensor:
    """Final state of each caption, directions side by side: words [B, L, E], falling lengths [B] -> [B, H]."""
    _, final = rnn(pack_padded_sequence(words, lengths, batch_first=True))  # [directions, B, H / directions]
    return cast(Tensor, final).transpose(0, 1).flatten(1)


def stacked_gates(weights: Weights, prefix: str, suffix: str) -> dict[str, NDArray[np.float32]]:
    """Published arrays as PyTorch's GRU parameters: gates reset, update, new below each other, state biases zero."""
    bias = np.concatenate([weights[f"{prefix}_b"], weights[f"{prefix}_bx"]])
    return {
        f"weight_ih{suffix}": np.concatenate([weights[f"{prefix}_W"].T, weights[f"{prefix}_Wx"].T]),
        f"weight_hh{suffix}": np.concatenate([weights[f"{prefix}_U"].T, weights[f"{prefix}_Ux"].T]),
        f"bias_ih{suffix}": bias,
        f"bias_hh{suffix}": np.zeros_like(bias),
    }


def load_skip_thoughts(encoder: SkipThoughts, folder: Path | None, word2idx: Mapping[str, int]) -> None:
    """Start an encoder from the published skip-thoughts files, or say in one line that it starts from random weights.

    Args:
        encoder: changed in place.
        folder: `dictionary.txt`, the word table and the weight file; a folder that is absent means random weights.
        word2idx: words of the vocabulary; one that the dictionary lacks takes the row of `UNK`.

    Raises:
        InputError: the folder is there but a file in it is missing, is not what it should be, or has another shape.
    """
    if folder is None or not folder.is_dir():
        where = "model.seq2vec.dir_st is not set" if folder is None else f"no folder {folder} (model.seq2vec.dir_st)"
        logger.warning("%s starts from random weights: %s.", type(encoder).__name__, where)
        return
    table = _read_table(folder / encoder.table_file)
    rows = _dictionary_rows(folder / "dictionary.txt", word2idx, len(table))
    arrays = {"embedding.weight": np.zeros((len(word2idx) + 1, WORD_DIM), np.float32)}
    for word, row in rows.items():
        arrays["embedding.weight"][word2idx[word]] = table[row]
    weight_file = folder / encoder.weight_file
    with _refusing(weight_file, "read as plain arrays (object arrays are refused)"):
        weights = read_arrays(weight_file)
    try:
        arrays |= encoder.released_state(weights)
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in arrays.items()}
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("it, or the word table beside it, holds numbers that are not finite in 32 bits")
        encoder.load_state_dict(tensors)
    except (LookupError, TypeError, ValueError, RuntimeError) as fault:
        raise InputError(f"{weight_file}: not a published skip-thoughts file: {fault}") from fault
    logger.info("%s starts from the published weights in %s.", type(encoder).__name__, folder)


def _dictionary_rows(path: Path, word2idx: Mapping[str, int], table_rows: int) -> dict[str, int]:
    """Row of the word table for each vocabulary word: the word's line in the dictionary, else that of `UNK`."""
    with _refusing(path, "read as the list of the word table's words"):
        words = read_bytes(path).decode("utf-8").split("\n")
    line_of = {word.strip(): line for line, word in enumerate(words) if word.strip()}
    if "UNK" not in line_of:
        raise InputError(f"{path}: the line UNK, which unknown words need, is missing.")
    rows = {word: line_of.get(word, line_of["UNK"]) for word in word2idx}
    if rows and max(rows.values()) >= table_rows:
        raise InputError(f"{path}: has {len(line_of)} words, but the word table beside it has only {table_rows} rows.")
    return rows


def _read_table(path: Path) -> NDArray[np.float32]:
    """The word table [rows, 620], mapped into memory."""
    with _refusing(path, "read as a plain array (object arrays are refused)"):
        array = read_array(path)
    if array.dtype.kind != "f" or array.shape[1:] != (WORD_DIM,):
        raise InputError(f"{path}: expected an array of rows of {WORD_DIM} numbers.")
    return array


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Raise an InputError where a file can't be `what`."""
    try:
        yield
    except (OSError, ValueError) as fault:
        raise InputError(f"{path}: can't be {what}: {fault}") from fault
