"""Recurrent encoders in a form that ONNX has an operator for: padded captions with their lengths, no packing.

PyTorch's exporter knows no packed sequences, and would unroll a GRU to the length of its sample. ONNX's GRU reads
lengths itself. Each class here holds the weights of one of ours and computes the same in evaluation.

Letters: B batch, L words, E word vector, H state, D embedding, V directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from layers.base import RetrievalModel, l2norm
from layers.skip_thoughts import BayesianUniSkip, BiSkip, DropUniSkip, UniSkip
from layers.swan_text import ContextCaptionEncoder
from layers.text import PlainGru

OPERATOR_SET = 14
"""The version of ONNX in which GRU took its present form."""


class OnnxGru(nn.Module):
    """One layer of a GRU as ONNX's operator, the directions side by side."""

    def __init__(self, directions: Sequence[Sequence[Tensor]]) -> None:
        """Take for each direction weights [3H, E] and [3H, H], biases [3H] and [3H]; gates reset, update, new."""
        super().__init__()
        inputs, states, first, second = (
            torch.stack([_in_order(part) for part in parts]) for parts in zip(*directions, strict=True)
        )
        self.inputs, self.states, self.biases = inputs, states, torch.cat([first, second], dim=1)
        self.width = states.shape[-1]

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read words [B, L, E] of lengths [B]: all states [B, L, V H], zero at padding, and the last ones [B, V H]."""
        batch, length, count = words.shape[0], words.shape[1], len(self.inputs)
        states, last = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            (words.transpose(0, 1), self.inputs, self.states, self.biases, lengths.to(torch.int32)),
            {
                "hidden_size": self.width,
                "linear_before_reset": 1,
                "direction": "bidirectional" if count == 2 else "forward",
            },
            dtypes=(torch.float32, torch.float32),
            shapes=((length, count, batch, self.width), (count, batch, self.width)),
            version=OPERATOR_SET,
        )
        return states.permute(2, 0, 1, 3).flatten(2), last.transpose(0, 1).flatten(1)


def _in_order(gates: Tensor) -> Tensor:
    """Gates reset, update, new as ONNX has them: update, reset, new."""
    reset, update, new = gates.detach().chunk(3)
    return torch.cat([update, reset, new])


class LastState(nn.Module):
    """Word vectors and a GRU: the state after the last word. Stands for all encoders of `layers` that give one."""

    def __init__(self, embedding: nn.Embedding, directions: Sequence[Sequence[Tensor]]) -> None:
        super().__init__()
        self.embedding, self.gru = embedding, OnnxGru(directions)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens [B, L], lengths [B] -> [B, V H]."""
        return cast(Tensor, self.gru(self.embedding(tokens), lengths)[1])


class ContextEncoder(nn.Module):
    """SWAN's caption encoder, see `layers.swan_text.ContextCaptionEncoder`."""

    def __init__(self, encoder: ContextCaptionEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = nn.ModuleList(OnnxGru(_directions(encoder.rnn, layer)) for layer in range(encoder.rnn.num_layers))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens [B, L], lengths [B] -> [B, D] of unit length."""
        states = self.encoder.embedding(tokens)
        for layer in self.layers:
            states, _ = layer(states, lengths)
        states = states.unflatten(-1, (-1, self.encoder.rnn.hidden_size)).mean(dim=-2)  # [B, L, D]
        context = self.encoder.attention(states, tokens != 0)
        place = (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])
        enhanced = states.gather(1, place)[:, 0] + self.encoder.norm(context.gather(1, place)[:, 0])
        return l2norm(self.encoder.mlp(enhanced) + enhanced)


def _directions(rnn: nn.GRU, layer: int = 0) -> list[list[Tensor]]:
    suffixes = [f"l{layer}", *([f"l{layer}_reverse"] if rnn.bidirectional else [])]
    return [
        [getattr(rnn, f"{kind}_{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        for suffix in suffixes
    ]


def _bayesian(encoder: BayesianUniSkip) -> LastState:
    inputs = (encoder.input_reset, encoder.input_update, encoder.input_new)
    states = (encoder.state_reset, encoder.state_update, encoder.state_new)
    bias = torch.cat([gate.bias for gate in inputs])
    weights = (torch.cat([gate.weight for gate in inputs]), torch.cat([gate.weight for gate in states]))
    return LastState(encoder.embedding, [[*weights, bias, torch.zeros_like(bias)]])


def _cell(encoder: DropUniSkip) -> LastState:
    cell = encoder.rnn
    return LastState(encoder.embedding, [[cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]])


def _plain(encoder: PlainGru | UniSkip) -> LastState:
    return LastState(encoder.embedding, _directions(encoder.rnn))


FORMS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    PlainGru: _plain,
    UniSkip: _plain,
    BiSkip: _plain,
    BayesianUniSkip: _bayesian,
    DropUniSkip: _cell,
    ContextCaptionEncoder: ContextEncoder,
}
"""Recurrent encoder -> what makes its exportable form."""


def exportable(model: RetrievalModel) -> RetrievalModel:
    """A copy of a model in evaluation mode whose recurrent encoders can be exported; it shares all weights."""
    copy = deepcopy(model, {id(held): held for held in (*model.parameters(), *model.buffers())}).eval()
    for parent in list(copy.modules()):
        for name, part in list(parent.named_children()):
            if type(part) in FORMS:
                setattr(parent, name, FORMS[type(part)](part))
    return copy
