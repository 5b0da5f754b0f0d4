"""MCRN against the released implementation, its parts against slow twins, and what its options change.

Letters: B batch, D embedding. f is a modality's feature, g what the shared pattern transfer makes of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batches.batch import Batch
from batches.pairs import Pairs
from layers import build_model
from layers.base import l2norm
from layers.losses.modalities import distillation
from layers.losses.objective import build_objective
from layers.mcrn import MCRN, MODALITIES, Discriminator, DiscriminatorParameters, McrnParameters
from layers.released import load_fitting, load_released, translate
from layers.shared_pattern import SharedPatternTransfer, ShareParameters
from layers.single_token import PreNormEncoder
from option import Options, load_options
from option.optim import Optim
from tests import ROOT, reference_inputs
from tests.criteria import triplet_criterion
from tests.layers.test_layers import random_batch
from training.learner import Losses
from training.memory import parts_of
from utils import InputError
from vocab import Vocabulary

CRITERION = triplet_criterion(margin=0.2, hardest=False)
OPTION = ROOT / "option"
TinyOptions = Callable[..., Options]


def mcrn(vocabulary: Vocabulary, **block: Any) -> MCRN:
    """A model of published size in evaluation mode, without weights."""
    return MCRN.from_parameters(McrnParameters.model_validate({"name": "MCRN", **block}), 256, vocabulary, False).eval()


def close(given: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the greatest expected entry; the bound is 1e-4."""
    assert given.shape == expected.shape
    assert float((given - expected).abs().max() / expected.abs().max()) < 1e-5


def without_dropout(model: MCRN) -> MCRN:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(scope="module")
def released(vocabulary: Vocabulary) -> MCRN:
    """The released weights in evaluation mode; tests don't change it."""
    model = mcrn(vocabulary)
    load_released(model, reference_inputs.released_state("MCRN_Finetune"))
    return model


@pytest.fixture
def tiny(tiny_options: TinyOptions, vocabulary: Vocabulary) -> MCRN:
    """A small model in training mode without dropout."""
    torch.manual_seed(0)
    model = build_model(tiny_options("MCRN"), vocabulary)
    assert isinstance(model, MCRN)
    return without_dropout(model)


class TestReleased:
    """The released implementation's weights, inputs and outputs."""

    def test_features_embeddings_and_similarities(self, released: MCRN) -> None:
        expected, batch = reference_inputs.outputs("MCRN_Finetune"), reference_inputs.batch()
        flipped = Batch(images=batch.need("images").flip(-1))
        features: list[Tensor] = []
        hook = released.share.register_forward_pre_hook(lambda module, given: features.append(given[0]))
        with torch.inference_mode():
            images, texts, audio = (released.encode(modality, batch) for modality in MODALITIES)
            second = released.encode_image(flipped)
            found = {
                "i2t": released.score(images, texts),
                "i2a": released.score(images, audio),
                "i2i": released.score(images, second),
            }
        hook.remove()
        for name, feature in zip(("fv", "ft", "fa"), features[:3], strict=True):
            close(feature, expected[name])
        for name, embeddings in (("gv", images), ("gt", texts), ("ga", audio), ("gv2", second)):
            close(embeddings, expected[name])
        for name, scores in found.items():
            torch.testing.assert_close(scores, expected[name], atol=1e-6, rtol=0)
            torch.testing.assert_close(scores.double(), expected[f"{name}_f64"], atol=1e-6, rtol=0)
        for name, same in (("forward_p0_vt", "i2t"), ("forward_p0_va", "i2a")):
            torch.testing.assert_close(found[same], expected[name], atol=1e-6, rtol=0)

    def test_pretraining_views(self, released: MCRN) -> None:
        finetuned, expected = reference_inputs.outputs("MCRN_Finetune"), reference_inputs.outputs("MCRN_Pretrain")
        batch, some = reference_inputs.batch(), slice(3)  # no item knows of the others of its batch
        back = [6, 5, 4]
        first = Batch(
            images=batch.need("images")[some],
            audio=batch.need("audio")[some],
            tokens=batch.need("tokens")[some],
            lengths=batch.need("lengths")[some],
        )
        second = Batch(
            images=first.need("images").flip(-1),
            audio=first.need("audio").flip(-1),
            tokens=batch.need("tokens")[back],
            lengths=batch.need("lengths")[back],
        )
        with torch.inference_mode():
            views = {modality: released.forward_views(modality, first, second) for modality in MODALITIES}
            # What the released code did: audio through the encoder of images.
            features = [released.image_encoder(view.need("audio")) for view in (first, second)]
            through_images = [*features, *(released.share(feature) for feature in features)]
        close(views["audio"][0], finetuned["fa"][some])
        close(views["audio"][2], expected["audio_g_via_audio_encoder"][some])
        images = (finetuned["fv"], expected["img_f2"], finetuned["gv"], expected["img_g2"])
        texts = (finetuned["ft"], finetuned["ft"].flip(0), finetuned["gt"], expected["text_g2"])
        audio = (expected[name] for name in ("audio_f1", "audio_f2", "audio_g_via_visual_encoder", "audio_g2"))
        found = (*views["image"], *views["text"], *through_images)
        for given, wanted in zip(found, (*images, *texts, *audio), strict=True):
            close(given, wanted[some])

    def test_discriminator(self) -> None:
        discriminator = Discriminator(DiscriminatorParameters()).eval()
        state = translate(discriminator.released_names, reference_inputs.released_state("Discriminator"))
        load_fitting(discriminator, state, "the released discriminator", "")
        embeddings, expected = reference_inputs.outputs("MCRN_Finetune"), reference_inputs.outputs("Discriminator")
        with torch.inference_mode():
            for name in ("gv", "gt", "ga"):
                close(discriminator(embeddings[name]), expected[f"on_{name}"])

    def test_dead_parameters_are_not_built(self, released: MCRN) -> None:
        stored = sum(value.numel() for value in reference_inputs.released_state("MCRN_Finetune").values())
        built = sum(value.numel() for value in released.state_dict().values())
        queries_and_keys, classifier = 2 * 2 * (512 * 512 + 512), 513_000
        assert stored - built == queries_and_keys + classifier

    def test_a_checkpoint_of_more_layers_says_so(self, vocabulary: Vocabulary) -> None:
        with pytest.raises(InputError, match=r"missing +\d+  share\.enter\.blocks\.1"):
            load_released(mcrn(vocabulary, share={"n_sa": 2}), reference_inputs.released_state("MCRN_Finetune"))

    def test_several_layers_have_names_of_their_own(self, vocabulary: Vocabulary) -> None:
        model = mcrn(vocabulary, share={"n_sa": 2})
        state = reference_inputs.released_state("MCRN_Finetune")
        second = {k.replace("layers.0.", "layers.1."): v + 1 for k, v in state.items() if "layers.0." in k}
        load_released(model, state | second)
        for first, other in zip(*(model.share.leave.blocks[i].parameters() for i in range(2)), strict=True):
            torch.testing.assert_close(other, first + 1)


