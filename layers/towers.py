"""The towers of a dual encoder: a pooled network of timm, a sentence encoder of transformers, or a GRU.

A tower is frozen whole, trained from one of its blocks on, or trained whole. What is frozen stays in evaluation mode:
it draws nothing at random, and its batch norms keep their statistics.

Letters: B batch, S image side in pixels, L tokens, W width of a tower's features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from layers.backbone import import_torchvision, timm_network
from layers.chains import TokenStates, image_chain, through
from layers.depthwise import PreciseDepthwise
from layers.installed import INSTALLED, PACKAGES, installed_file, package_of
from option.architecture import TIMM
from utils import InputError, first_line
from vocab import UNKNOWN, Vocabulary

Trained = Literal["none", "all"] | int
"""What of a tower learns: nothing, all of it, or its last blocks, by their number."""


class Tower(nn.Module):
    """A network whose blocks stand in order; a parameter belongs to one of them, or never learns.

    Attributes:
        width: W of its features.
        blocks: names of the parameters of each block, from the input on.
        from_package: whether its start can be had again at any time, so that what never learns is not saved.
    """

    width: int
    blocks: list[list[str]]
    from_package = False
    _cuts: bool | None = None
    """Whether it gives the same in two parts; None: not tried yet."""

    def freeze(self, trained: Trained) -> None:
        """Leave all but the last blocks as they are.

        Raises:
            ValueError: it has fewer blocks.
        """
        count = trained if isinstance(trained, int) else len(self.blocks) if trained == "all" else 0
        if count > len(self.blocks):
            raise ValueError(f"it has {len(self.blocks)} blocks")
        self.trained_blocks = count
        learning = {name for block in self.blocks[len(self.blocks) - count :] for name in block}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in learning)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing of it learns."""
        return self.trained_blocks == 0

    def frozen_part(self) -> nn.Module | None:
        """What comes before the blocks that learn, where it can be had by itself; the whole tower if none learns."""
        if self.is_frozen:
            return self
        start = self._start()
        if start is not None and self._cuts is None:
            self._cuts = self._same(start)
        return start if self._cuts else None

    def _start(self) -> nn.Module | None:
        """The part of the tower that never learns; None where all of it learns, or its parts are not known."""
        return None

    def _sample(self) -> Tensor:
        """Some input of the tower."""
        raise NotImplementedError

    @torch.no_grad()
    def _same(self, start: nn.Module) -> bool:
        """Whether the tower gives by way of `start` and `finish` what it gives as a whole."""
        mode, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            given = self._sample().to(device)
            return torch.allclose(self.finish(start(given), given), self(given), rtol=1e-4, atol=1e-5)
        except (TypeError, ValueError, RuntimeError, AttributeError):  # a part that takes other arguments
            return False
        finally:
            self.train(mode)

    def finish(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """From what `frozen_part` gives to the tower's features [B, W]; `given` is what the tower was given."""
        return features

    def train(self, mode: bool = True) -> Tower:
        """Bring what learns into training mode; batch norms stay with the statistics that they came with."""
        learning = mode and not self.is_frozen
        super().train(learning)
        for part in self.modules() if learning else ():
            learns = [parameter.requires_grad for parameter in part.parameters()]
            if isinstance(part, nn.modules.batchnorm._BatchNorm) or (learns and not any(learns)):
                for inner in part.modules():  # dropout has no parameters: it goes with what it lies in
                    inner.training = False
        return self

    def groups(self, rate: float, decay: float) -> Iterator[dict[str, Any]]:
        """The blocks that learn with their learning rates: the last at `rate`, each before it at `decay` times that."""
        named = dict(self.named_parameters())
        for depth, block in enumerate(reversed(self.blocks)):
            learning = [named[name] for name in block if named[name].requires_grad]
            if learning:
                yield {"params": learning, "lr": rate * decay**depth}


class TimmTower(Tower):
    """A network of timm without its classifier; its images are normalised as its weights expect it."""

    network: Any

    def __init__(self, architecture: str, pretrained: str, load_weights: bool) -> None:
        """Build the network.

        Args:
            architecture: `timm/` and a name of timm's.
            pretrained: `installed`, `imagenet` (timm's download), `none`, or the path of a state dict.
            load_weights: False where a checkpoint follows; installed weights are read all the same.

        Raises:
            InputError: timm has no such network, or the weights can't be had or don't fit.
        """
        super().__init__()
        if not architecture.startswith(TIMM):
            raise InputError(f"model.image.architecture {architecture}: expected {TIMM}NAME, a network of timm's.")
        self.from_package = pretrained == INSTALLED
        self.network, scale, shift = timm_network(
            architecture.removeprefix(TIMM), pretrained, load_weights or self.from_package, "model.image.pretrained"
        )
        self.width = int(getattr(self.network, "head_hidden_size", None) or self.network.num_features)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.blocks = self._blocks()

    @torch.no_grad()
    def check_side(self, side: int) -> None:
        """Try an image of a side out.

        Raises:
            InputError: the network does not take it.
        """
        expected = self.network.default_cfg["input_size"][-1]
        try:
            self.network.eval()(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as fault:
            raise InputError(
                f"dataset.image_size: the image tower does not take images of {side} pixels ({first_line(fault)}). "
                f"It was made for {expected}: --set dataset.image_size={expected}"
            ) from fault
        finally:
            self.network.train(self.training)

    def _blocks(self) -> list[list[str]]:
        """Names of parameters by timm's own grouping: stem, stages or blocks, head."""
        from timm.models import group_parameters

        grouped = group_parameters(self.network, self.network.group_matcher(coarse=False))
        return [[f"network.{name}" for name in names] for _, names in sorted(grouped.items()) if names]

    def _start(self) -> nn.Module | None:
        """See `Tower._start`: the stem and the blocks that do not learn, see `image_chain`."""
        parts, _ = image_chain(self.network)
        first = parts[: len(self.blocks) - self.trained_blocks] if len(parts) == len(self.blocks) else []
        return _Start(first, self.scale, self.shift) if first else None

    def _sample(self) -> Tensor:
        """See `Tower._sample`: an image of the size that the network was made for."""
        side = self.network.default_cfg["input_size"][-1]
        return torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)

    def finish(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See `Tower.finish`."""
        if self.is_frozen:
            return features
        if features.ndim == 4:
            features = features.contiguous(memory_format=torch.channels_last)
        parts, head = image_chain(self.network)
        with PreciseDepthwise():
            for part in parts[len(self.blocks) - self.trained_blocks :]:
                features = part(features)
            return head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Pool normalised images [B, 3, S, S] -> [B, W]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen), PreciseDepthwise():
            return cast(Tensor, self.network(images * self.scale + self.shift))


class _Start(nn.Module):
    """The first parts of a network behind its normalisation: images [B, 3, S, S] -> maps [B, C, H, W]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, parts: Sequence[nn.Module], scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.parts(images * self.scale + self.shift))


class SentenceTower(Tower):
    """An encoder of transformers with its pooling: token ids [B, L] -> [B, W]."""

    def __init__(self, source: str, pooling: Literal["mean", "cls"], load_weights: bool) -> None:
        """Build the encoder.

        Args:
            source: see `sentence_folder`.
            pooling: the mean over the tokens, or the first token.
            load_weights: False where a checkpoint follows; installed weights are read all the same.

        Raises:
            InputError: the encoder can't be had.
        """
        super().__init__()
        transformers, place = import_transformers(), sentence_folder(source)
        self.from_package = source in PACKAGES
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool captions [B, L], ids from 1 and 0 for padding -> [B, W]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            ids, mask = (tokens - 1).clamp(min=0), (tokens != 0).long()
            return self._pool(self.network(input_ids=ids, attention_mask=mask).last_hidden_state, tokens)

    def _pool(self, states: Tensor, tokens: Tensor) -> Tensor:
        """One vector for each caption: [B, L, W] -> [B, W]."""
        if self.pooling == "cls":
            return states[:, 0]
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

    def finish(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """See `Tower.finish`; states [B, L, W] may be padded further than the tokens [B, L]."""
        if self.is_frozen or given is None:
            return features
        layers = _layer_list(self.network)[len(self.blocks) - self.trained_blocks - 1 :]
        return self._pool(through(layers, features[:, : given.shape[1]], given), given)


class WordPieces(Vocabulary):
    """The pieces of a tokenizer of transformers as a vocabulary; ids are the tokenizer's plus 1, since 0 is padding."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        """Take the tokenizer; captions are cut to `longest` tokens."""
        pieces = tokenizer.get_vocab()
        named = sorted(pieces, key=pieces.__getitem__)
        words = {piece: pieces[piece] + 1 for piece in named}
        if sorted(words.values()) != list(range(1, len(words) + 1)):  # some tokenizers leave gaps between their ids
            words = {piece: place for place, piece in enumerate(named, start=1)}
        super().__init__(words | {UNKNOWN: len(words) + 1})
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
    import_torchvision("torchvision")  # which transformers imports, and which may not fit the installed torch
    try:
        import transformers
    except ImportError as fault:
        raise InputError(
            f"model.text.encoder: sentence encoders need transformers: bash exec/environment.sh weights "
            f"({first_line(fault)})"
        ) from fault
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _layer_list(network: nn.Module) -> Sequence[nn.Module]:
    """The layers of a transformer, by whichever name its kind gives them."""
    lists: list[Any] = [part for part in network.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len) if lists else []
