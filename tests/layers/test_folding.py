"""Networks with folded batch norms, or weights that were cast once, give what they give without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from layers.backbone import build_backbone
from layers.folding import folded, precast


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
