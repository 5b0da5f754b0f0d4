"""Pyramids whose first stages are frozen: what is kept of them is all that is read of them."""

from __future__ import annotations

import logging

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from layers.amfmn import AmfmnParameters
from layers.multiscale import MultiscaleImageEncoder
from layers.pyramid import PyramidParameters, pyramid, read_cells
from utils import InputError, logger

SMALL = "timm/test_efficientnet"


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def encoder_on(architecture: str, side: int, count: int = 0) -> MultiscaleImageEncoder:
    """An encoder whose batch norms have statistics of some images, its first stages frozen."""
    torch.manual_seed(0)
    encoder = MultiscaleImageEncoder(pyramid(architecture, "none"), 16, side, 3, 1)
    with torch.no_grad():
        encoder.train()(images(side))
    encoder.pyramid.freeze(count)
    return encoder


def kept_part(encoder: MultiscaleImageEncoder) -> nn.Module:
    part = encoder.pyramid.frozen_part()
    assert part is not None
    return part


@pytest.mark.parametrize("architecture", ["resnet18", SMALL, "timm/test_convnext"])
@torch.no_grad()
def test_the_encoder_goes_on_from_what_is_kept(architecture: str) -> None:
    side = 96
    encoder = encoder_on(architecture, side).eval()
    expected = encoder(images(side))
    assert expected.std(dim=0).max() > 1e-4
    for count in (1, 2, 3, 4):
        encoder.pyramid.freeze(count)
        rows = kept_part(encoder)(images(side))
        assert rows.ndim == 2
        torch.testing.assert_close(encoder(images(side)), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(encoder.finish(rows), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_gradients_are_the_same_and_reach_the_last_stages_alone(count: int) -> None:
    found = []
    for kept in (False, True):
        encoder = encoder_on(SMALL, 64, count).train()
        part = kept_part(encoder)
        made = encoder.finish(part(images(64))) if kept else encoder(images(64))
        made.square().sum().backward()
        found.append({name: value.grad for name, value in encoder.named_parameters()})
        still = {id(held) for held in part.parameters()}
        assert all((value.grad is None) == (id(value) in still) for value in encoder.parameters())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_statistics_follow_in_what_learns() -> None:
    encoder = encoder_on(SMALL, 64, 2).train()
    before = {name: value.clone() for name, value in encoder.named_buffers() if name.endswith("running_mean")}
    still = {id(held) for held in kept_part(encoder).buffers()}
    encoder(images(64) + 1)
    stay = {name: torch.equal(value, before[name]) for name, value in encoder.named_buffers() if name in before}
    assert stay == {name: id(value) in still for name, value in encoder.named_buffers() if name in before}
    assert len(set(stay.values())) == 2


def test_frozen_whole_it_has_no_graph() -> None:
    made = pyramid(SMALL, "none", False, 4).train()
    assert not any(found.requires_grad for found in made(images(64)))
    assert not any(part.training for part in made.modules() if isinstance(part, nn.BatchNorm2d))


def test_what_a_kernel_reads() -> None:
    cells = torch.arange(64.0).view(1, 1, 8, 8)
    assert read_cells(cells)[0, 0, 3].tolist() == [32, 33, 34, 36, 37, 38]
    kernel = torch.randn(5, 1, 3, 3)
    expected = nn.functional.conv2d(cells, kernel, stride=4)
    torch.testing.assert_close(nn.functional.conv2d(read_cells(cells), kernel, stride=3), expected)


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (1, 24 * 56**2),
        (2, 24 * 42**2 + 40 * 28**2),
        (3, 24 * 42**2 + 40 * 28**2 + 112 * 14**2),
        (4, 24 * 42**2 + 40 * 28**2 + 112 * 14**2 + 320 * 7**2),
    ],
)
def test_numbers_that_are_kept_of_an_image(count: int, numbers: int) -> None:
    part = pyramid("timm/tf_efficientnet_lite0", "none", False, count).frozen_part()
    assert part is not None
    assert part.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, numbers)


def test_a_network_that_does_not_run_in_stages_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.backbone\.train: timm/test_mambaout can't be run stage by stage"):
        pyramid("timm/test_mambaout", "none", False, 2)
    assert pyramid("timm/test_mambaout", "none", False).frozen_part() is None


def test_random_stages_that_stay_so_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger.name):
        pyramid(SMALL, "none", True, 2)
    assert "start random and stay so: set model.backbone.train=all" in caplog.text


def test_stages_by_their_option() -> None:
    given = {"all": 0, "none": 4, "3": 1, "1": 3}
    for word, count in given.items():
        train = {"last": int(word)} if word.isdigit() else word
        assert PyramidParameters.model_validate({"train": train}).frozen_stages == count
    assert AmfmnParameters(name="AMFMN").backbone.frozen_stages == 0
    for stages in (0, 4):
        with pytest.raises(ValidationError, match="last"):
            PyramidParameters.model_validate({"train": {"last": stages}})
