"""The weights of transformers' CLIP and SigLIP as open_clip names and shapes them.

Letters: D embedding, W width of a tower, P patches of an image.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

Family = Literal["clip", "siglip"]
"""transformers' model_type of what can be read."""

TEXT = (
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),  # before SigLIP's, which is a layer and keeps its `.weight`
    ("text_model.head.", "text_projection."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
CLIP_IMAGE = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    *TEXT[6:],
)
SIGLIP_IMAGE = (
    ("vision_model.embeddings.patch_embedding.", "visual.trunk.patch_embed.proj."),
    ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
    ("vision_model.post_layernorm.", "visual.trunk.norm."),
    ("vision_model.encoder.layers.", "visual.trunk.blocks."),
    ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
    ("vision_model.head.attention.out_proj.", "visual.trunk.attn_pool.proj."),
    ("vision_model.head.layernorm.", "visual.trunk.attn_pool.norm."),
    ("vision_model.head.mlp.", "visual.trunk.attn_pool.mlp."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
)
"""Part of a name of transformers' -> open_clip's. SigLIP's image tower is timm's."""
PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
LEFT_OUT = re.compile(r"\.self_attn\.[kv]_proj\.|position_ids$")
QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)")
POOL = re.compile(r"vision_model\.head\.attention\.in_proj_(weight|bias)")


def open_clip_names(weights: dict[str, Tensor], family: Family = "clip") -> dict[str, Tensor]:
    """The weights of transformers' CLIP or SigLIP as open_clip has them.

    Queries, keys and values [W, W] are one matrix [3 W, W], but where SigLIP pools: there [W, W] and [2 W, W]. CLIP's
    projections are [W, D] in place of [D, W], the places of SigLIP's patches [1, P, W] in place of [P, W].
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if match := QUERY.fullmatch(name):
            parts = [weights[name.replace("q_proj", kind)] for kind in ("q_proj", "k_proj", "v_proj")]
            joint = "qkv." if family == "siglip" and name.startswith("vision_model.") else "in_proj_"
            found[_renamed(f"{match[1]}.attn.{joint}{match[2]}", family)] = torch.cat(parts)
        elif match := POOL.fullmatch(name):
            width = len(value) // 3
            for part, rows in (("q", value[:width]), ("kv", value[width:])):
                found[f"visual.trunk.attn_pool.{part}.{match[1]}"] = rows.clone()
        elif name.endswith(PROJECTIONS):
            found[_renamed(name, family)] = value.T.contiguous()
        elif not LEFT_OUT.search(name):
            renamed = _renamed(name, family)
            found[renamed] = value[None] if renamed == "visual.trunk.pos_embed" else value
    return found


def _renamed(name: str, family: Family) -> str:
    """One name; what is of SigLIP's text tower lies below `text.`."""
    of_text = name.startswith("text_")
    for theirs, ours in TEXT if of_text else SIGLIP_IMAGE if family == "siglip" else CLIP_IMAGE:
        name = name.replace(theirs, ours)
    return f"text.{name}" if of_text and family == "siglip" else name
