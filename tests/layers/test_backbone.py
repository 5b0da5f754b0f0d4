"""Backbones and the forms of the weight files that they start from."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD
from layers import backbone
from layers.backbone import (
    BackboneParameters,
    ChosenBackboneParameters,
    TimmBackbone,
    backbone_parameters,
    backbone_width,
    build_backbone,
    plain_weights,
    read_backbone_file,
    resnet,
    synchronise_norms,
)
from layers.pyramid import pyramid
from layers.towers import TimmTower
from utils import InputError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def resnets() -> ModuleType:
    """`torchvision.models.resnet`, imported as the backbones do it."""
    return backbone.import_torchvision("torchvision.models.resnet")


@pytest.fixture(scope="module")
def weights(resnets: ModuleType) -> State:
    """A ResNet-18 as torchvision publishes it, with the ImageNet classifier."""
    torch.manual_seed(1)
    state: State = resnets.resnet18(weights=None).state_dict()
    return state


def classifier(classes: int, width: int = 512) -> State:
    return {"fc.weight": torch.ones(classes, width), "fc.bias": torch.ones(classes)}


def assert_holds(network: nn.Module, weights: State) -> None:
    """All of the weights but the classifier's, to the last bit."""
    held = network.state_dict()
    assert held.keys() == {name for name in weights if not name.startswith("fc.")}
    assert all(torch.equal(value, weights[name]) for name, value in held.items())


FORMS: dict[str, Callable[[State], object]] = {
    "raw": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet18"},
    "model": lambda state: {"model": state},
    "both": lambda state: {"state_dict": {"model": state}},
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "module in state_dict": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "30 classes": lambda state: {**state, **classifier(30)},
    "51 classes in model": lambda state: {"model": {**state, **classifier(51)}},
    "no classifier": lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
}


