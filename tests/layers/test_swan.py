"""SWAN against the released implementation, against slow twins, and what training may and may not change in it.

Letters: B batch, L words, N detail tokens, H heads, D embedding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from batches.batch import Batch
from layers.base import l2norm
from layers.released import load_released, translate
from layers.swan import SWAN, SwanParameters
from layers.swan_image import DetailTokens, MultiscaleFusion, SelfAttention
from layers.swan_text import GatedAttention
from option import load_options
from tests import ROOT, reference_inputs
from tests.criteria import triplet_criterion
from utils import InputError
from vocab import Vocabulary

OPTION = ROOT / "option"
NO_DROPOUT = dict.fromkeys(("words", "context", "caption", "global_view", "local_view"), 0.0)
CRITERION = triplet_criterion(margin=0.2, hardest=False)


def build(vocabulary: Vocabulary, load_weights: bool = False, **block: Any) -> SWAN:
    """SWAN as the authors built it, but for what `block` changes; always with the same weights."""
    torch.manual_seed(0)
    parameters = SwanParameters.model_validate({"name": "SWAN", "backbone": {"pretrained": "none"}, **block})
    return SWAN.from_parameters(parameters, 256, vocabulary, load_weights)


def small(vocabulary: Vocabulary, **block: Any) -> SWAN:
    """A narrow one."""
    return build(vocabulary, **{"embed": {"embed_dim": 64}, "word_dim": 16, "dropout": NO_DROPOUT, **block})


def pairs(size: int, seed: int = 0) -> Batch:
    """Random images of 64 pixels and captions of 1 to 6 words."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (size,), generator=draw)
    tokens = torch.randint(1, 20, (size, int(lengths.max())), generator=draw)
    tokens[torch.arange(tokens.shape[1]) >= lengths[:, None]] = 0
    return Batch(images=torch.randn(size, 3, 64, 64, generator=draw), tokens=tokens, lengths=lengths)


