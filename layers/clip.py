"""CLIP: any two-tower model that open_clip builds, zero-shot or fine-tuned under the same protocol as the others.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; with remote-sensing
weights RemoteCLIP (Liu et al., 2024) and GeoRSCLIP (Zhang et al., 2024). Letters: B batch, S image side in pixels,
L token ids, C longest text that the model reads, D embedding.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.adapters import AdapterParameters
from layers.backbone import import_extra, renormalisation
from layers.clip_files import read_clip
from layers.packaged import PackagedModel
from layers.registry import register
from layers.released import load_released
from layers.towers import TowerParameters, Train, Trained
from option.parameters import ModelParameters
from runtime.untrusted import parse_json, read_bytes
from utils import InputError, first_line, logger
from vocab import UNKNOWN, Vocabulary

if TYPE_CHECKING:
    from batches.batch import Batch
    from option import Options

TEXT_TOWER = ("text", "transformer.", "token_embedding.", "positional_embedding", "ln_final.")
TOWERS = {"image": ("visual.",), "text": TEXT_TOWER}
"""How the names of the parameters of either tower begin; `text` also stands for `text_projection`."""
EMBEDS = re.compile(r"^(?!.*attnpool).*(embed|\.conv\d|\.bn\d|ln_pre|patch|cls_|stem)")
"""In names of parameters outside of the layers that come before these."""


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
        """See `Parameters.without_effect`: rates of what does not learn."""
        unread = {"optim.lr_backbone": "CLIP's towers learn at optim.lr, model.image.lr and model.text.lr"}
        for side in ("image", "text"):
            if self.adapter.kind != "none":
                keys, reason = ("train", "layer_decay"), "adapters learn in place of the towers' weights"
            elif self.trained(side) == "none":
                keys, reason = ("lr", "layer_decay"), f"the {side} tower does not learn"
            else:
                continue
            unread |= {f"model.{side}.{key}": reason for key in keys}
        return unread

    def trained(self, side: str) -> Trained:
        """What of a tower learns by itself, `image` or `text`."""
        if self.freeze == side or self.adapter.kind != "none":
            return "none"
        tower: ClipTowerParameters = getattr(self, side)
        return tower.trained


class BytePairs(Vocabulary):
    """The byte pairs of an open_clip tokenizer as a vocabulary: no word is unknown to it.

    Ids are the tokenizer's plus 1, since 0 is padding here.
    """

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
    ) -> None:
        """Take the two towers.

        Args:
            clip: an open_clip model.
            mean: channel means that its images are normalised with, in 0..1.
            std: their standard deviations.
            image_trained: what of the image tower learns.
            text_trained: what of the text tower learns.

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
        open_clip, name = import_open_clip(), architecture_name(block.architecture)
        adapted = block.adapter.kind != "none"
        load_weights = load_weights or (adapted and block.pretrained != "none")
        is_file = Path(block.pretrained).exists()
        tag = block.pretrained if load_weights and not is_file and block.pretrained != "none" else None
        try:
            with _root_silenced():
                clip = open_clip.create_model(name, pretrained=tag)
        except Exception as fault:  # a download, a file of the hub or a configuration: each has errors of its own
            raise InputError(
                f"model.architecture {block.architecture}, model.pretrained {block.pretrained}: open_clip can't build "
                f"it ({first_line(fault)}). model.pretrained takes none, the path of a checkpoint, or one of: "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(name)) or 'no tag for this architecture'}."
            ) from fault
        preparation = open_clip.get_model_preprocess_cfg(clip)
        side = preparation["size"]
        sides = (side, side) if isinstance(side, int) else tuple(side)
        if sides != (image_size, image_size):
            raise InputError(
                f"dataset.image_size: {block.architecture} reads images of {sides[0]} pixels, got {image_size}."
            )
        trained = block.trained("image"), block.trained("text")
        model = cls(clip, tuple(preparation["mean"]), tuple(preparation["std"]), *trained)
        if block.gradient_checkpointing:
            clip.set_grad_checkpointing(True)
        if load_weights and is_file:
            load_released(model, read_clip(Path(block.pretrained)))
            logger.info("CLIP starts from %s.", block.pretrained)
        elif load_weights and tag is None:
            logger.warning("CLIP starts from random weights (model.pretrained: none).")
        if adapted:
            model.adapt(block.adapter, block.pretrained != "none")
        return model

    def _freeze(self, side: str, trained: Trained) -> None:
        """Leave all but the last blocks of a tower as they are."""
        blocks = self.blocks[side]
        count = trained if isinstance(trained, int) else len(blocks) if trained == "all" else 0
        if count > len(blocks):
            raise InputError(f"model.{side}.train: last {count} blocks; this tower has {len(blocks)}.")
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
                rates |= {id(weight): rate for weight in _Tower(self, side).parameters()}
        groups: dict[float, list[nn.Parameter]] = {}
        for weight in self.parameters():
            if weight.requires_grad:
                groups.setdefault(rates[id(weight)], []).append(weight)
        return [{"params": weights, "lr": rate} for rate, weights in groups.items()]

    @classmethod
    def unread(cls, options: Options) -> Iterator[tuple[str, str]]:
        """See `RetrievalModel.unread`; `optim.lr` is the rate of both towers unless they have their own."""
        return ((key, reason) for key, reason in super().unread(options) if key != "optim.lr")

    @classmethod
    def own_vocabulary(cls, parameters: ModelParameters) -> Vocabulary:
        """The byte pairs of the architecture.

        Raises:
            InputError: open_clip is missing, or it cuts the texts of this architecture otherwise.
        """
        block = cast(ClipParameters, parameters)
        tokenizer = import_open_clip().get_tokenizer(architecture_name(block.architecture))
        if not hasattr(tokenizer, "encoder"):
            raise InputError(
                f"model.architecture {block.architecture}: its texts are cut by another tokenizer than CLIP's byte "
                "pairs, which is not supported; choose one with CLIP's, such as ViT-B-32, ViT-L-14 or RN50."
            )
        return BytePairs(tokenizer)

    def train(self, mode: bool = True) -> CLIP:
        """Bring what learns into training mode: a frozen tower draws nothing and keeps its statistics."""
        super().train(mode)
        for side, trained in self.trained.items():
            tower = _Tower(self, side)
            if trained == "none":
                tower.eval()
            elif trained == "adapters":
                for part in tower.modules():
                    if isinstance(part, nn.modules.batchnorm._BatchNorm):
                        part.eval()
        return self

    def frozen_image(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_image`: the whole tower."""
        return _Tower(self, "image") if self.trained["image"] == "none" else None

    def frozen_text(self) -> nn.Module | None:
        """See `RetrievalModel.frozen_text`: the whole tower."""
        return _Tower(self, "text") if self.trained["text"] == "none" else None

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
        clip = cast(Any, self.clip)
        ids = (tokens - 1).clamp(min=0)[:, : clip.context_length]
        padded = F.pad(ids, (0, clip.context_length - ids.shape[1]))  # [B, C]: positions are learned for all of them
        return cast(Tensor, clip.encode_text(padded))


class _Tower(nn.Module):
    """One tower of a CLIP with all that it computes with, and nothing of the other."""

    def __init__(self, model: CLIP, which: str) -> None:
        super().__init__()
        members = [*model.clip.named_children(), *model.clip.named_parameters(recurse=False)]
        for name, member in members:
            if f"{name}.".startswith(TOWERS[which]):
                setattr(self, name, member)
        if which == "image":
            self.register_buffer("scale", model.scale)
            self.register_buffer("shift", model.shift)
        self.embed = model.embed_images if which == "image" else model.embed_texts

    def forward(self, given: Tensor) -> Tensor:
        """Images [B, 3, S, S] or tokens [B, L] -> [B, D]."""
        return self.embed(given)


def blocks_of(clip: nn.Module, side: str) -> list[list[str]]:
    """Names of a tower's parameters by block, from the input on: what comes before the layers, then each layer.

    What is in no layer belongs to the first block if it embeds, and to the last if it follows the layers.
    """
    names = [name for name, _ in clip.named_parameters() if name.startswith(TOWERS[side])]
    names += [name for name, _ in clip.named_parameters() if side == "text" and name == "text_projection"]
    layers = _layers(clip, side)
    within = {id(weight): place for place, layer in enumerate(layers, start=1) for weight in layer.parameters()}
    named = dict(clip.named_parameters())
    blocks: list[list[str]] = [[] for _ in range(len(layers) + 1)]
    for name in dict.fromkeys(names):
        outside = 0 if EMBEDS.search(name) else len(layers)
        blocks[within.get(id(named[name]), outside)].append(name)
    return [block for block in blocks if block]


def _layers(clip: nn.Module, side: str) -> list[nn.Module]:
    """The layers of a tower: the stages of a ResNet, else its longest list of like parts."""
    parts = {name: part for name, part in clip.named_modules() if name.startswith(TOWERS[side])}
    stages = [parts[f"visual.layer{number}"] for number in range(1, 5) if f"visual.layer{number}" in parts]
    if stages:
        return [block for stage in stages for block in stage.children()]
    lists = [list(part.children()) for part in parts.values() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    return max((found for found in lists if len({type(part) for part in found}) == 1), key=len, default=[])


@contextmanager
def _root_silenced() -> Iterator[None]:
    """Keeps from the log that weights are random: they are loaded later, or else it is said here.

    Nor does the root logger get a handler, which Python's first line to one without would give it.
    """

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(other)


def import_open_clip() -> ModuleType:
    """open_clip, which only this model needs; see `layers.backbone.import_extra`."""
    return import_extra("open_clip", "clip", "CLIP needs open_clip")


def architecture_name(architecture: str) -> str:
    """open_clip's name of an architecture; one that is a JSON file is made known to it first.

    Raises:
        InputError: there is no such architecture, or the file is no configuration.
    """
    open_clip = import_open_clip()
    if architecture.endswith(".json"):
        path = Path(architecture)
        try:
            content = parse_json(read_bytes(path))
            missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(content)
        except (OSError, ValueError, TypeError) as fault:
            raise InputError(f"model.architecture: {path} can't be read ({first_line(fault)}).") from fault
        if missing:
            raise InputError(f"model.architecture: {path} lacks {', '.join(sorted(missing))} (open_clip's JSON form).")
        open_clip.add_model_config(path)
        return path.stem
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise InputError(f"model.architecture: open_clip has no {architecture!r}.{hint}")
    return architecture