class TestFiles:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_loads(self, form: str, weights: State, tmp_path: Path) -> None:
        torch.save(FORMS[form](weights), tmp_path / "weights.pth")
        assert_holds(resnet("resnet18", str(tmp_path / "weights.pth")), weights)

    def test_old_files_without_batch_counters_load(self, weights: State, tmp_path: Path) -> None:
        old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
        torch.save(old, tmp_path / "weights.pth")
        assert_holds(resnet("resnet18", str(tmp_path / "weights.pth")), weights)

    def test_a_resnet50_of_30_classes_loads(self, resnets: ModuleType, tmp_path: Path) -> None:
        state = resnets.resnet50(weights=None, num_classes=30).state_dict()
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "aid.pth")
        assert_holds(resnet("resnet50", str(tmp_path / "aid.pth")), state)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        message = fault(tmp_path / "absent.pth")
        assert message.startswith(f"model.backbone.pretrained: no file {tmp_path / 'absent.pth'}.")
        assert "imagenet, installed, none, or the path" in message

    def test_a_folder(self, tmp_path: Path) -> None:
        assert "no file" in fault(tmp_path)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda state: state.pop("layer4.1.bn2.weight"), "missing layer4.1.bn2.weight"),
            (lambda state: state.update({"head.weight": torch.ones(2)}), "unexpected head.weight"),
            (
                lambda state: state.update({"conv1.weight": torch.ones(64, 1, 7, 7)}),
                "conv1.weight has shape [64, 1, 7, 7], expected [64, 3, 7, 7]",
            ),
            (lambda state: state.clear(), "missing conv1.weight"),
        ],
        ids=["missing", "unexpected", "shape", "empty"],
    )
    def test_weights_that_do_not_fit(
        self, change: Callable[[State], object], expected: str, weights: State, tmp_path: Path
    ) -> None:
        state = dict(weights)
        change(state)
        torch.save(state, tmp_path / "weights.pth")
        message = fault(tmp_path / "weights.pth")
        assert message.startswith(f"model.backbone.pretrained: {tmp_path / 'weights.pth'} does not fit ResNet: ")
        assert expected in message
        assert "\n" not in message

    def test_many_faults_are_counted(self, tmp_path: Path) -> None:
        torch.save({"fc.bias": torch.ones(3)}, tmp_path / "weights.pth")
        message = fault(tmp_path / "weights.pth")
        assert message.count("missing ") == 5
        assert message.endswith(" and 95 more.")  # 62 weights and 40 statistics, without the classifier's two

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ([1, 2], "holds a list, not a state dict"),
            (torch.ones(2), "holds a Tensor, not a state dict"),
            ({"state_dict": "text"}, "does not fit"),
            ({1: torch.ones(2)}, "does not fit"),
        ],
        ids=["list", "tensor", "text", "numbered"],
    )
    def test_something_else_than_a_state_dict(self, content: object, expected: str, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "weights.pth")
        assert f"{tmp_path / 'weights.pth'} {expected}" in fault(tmp_path / "weights.pth")

    @pytest.mark.parametrize("content", [b"", b"not a state dict", b"PK\x03\x04"], ids=["empty", "text", "cut"])
    def test_a_file_that_torch_did_not_write(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "weights.pth").write_bytes(content)
        message = fault(tmp_path / "weights.pth")
        assert f"{tmp_path / 'weights.pth'} can't be read as a plain state dict" in message
        assert "\n" not in message

    @pytest.mark.parametrize("plain_pickle", [False, True])
    def test_code_is_refused_unrun(self, plain_pickle: bool, tmp_path: Path) -> None:
        path, mark = tmp_path / "weights.pth", tmp_path / "code_ran"
        if plain_pickle:
            path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
        else:
            torch.save({"conv1.weight": Bomb(mark)}, path)
        assert f"{path} can't be read as a plain state dict" in fault(path)
        assert not mark.exists()
        if not plain_pickle:
            torch.load(path, weights_only=False)
            assert mark.exists()  # the bomb was live


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def fault(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        resnet("resnet18", str(path))
    return str(caught.value)


class TestImageNet:
    def test_torchvisions_weights_are_taken(
        self, weights: State, resnets: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def give(chosen: object, **_: object) -> State:
            asked.append(chosen)
            return weights

        monkeypatch.setattr(resnets.ResNet18_Weights, "get_state_dict", give)
        assert_holds(resnet("resnet18", "imagenet"), weights)
        assert asked == [resnets.ResNet18_Weights.IMAGENET1K_V1]

    def test_a_damaged_file_in_the_librarys_cache(
        self, resnets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        kept = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        kept.parent.mkdir(parents=True)
        torch.save(resnets.resnet18().state_dict(), kept)
        message = fault(Path("imagenet"))
        assert message.startswith(f"{kept}: damaged: its SHA-256 does not begin with f37072fd. Delete it")

    @pytest.mark.parametrize(
        "failure", [URLError("no route to host"), RuntimeError("invalid hash value"), PermissionError("read-only")]
    )
    def test_a_failed_download_teaches(
        self, failure: Exception, resnets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def fail(*_: object, **__: object) -> State:
            raise failure

        monkeypatch.setattr(resnets.ResNet18_Weights, "get_state_dict", fail)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        message = fault(Path("imagenet"))
        assert str(failure) in message
        assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
        assert f"put the file into {tmp_path / 'hub' / 'checkpoints'}" in message
        assert "--set model.backbone.pretrained=FILE" in message
        assert "--set model.backbone.pretrained=none" in message


def test_none_is_random_and_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "_download", lambda *_: pytest.fail("a download was tried"))
    torch.manual_seed(0)
    first, second = resnet("resnet18", "none"), resnet("resnet18", "none")
    assert not torch.equal(first.get_parameter("conv1.weight"), second.get_parameter("conv1.weight"))
    assert first(torch.zeros(2, 3, 64, 64)).shape == (2, 512)  # no classifier


def test_names_come_back_bare(tmp_path: Path) -> None:
    torch.save(
        {"model": {"module.a": torch.ones(1), "module.module.b": torch.ones(1), "note": "text"}}, tmp_path / "w.pth"
    )
    assert list(read_backbone_file(tmp_path / "w.pth")) == ["a", "module.b"]


class TestTimm:
    def test_its_weights_come_back_without_the_classifier(self, tmp_path: Path) -> None:
        timm = backbone.import_timm()
        state = timm.create_model("convnext_atto", pretrained=False, num_classes=7).state_dict()
        torch.save({"state_dict": state}, tmp_path / "weights.pth")
        network = build_backbone("timm/convnext_atto", str(tmp_path / "weights.pth"))
        held = plain_weights(network)
        assert held.keys() == {name for name in state if not name.startswith("head.fc.")}
        assert all(torch.equal(value, state[name]) for name, value in held.items())
        assert backbone_width(network) == 320
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 320)

    @pytest.mark.parametrize("change", ["missing stages.1.downsample.1.weight", "unexpected stem.9.bias"])
    def test_weights_that_do_not_fit(self, change: str, tmp_path: Path) -> None:
        state = plain_weights(build_backbone("timm/convnext_atto", "none"))
        state.pop("stages.1.downsample.1.weight") if "missing" in change else state.update(
            {"stem.9.bias": torch.ones(1)}
        )
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(InputError, match=f"does not fit ConvNeXt: {change}"):
            build_backbone("timm/convnext_atto", str(tmp_path / "weights.pth"))

    def test_an_unknown_name_and_a_failed_download(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(
            InputError, match=r"convnext_tny: timm .* has no such network\. Similar names: convnext_tiny, "
        ):
            build_backbone("timm/convnext_tny", "none")

        def fail(name: str, pretrained: bool, num_classes: int) -> nn.Module:
            assert pretrained
            raise OSError("no network\nat all")

        monkeypatch.setattr(backbone.import_timm(), "create_model", fail)
        for name in ("resnet10t", "convnext_tiny.fb_in22k"):
            with pytest.raises(InputError, match=rf"timm/{name}, pretrained imagenet: .*\(no network\)\. Weights that"):
                build_backbone(f"timm/{name}", "imagenet")

    def test_images_are_normalised_as_its_weights_expect(self) -> None:
        pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        given = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        network = TimmBackbone("mobilenetv1_100", "none").eval()
        assert {*network.network.default_cfg["mean"], *network.network.default_cfg["std"]} == {0.5}
        expected = (pixels - 0.5) / 0.5
        with torch.no_grad():
            torch.testing.assert_close(network(given), network.network(expected), rtol=1e-4, atol=1e-5)
            inner = network.network.forward_intermediates(expected, indices=network.stages, intermediates_only=True)
            for found, wanted in zip(network.maps(given), inner, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert not {"scale", "shift"} & network.state_dict().keys()

    def test_its_weights_have_their_own_learning_rate(self) -> None:
        model = nn.ModuleDict({"pyramid": pyramid("timm/convnext_atto", "none"), "head": nn.Linear(2, 2)})
        inside = {id(parameter) for parameter in backbone_parameters(model)}
        assert inside == {id(parameter) for parameter in model["pyramid"].parameters()}

    def test_without_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(InputError, match=r"bash exec/environment\.sh timm"):
            build_backbone("timm/resnet10t", "none")


class TestPyramid:
    @pytest.mark.parametrize(
        ("architecture", "channels"),
        [
            ("resnet18", (64, 128, 256, 512)),
            ("resnet50", (256, 512, 1024, 2048)),
            ("timm/resnet10t", (64, 128, 256, 512)),
            ("timm/convnext_atto", (40, 80, 160, 320)),
            ("timm/efficientnet_lite0", (24, 40, 112, 320)),
        ],
    )
    def test_four_maps_and_every_weight_is_used(self, architecture: str, channels: tuple[int, ...]) -> None:
        network = pyramid(architecture, "none")
        maps = network(torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
        sides = [96 // step for step in (4, 8, 16, 32)]
        assert [tuple(found.shape) for found in maps] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
        assert network.channels == channels
        sum(found.square().mean() for found in maps).backward()
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []

    def test_of_timm_is_that_of_torchvision_with_the_same_weights(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        theirs = pyramid("timm/resnet18", "none").eval()
        state = plain_weights(theirs.get_submodule("backbone"))
        torch.save(state, tmp_path / "weights.pth")
        ours = pyramid("resnet18", str(tmp_path / "weights.pth")).eval()
        images = torch.randn(2, 3, 64, 64)
        for one, other in zip(theirs(images), ours(images), strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "inception_v3"])
    def test_other_networks_are_refused(self, name: str) -> None:
        for build in (pyramid, build_backbone):
            with pytest.raises(
                InputError, match=rf"timm/{name}: does not give maps of 1/4.*such as timm/convnext_tiny"
            ):
                build(f"timm/{name}", "none")


@pytest.mark.parametrize("architecture", ["resnet18", "timm/efficientnet_lite0", "tower"])
def test_synchronised_norms_keep_their_activations(architecture: str) -> None:
    tower = architecture == "tower"
    network = TimmTower("timm/test_efficientnet", "none", load_weights=True) if tower else pyramid(architecture, "none")
    before = {name: part for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)}
    activations = {name: type(part.act) for name, part in before.items() if hasattr(part, "act")}
    assert bool(activations) == (architecture != "resnet18")
    after = dict(synchronise_norms(network).named_modules())
    assert all(isinstance(after[name], nn.SyncBatchNorm) for name in before)
    assert {name: type(after[name].act) for name in activations} == activations


def test_an_unknown_architecture_names_the_known_ones() -> None:
    for name in ("resnet19", "timm/", "timm/hf-hub:someone/model", "timm/local-dir:/anywhere"):
        with pytest.raises(ValidationError, match=r"expected timm/NAME with a name of timm's, or one of .*resnet18"):
            ChosenBackboneParameters(architecture=name)
    assert "architecture" not in BackboneParameters.model_fields  # SWAN's layers are made for a ResNet-50