class TestSharedPattern:
    def test_encoder_equals_torchs_transformer_on_one_token(self) -> None:
        torch.manual_seed(0)
        encoder = PreNormEncoder(2, 16, 24, 8, 0.0, 0.0)
        layer = nn.TransformerEncoderLayer(16, 8, 24, 0.0, layer_norm_eps=1e-10, batch_first=True, norm_first=True)
        full = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16, eps=1e-10), enable_nested_tensor=False)
        with torch.no_grad():
            for theirs, ours in zip(full.layers, encoder.blocks, strict=True):
                assert isinstance(theirs, nn.TransformerEncoderLayer)
                theirs.self_attn.in_proj_weight[32:] = ours.get_parameter("attention.value.weight")
                theirs.self_attn.in_proj_bias[32:] = ours.get_parameter("attention.value.bias")
                theirs.self_attn.out_proj.load_state_dict(ours.get_submodule("attention.merge").state_dict())
                theirs.linear1.load_state_dict(ours.get_submodule("feed_forward.expand").state_dict())
                theirs.linear2.load_state_dict(ours.get_submodule("feed_forward.contract").state_dict())
            # The unbiased deviation is the biased one times sqrt(16 / 15).
            for norm in (full.norm, *(n for theirs in full.layers for n in (theirs.norm1, theirs.norm2))):
                assert isinstance(norm, nn.LayerNorm)
                norm.weight.mul_(math.sqrt(15 / 16))
        token = torch.randn(5, 16)
        torch.testing.assert_close(encoder(token), full(token[:, None])[:, 0], atol=2e-5, rtol=0)

    def test_patterns_one_by_one(self) -> None:
        torch.manual_seed(0)
        share = SharedPatternTransfer(16, 3, ShareParameters()).eval()
        features = torch.randn(4, 16)
        tokens = share.enter(share.normalise(l2norm(features)))
        expected = torch.zeros(4, 16)
        for row in range(4):
            weights = torch.sigmoid(share.weigh(tokens[row]))
            for pattern in range(3):
                expected[row] += weights[pattern] * (share.patterns[pattern].T @ tokens[row])
        torch.testing.assert_close(share(features), share.leave(expected), atol=1e-6, rtol=1e-5)

    def test_patterns_start_uniform(self) -> None:
        torch.manual_seed(0)
        values = torch.cat([pattern.flatten() for pattern in SharedPatternTransfer(64, 3, ShareParameters()).patterns])
        assert 0 <= values.min() < 0.001
        assert 0.999 < values.max() < 1
        assert 0.49 < values.mean() < 0.51

    def test_a_last_batch_of_one_takes_the_running_statistics(self) -> None:
        torch.manual_seed(0)
        share = SharedPatternTransfer(16, 3, ShareParameters(sa_drop=0, attention_drop=0, pattern_drop=0))
        share(torch.randn(8, 16))
        features = torch.randn(1, 16)
        before = share.state_dict()["normalise.running_mean"].clone()
        torch.testing.assert_close(share.train()(features), share.eval()(features))
        assert torch.equal(share.state_dict()["normalise.running_mean"], before)


