"""AMFMN against the released implementation, against slow twins written pair by pair, and its bound on memory.

Letters: N images, M texts, D embedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from batches.batch import Batch
from layers.amfmn import AMFMN, LIVE_PAIR_TENSORS, AmfmnParameters, block_shape
from layers.released import load_released, translate
from tests import reference_inputs
from utils import InputError
from vocab import Vocabulary

ATTENTION_TYPES = ("soft_att", "fusion_att", "similarity_att")
SCORERS = [(att_type, vgmf) for att_type in ATTENTION_TYPES for vgmf in (False, True)]
MIB = 2**20


def scorer(att_type: str, vgmf: bool = False, embed_dim: int = 512, block_mib: int = 256, seed: int = 0) -> AMFMN:
    """The pair part of an AMFMN, without encoders."""
    torch.manual_seed(seed)
    return AMFMN(nn.Identity(), nn.Identity(), embed_dim, att_type, vgmf, block_mib)  # type: ignore[arg-type]


def embeddings(images: int, texts: int, embed_dim: int) -> tuple[Tensor, Tensor]:
    """Embeddings like those of the encoders: any sign for images, none below zero for texts."""
    draw = torch.Generator().manual_seed(images * texts)
    return torch.randn(images, embed_dim, generator=draw), torch.randn(texts, embed_dim, generator=draw).relu()


def full_size(att_type: str, vocabulary: Vocabulary) -> AMFMN:
    """AMFMN as the authors' options build it, with random weights."""
    parameters = AmfmnParameters.model_validate({"name": "AMFMN", "cross_attention": {"att_type": att_type}})
    return AMFMN.from_parameters(parameters, 256, vocabulary, load_weights=False).eval()


def assert_close_relatively(given: Tensor, expected: Tensor, bound: float) -> None:
    torch.testing.assert_close(given, expected, atol=bound * float(expected.abs().max()), rtol=0)


