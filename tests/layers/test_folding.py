"""Networks with folded batch norms, or weights that were cast once, give and learn what they do without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from layers.backbone import build_backbone, import_timm
from layers.folding import FoldedNorms, folded, precast
from layers.towers import TimmTower


def with_statistics(network: nn.Module) -> nn.Module:
    """The network with weights and statistics that a training could have left."""
    draw = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.2 * torch.randn(part.num_features, generator=draw)
            part.running_var = 0.5 + torch.rand(part.num_features, generator=draw)
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(part.bias, std=0.2, generator=draw)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


SAMPLE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def on_sample(network: nn.Module) -> Tensor:
    result: Tensor = network(SAMPLE)
    return result


@pytest.mark.parametrize(
    ("architecture", "left"), [("resnet18", 0), ("resnet50", 0), ("timm/efficientnet_lite0", 0), ("timm/resnet10t", 1)]
)
def test_outputs_are_equal(architecture: str, left: int) -> None:
    torch.manual_seed(0)
    network = with_statistics(build_backbone(architecture, "none"))
    images = torch.randn(3, 3, 64, 64)
    quick = folded(network, on_sample)
    assert norms(network) > 9
    assert norms(quick) == left
    with torch.inference_mode():
        expected = network(images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(quick(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_network_itself_stays() -> None:
    network = with_statistics(build_backbone("resnet18", "none"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modules = list(network.modules())
    with torch.no_grad():
        for parameter in folded(network, on_sample).parameters():
            assert parameter.isfinite().all()
    assert all(one is other for one, other in zip(network.modules(), modules, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_copy_holds_no_second_set_of_other_weights() -> None:
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16384, 9)))
    quick: nn.Module = folded(network, on_sample)
    assert quick[3].weight is network[3].weight  # type: ignore[index]
    assert quick[0].weight is not network[0].weight  # type: ignore[index]


def test_in_training_mode_nothing_is_folded() -> None:
    network = with_statistics(build_backbone("resnet18", "none")).train()
    assert folded(network, on_sample) is network


def test_a_norm_that_knows_its_batch_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms(folded(network, on_sample)) == 1


class Crossed(nn.Module):
    """Runs its modules in another order than it declares them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.norm(self.first(images)))
        return result


def test_a_network_of_another_order_stays_whole() -> None:
    torch.manual_seed(0)
    network = with_statistics(Crossed())
    assert folded(network, on_sample) is network


class Mixed(nn.Module):
    """A map in mixed precision, one in full precision, one that is left out, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.norm = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.LayerNorm(8),
        )

    def forward(self, rows: Tensor) -> Tensor:
        middle = self.norm(self.first(rows).float())
        with torch.autocast("cpu", enabled=False):
            result: Tensor = self.second(middle)
        return result


ROWS = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def in_bfloat16(network: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = network(ROWS)
    return result


def test_weights_are_cast_where_autocast_would() -> None:
    torch.manual_seed(0)
    network = Mixed().eval()
    quick = precast(network, in_bfloat16)
    assert torch.equal(in_bfloat16(quick), in_bfloat16(network))
    assert not torch.equal(in_bfloat16(network), network(ROWS))
    assert quick.first.weight.dtype == quick.first.bias.dtype == torch.bfloat16
    assert network.first.weight.dtype == torch.float32
    for name in ("second", "third", "norm"):
        assert getattr(quick, name).weight is getattr(network, name).weight
    assert not any(part._forward_pre_hooks for part in (*network.modules(), *quick.modules()))


def test_in_full_precision_nothing_is_cast() -> None:
    network = Mixed().eval()
    assert precast(network, lambda model: model(ROWS)) is network


class TestFoldedNorms:
    """Convolutions that learn take over the norms behind them, and nothing but rounding changes."""

    @staticmethod
    def gradients(network: nn.Module, images: Tensor, quick: bool) -> list[Tensor]:
        network.zero_grad()
        given = images.clone().requires_grad_()
        with FoldedNorms(network) if quick else nullcontext():
            maps = network(given)
        maps.backward(torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).view(maps.shape))
        found = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return [maps.detach(), *(cast(Tensor, value) for value in (given.grad, *found))]

    @pytest.mark.parametrize("conv", [{"bias": False}, {}, {"stride": 2, "padding": 1}, {"groups": 6}])
    @pytest.mark.parametrize("norm", [nn.BatchNorm2d, import_timm().layers.BatchNormAct2d])
    def test_a_layer_has_the_same_output_and_gradients(
        self, conv: dict[str, Any], norm: Callable[[int], nn.Module]
    ) -> None:
        torch.manual_seed(0)
        network = with_statistics(nn.Sequential(nn.Conv2d(6, 12, 3, **conv), norm(12), nn.Sigmoid())).double()
        images = torch.randn(3, 6, 9, 8, dtype=torch.double)
        expected, found = (self.gradients(network, images, quick) for quick in (False, True))
        assert len(expected) == 2 + len(list(network.parameters()))
        for value, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, value)

    def test_norms_are_not_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        norm = Mock(side_effect=torch.batch_norm)
        monkeypatch.setattr(torch, "batch_norm", norm)
        for quick in (True, False):
            self.gradients(network, torch.randn(2, 3, 5, 5), quick)
            assert norm.called != quick

    @pytest.mark.parametrize("why", ["statistics move", "it is frozen", "no gradient is asked for"])
    def test_others_stay_as_they_are(self, why: str) -> None:
        network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        network.train(why == "statistics move")
        network.requires_grad_(why != "it is frozen")
        images = torch.randn(2, 3, 5, 5)
        expected = deepcopy(network)(images)
        with torch.set_grad_enabled(why != "no gradient is asked for"), FoldedNorms(network):
            assert torch.equal(network(images), expected)

    def test_another_order_is_an_error(self) -> None:
        conv, norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        network, images = with_statistics(nn.Sequential(conv, norm)), torch.randn(2, 3, 5, 5)
        with pytest.raises(RuntimeError, match="did not follow"), FoldedNorms(network):
            norm(conv(images) + 1)
        with pytest.raises(RuntimeError, match="normalized_shape"), FoldedNorms(network):  # a fault of its own
            nn.LayerNorm(4)(conv(images))

    @pytest.mark.parametrize("name", ["test_efficientnet", "resnet10t", "test_vit"])
    @pytest.mark.parametrize("whole", [False, True])
    def test_a_tower_learns_the_same(self, name: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        tower = TimmTower(f"timm/{name}", "none", load_weights=True)
        with_statistics(tower.network)
        tower.freeze(2)
        tower.train()
        side = tower.network.default_cfg["input_size"][-1] if name == "test_vit" else 64
        images = torch.randn(2, 3, side, side)
        given = images if whole else cast(nn.Module, tower.frozen_part())(images).detach()
        found: list[list[Tensor]] = []
        for folds in (False, True):
            monkeypatch.setattr(tower, "folds_norms", folds)
            tower.zero_grad()
            features = tower(given) if whole else tower.finish(given)
            features.square().sum().backward()
            learned = [parameter.grad for parameter in tower.parameters() if parameter.grad is not None]
            found.append([features.detach(), *learned])
        for value, other in zip(*found, strict=True):
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))

    def test_networks_of_unknown_order_keep_their_norms(self) -> None:
        assert TimmTower("timm/test_efficientnet", "none", load_weights=True).folds_norms
        assert not TimmTower("timm/test_convnext", "none", load_weights=True).folds_norms
