"""Adapters of peft in the towers of DualEncoder and CLIP: what learns, is saved and merged; blocks of CLIP."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batches.batch import Batch
from layers import build_model
from layers.adapters import SplitAttention, is_adapted, merge, target_names
from layers.backbone import import_timm
from layers.clip import CLIP, ClipParameters
from layers.clip_library import import_open_clip
from layers.clip_towers import blocks_of
from layers.dual_encoder import DualEncoder
from layers.packaged import count_line
from layers.released import load_fitting
from option import Options
from runs.models import start_state
from tests import ROOT
from tests.tiny_bert import TINY_BERT
from tests.tiny_siglip import write_multilingual
from training.state import TrainingState, optimiser_step
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")
DUAL = {"text.encoder": TINY_BERT, "image.train": "none", "adapter.targets": "all"}
CASES = [
    ("DualEncoder", DUAL | {"adapter.kind": "lora", "adapter.rank": 4}),
    ("DualEncoder", DUAL | {"adapter.kind": "dora", "adapter.towers": "text"}),
    ("DualEncoder", DUAL | {"adapter.kind": "ia3", "adapter.targets": "mlp", "adapter.towers": "text"}),
    ("CLIP", {"adapter.kind": "lora", "adapter.rank": 2}),
    ("CLIP", {"adapter.kind": "dora", "adapter.targets": "mlp", "adapter.towers": "image"}),
]
MULTILINGUAL = "a tiny CLIP with a text tower of transformers"
ADAPTER = re.compile(r"lora_|ia3_")
BATCH = Batch(
    images=torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    tokens=torch.tensor([[3, 9, 14, 4], [3, 12, 4, 0], [3, 20, 7, 4]]),
    lengths=torch.tensor([4, 3, 4]),
)


@pytest.fixture(scope="module")
def made(
    tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> Callable[..., tuple[Options, DualEncoder | CLIP]]:
    def build(name: str, changes: dict[str, Any], load_weights: bool = True) -> tuple[Options, DualEncoder | CLIP]:
        if importlib.util.find_spec("peft") is None:
            pytest.skip("the extra adapters is not installed")
        torch.manual_seed(0)
        options = tiny_options(name, changes)
        model = build_model(options, vocabulary, load_weights)
        assert isinstance(model, (DualEncoder, CLIP))
        return options, model

    return build


def embeddings(model: DualEncoder | CLIP) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.eval().encode_image(BATCH), model.encode_text(BATCH)])


def trained(options: Options, model: DualEncoder | CLIP, state: TrainingState | None = None) -> TrainingState:
    """Two steps on the sum of all embeddings."""
    state = state or start_state(model, model.parameter_groups(options), options.optim, CPU)
    model.train()
    for _ in range(2):
        (model.encode_image(BATCH).square().sum() + model.encode_text(BATCH).square().sum()).backward()
        optimiser_step(state, 0.0)
    return state


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_adapters_begin_as_nothing_learn_alone_and_are_merged(name: str, changes: dict[str, Any], made: Any) -> None:
    options, model = made(name, changes)
    _, plain = made(name, {key: value for key, value in changes.items() if not key.startswith("adapter")})
    heads = {key for key, _ in model.named_parameters() if key.startswith(("image_head.", "text_head."))}
    if name == "DualEncoder":
        plain.load_state_dict(model.state_dict(), strict=False)  # the same heads
    else:
        plain.load_state_dict(
            {key: value for key, value in model.state_dict().items() if "lora" not in key}, strict=False
        )
    before = {key: value.clone() for key, value in model.named_parameters()}
    if heads:
        plain.load_state_dict({key: before[key] for key in heads}, strict=False)
    torch.testing.assert_close(embeddings(model), embeddings(plain), atol=1e-5, rtol=1e-5)
    trained(options, model)
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == heads | {key for key in before if ADAPTER.search(key)}
    assert count_line(model).startswith("adapters: ")
    expected = embeddings(model)
    assert model.merged() is model
    assert not is_adapted(model)
    torch.testing.assert_close(embeddings(model), expected, atol=1e-4, rtol=1e-4)


def test_only_adapters_and_heads_are_saved_where_the_base_can_be_read_again(made: Any, tmp_path: Path) -> None:
    changes = DUAL | {"adapter.kind": "lora", "adapter.towers": "text"}
    options, model = made("DualEncoder", changes)
    trained(options, model)
    state, expected = model.state_dict(), embeddings(model)
    text = {key for key in state if key.startswith("text_tower")}
    assert text
    assert all("lora_" in key for key in text)
    _, other = made("DualEncoder", changes, load_weights=False)
    load_fitting(other, state, "it", "none")
    torch.testing.assert_close(embeddings(other), expected, atol=0, rtol=0)
    state["base_sha256"] = state["base_sha256"] ^ 1
    with pytest.raises(InputError, match=r"trained beside other weights \(SHA-256 [0-9a-f]{12}\.\.\., here"):
        load_fitting(other, state, "it", "none")


def test_adapters_start_as_before_where_a_checkpoint_has_none(made: Any) -> None:
    changes = DUAL | {"adapter.kind": "lora", "adapter.towers": "text"}
    _, heads = made("DualEncoder", changes)
    with torch.no_grad():
        heads.text_head[0].weight.mul_(2)
    _, model = made("DualEncoder", changes)
    assert not torch.allclose(embeddings(model), embeddings(heads), atol=1e-3)
    model.load_state_dict({key: value for key, value in heads.state_dict().items() if not ADAPTER.search(key)})
    torch.testing.assert_close(embeddings(model), embeddings(heads))


def test_a_clip_of_a_file_is_saved_by_its_adapters_alone(made: Any, tmp_path: Path) -> None:
    _, plain = made("CLIP", {})
    torch.save({key.removeprefix("clip."): value for key, value in plain.state_dict().items()}, tmp_path / "clip.pt")
    changes = {"adapter.kind": "lora", "adapter.rank": 2, "pretrained": str(tmp_path / "clip.pt")}
    options, model = made("CLIP", changes)
    torch.testing.assert_close(embeddings(model), embeddings(plain), atol=1e-5, rtol=1e-5)
    trained(options, model)
    state = model.state_dict()
    assert {key for key in state if "lora_" not in key} == {"base_sha256"}
    _, other = made("CLIP", changes, load_weights=False)
    load_fitting(other, state, "it", "none")
    torch.testing.assert_close(embeddings(other), embeddings(model), atol=0, rtol=0)


def test_a_training_goes_on_from_its_saved_adapters_exactly(made: Any) -> None:
    changes = DUAL | {"adapter.kind": "lora", "adapter.dropout": 0.2, "head.dropout": 0.2}
    options, whole = made("DualEncoder", changes)
    state = trained(options, whole)
    saved = io.BytesIO()
    torch.save(state.state_dict(), saved)
    trained(options, whole, state)
    options, resumed = made("DualEncoder", changes, load_weights=False)
    saved.seek(0)
    state = start_state(resumed, resumed.parameter_groups(options), options.optim, CPU)
    state.load_state_dict(torch.load(saved))
    trained(options, resumed, state)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "targets", "count"),
    [("vit_tiny_patch16_224", "attention", 24), ("vit_tiny_patch16_224", "mlp", 24), ("test_efficientnet", "mlp", 0)],
)
def test_layers_are_found_by_what_they_do(architecture: str, targets: Any, count: int) -> None:
    with torch.device("meta"):
        network = import_timm().create_model(architecture, num_classes=0)
    assert len(target_names(network, targets)) == count


def test_no_adapter_stands_beside_grouped_or_self_padding_convolutions() -> None:
    with torch.device("meta"):
        network = import_timm().create_model("tf_efficientnet_lite0", num_classes=0)
    named = dict(network.named_modules())
    found = [named[name] for name in target_names(network, "all")]
    assert len(found) == 32  # the pointwise convolutions of 16 blocks, whose first has one alone, and the last layer
    assert {(type(part), part.groups) for part in found} == {(nn.Conv2d, 1)}


@pytest.mark.parametrize("batch_first", [True, False])
def test_split_attention_is_torchs(batch_first: bool) -> None:
    torch.manual_seed(0)
    joined = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(joined.in_proj_bias)
    tokens, mask = torch.randn(5, 5, 12), torch.full((5, 5), float("-inf")).triu(1)
    for given in (None, mask):
        expected = joined(tokens, tokens, tokens, need_weights=False, attn_mask=given)[0]
        found = SplitAttention(joined)(tokens, tokens, tokens, attn_mask=given)[0]
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="to itself"):
        SplitAttention(joined)(tokens, tokens.clone(), tokens)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"adapter.kind": "lora", "text.encoder": "gru"}, r"model\.adapter\.towers: .*gru"),
        (
            {"adapter.kind": "lora", "adapter.targets": "attention"},
            r"targets: the image tower has no layers of attention",
        ),
    ],
)
def test_what_can_not_be_adapted_is_said(changes: dict[str, Any], match: str, made: Any) -> None:
    with pytest.raises(InputError, match=match):
        made("DualEncoder", DUAL | {"adapter.towers": "both"} | changes)


def test_what_nothing_reads_beside_adapters_is_said() -> None:
    block = {"freeze": "image", "adapter": {"kind": "lora", "towers": "text"}}
    unread = ClipParameters.model_validate(block).without_effect()
    replaced = {f"model.{key}" for key in ("freeze", "image.train", "text.train", "text.layer_decay")}
    assert {key for key, reason in unread.items() if reason.startswith("adapters learn")} == replaced
    still = {key for key, reason in unread.items() if reason == "the image tower does not learn"}
    assert still == {"model.image.lr", "model.image.layer_decay"}


def test_merging_without_adapters_changes_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    first = network[0]
    merge(network)
    assert network[0] is first


def resnet(folder: Path) -> Path:
    """The configuration of a tiny CLIP whose image tower is a ResNet."""
    config, path = json.loads((ROOT / "tests" / "clip_tiny.json").read_text()), folder / "clip_tiny_resnet.json"
    config["vision_cfg"] = {"image_size": 64, "layers": [1, 2, 1, 2], "width": 8, "head_width": 8}
    path.write_text(json.dumps(config))
    return path


class TestClipBlocks:
    """`train: {last: N}`, and rates by block."""

    def test_of_a_transformer(self) -> None:
        open_clip = import_open_clip()
        open_clip.add_model_config(ROOT / "tests" / "clip_tiny.json")
        clip = open_clip.create_model("clip_tiny")
        image, text = blocks_of(clip, "image"), blocks_of(clip, "text")
        assert len(image) == len(text) == 3
        assert sorted(name for block in image + text for name in block) == sorted(
            name for name, _ in clip.named_parameters() if name != "logit_scale"
        )
        assert set(image[0]) >= {"visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.weight"}
        assert {"visual.proj", "visual.ln_post.weight"} <= set(image[2])
        assert set(text[0]) == {"token_embedding.weight", "positional_embedding"}
        assert {"text_projection", "ln_final.weight"} <= set(text[2])

    def test_of_a_resnet(self, tmp_path: Path) -> None:
        import_open_clip().add_model_config(resnet(tmp_path))
        clip = import_open_clip().create_model("clip_tiny_resnet")
        image = blocks_of(clip, "image")
        assert len(image) == 1 + 1 + 2 + 1 + 2
        assert target_names(clip.visual, "attention") == []
        assert {name.split(".")[1] for name in image[0]} == {"conv1", "conv2", "conv3", "bn1", "bn2", "bn3"}
        assert {name.split(".")[1] for name in image[-1]} == {"layer4", "attnpool"}

    def test_the_last_blocks_learn_at_their_rates(self, made: Any) -> None:
        changes = {"image.train": {"last": 2}, "image.lr": 0.01, "image.layer_decay": 0.5, "freeze": "text"}
        options, model = made("CLIP", changes)
        learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert learning == {f"clip.{name}" for block in model.blocks["image"][1:] for name in block}
        groups = model.parameter_groups(options)
        assert sorted(group["lr"] for group in groups) == [0.005, 0.01]
        counts = {group["lr"]: len(group["params"]) for group in groups}
        assert counts == {0.005: len(model.blocks["image"][1]), 0.01: len(model.blocks["image"][2])}
        with pytest.raises(InputError, match=r"model\.text\.train: last 4 blocks; this tower has 3"):
            made("CLIP", {"text.train": {"last": 4}})

    def test_frozen_blocks_keep_their_statistics(self, made: Any, tmp_path: Path) -> None:
        _, model = made("CLIP", {"architecture": str(resnet(tmp_path)), "image.train": {"last": 2}})
        before = {key: value.clone() for key, value in model.state_dict().items() if "running_mean" in key}
        model.train().encode_image(BATCH)
        moved = {key for key, value in before.items() if not torch.equal(value, model.state_dict()[key])}
        learning = {f"clip.{name}" for block in model.blocks["image"][-2:] for name in block}
        assert moved == {key for key in before if key.replace("running_mean", "weight") in learning}
        assert 0 < len(moved) < len(before)

    def test_without_choices_all_learn_in_one_group(self, made: Any) -> None:
        options, model = made("CLIP", {})
        (group,) = model.parameter_groups(options)
        assert group["lr"] == options.optim.lr
        assert [id(weight) for weight in group["params"]] == [id(weight) for weight in model.parameters()]


def saved_bytes(network: nn.Module, run: Callable[[], Tensor]) -> int:
    """Of what a forward pass keeps for the gradient, the weights aside."""
    kept = {weight.untyped_storage().data_ptr(): 0 for weight in network.parameters()}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = run()
    assert result.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("name", "changes", "most"),
    [
        ("CLIP", {}, 0.5),
        ("CLIP", {"adapter.kind": "lora"}, 0.5),
        ("CLIP", {"image.train": {"last": 1}, "text.train": {"last": 1}}, 1.0),
        ("CLIP", {"architecture": MULTILINGUAL}, 0.5),
        ("DualEncoder", {"text.encoder": TINY_BERT, "text.train": "all"}, 0.7),
        ("DualEncoder", DUAL | {"adapter.kind": "lora", "adapter.towers": "text"}, 0.7),
    ],
)
def test_checkpointing_keeps_less_and_changes_no_gradient(
    name: str, changes: dict[str, Any], most: float, made: Any, tmp_path: Path
) -> None:
    if changes.get("architecture") == MULTILINGUAL:
        changes = changes | {"architecture": str(write_multilingual(tmp_path / "xlm")[1])}
    gradients, kept = [], []
    for twice in (False, True):
        _, model = made(name, changes | {"gradient_checkpointing": twice})
        model.train()
        kept.append(saved_bytes(model, lambda: model.encode_image(BATCH) + model.encode_text(BATCH)))  # noqa: B023
        (model.encode_image(BATCH).square().sum() + model.encode_text(BATCH).square().sum()).backward()
        gradients.append({key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None})
    assert kept[1] < most * kept[0]
    learning = {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert gradients[0].keys() == gradients[1].keys() == learning
    for key in learning:
        torch.testing.assert_close(gradients[0][key], gradients[1][key])
