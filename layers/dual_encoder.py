"""A dual encoder: an image tower and a text tower, each with a head, that meet in a cosine.

Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018 (heads on frozen or
fine-tuned towers); Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
(two towers, InfoNCE). Letters: B batch, N images, M captions, S image side in pixels, L tokens, W width of a tower,
D embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from layers.adapters import AdapterParameters
from layers.base import Criterion, Encodings, RetrievalModel
from layers.matching import MatchingHead, MatchingParameters, TokenEncodings
from layers.packaged import PackagedModel
from layers.registry import register
from layers.sentences import SentenceTower, word_pieces
from layers.text import PlainGru
from layers.towers import TimmTower, Tower, TowerParameters
from option.architecture import Architecture
from option.parameters import MOST_WIDTH, ModelParameters, Parameters
from utils import InputError
from vocab import Vocabulary

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options

GRU = "gru"


class ImageTowerParameters(TowerParameters):
    """`model.image`: the image tower."""

    architecture: Architecture = Field(
        default="timm/tf_efficientnet_lite0", description="timm/NAME of any network that pools its maps (extra timm)"
    )
    pretrained: str = Field(
        default="installed",
        description="installed (a package of the extra weights), imagenet (timm's download), none (random), or the "
        "path of a state dict under timm's names",
    )


class TextTowerParameters(TowerParameters):
    """`model.text`: the text tower."""

    encoder: str = Field(
        default="installed/minilm",
        description="installed/minilm (extra weights), the folder or hub name of an encoder of transformers, with its "
        "own tokenizer, or gru: a GRU over dataset.vocab_path",
    )
    pooling: Literal["mean", "cls"] = Field(default="mean", description="of an encoder's tokens; cls: the first one")
    word_dim: int = Field(
        default=300, ge=1, le=MOST_WIDTH, description="encoder gru: length of a word vector [numbers]"
    )
    hidden_dim: int = Field(default=1024, ge=1, le=MOST_WIDTH, description="encoder gru: width of the state [numbers]")
    dropout: float = Field(default=0.25, ge=0, lt=1, description="encoder gru: dropout on word vectors [probability]")


class HeadParameters(Parameters):
    """`model.head`: what brings a tower's features into the common space, one on each side."""

    kind: Literal["linear", "mlp"] = Field(default="mlp", description="one layer, or two with a GELU between them")
    width: int = Field(default=1024, ge=1, le=MOST_WIDTH, description="kind mlp: width of the layer between [numbers]")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer [probability]")
    norm: Literal["none", "text", "both"] = Field(
        default="none",
        description="whose features pass a layer norm first; without one, larger features learn faster",
    )


class DualEncoderParameters(ModelParameters):
    """The `model` block of DualEncoder."""

    name: Literal["DualEncoder"]
    image: ImageTowerParameters = ImageTowerParameters()
    text: TextTowerParameters = TextTowerParameters()
    head: HeadParameters = HeadParameters()
    adapter: AdapterParameters = AdapterParameters()
    matching: MatchingParameters = MatchingParameters()
    gradient_checkpointing: bool = Field(
        default=False, description="true: towers compute twice what they would keep for the gradient: less memory"
    )
    embed_dim: int = Field(default=512, ge=1, le=MOST_WIDTH, description="width of the common space, D [numbers]")

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: what belongs to other kinds of tower and head, and frozen towers' rates."""
        unread = {"optim.lr_backbone": "model.image.lr and model.text.lr are the towers' rates"}
        if self.text.encoder == GRU:
            reason = "model.text.encoder is gru"
            unread |= {f"model.text.{key}": reason for key in ("pooling", "train", "lr", "layer_decay")}
        else:
            reason = "model.text.encoder is no gru"
            unread |= {f"model.text.{key}": reason for key in ("word_dim", "hidden_dim", "dropout")}
        if self.head.kind == "linear":
            unread["model.head.width"] = "model.head.kind is linear"
        for side, tower in (("image", self.image), ("text", self.text)):
            if self.adapter.on(side):
                reason = "adapters learn in place of the tower's weights"
                unread = {f"model.{side}.{key}": reason for key in ("train", "layer_decay")} | unread
            elif tower.train == "none":
                reason = f"model.{side}.train is none"
                unread = {f"model.{side}.{key}": reason for key in ("lr", "layer_decay")} | unread
        return unread


