"""Indicators of semantic localization: cases worked out by hand, and slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import localization.indicators
from localization.indicators import attention_centres, circles, indicators, inside, ras, rda, rmi, rsu

SQUARE = np.array([(0, 0), (2, 0), (2, 2), (0, 2)], dtype=float)
NOWHERE = np.zeros((0, 2))


def rectangle(left: float, top: float, right: float, bottom: float) -> NDArray[np.float64]:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=float)


def test_rsu_by_hand() -> None:
    levels = np.full((10, 10), 51, dtype=np.uint8)  # 0.2
    levels[2:6, 3:8] = 255
    within = inside([rectangle(3, 2, 7, 5)], levels.shape)
    assert int(within.sum()) == 20
    assert rsu(levels, within) == pytest.approx(1 - math.exp(-0.707 * 20 / 16 * 80 / 20), abs=1e-9)


@pytest.mark.parametrize(
    ("level_inside", "level_outside", "expected"), [(0, 255, 0.0), (0, 0, 0.0), (255, 0, 1.0)], ids=str
)
def test_rsu_at_its_ends(level_inside: int, level_outside: int, expected: float) -> None:
    within = np.zeros((8, 8), dtype=bool)
    within[:4] = True
    levels = np.where(within, level_inside, level_outside).astype(np.uint8)
    assert rsu(levels, within) == pytest.approx(expected, abs=1e-12)


def test_rsu_of_a_polygon_over_everything_is_0() -> None:
    assert rsu(np.full((4, 4), 255, dtype=np.uint8), np.ones((4, 4), dtype=bool)) == 0.0


def test_polygons_that_overlap_are_one_area() -> None:
    first, second = rectangle(1, 1, 4, 4), rectangle(3, 3, 8.9, 6.5)
    expected = np.zeros((8, 9), dtype=bool)
    expected[1:5, 1:5] = expected[3:7, 3:9] = True
    np.testing.assert_array_equal(inside([first, second], (8, 9)), expected)


def test_the_edge_of_the_image_is_its_last_pixel() -> None:
    assert inside([rectangle(0, 0, 9, 8)], (8, 9)).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=3, max_size=3, unique=True))
def test_a_triangle_holds_what_is_on_the_inner_side_of_all_its_lines(corners: list[tuple[int, int]]) -> None:
    polygon = np.array(corners, dtype=float)
    a, b, c = polygon
    if np.linalg.det(np.stack([b - a, c - a])) < 0:
        b, c = c, b
    mask = inside([polygon], (20, 20))
    for row in range(20):
        for column in range(20):
            point = np.array([column, row])
            depths = [
                ((q - p)[0] * (point - p)[1] - (q - p)[1] * (point - p)[0]) / np.linalg.norm(q - p)
                for p, q in ((a, b), (b, c), (c, a))
            ]
            if min(depths) > 0:
                assert mask[row, column]
            if min(depths) < -1:
                assert not mask[row, column]


def slow_centres(levels: NDArray[np.uint8], side: int, times: int, reach: int) -> list[tuple[float, float]]:
    """The peaks by loops over pixels, for an odd box."""
    height, width = levels.shape
    soft = levels.astype(int)
    for _ in range(times):
        padded = np.pad(soft, side // 2, mode="reflect")
        soft = np.array(
            [[round(padded[y : y + side, x : x + side].mean()) for x in range(width)] for y in range(height)]
        )
    low, high = reach // 2, reach - reach // 2
    peaks = {
        (y, x)
        for y in range(height)
        for x in range(width)
        if soft[y, x] == soft[max(0, y - low) : y + high, max(0, x - low) : x + high].max()
    }
    found = []
    while peaks:
        group, border = [], [min(peaks)]
        peaks.remove(border[0])
        while border:
            y, x = border.pop()
            group.append((x, y))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & peaks
            peaks -= near
            border += near
        centre = np.mean(group, axis=0)
        if levels[round(centre[1]), round(centre[0])] / 255 >= 0.5:
            found.append((float(centre[0]), float(centre[1])))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_attention_centres_by_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SOFTENING", 3), ("SOFTENINGS", 2), ("REACH", 8)):
        monkeypatch.setattr(localization.indicators, name, value)
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, (6, 8), dtype=np.uint8).repeat(5, axis=0).repeat(4, axis=1)
    expected = slow_centres(levels, 3, 2, 8)
    assert len(expected) > 1
    found = attention_centres(levels)
    assert sorted(found.tolist()) == pytest.approx(np.array(sorted(expected)), abs=1e-9)


def test_two_hills_have_a_centre_each_and_a_low_one_none() -> None:
    levels = np.zeros((1200, 2600), dtype=np.uint8)
    levels[300:501, 200:401] = 255
    levels[600:801, 1500:1701] = 200
    levels[900:1101, 2300:2401] = 100  # below 0.5
    np.testing.assert_allclose(attention_centres(levels), [(300, 400), (1600, 700)], atol=3)


def test_a_flat_low_map_has_no_centre() -> None:
    assert attention_centres(np.full((300, 300), 127, dtype=np.uint8)).shape == (0, 2)


def test_circles_by_hand() -> None:
    places, radii = circles([SQUARE, SQUARE + 10])
    np.testing.assert_allclose(places, [(1, 1), (11, 11)])
    np.testing.assert_allclose(radii, [1.5 * math.sqrt(2)] * 2)


PLACES, RADII = np.array([(0.0, 0.0), (100.0, 0.0)]), np.array([10.0, 10.0])


@pytest.mark.parametrize(
    ("centres", "mean_offset", "expected_rda"),
    [
        ([(0, 0), (100, 0)], 0.0, 1.0),
        ([(6, 0)], (0.6 + 1) / 2, 0.5),
        ([(0, 4), (0, -4), (100, 5)], (0.4 + 0.5) / 2, (0.5 * 0.6 + math.exp(-2) + 1) / 2),
        ([(50, 50)], 1.0, 0.0),
        ([(10, 0), (110.1, 0)], 1.0, 0.5),  # the border belongs to the circle
    ],
)
def test_ras_and_rda_by_hand(centres: list[tuple[float, float]], mean_offset: float, expected_rda: float) -> None:
    points = np.array(centres, dtype=float)
    expected_ras = (math.exp(3 * mean_offset) - 1) / (math.exp(3) - 1)
    assert ras(points, PLACES, RADII) == pytest.approx(expected_ras)
    assert rda(points, PLACES, RADII) == pytest.approx(expected_rda)


def test_without_an_attention_centre() -> None:
    assert ras(NOWHERE, PLACES, RADII) == pytest.approx(1.0)
    assert rda(NOWHERE, PLACES, RADII) == 0.0


def slow_ras_and_rda(
    centres: NDArray[np.float64], places: NDArray[np.float64], radii: NDArray[np.float64]
) -> tuple[float, float]:
    offsets, scores = [], []
    for (x, y), radius in zip(places, radii, strict=True):
        near = [(u, v) for u, v in centres if math.hypot(u - x, v - y) <= radius]
        if near:
            offsets.append(sum(math.hypot(u - x, v - y) for u, v in near) / len(near) / radius)
        else:
            offsets.append(1.0)
        if len(near) < 2:
            scores.append(float(len(near)))
        else:
            mu, mv = sum(u for u, _ in near) / len(near), sum(v for _, v in near) / len(near)
            spread = sum(math.hypot(u - mu, v - mv) for u, v in near) / len(near)
            scores.append(0.5 * (1 - spread / radius) + math.exp(-0.5 * (len(near) + 2)))
    mean = sum(offsets) / len(offsets)
    return (math.exp(3 * mean) - 1) / (math.exp(3) - 1), sum(scores) / len(scores)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(1, 5))
def test_ras_and_rda_by_loops(seed: int, centre_count: int, polygon_count: int) -> None:
    random = np.random.default_rng(seed)
    centres = random.uniform(0, 100, (centre_count, 2))
    places, radii = circles([random.uniform(0, 100, (random.integers(3, 7), 2)) for _ in range(polygon_count)])
    shift, discrete = ras(centres, places, radii), rda(centres, places, radii)
    assert (shift, discrete) == pytest.approx(slow_ras_and_rda(centres, places, radii))
    assert 0 <= shift <= 1 + 1e-12
    assert 0 <= discrete <= 1


def test_rmi_by_hand() -> None:
    assert rmi(0.5, 0.2, 0.8) == pytest.approx(0.4 * 0.5 + 0.35 * 0.8 + 0.25 * 0.8)


def test_a_map_that_is_right_and_one_that_is_wrong() -> None:
    levels = np.zeros((1100, 1100), dtype=np.uint8)
    levels[100:401, 200:501] = 255
    right, wrong = rectangle(200, 100, 500, 400), rectangle(700, 700, 1000, 1000)
    centres = attention_centres(levels)
    found = indicators(levels, centres, [right])
    assert found.rsu == 1.0
    assert found.ras < 0.01
    assert found.rda == 1.0
    assert found.rmi == pytest.approx(0.4 + 0.35 * (1 - found.ras) + 0.25)
    missed = indicators(levels, centres, [wrong])
    assert (missed.rsu, missed.ras, missed.rda, missed.rmi) == pytest.approx((0, 1, 0, 0), abs=1e-12)
    both = indicators(levels, centres, [right, wrong])
    assert both.rda == 0.5
