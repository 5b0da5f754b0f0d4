"""Adapters: few weights that learn inside a tower whose own stay as they are, by peft (extra `adapters`).

LoRA (Hu et al., ICLR 2022), DoRA (Liu et al., ICML 2024), IA3 (Liu et al., NeurIPS 2022). Letters: B batch, L tokens,
W width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from layers.backbone import import_extra
from option.parameters import MOST_WIDTH, Parameters
from utils import InputError

Kind = Literal["lora", "dora", "ia3"]
Targets = Literal["attention", "mlp", "all"]
ATTENTION = re.compile(r"attn|attention|(^|\.)(q|k|v|qkv|query|key|value)(_proj)?$")
ADAPTER = re.compile(r"(^|\.)(lora_\w+|ia3_\w+)(\.|$)")
"""In the names that peft gives."""
MLP = re.compile(r"mlp|intermediate|output\.dense|ffn|(^|\.)(fc1|fc2|c_fc|c_proj)$")


class AdapterParameters(Parameters):
    """`model.adapter`: what learns in the towers in place of their own weights."""

    kind: Literal["none", "lora", "dora", "ia3"] = Field(
        default="none", description="none: the towers themselves; needs the extra adapters"
    )
    rank: int = Field(default=8, ge=1, le=MOST_WIDTH, description="lora, dora: width of the bottleneck [numbers]")
    alpha: float = Field(default=16.0, gt=0, le=10_000, description="lora, dora: alpha / rank scales what is added")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="lora, dora: before the bottleneck [probability]")
    targets: Targets = Field(
        default="attention", description="layers that get one; all: every linear one and plain convolution, too"
    )
    towers: Literal["image", "text", "both"] = Field(default="both", description="towers that get them")

    def on(self, side: str) -> bool:
        """Whether a tower, `image` or `text`, gets them."""
        return self.kind != "none" and self.towers in (side, "both")

    def without_effect(self) -> dict[str, str]:
        """See `Parameters.without_effect`."""
        numbers = ("rank", "alpha", "dropout")
        if self.kind == "none":
            return {f"model.adapter.{key}": "model.adapter.kind is none" for key in (*numbers, "targets", "towers")}
        return {f"model.adapter.{key}": "model.adapter.kind is ia3" for key in numbers if self.kind == "ia3"}

    def put_into(self, network: nn.Module, side: str) -> None:
        """`adapt` a tower with these numbers."""
        assert self.kind != "none"
        adapt(network, self.kind, self.rank, self.alpha, self.dropout, self.targets, side)


def adapt(network: nn.Module, kind: Kind, rank: int, alpha: float, dropout: float, targets: Targets, side: str) -> None:
    """Put adapters into a network; all else of it is frozen. At first it computes what it did before.

    Args:
        network: changed in place.
        kind: of adapter.
        rank: width of the bottleneck.
        alpha: what is added counts alpha / rank.
        dropout: before the bottleneck.
        targets: which layers get one.
        side: `image` or `text`, for the message.

    Raises:
        InputError: it has no such layers, or peft is missing.
    """
    peft: Any = import_extra("peft", "adapters", "model.adapter: adapters need peft")
    split_attentions(network)
    names = target_names(network, targets)
    if not names:
        raise InputError(
            f"model.adapter.targets: the {side} tower has no layers of {targets} that can be adapted; take all, or "
            f"leave the tower out (model.adapter.towers={'text' if side == 'image' else 'image'})."
        )
    if kind == "ia3":
        inner = [name for name in names if MLP.search(name) and not ATTENTION.search(name)]
        config = peft.IA3Config(target_modules=names, feedforward_modules=inner)
    else:
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, use_dora=kind == "dora"
        )
    peft.inject_adapter_in_model(config, network)


def target_names(network: nn.Module, targets: Targets) -> list[str]:
    """Names of the layers that get an adapter: linear ones, and for `all` plain convolutions without groups.

    Layers whose weights another module computes with are left out: an adapter around them would not be reached.
    """
    within = [name for name, part in network.named_modules() if isinstance(part, nn.MultiheadAttention)]
    within += [name for name, _ in network.named_modules() if name.endswith("attnpool")]
    found = []
    for name, part in network.named_modules():
        # What pads in its own way (timm's Conv2dSame) is a subclass, beside which peft's own convolution does not fit.
        plain = isinstance(part, nn.Linear) or (targets == "all" and type(part) is nn.Conv2d and part.groups == 1)
        if not plain or any(name.startswith(f"{outer}.") for outer in within):
            continue
        attends = ATTENTION.search(name) is not None
        if targets == "all" or (attends if targets == "attention" else not attends and MLP.search(name)):
            found.append(name)
    return found


class SplitAttention(nn.Module):
    """torch's self-attention out of two linear layers, which adapters can stand beside."""

    def __init__(self, joined: nn.MultiheadAttention) -> None:
        """Take over the weights."""
        super().__init__()
        self.heads, self.batch_first, self.dropout = joined.num_heads, joined.batch_first, joined.dropout
        self.in_proj = nn.Linear(joined.embed_dim, 3 * joined.embed_dim, device="meta")
        self.in_proj.weight = joined.in_proj_weight
        self.in_proj.bias = joined.in_proj_bias
        self.out_proj = nn.Linear(joined.embed_dim, joined.embed_dim, device="meta")
        self.out_proj.weight, self.out_proj.bias = joined.out_proj.weight, joined.out_proj.bias

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend from [B, L, W] (of `batch_first`) to itself -> the same shape, and no weights."""
        if key is not query or value is not query:
            raise ValueError("this attention is of a sequence to itself")
        tokens = query if self.batch_first else query.transpose(0, 1)  # [B, L, W]
        batch, length, width = tokens.shape
        joint = self.in_proj(tokens).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = joint.permute(2, 0, 3, 1, 4)  # [B, heads, L, W / heads] each
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask, self.dropout if self.training else 0.0)
        found = self.out_proj(seen.transpose(1, 2).reshape(batch, length, width))
        return (found if self.batch_first else found.transpose(0, 1)), None


def split_attentions(network: nn.Module) -> None:
    """Put a `SplitAttention` in the place of each self-attention of open_clip's transformers, in place."""
    for name, block in list(network.named_modules()):
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or "resblocks." not in name:
            continue
        if attention.in_proj_weight is not None and not hasattr(block, "ln_1_kv"):
            block.attn = SplitAttention(attention)


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return ADAPTER.search(name) is not None


def is_adapted(module: nn.Module) -> bool:
    """Whether there are adapters in a module."""
    return any(True for _ in _layers(module))


def merge(module: nn.Module) -> None:
    """Add what adapters have learned to the weights beside them, and take them out, in place.

    Raises:
        ValueError: the sum is not finite.
    """
    for name, layer in list(_layers(module)):
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, layer.get_base_layer())


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, with their names; peft is not imported for them."""
    return ((name, part) for name, part in module.named_modules() if hasattr(part, "get_base_layer"))


def digest_of(parts: Iterable[tuple[str, nn.Module]]) -> Tensor:
    """SHA-256 of the weights and statistics of some named modules, [32] uint8."""
    digest = hashlib.sha256()
    for place, part in parts:
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{place}.{name} {list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
