"""The text tower of a dual encoder: a sentence encoder of transformers, with its own tokenizer.

Letters: B batch, L tokens, W width of the tower's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from layers.backbone import import_extra
from layers.chains import TokenStates, through
from layers.installed import INSTALLED, PACKAGES, installed_file, package_of
from layers.towers import Tower
from utils import InputError, first_line
from vocab import UNKNOWN, Vocabulary


class SentenceTower(Tower):
    """An encoder of transformers with its pooling: token ids [B, L] -> [B, W]."""

    def __init__(self, source: str, pooling: Literal["mean", "cls"], load_weights: bool, adapted: bool = False) -> None:
        """Build the encoder.

        Args:
            source: see `sentence_folder`.
            pooling: the mean over the tokens, or the first token.
            load_weights: False where a checkpoint follows; installed weights are read all the same.
            adapted: whether adapters will learn in it: then all weights count as installed.

        Raises:
            InputError: the encoder can't be had.
        """
        super().__init__()
        transformers, place = import_transformers(), sentence_folder(source)
        self.from_package = source in PACKAGES or adapted
        try:
            if load_weights or self.from_package:
                network: Any = transformers.AutoModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
            else:
                network = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(place))
        except Exception as fault:  # a folder that is none, a hub out of reach: each has errors of its own
            raise InputError(
                f"model.text.encoder {source}: transformers can't read it ({first_line(fault)})."
            ) from fault
        if getattr(network, "pooler", None) is not None:
            network.pooler = None  # what follows the encoder is ours
        self.network: Any = network
        self.pooling = pooling
        self.width = int(self.network.config.hidden_size)
        self.blocks = self._blocks()

    def _blocks(self) -> list[list[str]]:
        """The embeddings, then each layer; what is in neither learns with the last.

        The biases of keys are in none: they add the same to all scores of a query, which the softmax cancels.
        """
        layers = _layer_list(self.network)
        within = {id(p): number for number, layer in enumerate(layers, start=1) for p in layer.parameters()}
        blocks: list[list[str]] = [[] for _ in range(len(layers) + 1)]
        for name, parameter in self.named_parameters():
            if not name.endswith("key.bias"):
                blocks[within.get(id(parameter), 0 if "embed" in name else len(layers))].append(name)
        return blocks

    def checkpoint_gradients(self) -> None:
        """See `Tower.checkpoint_gradients`."""
        recompute(self.network)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool captions [B, L], ids from 1 and 0 for padding -> [B, W]."""
        return self.pool(self.states(tokens), tokens)

    def states(self, tokens: Tensor) -> Tensor:
        """See `Tower.states`: a row for each token, [B, L, W]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            ids, mask = (tokens - 1).clamp(min=0), (tokens != 0).long()
            return cast(Tensor, self.network(input_ids=ids, attention_mask=mask).last_hidden_state)

    def keep_tokens(self) -> None:
        """See `Tower.keep_tokens`."""
        self.keeps_tokens, self.token_width = True, self.width

    def pool(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """See `Tower.pool`: one vector for each caption, [B, L, W] -> [B, W]."""
        if self.pooling == "cls":
            return states[:, 0]
        assert tokens is not None
        weights = (tokens != 0)[..., None].to(states.dtype)  # [B, L, 1]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def _start(self) -> nn.Module | None:
        """See `Tower._start`: the embeddings and the layers that do not learn, whose states stay apart by token."""
        first = len(self.blocks) - self.trained_blocks
        embeddings = getattr(self.network, "embeddings", None)
        return TokenStates(embeddings, _layer_list(self.network)[: first - 1]) if embeddings and first else None

    def _sample(self) -> Tensor:
        """See `Tower._sample`: two captions, one with padding."""
        return torch.tensor([[1, 4, 3, 2], [3, 5, 0, 0]])

    def finish_states(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See `Tower.finish_states`; states [B, L, W] may be padded further than the tokens [B, L]."""
        assert given is not None
        layers = _layer_list(self.network)[len(self.blocks) - self.trained_blocks - 1 :]
        return through(layers, features[:, : given.shape[1]], given)


class WordPieces(Vocabulary):
    """The pieces of a tokenizer of transformers as a vocabulary; ids are the tokenizer's plus 1, since 0 is padding."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        """Take the tokenizer; captions are cut to `longest` tokens."""
        pieces = tokenizer.get_vocab()
        named = sorted(pieces, key=pieces.__getitem__)
        words = {piece: pieces[piece] + 1 for piece in named}
        if sorted(words.values()) != list(range(1, len(words) + 1)):  # some tokenizers leave gaps between their ids
            words = {piece: place for place, piece in enumerate(named, start=1)}
        super().__init__({UNKNOWN: len(words) + 1} | words)  # many have a piece of that name
        object.__setattr__(self, "tokenizer", tokenizer)
        object.__setattr__(self, "longest", longest)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption between the tokenizer's marks, cut to what the encoder reads."""
        own = cast(Any, self)
        ids = own.tokenizer(caption, truncation=True, max_length=own.longest)["input_ids"]
        return [int(index) + 1 for index in ids]

    def knows(self, word: str) -> bool:
        """Whether a word can be spelled."""
        tokenizer = cast(Any, self).tokenizer
        unknown = tokenizer.unk_token_id
        return unknown is None or unknown not in tokenizer(word, add_special_tokens=False)["input_ids"]


def word_pieces(source: str) -> WordPieces:
    """The tokenizer of a sentence encoder.

    Raises:
        InputError: it can't be had.
    """
    transformers, place = import_transformers(), sentence_folder(source)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        config = transformers.AutoConfig.from_pretrained(place)
    except Exception as fault:  # as for the encoder
        raise InputError(
            f"model.text.encoder {source}: transformers can't read its tokenizer ({first_line(fault)})."
        ) from fault
    longest = min(int(getattr(config, "max_position_embeddings", 512)), int(tokenizer.model_max_length))
    return WordPieces(tokenizer, longest)


def sentence_folder(source: str) -> str:
    """Where transformers finds an encoder.

    Args:
        source: `installed/NAME` of `layers.installed`, the path of a folder as transformers writes it, or a name on the
            hub, which downloads.

    Raises:
        InputError: the package is not installed.
    """
    if source.startswith(f"{INSTALLED}/"):
        return str(installed_file(package_of(source, "model.text.encoder")).parent)
    return source


def import_transformers() -> ModuleType:
    """transformers, which only sentence encoders need.

    Raises:
        InputError: it is not installed.
    """
    transformers = import_extra("transformers", "weights", "model.text.encoder: sentence encoders need transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def recompute(network: Any) -> None:
    """Let a network of transformers compute again in the backward pass what it would keep for it.

    Not the re-entrant way, the default of version 4: behind frozen embeddings it gives adapters no gradient.
    """
    names = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # of transformers 5, and before
    enable = getattr(network, next(name for name in names if hasattr(network, name)))
    enable({"use_reentrant": False})


def _layer_list(network: nn.Module) -> Sequence[nn.Module]:
    """The layers of a transformer, by whichever name its kind gives them."""
    lists: list[Any] = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len) if lists else []
