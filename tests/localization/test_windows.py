"""Windows and maps: slow twins that go pixel by pixel and window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor

from batches.augmentation import normalise
from batches.batch import Batch, Captions
from data.images import to_square
from data.rasters.places import Georeference
from data.rasters.values import Limits, Part
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from localization.indicators import attention_centres, indicators
from localization.large_image import LargeImage
from localization.windows import (
    READ_AHEAD,
    MeanMap,
    encode_queries,
    mean_map,
    prepared_windows,
    score_windows,
    window_grid,
)
from option import Options
from tests.reference_inputs import WORDS
from vocab import Vocabulary

CPU = torch.device("cpu")


class Held:
    """An image in memory that remembers the widest part that was read of it."""

    georeference: Georeference | None = None
    limits: Limits | None = None

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.image = Image.fromarray(pixels)
        self.width, self.height = self.image.size
        self.widest = 0

    def read(self, row: int, column: int, height: int, width: int) -> Part:
        assert 0 <= row <= row + height <= self.height
        assert 0 <= column <= column + width <= self.width
        self.widest = max(self.widest, width)
        return Part(self.image.crop((column, row, column + width, row + height)))

    def overview(self, side: int) -> Part:
        return Part(self.image)

    def valid(self) -> None:
        return None


def noise(height: int, width: int) -> Held:
    return Held(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_windows_by_hand() -> None:
    expected = [(0, 0), (0, 4), (2, 2), (2, 4), (4, 0), (4, 4), (6, 0), (6, 2), (6, 4)]
    assert window_grid(10, 8, [4]).tolist() == [[4, row, column] for row, column in expected]


def slow_windows(height: int, width: int, sides: list[int]) -> set[tuple[int, int, int]]:
    """The windows as a loop cuts them."""
    found = set()
    for side in sides:
        for phase in (0, side // 2):
            for row in range(phase, height, side):
                for column in range(phase, width, side):
                    top = height - side if row + side >= height else row
                    left = width - side if column + side >= width else column
                    found.add((side, top, left))
    return found


SIZES = st.tuples(st.integers(8, 40), st.integers(8, 40), st.lists(st.integers(2, 8), min_size=1, max_size=3))


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_windows_by_loops(sizes: tuple[int, int, list[int]]) -> None:
    windows = window_grid(*sizes)
    assert set(map(tuple, windows.tolist())) == slow_windows(*sizes)
    assert len(windows) == len(slow_windows(*sizes))


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_a_mean_map_by_loops(sizes: tuple[int, int, list[int]], seed: int) -> None:
    height, width, _ = sizes
    windows = window_grid(*sizes)
    scores = np.random.default_rng(seed).uniform(-1, 1, len(windows)).astype(np.float32)
    total, count = np.zeros((2, height, width))
    for (side, row, column), score in zip(windows, scores, strict=True):
        total[row : row + side, column : column + side] += score
        count[row : row + side, column : column + side] += 1
    found = mean_map(windows, scores)
    np.testing.assert_allclose(found.pixels(found.values), total / count, atol=1e-12)


def test_a_map_of_a_large_image_has_a_value_per_cell() -> None:
    windows = window_grid(10_000, 9_000, [128, 256, 512, 768])
    found = mean_map(windows, np.ones(len(windows), dtype=np.float32))
    assert found.values.size < 30_000
    np.testing.assert_allclose(found.values, 1.0, atol=1e-9)


def test_levels_by_hand() -> None:
    cells = MeanMap(np.array([0, 1, 3]), np.array([0, 2, 3]), np.array([[-0.5, 0.0], [0.25, 0.5]]))
    assert cells.levels(1).tolist() == [[0, 0, 127], [191, 191, 255], [191, 191, 255]]
    flat = MeanMap(np.array([0, 2]), np.array([0, 3]), np.array([[0.25]]))
    assert flat.levels(1).tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(("median", "cell"), [(3, 10), (31, 6), (255, 2)])
def test_the_median_filter_repeats_the_edge(median: int, cell: int) -> None:
    cells = MeanMap(np.arange(6) * cell, np.arange(8) * cell, np.random.default_rng(0).random((5, 7)))
    assert cells.levels(median).shape == (5 * cell, 7 * cell)
    np.testing.assert_array_equal(cells.levels(median), median_filter(cells.levels(1), median, mode="nearest"))


def test_a_window_is_prepared_as_an_image_of_its_own_and_parts_are_bounded() -> None:
    image = noise(20, 700)
    windows = window_grid(20, 700, [8, 16])
    found = list(prepared_windows(image, windows, 32, 2))
    assert len(found) == len(windows) > 2 * READ_AHEAD
    for square, (side, row, column) in zip(found, windows.tolist(), strict=True):
        cut = image.image.crop((column, row, column + side, row + side))
        np.testing.assert_array_equal(square, to_square(cut, 32))
    assert 8 * READ_AHEAD <= image.widest <= 16 * READ_AHEAD


@pytest.mark.parametrize("name", sorted(registered()))
def test_scores_are_those_of_windows_and_queries_one_by_one(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary
) -> None:
    options = tiny_options(name, {"dataset.local_path": None})
    torch.manual_seed(0)
    model = build_model(options, vocabulary, load_weights=False).eval()
    queries = [WORDS[3], f"{WORDS[5]} {WORDS[1]} {WORDS[2]}"]
    image = noise(64, 72)
    windows = window_grid(64, 72, [48])
    texts = encode_queries(model, Captions.encode(queries, vocabulary), CPU)
    scores = score_windows(model, image, windows, texts, image_size=64, batch_size=3)
    assert scores.shape == (len(windows), 2)
    with torch.no_grad():
        for index in (0, len(windows) // 2, len(windows) - 1):
            side, row, column = windows[index].tolist()
            square = to_square(image.image.crop((column, row, column + side, row + side)), 64)
            embedding = model.encode_image(Batch(images=normalise(torch.from_numpy(square)[None])))
            for place, query in enumerate(queries):
                tokens = torch.tensor([vocabulary.encode(query)])
                text = model.encode_text(Batch(tokens=tokens, lengths=torch.tensor([tokens.shape[1]])))
                assert float(model.score(embedding, text)) == pytest.approx(float(scores[index, place]), abs=1e-5)


class Reddest(RetrievalModel):
    """Knows red from green: words 1 and 2."""

    def encode_image(self, batch: Batch) -> Tensor:
        means = batch.need("images").mean(dim=(2, 3))
        return means - means.mean(dim=1, keepdim=True)

    def encode_text(self, batch: Batch) -> Tensor:
        return torch.eye(3)[batch.need("tokens")[:, 0] - 1]


def test_a_model_that_knows_finds_both_places() -> None:
    pixels = np.full((1024, 1536, 3), 90, dtype=np.uint8)
    places = {"red": (0, 128, 128), "green": (1, 640, 1152)}
    for channel, row, column in places.values():
        pixels[row : row + 256, column : column + 256, channel] = 250
    image: LargeImage = Held(pixels)
    windows = window_grid(1024, 1536, [128, 256])
    model = Reddest()
    known = Vocabulary({"red": 1, "green": 2, "<unk>": 3})
    texts = encode_queries(model, Captions.encode(list(places), known), CPU)
    scores = score_windows(model, image, windows, texts, image_size=32, batch_size=64)
    for (_, row, column), own in zip(places.values(), scores.T, strict=True):
        levels = mean_map(windows, own).levels(51)
        centres = attention_centres(levels)
        np.testing.assert_allclose(centres, [(column + 128, row + 128)], atol=40)
        polygon = np.array([(0, 0), (255, 0), (255, 255), (0, 255)]) + np.array([column, row], dtype=float)
        found = indicators(levels, centres, [polygon])
        assert found.rmi > 0.9
        assert found.rda == 1.0