def assert_close_relatively(given: Tensor, expected: Tensor, bound: float) -> None:
    torch.testing.assert_close(given, expected, atol=bound * float(expected.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return reference_inputs.released_state("SWAN")


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary, released: dict[str, Tensor]) -> SWAN:
    """The released weights in evaluation mode; tests don't change it."""
    model = build(vocabulary)
    load_released(model, released)
    return model.eval()


class TestReleased:
    """The released implementation's weights, inputs and outputs."""

    def test_every_intermediate_value(self, model: SWAN) -> None:
        expected, batch = reference_inputs.outputs("SWAN"), reference_inputs.batch()
        tokens, lengths = batch.need("tokens"), batch.need("lengths")
        image_encoder, caption_encoder = model.image_encoder, model.caption_encoder
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda module, given, output: seen.update({name: output})

        parts = ("shallow", "details", "fusion")
        hooks = [image_encoder.get_submodule(name).register_forward_hook(keep(name)) for name in parts]
        with torch.inference_mode():
            images, texts = model.encode_image(batch), model.encode_text(batch)
            detail_tokens = image_encoder.details.tokens(seen["shallow"][:1])
            states = caption_encoder.read(tokens, lengths)
            context = caption_encoder.attention(states, torch.arange(tokens.shape[1]) < lengths[:, None])
            scores = model.score(images, texts)
        for hook in hooks:
            hook.remove()
        assert_close_relatively(detail_tokens, expected["sfgs_fc"], 1e-4)
        assert_close_relatively(seen["details"], expected["vl_emb"], 1e-4)
        assert_close_relatively(seen["fusion"], expected["vg_emb"], 1e-4)
        assert_close_relatively(images, expected["img_emb"], 1e-4)
        # Of the longest caption alone, which the released code does not pad either.
        assert_close_relatively(states[:1], expected["cap_fea"], 1e-4)
        assert_close_relatively(context[:1], expected["ga"], 1e-4)
        assert_close_relatively(texts, expected["text_emb_unpadded"], 1e-4)
        torch.testing.assert_close(scores, expected["sims_unpadded"], atol=1e-5, rtol=0)

    def test_float64(self, vocabulary: Vocabulary, released: dict[str, Tensor]) -> None:
        expected, batch = reference_inputs.outputs("SWAN"), reference_inputs.batch()
        model = build(vocabulary)
        load_released(model, released)
        model.double().eval()
        with torch.inference_mode():
            images = model.encode_image(replace(batch, images=batch.need("images")[:1].double()))
            scores = model.pair_scores(images, model.encode_text(batch))
        # The longest caption is the one that the released code did not pad.
        torch.testing.assert_close(scores[:, 0], expected["sims_f64"][:1, 0], atol=1e-9, rtol=0)

    def test_what_is_left_out(self, model: SWAN, released: dict[str, Tensor]) -> None:
        assert translate(SWAN.released_names, released).keys() == model.state_dict().keys()
        dead = {name for name in released if not translate(SWAN.released_names, {name: released[name]})}
        assert {name for name in dead if not name.startswith("tcge.conv1d_block_")} == {
            *("image_encoder.resnet.fc.weight", "image_encoder.resnet.fc.bias"),
            *("text_encoder.projection.weight", "text_encoder.projection.bias"),
            "sfgs.wsa.mhatt.linear_v.bias",
        }
        assert len(dead) == 5 + 2 * 7
        assert sum(released[name].numel() for name in dead) == 1_640_480


class TestReleasedWordTable:
    """8,590 rows, whatever the vocabulary."""

    def test_rows_of_the_vocabulary_are_taken_and_the_rest_is_named(
        self, vocabulary: Vocabulary, released: dict[str, Tensor], caplog: pytest.LogCaptureFixture
    ) -> None:
        model = build(vocabulary)
        caplog.clear()
        load_released(model, released)
        assert torch.equal(model.caption_encoder.embedding.weight, released["text_encoder.embed.weight"][:21])
        (line,) = caplog.messages
        assert "has 8590 rows, of which a vocabulary of 20 words reads 1 to 20" in line
        assert "dataset.vocab_path" in line

    def test_a_vocabulary_of_the_same_size_takes_them_all(
        self, released: dict[str, Tensor], caplog: pytest.LogCaptureFixture
    ) -> None:
        words = {"<unk>": 1} | {f"word{index}": index for index in range(2, 8590)}
        model = build(Vocabulary(words))
        load_released(model, released)
        assert torch.equal(model.caption_encoder.embedding.weight, released["text_encoder.embed.weight"])
        assert caplog.messages == []

    def test_too_few_rows(self, vocabulary: Vocabulary, released: dict[str, Tensor]) -> None:
        model = build(vocabulary)
        with pytest.raises(InputError, match=r"embedding\.weight: \[20, 300\] in the checkpoint, \[21, 300\]"):
            load_released(model, released | {"text_encoder.embed.weight": torch.zeros(20, 300)})


class TestDetailTokens:
    def test_one_weight_per_token_equals_the_square_product(self) -> None:
        torch.manual_seed(0)
        details = DetailTokens(channels=32, embed_dim=64, dropout=0.0).double().eval()
        matrix = torch.randn(128, 64, dtype=torch.float64)
        shallow = torch.randn(3, 32, 20, 20, dtype=torch.float64)
        details.token_weights.data = matrix.mean(dim=1)
        with torch.inference_mode():
            tokens = details.tokens(shallow)
            tokens = details.attention_norm(tokens + details.attention(tokens))
            tokens = details.feed_forward_norm(tokens + details.feed_forward(tokens))
            products = torch.stack([matrix.T @ item for item in tokens])  # [B, D, D]
            torch.testing.assert_close(details(shallow), products.mean(dim=1), atol=1e-12, rtol=0)

    def test_weights_start_as_the_plain_mean(self) -> None:
        weights = DetailTokens(channels=32, embed_dim=64, dropout=0.0).token_weights
        assert torch.equal(weights, torch.full((128,), 1 / 128))

    def test_attention_equals_the_slow_twin(self) -> None:
        torch.manual_seed(1)
        attention = SelfAttention(embed_dim=32, dropout=0.0).double()
        tokens = torch.randn(2, 5, 32, dtype=torch.float64)
        rows = []
        for item in tokens:
            query, key, value = attention.query(item), attention.key(item), attention.value(item)
            heads = []
            for head in range(8):
                part = slice(4 * head, 4 * head + 4)
                weights = (query[:, part] @ key[:, part].T / 2).softmax(dim=-1)
                heads.append(weights @ value[:, part])
            rows.append(attention.merge(torch.cat(heads, dim=-1)))
        torch.testing.assert_close(attention(tokens), torch.stack(rows), atol=1e-12, rtol=0)


def test_fusion_samples_before_it_maps_to_the_same_result() -> None:
    torch.manual_seed(0)
    fusion = MultiscaleFusion(64, dropout=0.0).eval()
    stages = [torch.randn(2, c, side, side) for c, side in ((512, 8), (1024, 4), (2048, 2))]
    with torch.inference_mode():
        fine = fusion.second(stages[0])[:, :, ::2, ::2]
        coarse = fusion.fourth(stages[2]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        joined = torch.cat([fine, fusion.third(stages[1]), coarse], dim=1)
        expected = fusion.mlp(fusion.mix(joined).mean(dim=(2, 3)))
        torch.testing.assert_close(fusion(*stages), expected, atol=1e-6, rtol=0)


def slow_context(attention: GatedAttention, words: Tensor) -> Tensor:
    """Gated attention of one caption without padding, word by word: [L, D] -> [L, D]."""
    half = words.shape[-1] // 2
    joined = []
    for head in range(2):
        part = slice(head * half, (head + 1) * half)
        query, key, value = (m(words)[:, part] for m in (attention.query, attention.key, attention.value))
        gates = torch.sigmoid(attention.gates(attention.query_gate(query) * attention.key_gate(key)))
        query, key = query * gates[:, :half], key * gates[:, half:]
        rows = []
        for word in query:
            scores = torch.stack([word.dot(other) / math.sqrt(half) for other in key])
            weights = (scores.floor() if attention.floor else scores).softmax(dim=0)
            rows.append(sum(w * v for w, v in zip(weights, value, strict=True)))
        joined.append(torch.stack(cast(list[Tensor], rows)))
    return torch.cat(joined, dim=-1)


class TestCaptions:
    @pytest.mark.parametrize("floor", [True, False])
    def test_gated_attention_equals_the_slow_twin(self, floor: bool) -> None:
        torch.manual_seed(0)
        attention = GatedAttention(16, floor).double()
        words = 4 * torch.randn(1, 6, 16, dtype=torch.float64)
        with torch.no_grad():
            expected = slow_context(attention, words[0])
            given = attention(words, torch.ones(1, 6, dtype=torch.bool))[0]
            other = GatedAttention(16, not floor).double()
            other.load_state_dict(attention.state_dict())
        torch.testing.assert_close(given, expected, atol=1e-12, rtol=0)
        assert (slow_context(other, words[0]) - expected).abs().max() > 0.01

    @pytest.mark.parametrize("rounding", ["floor", "none"])
    def test_training_mode_equals_captions_one_by_one(self, vocabulary: Vocabulary, rounding: str) -> None:
        model = small(vocabulary, tcge={"rounding": rounding}).double().train()
        encoder, batch = model.caption_encoder, pairs(6)
        tokens, lengths = batch.need("tokens"), batch.need("lengths")
        states = [
            encoder.rnn(encoder.embedding(row[None, :length]))[0][0].unflatten(-1, (2, -1)).mean(dim=1)
            for row, length in zip(tokens, lengths.tolist(), strict=True)
        ]
        contexts = [slow_context(encoder.attention, caption) for caption in states]
        words = torch.cat(contexts)
        mean, variance = words.mean(dim=0), words.var(dim=0, unbiased=False)
        expected = []
        for state, context in zip(states, contexts, strict=True):
            enhanced = state[-1] + (context[-1] - mean) / (variance + 1e-5).sqrt()
            expected.append(l2norm(encoder.mlp(enhanced) + enhanced))
        padded = torch.nn.functional.pad(tokens, (0, 3))
        torch.testing.assert_close(encoder(padded, lengths), torch.stack(expected), atol=1e-10, rtol=0)
        running = encoder.norm.running_mean
        assert running is not None
        torch.testing.assert_close(running, 0.1 * mean.detach(), atol=1e-12, rtol=0)

    def test_a_batch_of_one_word(self, vocabulary: Vocabulary) -> None:
        encoder = small(vocabulary).caption_encoder
        tokens, lengths = torch.tensor([[3]]), torch.tensor([1])
        given = encoder.train()(tokens, lengths).detach()
        torch.testing.assert_close(given, encoder.eval()(tokens, lengths).detach(), atol=1e-6, rtol=0)
        assert float(given.norm()) == pytest.approx(1, abs=1e-5)

    def test_one_direction_and_two_layers(self, vocabulary: Vocabulary) -> None:
        model = small(vocabulary, use_bidirectional_rnn=False, num_layers=2)
        assert (model.caption_encoder.rnn.num_layers, model.caption_encoder.rnn.bidirectional) == (2, False)
        batch = pairs(4)
        with torch.inference_mode():
            states = model.caption_encoder.read(batch.need("tokens"), batch.need("lengths"))
            expected = model.caption_encoder.rnn(model.caption_encoder.embedding(batch.need("tokens")))[0]
        real = batch.need("tokens") != 0
        torch.testing.assert_close(states[real], expected[real], atol=1e-6, rtol=0)
        assert (states[~real] == 0).all()

    def test_rounding_is_not_left_to_mixed_precision(self, vocabulary: Vocabulary) -> None:
        encoder = small(vocabulary).caption_encoder.eval()
        seen: list[torch.dtype] = []
        encoder.attention.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
        batch = pairs(3)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(batch.need("tokens"), batch.need("lengths"))
        assert seen == [torch.float32]


class TestTraining:
    def step(self, model: SWAN) -> set[str]:
        """Train one step; names of what has changed."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train().training_loss(pairs(6), CRITERION)["loss"].backward()
        optimizer.step()
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    def test_a_frozen_backbone_keeps_its_weights_and_moves_its_statistics(self, vocabulary: Vocabulary) -> None:
        model = small(vocabulary)
        stages = model.image_encoder.stages(pairs(2).need("images"))
        assert not any(stage.requires_grad for stage in stages)
        changed = {name for name in self.step(model) if ".resnet." in name}
        assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
        assert len(changed) == 3 * 53
        model.eval()
        before = model.image_encoder.resnet.bn1.running_mean.clone()
        model.encode_image(pairs(2))
        assert torch.equal(model.image_encoder.resnet.bn1.running_mean, before)

    def test_frozen_statistics_stay_and_what_is_kept_of_the_backbone_is_enough(self, vocabulary: Vocabulary) -> None:
        model, batch = small(vocabulary, freeze_statistics=True), pairs(2)
        assert not {name for name in self.step(model) if ".resnet." in name}
        assert not model.image_encoder.resnet.training
        assert model.image_encoder.shallow.training
        start = model.frozen_image()
        assert start is not None
        with torch.no_grad():
            rows = start(batch.need("images"))
            assert rows.shape == (2, 12 * 64**2)
            expected = model.eval().encode_image(batch)
            assert expected.std() > 1e-3
            assert torch.equal(model.encode_image(replace(batch, images=None, image_features=rows)), expected)

    def test_a_trained_backbone_changes_all_its_weights(self, vocabulary: Vocabulary) -> None:
        model = small(vocabulary, is_finetune=True)
        weights = {name for name, _ in model.named_parameters() if ".resnet." in name}
        assert len(weights) == 159
        assert weights <= self.step(model)

    @pytest.mark.parametrize(("rounding", "fixed"), [("floor", 10 + 4), ("none", 4)])
    def test_what_cannot_learn_is_not_trained(self, vocabulary: Vocabulary, rounding: str, fixed: int) -> None:
        model = small(vocabulary, tcge={"rounding": rounding})
        held = [name for name, p in model.named_parameters() if not p.requires_grad and ".resnet." not in name]
        assert len(held) == fixed
        assert not set(held) & self.step(model)

    def test_a_random_backbone_that_stays_random_is_named(
        self, vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
    ) -> None:
        build(vocabulary, load_weights=True, is_finetune=True)
        build(vocabulary, load_weights=False)
        assert caplog.messages == []
        build(vocabulary, load_weights=True)
        (line,) = caplog.messages
        assert "model.is_finetune=true" in line


class TestOptions:
    @pytest.mark.parametrize("name", ["RSITMD", "RSICD", "UCM"])
    def test_published_training_values(self, name: str) -> None:
        options = load_options(OPTION / f"{name}_SWAN.yaml")
        optim, block = options.optim, options.model
        assert isinstance(block, SwanParameters)
        assert (optim.epochs, optim.lr, optim.lr_decay_param, optim.lr_update_epoch) == (50, 2e-4, 0.7, 20)
        assert (optim.margin, optim.max_violation, options.dataset.batch_size) == (0.2, False, 100)
        assert options.k_fold.strategy == "stratified"
        assert (block.tcge.rounding, block.is_finetune, block.backbone_weights) == ("floor", False, "imagenet")

    def test_the_published_name_of_the_backbone_file(self, vocabulary: Vocabulary, tmp_path: Path) -> None:
        network = small(vocabulary).image_encoder.resnet
        state = {f"module.{name}": value + 1 for name, value in network.state_dict().items()}
        torch.save({"state_dict": state | {"module.fc.weight": torch.ones(30, 2048)}}, tmp_path / "aid.pth")
        model = small(vocabulary, load_weights=True, resnet_ckpt=str(tmp_path / "aid.pth"))
        assert torch.equal(model.image_encoder.resnet.conv1.weight, network.conv1.weight + 1)

    def test_word_vectors(self, vocabulary: Vocabulary, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="rsretrieval")
        file = tmp_path / "glove.txt"
        file.write_text("beach " + " ".join(["0.5"] * 16) + "\n")
        embed = {"embed_dim": 64, "glove": str(file)}
        model = small(vocabulary, load_weights=True, is_finetune=True, embed=embed)
        assert (model.caption_encoder.embedding.weight[vocabulary.word2idx["beach"]] == 0.5).all()
        assert "1 of 20 words" in caplog.text

    @pytest.mark.parametrize("width", [4, 100])
    def test_a_width_that_the_heads_cannot_share(self, width: int) -> None:
        with pytest.raises(ValidationError, match="embed_dim"):
            SwanParameters.model_validate({"name": "SWAN", "embed": {"embed_dim": width}})
