"""A sentence encoder that is small enough to be made on the spot."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch

from layers.sentences import import_transformers

TINY_BERT = "a tiny BERT"
"""In the options of `tiny_options`: the folder of one."""
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "large", "field", "##s", "red", *string.ascii_lowercase]
LONGEST = 16  # tokens


def write_bert(folder: Path) -> Path:
    """Write a BERT of two layers of 32 numbers with a tokenizer of `PIECES`; skip the test without transformers."""
    pytest.importorskip("transformers", reason="the extra weights are not installed")
    transformers: Any = import_transformers()
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    network = transformers.BertModel(config)
    torch.set_rng_state(random_state)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)  # the usual first values give captions that are all alike
    network.save_pretrained(folder, safe_serialization=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=LONGEST).save_pretrained(folder)
    return folder