class TestReleased:
    """The released implementation's weights, inputs and outputs."""

    @pytest.mark.parametrize("att_type", ATTENTION_TYPES)
    def test_every_intermediate_value(self, att_type: str, vocabulary: Vocabulary) -> None:
        expected, batch = reference_inputs.outputs(f"AMFMN_{att_type}"), reference_inputs.batch()
        model, released = full_size(att_type, vocabulary), reference_inputs.released_state(f"AMFMN_{att_type}")
        load_released(model, released)
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda module, given, out: seen.update({name: out, f"{name} input": given[0]})

        model.image_encoder.get_submodule("solo").register_forward_hook(keep("solo"))
        model.image_encoder.get_submodule("gate").register_forward_hook(keep("gate"))
        model.caption_encoder.get_submodule("sequence").register_forward_hook(keep("sequence"))
        with torch.inference_mode():
            images, texts = model.encode_image(batch), model.encode_text(batch)
            attention = model.attention
            guided = attention.guide(attention.image_terms(images)[:, None], attention.text_terms(texts)[None])
            scores = model.score(images, texts)
        assert_close_relatively(seen["solo"], expected["solo_feature"], 1e-4)
        assert_close_relatively(seen["gate input"], expected["atted_feature"], 1e-4)
        assert_close_relatively(seen["gate"], expected["solo_attention_logits"], 1e-4)
        assert_close_relatively(images, expected["mvsa_feature"], 1e-4)
        assert_close_relatively(seen["sequence"], expected["seq2vec"], 1e-4)
        assert_close_relatively(texts, expected["text_feature"], 1e-4)
        assert_close_relatively(guided, expected["Ft"], 1e-4)
        torch.testing.assert_close(scores, expected["sims"], atol=1e-5, rtol=0)

        assert translate(AMFMN.released_names, released).keys() == model.state_dict().keys()
        dead = {name for name, value in released.items() if not translate(AMFMN.released_names, {name: value})}
        assert {name.rpartition(".")[0] for name in dead} == {"vgmf_gate.gate", "extract_feature.resnet.fc"}

        model.double()
        batch = Batch(images=batch.need("images").double(), tokens=batch.tokens, lengths=batch.lengths)
        with torch.inference_mode():
            exact = model.pair_scores(model.encode_image(batch), model.encode_text(batch))
        torch.testing.assert_close(exact, expected["sims_f64"], atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> AMFMN:
    return full_size("soft_att", vocabulary)


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    return reference_inputs.released_state("AMFMN_soft_att")


class TestReleasedFaults:
    """Checkpoints that don't fit say so and change nothing."""

    def faults(self, model: AMFMN, state: dict[str, Tensor]) -> str:
        """The message of the error; the model must be what it was."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InputError) as caught:
            load_released(model, state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return str(caught.value)

    def test_another_vocabulary(self, model: AMFMN, released: dict[str, Tensor]) -> None:
        message = self.faults(model, released | {"text_feature.seq2vec.embedding.weight": torch.zeros(1226, 620)})
        assert (
            "caption_encoder.sequence.embedding.weight: [1226, 620] in the checkpoint, [21, 620] in the model"
            in message
        )
        assert "another vocabulary" in message

    def test_a_missing_parameter(self, model: AMFMN, released: dict[str, Tensor]) -> None:
        message = self.faults(model, {k: v for k, v in released.items() if k != "text_feature.to_out.bias"})
        assert "missing           1  caption_encoder.projection.bias\n" in message

    def test_an_unexpected_parameter(self, model: AMFMN, released: dict[str, Tensor]) -> None:
        message = self.faults(model, released | {"head.weight": torch.zeros(2, 2)})
        assert "unexpected        1  head.weight\n" in message

    def test_another_attention_type(self, model: AMFMN, released: dict[str, Tensor]) -> None:
        others = {name.replace("cross_attention.0", "fc_visual.0"): value for name, value in released.items()}
        message = self.faults(model, others)
        assert "missing           2  attention.gate.weight, attention.gate.bias\n" in message
        assert "unexpected        2  attention.image_map.weight, attention.image_map.bias\n" in message
        assert "another model or att_type" in message

    def test_many_faults_are_counted(self, model: AMFMN) -> None:
        message = self.faults(model, {})
        assert f", and {len(model.state_dict()) - 3} more" in message
        assert "not in one tensor:\n  missing " in message

    def test_prefixed_names_load(self, model: AMFMN, released: dict[str, Tensor]) -> None:
        before = model.caption_encoder.get_parameter("projection.bias").clone()
        load_released(model, {f"module.{name}": value for name, value in released.items()})
        bias = model.caption_encoder.get_parameter("projection.bias")
        assert torch.equal(bias, released["text_feature.to_out.bias"])
        assert not torch.equal(bias, before)


def naive_guided(model: AMFMN, image: Tensor, text: Tensor) -> Tensor:
    """F of one pair, by the formulas on joined vectors."""
    linear = cast(dict[str, nn.Linear], dict(model.attention.named_children()))
    joined = torch.cat([image, text])
    if "value" in linear:
        guided = torch.sigmoid(linear["gate"](joined)) * linear["value"](joined)
    elif "gate" in linear:
        guided = torch.sigmoid(linear["gate"](image)) * text
    else:
        mapped = linear["text_map"](text)
        guided = torch.sigmoid(linear["image_map"](image) * mapped) * mapped
    if model.vgmf is None:
        return guided
    image, guided = image / (image.norm() + 1e-8), guided / (guided.norm() + 1e-8)
    weight = torch.sigmoid(model.vgmf(torch.cat([image, guided])))
    return weight * image + (1 - weight) * guided


def naive_scores(model: AMFMN, images: Tensor, texts: Tensor) -> Tensor:
    """Similarities pair by pair: (v . F) / max(|v| |F|, 1e-8)."""
    rows = []
    for image in images:
        row = []
        for text in texts:
            guided = naive_guided(model, image, text)
            row.append(image.dot(guided) / max(image.norm() * guided.norm(), torch.tensor(1e-8)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


class TestScores:
    """Similarities of the pair part alone."""

    @pytest.mark.parametrize(("att_type", "vgmf"), SCORERS)
    def test_equal_the_slow_twin(self, att_type: str, vgmf: bool) -> None:
        model = scorer(att_type, vgmf, embed_dim=24).double()
        images, texts = embeddings(5, 7, 24)
        images, texts = images.double(), texts.double()
        expected = naive_scores(model, images, texts)
        assert expected.std() > 0.01
        torch.testing.assert_close(model.pair_scores(images, texts), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(
            model.float().score(images.float(), texts.float()), expected.float(), atol=1e-6, rtol=0
        )

    @pytest.mark.parametrize(("att_type", "vgmf"), SCORERS)
    def test_gradients_equal_the_slow_twins(self, att_type: str, vgmf: bool) -> None:
        model = scorer(att_type, vgmf, embed_dim=8).double()
        images, texts = (e.double().requires_grad_() for e in embeddings(4, 3, 8))
        weights = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3)
        sources = [images, texts, *model.parameters()]
        given = torch.autograd.grad((weights * model.pair_scores(images, texts)).sum(), sources)
        expected = torch.autograd.grad((weights * naive_scores(model, images, texts)).sum(), sources)
        for found, wanted in zip(given, expected, strict=True):
            assert wanted.abs().max() > 1e-4
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)

    @pytest.mark.parametrize(("att_type", "vgmf"), SCORERS)
    def test_one_image_or_one_text(self, att_type: str, vgmf: bool) -> None:
        model = scorer(att_type, vgmf, embed_dim=16)
        images, texts = embeddings(3, 4, 16)
        whole = model.score(images, texts)
        assert model.score(images[:1], texts).shape == (1, 4)
        assert model.score(images, texts[:1]).shape == (3, 1)
        torch.testing.assert_close(model.score(images[1:2], texts), whole[1:2], atol=1e-6, rtol=0)
        torch.testing.assert_close(model.score(images, texts[2:3]), whole[:, 2:3], atol=1e-6, rtol=0)
        torch.testing.assert_close(model.score(images[2:], texts[3:]), whole[2:, 3:], atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("att_type", "vgmf"), SCORERS)
    def test_an_empty_text_or_image_scores_without_nan(self, att_type: str, vgmf: bool) -> None:
        model = scorer(att_type, vgmf, embed_dim=16)
        images, texts = embeddings(3, 4, 16)
        images[1], texts[2] = 0, 0
        images.requires_grad_()
        texts.requires_grad_()
        scores = model.score(images, texts)
        assert (scores[1] == 0).all()
        assert scores.isfinite().all()
        if att_type == "soft_att" and not vgmf:
            assert (scores[:, 2] == 0).all()
        scores.sum().backward()
        gradients = [images.grad, texts.grad, *(p.grad for p in model.parameters())]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made and not yet freed; those that exist before don't count."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and _storage(value) not in known:
                known.add(_storage(value))
                storage = value.untyped_storage()
                self.live += storage.nbytes()
                self.peak, self.largest = max(self.peak, self.live), max(self.largest, storage.nbytes())
                weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self.live -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def memory_of_scores(model: AMFMN, images: Tensor, texts: Tensor, train: bool) -> LiveMemory:
    """What scoring takes, with `train` including the gradients of everything."""
    for tensor in (images, texts, *model.parameters()):
        tensor.requires_grad_(train)
    with LiveMemory() as memory:
        scores = model.score(images, texts)
        if train:
            scores.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters()) or not train
    return memory


class TestMemory:
    """Bounds on what scoring takes beyond its inputs."""

    def test_the_meter_counts_what_is_alive(self) -> None:
        with LiveMemory() as memory:
            kept = torch.ones(256)
            for _ in range(3):
                kept = kept + 1
            view = kept.view(16, 16)
        assert (memory.peak, memory.largest, memory.live) == (2048, 1024, 1024)
        del kept
        assert memory.live == 1024
        del view
        assert memory.live == 0

    @pytest.mark.parametrize("train", [False, True])
    def test_soft_attention_makes_no_tensor_of_pairs(self, train: bool) -> None:
        images, texts, embed_dim = 40, 60, 512
        memory = memory_of_scores(scorer("soft_att"), *embeddings(images, texts, embed_dim), train)
        vectors = 4 * (images + texts) * embed_dim
        weights = 4 * embed_dim * embed_dim if train else 0
        assert memory.largest <= max(vectors, weights) < 4 * images * texts * embed_dim
        assert memory.peak <= 4 * vectors + weights < 4 * images * texts * embed_dim

    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("case", [case for case in SCORERS if case != ("soft_att", False)])
    def test_blocks_keep_to_their_bound(self, case: tuple[str, bool], train: bool) -> None:
        images, texts, embed_dim, block_mib = 200, 160, 64, 8
        one_tensor = 4 * images * texts * embed_dim
        per_item = 16 * 4 * (images + texts) * embed_dim + 4 * 4 * images * texts
        model = scorer(*case, embed_dim, block_mib)
        memory = memory_of_scores(model, *embeddings(images, texts, embed_dim), train)
        assert memory.largest <= block_mib * MIB / 4
        assert memory.peak <= block_mib * MIB + per_item
        # More than two tensors of all pairs live at once without blocks: the bound is one that can fail.
        model.block_bytes = 2**40
        whole = memory_of_scores(model, *embeddings(images, texts, embed_dim), train)
        assert whole.largest >= one_tensor
        assert whole.peak > max(2 * one_tensor, 1.5 * (block_mib * MIB + per_item))

    @pytest.mark.parametrize("pairs", [1, 25, 180])
    @pytest.mark.parametrize("case", SCORERS)
    def test_blocks_give_the_scores_and_gradients_of_the_whole(self, case: tuple[str, bool], pairs: int) -> None:
        model = scorer(*case, embed_dim=8).double()
        images, texts = (e.double().requires_grad_() for e in embeddings(11, 24, 8))
        weights = torch.linspace(-1, 2, 11 * 24, dtype=torch.float64).reshape(11, 24)
        sources = [images, texts, *model.parameters()]
        results = []
        for block_bytes in (2**40, pairs * 4 * 8 * LIVE_PAIR_TENSORS):
            model.block_bytes = block_bytes
            scores = model.pair_scores(images, texts)
            results.append((scores, torch.autograd.grad((weights * scores).sum(), sources)))
        (whole, expected), (blocks, given) = results
        torch.testing.assert_close(blocks, whole, atol=1e-13, rtol=0)
        for found, wanted in zip(given, expected, strict=True):
            assert_close_relatively(found, wanted, 1e-12)

    def test_the_option_reaches_the_blocks(self) -> None:
        model = scorer("similarity_att", embed_dim=32, block_mib=1)
        images, texts = embeddings(40, 60, 32)
        assert block_shape(40, 60, 32, model.block_bytes) == (11, 60)
        blocks = model.score(images, texts)
        model.block_bytes = 2**40
        torch.testing.assert_close(blocks, model.score(images, texts), atol=1e-6, rtol=0)

    def test_blocks_train_in_float32_under_autocast(self) -> None:
        gradients = []
        for block_bytes in (2**40, 2**12):
            model = scorer("fusion_att", vgmf=True, embed_dim=16)
            model.block_bytes = block_bytes
            images, texts = embeddings(6, 5, 16)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model.score(images.requires_grad_(), texts).square().sum()
            loss.backward()
            gradients.append(cast(Tensor, images.grad))
        assert_close_relatively(gradients[1], gradients[0], 1e-5)

    @given(
        images=st.integers(1, 10**5),
        texts=st.integers(1, 10**5),
        width=st.integers(1, 4096),
        bound=st.integers(1, 2**40),
    )
    def test_block_shape_is_the_largest_that_fits(self, images: int, texts: int, width: int, bound: int) -> None:
        rows, columns = block_shape(images, texts, width, bound)
        per_pair = LIVE_PAIR_TENSORS * 4 * width
        assert 1 <= rows <= images
        assert 1 <= columns <= texts
        assert rows * columns * per_pair <= bound or (rows, columns) == (1, 1)
        if columns < texts:
            assert (columns + 1) * per_pair > bound
        if rows < images:
            assert (rows + 1) * columns * per_pair > bound