class GruTower(Tower):
    """A GRU over our vocabulary, which always learns as a whole."""

    def __init__(self, words: int, word_dim: int, hidden_dim: int, dropout: float) -> None:
        """See `PlainGru`."""
        super().__init__()
        self.gru = PlainGru(words, word_dim, hidden_dim, dropout, fixed_embedding=False)
        self.width = hidden_dim
        self.blocks = [[name for name, _ in self.named_parameters()]]

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """State after the last word: tokens [B, L], lengths [B] (CPU) -> [B, W]."""
        return cast(Tensor, self.gru(tokens, lengths))


def head(width: int, parameters: HeadParameters, embed_dim: int, normed: bool) -> nn.Sequential:
    """From a tower's features [B, W] to the common space [B, D]; `normed`: behind a layer norm."""
    if parameters.kind == "linear":
        layers: list[nn.Module] = [nn.Dropout(parameters.dropout), nn.Linear(width, embed_dim)]
    else:
        between = [nn.Linear(width, parameters.width), nn.GELU(), nn.Dropout(parameters.dropout)]
        layers = [*between, nn.Linear(parameters.width, embed_dim)]
    # Named, so that the weights keep the names that they have without one.
    first: dict[str, nn.Module] = {"norm": nn.LayerNorm(width)} if normed else {}
    return nn.Sequential(OrderedDict(first | {str(place): layer for place, layer in enumerate(layers)}))


