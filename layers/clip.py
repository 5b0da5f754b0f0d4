"""CLIP: any two-tower model that open_clip builds, zero-shot or fine-tuned under the same protocol as the others.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; with remote-sensing
weights RemoteCLIP (Liu et al., 2024) and GeoRSCLIP (Zhang et al., 2024). Letters: B batch, S image side in pixels,
L token ids, C longest text that the model reads, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.adapters import AdapterParameters
from layers.backbone import renormalisation
from layers.clip_files import check_activation, read_clip
from layers.clip_library import check_side, checkpoint_gradients, create, longest_text, normalisation
from layers.clip_tokens import ClipTokens, padding_of, read_tokens
from layers.clip_towers import TOWERS, ClipTower, blocks_of
from layers.packaged import PackagedModel
from layers.registry import register
from layers.released import load_released
from layers.towers import TowerParameters, Train, Trained, blocks_that_learn, rest
from option.parameters import MOST_TOKENS, ModelParameters
from utils import logger
from vocab import Vocabulary

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options


class ClipTowerParameters(TowerParameters):
    """`model.image`, `model.text`: what of a tower learns, and how fast."""

    train: Annotated[Train, Field(union_mode="left_to_right")] = Field(
        default="all", description="what learns: none, all, or {last: N}: the last N blocks"
    )


class ClipParameters(ModelParameters):
    """The `model` block of CLIP."""

    name: Literal["CLIP"] = "CLIP"
    architecture: str = Field(
        default="ViT-B-32", description="open_clip's name, or the path of a configuration in its JSON form"
    )
    pretrained: str = Field(
        default="none",
        description="none (random), the path of a checkpoint such as RemoteCLIP's, or of a folder of transformers or "
        "open_clip's hub, or one of open_clip's tags, which downloads",
    )
    tokenizer: str | None = Field(
        default=None,
        description="the folder of a tokenizer of transformers, or its name on the hub, which downloads; null: the one "
        "beside the weights, else the architecture's",
    )
    context_length: int | None = Field(
        default=None,
        ge=4,
        le=MOST_TOKENS,
        description="tokens that the text tower reads; null: as the architecture says",
    )
    freeze: Literal["none", "image", "text"] = Field(
        default="none", description="the tower whose weights stay as they start; the same as train: none of it"
    )
    image: ClipTowerParameters = ClipTowerParameters()
    text: ClipTowerParameters = ClipTowerParameters()
    adapter: AdapterParameters = AdapterParameters()
    gradient_checkpointing: bool = Field(
        default=False, description="true: towers compute twice what they would keep for the gradient: less memory"
    )

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`: what adapters stand in for, and rates of what does not learn."""
        unread = {"optim.lr_backbone": "CLIP's towers learn at optim.lr, model.image.lr and model.text.lr"}
        if self.adapter.kind != "none":
            keys = ("freeze", "image.train", "image.layer_decay", "text.train", "text.layer_decay")
            unread |= {f"model.{key}": "adapters learn in place of the towers' weights" for key in keys}
        for side in ("image", "text"):
            if self.trained(side) == "none" and not self.adapter.on(side):
                unread |= {f"model.{side}.{key}": f"the {side} tower does not learn" for key in ("lr", "layer_decay")}
        return unread

    def trained(self, side: str) -> Trained:
        """What of a tower learns by itself, `image` or `text`."""
        if self.freeze == side or self.adapter.kind != "none":
            return "none"
        tower: ClipTowerParameters = getattr(self, side)
        return tower.trained


