"""A SigLIP and a multilingual CLIP that are small enough to be made on the spot, with their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layers.backbone import import_timm
from layers.clip_library import import_open_clip
from layers.sentences import import_transformers

SIDE, WIDTH, LONGEST = 64, 32, 16
CAPTIONS = ["many green trees are around a large building", "two planes stand beside a red terminal", "Ein Teich"]
IMAGE_TOWER = "vit_tiny_patch16_siglip_64"
SIZES = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def register_image_tower() -> None:
    """Make a tiny image tower of SigLIP known to timm."""
    timm = import_timm()

    def build(pretrained: bool = False, **given: Any) -> Any:
        sizes = {"img_size": SIDE, "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
        return timm.models.VisionTransformer(**sizes, class_token=False, num_classes=0, global_pool="map")

    build.__name__ = IMAGE_TOWER
    if not timm.is_model(IMAGE_TOWER):
        timm.models.register_model(build)


def write_pieces(folder: Path) -> Any:
    """Write the tokenizer of a SigLIP, of sentencepiece, and give it."""
    trainer = pytest.importorskip("sentencepiece", reason="the extra clip is not installed").SentencePieceTrainer
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False, "vocab_size": 60}
    folder.mkdir(exist_ok=True)
    model = str(folder / "trained")
    trainer.train(
        sentence_iterator=iter([text.lower() for text in CAPTIONS]), model_prefix=model, minloglevel=2, **special
    )
    tokenizer = import_transformers().SiglipTokenizer(f"{model}.model", model_max_length=LONGEST)
    tokenizer.save_pretrained(folder)
    for ending in ("model", "vocab"):
        Path(f"{model}.{ending}").unlink()
    return tokenizer


def write_siglip(folder: Path) -> tuple[Any, Any, Path]:
    """Write a SigLIP as transformers does, and open_clip's configuration of the same network beside its folder.

    Returns:
        transformers' model and tokenizer, and the path of the configuration.
    """
    import_open_clip()
    register_image_tower()
    transformers: Any = import_transformers()
    tokenizer = write_pieces(folder)
    config = transformers.SiglipConfig(
        text_config=SIZES | {"vocab_size": 64, "max_position_embeddings": LONGEST, "projection_size": WIDTH},
        vision_config=SIZES | {"image_size": SIDE, "patch_size": 16},
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # biases start as zeros, which would hide their names
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    ours = {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": SIDE, "timm_model_name": IMAGE_TOWER, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **{"context_length": LONGEST, "vocab_size": 64, "width": WIDTH, "heads": 2, "layers": 2},
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
            **{"hf_tokenizer_name": "nobody/nowhere", "tokenizer_kwargs": {"clean": "canonicalize"}},
        },
    }
    path = folder.with_name("tiny_siglip.json")
    path.write_text(json.dumps(ours))
    return model, tokenizer, path


def write_multilingual(folder: Path) -> tuple[Any, Path]:
    """Write a tiny XLM-RoBERTa with its tokenizer, and open_clip's configuration of a CLIP on top of it.

    Returns:
        transformers' tokenizer, and the path of the configuration.
    """
    transformers: Any = import_transformers()
    library = pytest.importorskip("tokenizers", reason="the extra clip is not installed")
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    pieces = [*special.values(), *"▁abcdefghijklmnopqrstuvwxyzäöü", "▁green", "▁Teich"]
    fast = library.Tokenizer(library.models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], 3))
    fast.pre_tokenizer = library.pre_tokenizers.Metaspace()
    fast.post_processor = library.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=LONGEST, **special)
    tokenizer.save_pretrained(folder)
    transformers.XLMRobertaConfig(
        **SIZES, vocab_size=len(pieces), max_position_embeddings=LONGEST + 2, pad_token_id=1, bos_token_id=0
    ).save_pretrained(folder)
    ours = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 16},
        "text_cfg": {
            **{"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "context_length": LONGEST},
            **{"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"},
        },
    }
    path = folder.with_name("tiny_multilingual.json")
    path.write_text(json.dumps(ours))
    return tokenizer, path