@register("DualEncoder", DualEncoderParameters)
class DualEncoder(PackagedModel):
    """Two towers with a head each; what comes from a package and never learns is not saved in checkpoints."""

    def __init__(
        self,
        image: Tower,
        text: Tower,
        image_head: nn.Module,
        text_head: nn.Module,
        matching: MatchingHead | None = None,
    ) -> None:
        """Take the towers, frozen as they should be, and the heads; one for matching needs towers that keep tokens."""
        super().__init__()
        self.image_tower, self.text_tower = image, text
        self.image_head, self.text_head = image_head, text_head
        self.matching = matching

    @classmethod
    def from_parameters(
        cls, parameters: ModelParameters, image_size: int, vocabulary: Vocabulary, load_weights: bool
    ) -> DualEncoder:
        """See `RetrievalModel.from_parameters`."""
        block = cast(DualEncoderParameters, parameters)
        adapter = block.adapter
        image = TimmTower(block.image.architecture, block.image.pretrained, load_weights, adapter.on("image"))
        image.check_side(image_size)
        text: Tower
        if block.text.encoder == GRU:
            words = max(vocabulary.word2idx.values())
            text = GruTower(words, block.text.word_dim, block.text.hidden_dim, block.text.dropout)
            text.freeze("all")
        else:
            text = SentenceTower(block.text.encoder, block.text.pooling, load_weights, adapter.on("text"))
            text.freeze(block.text.trained, "model.text.train")
        image.freeze(block.image.trained, "model.image.train")
        norm = block.head.norm
        image_head = head(image.width, block.head, block.embed_dim, normed=norm == "both")
        text_head = head(text.width, block.head, block.embed_dim, normed=norm != "none")
        matching = None
        if block.matching.layers:
            for tower in (image, text):
                tower.keep_tokens()
            matching = MatchingHead(image.token_width, text.token_width, block.matching)
        model = cls(image, text, image_head, text_head, matching)
        if adapter.kind != "none":
            model.adapt(adapter)
        if block.gradient_checkpointing:
            for tower in (image, text):
                tower.checkpoint_gradients()
        return model

    def adapt(self, adapter: AdapterParameters) -> None:
        """Put adapters into the towers that get them.

        Raises:
            InputError: see `layers.adapters.adapt`; a GRU over our own vocabulary learns as a whole.
        """
        self.remember_base()
        for side, tower in (("image", self.image_tower), ("text", self.text_tower)):
            if adapter.on(side):
                if isinstance(tower, GruTower):
                    raise InputError(
                        "model.adapter.towers: model.text.encoder gru starts from nothing and learns as a whole; take "
                        "model.adapter.towers=image."
                    )
                tower.adapt(adapter, side)

    @classmethod
    def own_vocabulary(cls, parameters: ModelParameters) -> Vocabulary | None:
        """The pieces of the encoder's tokenizer; a GRU reads `dataset.vocab_path`."""
        source = cast(DualEncoderParameters, parameters).text.encoder
        return None if source == GRU else word_pieces(source)

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """The heads at `optim.lr`, the towers' blocks at their own rates."""
        block, rate = cast(DualEncoderParameters, options.model), options.optim.lr
        heads = [*self.image_head.parameters(), *self.text_head.parameters()]
        heads += [] if self.matching is None else self.matching.parameters()
        groups = [{"params": heads, "lr": rate}]
        for tower, given in ((self.image_tower, block.image), (self.text_tower, block.text)):
            groups += tower.groups(given.lr or rate, given.layer_decay)
        return groups

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`."""
        return self.image_tower.frozen_part()

    def frozen_text(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_text`."""
        return self.text_tower.frozen_part()

    def packaged(self) -> Iterator[tuple[str, nn.Module]]:
        """See `PackagedModel.packaged`."""
        return (part for part in self.named_children() if isinstance(part[1], Tower) and part[1].from_package)

    def encode_image(self, batch: Batch) -> Tensor:
        """Embed images [B, 3, S, S], not normalised. Returns [B, D]."""
        if batch.image_features is not None:
            return cast(Tensor, self.image_head(self.image_tower.finish(batch.image_features)))
        return cast(Tensor, self.image_head(self.image_tower(batch.need("images"))))

    def encode_text(self, batch: Batch) -> Tensor:
        """Embed captions [B, L], not normalised. Returns [B, D]."""
        tokens = batch.need("tokens")
        if batch.text_features is not None:
            return cast(Tensor, self.text_head(self.text_tower.finish(batch.text_features, tokens)))
        inputs = (tokens, batch.need("lengths")) if isinstance(self.text_tower, GruTower) else (tokens,)
        return cast(Tensor, self.text_head(self.text_tower(*inputs)))

    def image_states(self, batch: Batch) -> Tensor:
        """What the image tower pools."""
        if batch.image_features is not None:
            return self.image_tower.finish_states(batch.image_features)
        return self.image_tower.states(batch.need("images"))

    def text_states(self, batch: Batch) -> Tensor:
        """What the text tower pools."""
        tokens = batch.need("tokens")
        if batch.text_features is not None:
            return self.text_tower.finish_states(batch.text_features, tokens)
        return self.text_tower.states(tokens)

    def encodings(self, batch: Batch) -> Encodings:
        """See `RetrievalModel.encodings`; with a matching head also the tokens, of one pass through the towers."""
        if self.matching is None:
            return super().encodings(batch)
        image_states, text_states, tokens = self.image_states(batch), self.text_states(batch), batch.need("tokens")
        return TokenEncodings(
            self.image_head(self.image_tower.pool(image_states)),
            self.text_head(self.text_tower.pool(text_states, tokens)),
            image_rows=batch.image_rows,
            image_tokens=self.matching.image_tokens(self.image_tower.tokens(image_states)),
            text_tokens=self.matching.text_tokens(self.text_tower.tokens(text_states), tokens),
            tokens=tokens,
        )

    def loss_of(self, encodings: Encodings, criterion: Criterion) -> dict[str, Tensor]:
        """See `RetrievalModel.loss_of`; a matching head adds its loss, logged as `matching`.

        Raises:
            InputError: there is such a head, and several ranks train.
        """
        losses = super().loss_of(encodings, criterion)
        if self.matching is None:
            return losses
        if not isinstance(encodings, TokenEncodings):
            raise InputError(
                "model.matching: its hard negatives come from the batch of one process; train with python train.py "
                "without torchrun, or with model.matching.layers=0."
            )
        part = self.matching.loss(encodings, self.score(encodings.images, encodings.texts))
        return losses | {"matching": part, "loss": losses["loss"] + part}

    def reranker(self) -> RetrievalModel:
        """See `RetrievalModel.reranker`: the matching head, where there is one."""
        return self if self.matching is None else Matcher(self, self.matching)


class Matcher(RetrievalModel):
    """A dual encoder as its matching head sees it: what is encoded are tokens, and each pair has a score of its own."""

    def __init__(self, model: DualEncoder, head: MatchingHead) -> None:
        """Take a model with a matching head."""
        super().__init__()
        self.model, self.head = model, head

    @classmethod
    def own_vocabulary(cls, parameters: ModelParameters) -> Vocabulary | None:
        """See `RetrievalModel.own_vocabulary`."""
        return DualEncoder.own_vocabulary(parameters)

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`."""
        return self.model.frozen_image()

    def frozen_text(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_text`."""
        return self.model.frozen_text()

    def encode_image(self, batch: Batch) -> Tensor:
        """Tokens of images, [B, T, H]."""
        return self.head.image_tokens(self.model.image_tower.tokens(self.model.image_states(batch)))

    def encode_text(self, batch: Batch) -> Tensor:
        """Tokens of captions, [B, L, H], zeros at padding."""
        states = self.model.text_tower.tokens(self.model.text_states(batch))
        return self.head.text_tokens(states, batch.need("tokens"))

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """Probability that they belong together: [N, T, H] and [M, L, H] -> [N, M]."""
        return self.head.scores(images, texts)