@register("CLIP", ClipParameters)
class CLIP(PackagedModel):
    """Two towers of open_clip that meet in a cosine.

    Differs from open_clip's own evaluation: images are squeezed to a square by bilinear resampling, as for every
    model here, where open_clip scales bicubically and cuts the middle; they are the same for square images but for
    the resampling. The learned temperature of the weights is not used: the order of a cosine does not depend on it, and
    training has a temperature of its own (`optim.contrastive.temperature`).
    """

    released_names = MappingProxyType({"": "clip.", "logit_scale": None, "logit_bias": None})

    restorable = False
    """Whether the weights beside the adapters can be read again, so that no checkpoint holds them."""

    def __init__(
        self,
        clip: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_trained: Trained = "all",
        text_trained: Trained = "all",
        context_length: int | None = None,
        padding: int = 0,
    ) -> None:
        """Take the two towers.

        Args:
            clip: an open_clip model.
            mean: channel means that its images are normalised with, in 0..1.
            std: their standard deviations.
            image_trained: what of the image tower learns.
            text_trained: what of the text tower learns.
            context_length: C; None: what the text tower says.
            padding: the tokenizer's id of what fills a text up to C.

        Raises:
            InputError: a tower has fewer blocks.
        """
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        for unused in ("logit_scale", "logit_bias"):
            if isinstance(getattr(clip, unused, None), nn.Parameter):
                delattr(clip, unused)
        self.clip = clip
        self.context_length = context_length or int(cast(Any, clip).context_length)
        self.padding = padding
        scale, shift = renormalisation(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.trained: dict[str, Trained | Literal["adapters"]] = {"image": image_trained, "text": text_trained}
        self.blocks = {side: blocks_of(self.clip, side) for side in TOWERS}
        self._freeze("image", image_trained)
        self._freeze("text", text_trained)

    @classmethod
    def from_parameters(
        cls, parameters: ModelParameters, image_size: int, vocabulary: Vocabulary, load_weights: bool
    ) -> CLIP:
        """See `RetrievalModel.from_parameters`."""
        block = cast(ClipParameters, parameters)
        adapted, given = block.adapter.kind != "none", block.pretrained != "none"
        load_weights = load_weights or (adapted and given)
        is_file = Path(block.pretrained).exists()
        tag = block.pretrained if load_weights and given and not is_file else None
        clip = create(block.architecture, tag, block.context_length)
        check_side(clip, block.architecture, image_size)
        longest = longest_text(block.architecture, block.context_length)
        padding = padding_of(vocabulary, clip)
        trained = block.trained("image"), block.trained("text")
        model = cls(clip, *normalisation(block.architecture, block.pretrained), *trained, longest, padding)
        if block.gradient_checkpointing:
            checkpoint_gradients(clip)
        if load_weights and is_file:
            weights = read_clip(Path(block.pretrained))
            check_activation(Path(block.pretrained), clip)
            load_released(model, weights)
            logger.info("CLIP starts from %s.", block.pretrained)
        elif load_weights and tag is None:
            logger.warning("CLIP starts from random weights (model.pretrained: none).")
        if adapted:
            model.adapt(block.adapter, given)
        return model

    def _freeze(self, side: str, trained: Trained) -> None:
        """Leave all but the last blocks of a tower as they are."""
        blocks = self.blocks[side]
        count = blocks_that_learn(trained, len(blocks), f"model.{side}.train")
        named = dict(self.clip.named_parameters())
        for name in (name for block in blocks[: len(blocks) - count] for name in block):
            named[name].requires_grad_(False)

    def adapt(self, adapter: AdapterParameters, restorable: bool) -> None:
        """Put adapters into the towers that get them; all else stays as it is.

        Args:
            adapter: of which kind.
            restorable: whether the weights beside them can be read again.

        Raises:
            InputError: see `layers.adapters.adapt`.
        """
        self.restorable = restorable
        self.remember_base()
        clip: Any = self.clip
        parts = {"image": clip.visual, "text": getattr(clip, "text", None) or clip.transformer}
        for side, part in parts.items():
            if adapter.on(side):
                adapter.put_into(part, side)
                self.trained[side] = "adapters"

    def packaged(self) -> Iterator[tuple[str, nn.Module]]:
        """See `PackagedModel.packaged`: with adapters all weights that can be read again."""
        if self.restorable:
            yield "clip", self.clip

    def parameter_groups(self, options: Options) -> list[dict[str, Any]]:
        """The towers' blocks at their own rates; what has the same rate is one group, in the model's order."""
        block = cast(ClipParameters, options.model)
        rates: dict[int, float] = {}
        named = dict(self.clip.named_parameters())
        for side, given in (("image", block.image), ("text", block.text)):
            rate = given.lr or options.optim.lr
            for depth, names in enumerate(reversed(self.blocks[side])):
                rates |= {id(named[name]): rate * given.layer_decay**depth for name in names if name in named}
            if self.trained[side] == "adapters":
                rates |= {id(weight): rate for weight in self._tower(side).parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for weight in self.parameters():
            if weight.requires_grad:
                groups.setdefault(rates[id(weight)], []).append(weight)
        return [{"params": weights, "lr": rate} for rate, weights in groups.items()]

    @classmethod
    def own_vocabulary(cls, parameters: ModelParameters) -> ClipTokens:
        """The byte pairs of the architecture, or the pieces of the tokenizer that it comes with.

        Raises:
            InputError: open_clip is missing, or the tokenizer can't be had.
        """
        block = cast(ClipParameters, parameters)
        return read_tokens(block.architecture, block.pretrained, block.tokenizer, block.context_length)

    def train(self, mode: bool = True) -> CLIP:
        """Bring what learns into training mode: what is frozen draws nothing and keeps its statistics."""
        super().train(mode)
        for side, trained in self.trained.items() if mode else ():
            rest(self._tower(side), norms=trained == "adapters")
        return self

    def _tower(self, side: str) -> ClipTower:
        if side == "image":
            return ClipTower(self.clip, side, self.embed_images, scale=self.scale, shift=self.shift)
        return ClipTower(self.clip, side, self.embed_texts)

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`: the whole tower."""
        return self._tower("image") if self.trained["image"] == "none" else None

    def frozen_text(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_text`: the whole tower."""
        return self._tower("text") if self.trained["text"] == "none" else None

    def encode_image(self, batch: Batch) -> Tensor:
        """Embed images [B, 3, S, S], not normalised. Returns [B, D]."""
        if batch.image_features is not None:
            return batch.image_features
        return self.embed_images(batch.need("images"))

    def encode_text(self, batch: Batch) -> Tensor:
        """Embed captions [B, L], not normalised. Returns [B, D]."""
        if batch.text_features is not None:
            return batch.text_features
        return self.embed_texts(batch.need("tokens"))

    def embed_images(self, images: Tensor) -> Tensor:
        """The image tower: ImageNet-normalised images [B, 3, S, S] -> [B, D]."""
        return cast(Tensor, cast(Any, self.clip).encode_image(images * self.scale + self.shift))

    def embed_texts(self, tokens: Tensor) -> Tensor:
        """The text tower: ids from 1 and 0 for padding, [B, L] -> [B, D]."""
        ids = (tokens - 1).masked_fill(tokens == 0, self.padding)[:, : self.context_length]
        missing = self.context_length - ids.shape[1]
        padded = F.pad(ids, (0, missing), value=self.padding)  # [B, C]: positions are learned for all of them
        return cast(Tensor, cast(Any, self.clip).encode_text(padded))
