"""CLIPs with other tokenizers than byte pairs: SigLIP's folders, multilingual towers, longer texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from batches.augmentation import normalise
from batches.batch import Batch, Captions
from layers import build_model
from layers.clip import CLIP
from layers.clip_files import read_clip
from layers.clip_library import create, import_open_clip, normalisation
from layers.clip_tokens import BytePairs, HubPieces, read_tokens
from layers.clip_towers import blocks_of
from option import Options
from portable.tokens import check_tokenizer
from tests import ROOT
from tests.tiny_siglip import CAPTIONS, LONGEST, SIDE, write_multilingual, write_siglip
from utils import InputError

TINY = str(ROOT / "tests" / "clip_tiny.json")
TEXTS = [*CAPTIONS, "Two PLANES, and a pond!", "a"]


def built(options: Options) -> tuple[CLIP, HubPieces]:
    words = CLIP.own_vocabulary(options.model)
    model = build_model(options, words)
    assert isinstance(model, CLIP)
    assert isinstance(words, HubPieces)
    return model.eval(), words


def tokens_of(texts: list[str], words: HubPieces) -> Batch:
    return Captions.encode(texts, words).batch(torch.arange(len(texts)))


@torch.no_grad()
def test_a_folder_of_siglip_gives_the_embeddings_of_transformers(
    tiny_options: Callable[..., Options], tmp_path: Path
) -> None:
    theirs, tokenizer, architecture = write_siglip(tmp_path / "siglip")
    changes = {"architecture": str(architecture), "pretrained": str(tmp_path / "siglip")}
    model, words = built(tiny_options("CLIP", changes))
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    ids = tokenizer(TEXTS, padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt")["input_ids"]
    images = theirs.vision_model(pixel_values=(pixels / 255 - 0.5) / 0.5).pooler_output
    texts = theirs.text_model(input_ids=ids).pooler_output
    assert images.std(dim=0).min() > 1e-3  # else the comparison would say nothing
    torch.testing.assert_close(model.encode_image(Batch(images=normalise(pixels))), images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(tokens_of(TEXTS, words)), texts, atol=1e-5, rtol=1e-5)
    given = read_clip(tmp_path / "siglip")
    assert {"logit_scale", "logit_bias"} <= given.keys()
    assert given.keys() == create(str(architecture), None).state_dict().keys()
    blocks = {side: blocks_of(model.clip, side) for side in ("image", "text")}
    assert {side: len(found) for side, found in blocks.items()} == {"image": 3, "text": 3}
    assert "visual.trunk.attn_pool.latent" in blocks["image"][2]
    assert "visual.trunk.pos_embed" in blocks["image"][0]


def test_without_its_tokenizer_siglip_asks_for_one(tiny_options: Callable[..., Options], tmp_path: Path) -> None:
    _, _, architecture = write_siglip(tmp_path / "siglip")
    with pytest.raises(InputError, match=r"model\.tokenizer: the tokenizer .*absent can't be had .*model\.tokenizer="):
        read_tokens(str(architecture), "none", str(tmp_path / "absent"), None)
    assert (
        len(read_tokens(str(architecture), "none", str(tmp_path / "siglip"), 4).encode(CAPTIONS[0])) == 3
    )  # its end fills up


@torch.no_grad()
def test_a_multilingual_text_tower_is_open_clips(tiny_options: Callable[..., Options], tmp_path: Path) -> None:
    tokenizer, architecture = write_multilingual(tmp_path / "xlm")
    model, words = built(tiny_options("CLIP", {"architecture": str(architecture)}))
    ids = tokenizer(TEXTS, padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt")["input_ids"]
    assert (ids[-1] == tokenizer.pad_token_id).sum() == LONGEST - ids[-1].ne(tokenizer.pad_token_id).sum()
    assert [index - 1 for index in words.encode("a")] == ids[-1][ids[-1] != tokenizer.pad_token_id].tolist()
    clip: Any = model.clip
    torch.testing.assert_close(model.encode_text(tokens_of(TEXTS, words)), clip.encode_text(ids))
    assert words.knows("grün")
    assert not words.knows("湖")
    with pytest.raises(InputError, match="of CLIP's tokenizers only byte pairs can be written"):
        check_tokenizer(words)
    assert {side: len(found) for side, found in model.blocks.items()} == {"image": 3, "text": 3}


def test_a_tokenizer_with_too_many_pieces_is_refused(tiny_options: Callable[..., Options], tmp_path: Path) -> None:
    write_multilingual(tmp_path / "xlm")
    small = json.loads(Path(TINY).read_text())
    small["text_cfg"]["vocab_size"] = 20
    (tmp_path / "small.json").write_text(json.dumps(small))
    changes = {"architecture": str(tmp_path / "small.json"), "tokenizer": str(tmp_path / "xlm")}
    with pytest.raises(InputError, match=r"model\.tokenizer: it has 36 pieces, the text tower embeds 20"):
        built(tiny_options("CLIP", changes))


@torch.no_grad()
def test_a_longer_text_is_read_to_its_end(tiny_options: Callable[..., Options], tmp_path: Path) -> None:
    """Long-CLIP's two tables of places are one table here."""
    words = read_tokens(TINY, "none", None, 40)
    assert isinstance(words, BytePairs)
    long = " ".join(CAPTIONS[:2] * 3)
    assert len(words.encode(long)) == 40
    whole = create(TINY, None, 40).state_dict()
    first, later = torch.randn(40, 32), torch.randn(40, 32)
    torch.save(whole | {"positional_embedding": first, "positional_embedding_res": later}, tmp_path / "long.pt")
    options = tiny_options("CLIP", {"pretrained": str(tmp_path / "long.pt"), "context_length": 40})
    model = build_model(options, words).eval()
    assert isinstance(model, CLIP)
    clip: Any = model.clip
    torch.testing.assert_close(clip.positional_embedding.data, torch.cat([first[:20], later[20:]]), rtol=0, atol=0)
    ids = import_open_clip().SimpleTokenizer(context_length=40)([long])
    found = model.encode_text(Captions.encode([long], words).batch(torch.arange(1)))
    torch.testing.assert_close(found, clip.encode_text(ids))
    with pytest.raises(
        InputError, match=r"positional_embedding: \[40, 32\] in the checkpoint, \[24, 32\] in the model"
    ):
        build_model(tiny_options("CLIP", {"pretrained": str(tmp_path / "long.pt")}), words)


def test_images_are_normalised_as_the_weights_expect(tmp_path: Path) -> None:
    siglip, clip = (0.5, 0.5, 0.5), import_open_clip().OPENAI_DATASET_MEAN
    assert normalisation("ViT-B-16-SigLIP", "none")[0] == siglip
    assert normalisation("ViT-B-16-SigLIP", "webli") == (siglip, siglip)
    assert normalisation("ViT-B-32", "openai")[0] == clip
    assert normalisation("ViT-B-32", str(tmp_path))[0] == clip
    assert normalisation("MobileCLIP-S1", "datacompdr")[1] == (1.0, 1.0, 1.0)
    (tmp_path / "open_clip_config.json").write_text('{"preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}')
    assert normalisation("ViT-B-32", str(tmp_path)) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    assert normalisation("ViT-B-32", str(tmp_path))[0] == (0.1, 0.2, 0.3)