class TestTraining:
    def test_the_loss_part_by_part(self, tiny: MCRN) -> None:
        batch = random_batch(6)
        losses = tiny.training_loss(batch, CRITERION)
        images, texts, audio = (tiny.encode(modality, batch) for modality in MODALITIES)
        second = tiny.encode_image(Batch(images=batch.second_view))
        pairs = ((images, texts), (images, audio), (audio, texts))
        expected = {
            "triplet_text": CRITERION(tiny.score(images, texts))["loss"] / 2,
            "triplet_audio": CRITERION(tiny.score(images, audio))["loss"] / 2,
            "mse_view": 1000 * (images - second).square().mean(),
            "kd": torch.stack([1000 * distillation(student, teacher) for student, teacher in pairs]).sum(),
            "alignment": torch.stack([1000 * (first - other).square().mean() for first, other in pairs]).sum(),
        }
        assert list(losses) == ["loss", *expected]
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value)
        torch.testing.assert_close(losses["loss"], torch.stack(list(expected.values())).sum())

    def test_the_parts_of_a_batch_count_its_means_once(self, tiny: MCRN) -> None:
        source = SimpleNamespace(of=lambda batch: Pairs())
        losses = Losses(tiny.eval(), build_objective(Optim()), source)  # type: ignore[arg-type]
        batch = random_batch(6)
        with torch.no_grad():
            alone = [losses(replace(part, share=None)) for part in parts_of(batch, 3)]
            parts = [losses(part) for part in parts_of(batch, 3)]
        for part, whole in zip(parts, alone, strict=True):
            for name in ("mse_view", "kd", "alignment"):
                assert float(whole[name]) > 0
                torch.testing.assert_close(part[name], whole[name] / 3)
            for name in ("triplet_text", "triplet_audio"):
                assert torch.equal(part[name], whole[name])
            terms = [part[name] for name in ("triplet_text", "triplet_audio", "mse_view", "kd", "alignment")]
            torch.testing.assert_close(part["loss"], torch.stack(terms).sum())
        of_all = losses(batch)["mse_view"].detach()
        torch.testing.assert_close(torch.stack([part["mse_view"] for part in parts]).sum(), of_all)

    def test_triplets_alone_need_no_second_view(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        torch.manual_seed(0)
        model = build_model(tiny_options("MCRN", {"optim.methods": "tpt"}), vocabulary)
        losses = model.training_loss(replace(random_batch(6), second_view=None), CRITERION)
        assert list(losses) == ["loss", "triplet_text", "triplet_audio"]
        torch.testing.assert_close(losses["loss"], losses["triplet_text"] + losses["triplet_audio"])

    @pytest.mark.parametrize("field", ["audio", "second_view"])
    def test_a_batch_that_lacks_a_source_is_refused(self, tiny: MCRN, field: str) -> None:
        lacking: dict[str, Any] = {field: None}
        with pytest.raises(ValueError, match=rf"needs Batch\.{field}"):
            tiny.training_loss(replace(random_batch(3), **lacking), CRITERION)

    def test_alignment_brings_views_and_modalities_together(self, tiny: MCRN) -> None:
        batch = random_batch(4)
        optimizer = torch.optim.Adam(tiny.parameters(), lr=1e-3)
        history = []
        for _ in range(8):
            losses = tiny.training_loss(batch, CRITERION)
            history.append({name: value.item() for name, value in losses.items()})
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
        for name in ("loss", "mse_view", "kd", "alignment"):
            assert history[-1][name] < 0.1 * history[0][name]

    def test_dropout_acts_on_features_in_training_only(self, tiny: MCRN) -> None:
        tiny.dropout.p = 0.5
        batch = random_batch(4)
        seen: list[Tensor] = []
        tiny.share.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        tiny.encode_audio(batch)
        tiny.forward_views("audio", batch, batch)
        tiny.eval().encode_audio(batch)
        assert 0.4 < (seen[0] == 0).float().mean() < 0.6
        assert all((features != 0).all() for features in seen[1:])

    def test_the_shared_module_learns_faster_than_the_encoders(self, tiny: MCRN, tiny_options: TinyOptions) -> None:
        shared, encoders = tiny.parameter_groups(tiny_options("MCRN", {"optim.lr_finetune": 1e-3}))
        assert (shared["lr"], encoders["lr"]) == (1e-3, pytest.approx(3e-4))
        assert {id(p) for p in shared["params"]} == {id(p) for p in tiny.share.parameters()}
        named = {id(p): name.split(".")[0] for name, p in tiny.named_parameters()}
        assert {named[id(p)] for p in encoders["params"]} == {"image_encoder", "caption_encoder", "audio_encoder"}
        assert len(shared["params"]) + len(encoders["params"]) == len(named)

    def test_fixed_word_vectors_are_in_no_group(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        for name in ("MCRN", "AMFMN"):
            options = tiny_options(name, {"seq2vec.fixed_emb": True})
            model = build_model(options, vocabulary)
            grouped = {id(p) for group in model.parameter_groups(options) for p in group["params"]}
            left_out = [parameter for parameter, p in model.named_parameters() if id(p) not in grouped]
            assert left_out == ["caption_encoder.sequence.embedding.weight"]


class TestPretrainedStart:
    def save(self, path: Path, model: MCRN, **more: Any) -> Path:
        torch.save({"format": "rsretrieval-1", "model": model.state_dict(), **more}, path)
        return path

    def start(self, tiny_options: TinyOptions, vocabulary: Vocabulary, path: Path, load_weights: bool = True) -> MCRN:
        model = build_model(tiny_options("MCRN", {"init_from": path}), vocabulary, load_weights)
        assert isinstance(model, MCRN)
        return model

    def test_starts_from_it(
        self, tiny: MCRN, tiny_options: TinyOptions, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        path = self.save(tmp_path / "p.pth", tiny, vocabulary=vocabulary.digest)
        started = self.start(tiny_options, vocabulary, path).state_dict()
        assert all(torch.equal(started[name], value) for name, value in tiny.state_dict().items())

    def test_is_not_read_where_a_checkpoint_follows(
        self, tiny_options: TinyOptions, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        self.start(tiny_options, vocabulary, tmp_path / "absent.pth", load_weights=False)
        with pytest.raises(InputError, match=r"no checkpoint .*absent\.pth"):
            self.start(tiny_options, vocabulary, tmp_path / "absent.pth")

    def test_a_misfit_names_file_and_weights(
        self, tiny: MCRN, tiny_options: TinyOptions, vocabulary: Vocabulary, tmp_path: Path
    ) -> None:
        path = self.save(tmp_path / "p.pth", tiny, vocabulary="another")
        with pytest.raises(InputError, match=r"model\.init_from: .*p\.pth was pretrained with another vocabulary"):
            self.start(tiny_options, vocabulary, path)
        other = build_model(tiny_options("MCRN", {"share.n_sa": 2}), vocabulary)
        assert isinstance(other, MCRN)
        path = self.save(tmp_path / "p.pth", other)
        with pytest.raises(
            InputError, match=r"p\.pth does not fit MCRN(.|\n)*unexpected +\d+  share\.enter\.blocks\.1"
        ):
            self.start(tiny_options, vocabulary, path)


class TestOptions:
    @pytest.mark.parametrize("name", ["RSITMD", "RSICD", "UCM"])
    def test_published_values(self, name: str) -> None:
        options = load_options(OPTION / f"{name}_MCRN.yaml")
        assert options.model == McrnParameters.model_validate({"name": "MCRN", "seq2vec": {"dir_st": "vocab/seq2vec"}})
        optim = options.optim
        assert (optim.epochs, optim.lr_finetune, optim.methods, optim.margin) == (70, 3e-4, "all", 0.2)
        assert (optim.schedule, optim.schedule_epochs, options.dataset.batch_size) == ("cosine", None, 64)
        assert options.dataset.audio_path == Path(f"data/{name.lower()}_audios")

    def test_widths_that_do_not_agree_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"discriminator\.in_size \(512\) and embed\.embed_dim \(256\)"):
            load_options(OPTION / "UCM_MCRN.yaml", ["model.embed.embed_dim=256"])

    def test_another_model_says_that_it_has_no_audio(self, caplog: pytest.LogCaptureFixture) -> None:
        load_options(OPTION / "UCM_AMFMN.yaml", ["dataset.audio_path=a", "optim.methods=tpt", "optim.lr_finetune=1"])
        (note,) = caplog.messages
        assert note.endswith("dataset.audio_path, optim.methods, optim.lr_finetune (AMFMN has no audio)")

    def test_the_learning_rate_that_does_not_count_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        load_options(OPTION / "UCM_MCRN.yaml", ["optim.lr=1e-3"])
        assert caplog.messages[-1].endswith("optim.lr (MCRN learns at optim.lr_finetune)")
