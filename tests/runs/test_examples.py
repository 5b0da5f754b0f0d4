"""The searches of val that are drawn at each validation: which they are, what they found, how the sheet shows it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from runs import example_sheet
from runs.example_sheet import FRAME, GAP, LINE, SIDE, Search, draw_sheet, fitting, in_words
from runs.examples import Examples, choose, place
from utils import InputError

TEXT_IMAGE = torch.tensor([0, 0, 1, 2, 2, 3])
TEXTS = ["a red roof", "roofs", "a pond", "a field", "green", "a pond"]
LOST = 3
RIGHT = (10, 143, 60)


class Store:
    """Images of one colour each, 10 times their number; one is gone."""

    def batch(self, indices: Tensor) -> Tensor:
        (number,) = indices.tolist()
        if number == LOST:
            raise InputError("gone")
        return torch.full((1, 3, 4, 4), 10 * number, dtype=torch.uint8)


def examples(count: int, captions: Sequence[int] = ()) -> Examples:
    loader: Any = SimpleNamespace(store=Store(), text_image=TEXT_IMAGE, image_ids=torch.arange(4))
    annotations: Any = SimpleNamespace(captions=TEXTS)
    made = Examples(annotations, loader, count, seed=0)
    if captions:
        made.captions = torch.tensor(captions)
        made.images = TEXT_IMAGE[made.captions]
    return made


def test_the_choice_follows_from_the_seed_and_takes_an_image_once() -> None:
    before = torch.get_rng_state()
    chosen = [choose(TEXT_IMAGE, 3, seed) for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(len(TEXT_IMAGE[captions].unique()) == 3 for captions in chosen)
    assert all(torch.equal(choose(TEXT_IMAGE, 3, seed), captions) for seed, captions in enumerate(chosen))
    assert len({tuple(captions.tolist()) for captions in chosen}) > 10
    assert len(choose(TEXT_IMAGE, 9, 0)) == 4
    assert len(choose(TEXT_IMAGE, 0, 0)) == 0


def test_each_fold_has_a_choice_of_its_own() -> None:
    loader: Any = SimpleNamespace(store=Store(), text_image=torch.arange(1000), image_ids=torch.arange(1000))
    annotations: Any = SimpleNamespace(captions=TEXTS)
    options: Any = SimpleNamespace(logs=SimpleNamespace(examples=4), optim=SimpleNamespace(seed=0))
    first, second, again = (Examples.of(options, fold, annotations, loader).captions.tolist() for fold in (0, 1, 0))
    assert first == again
    assert first != second


def test_places_count_from_1_and_say_where_scores_are_equal() -> None:
    others = torch.tensor([0.9, 0.5, 0.5, 0.1])
    assert [place(others, torch.tensor(own)) for own in (1.0, 0.9, 0.5, 0.0)] == [(1, 1), (1, 2), (2, 4), (5, 5)]


@pytest.mark.parametrize("height", [1, 3, 4])
def test_what_was_found_is_read_from_the_scores_as_they_pass(height: int) -> None:
    scores = torch.tensor(
        [
            [0.9, 0.1, 0.8, 0.7, 0.0, 0.8],
            [0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            [0.8, 0.3, 0.4, 0.6, 0.6, 0.1],
            [0.8, 0.3, 0.4, 0.5, 0.6, 0.2],
        ]
    )
    watched = examples(2, captions=[0, 3])
    passed = watched.watch(lambda: scores.split(height))
    assert torch.equal(torch.cat([*passed()]), scores)
    assert torch.equal(torch.cat([*passed()]), scores)  # ranking looks twice
    roof, field = watched.searches()

    assert (roof.caption, roof.place, roof.images, roof.text_place, roof.texts) == ("a red roof", (1, 1), 4, (1, 1), 6)
    assert [right for _, right in roof.found] == [True, False, False, False]
    assert [shade(image) for image, _ in roof.found] == [0, 20, None, 10]  # of equal scores the first
    assert roof.named == [("a red roof", True), ("a pond", False), ("a field", False)]  # equal captions once
    assert shade(roof.image) == 0

    assert field.place == (2, 2)
    assert [right for _, right in field.found] == [False, True, False, False]
    assert field.text_place == (2, 2)  # behind 0.8; the image's own captions don't stand in each other's way
    assert field.named == [("a red roof", False), ("a field", True), ("green", True)]


def shade(image: Image.Image | None) -> object:
    return None if image is None else image.getpixel((50, 50))[0]  # type: ignore[index]


def test_without_examples_the_scores_pass_untouched() -> None:
    def blocks() -> list[Tensor]:
        return []

    assert examples(0).watch(blocks) is blocks


def search(**changes: Any) -> Search:
    image = Image.new("RGB", (SIDE, SIDE), (0, 0, 200))
    found = [(image, False), (image, True), (None, False)]
    given: dict[str, Any] = {"caption": "a roof", "image": image, "place": (2, 2), "images": 3, "found": found}
    return Search(**given | {"text_place": (1, 4), "texts": 6, "named": [("a roof", True)]} | changes)


def test_the_right_image_is_framed_wherever_it_is_shown() -> None:
    sheet = draw_sheet([search(), search(found=[(None, False)] * 3)])
    height, beside = 2 * GAP + 2 * LINE + SIDE // 2, SIDE + GAP
    lefts = [GAP, *(4 * GAP + SIDE + place * beside for place in range(3))]  # its image, and what was found
    pixels = [[sheet.getpixel((left + x, height)) for x in (-FRAME // 2, SIDE // 2)] for left in lefts]
    white, blue = (255, 255, 255), (0, 0, 200)
    assert pixels[:3] == [[RIGHT, blue], [white, blue], [RIGHT, blue]]
    assert pixels[3][0] == white
    assert sheet.height % 2 == 0
    assert sheet.getpixel((lefts[2] - FRAME // 2, height + sheet.height // 2)) == white  # not found here


def test_places_in_words() -> None:
    assert in_words((3, 3), 50, "image") == "place 3 of 50 images"
    assert in_words((2, 9), 50, "caption") == "place 2 to 9 of 50 captions, equal scores"
    assert in_words((1, 1), 1, "image") == "place 1 of 1 image"


def test_texts_of_any_length_and_kind_fit() -> None:
    long = "houses beside a long road " * 40
    shown = fitting(long, 300, 13)
    assert shown.endswith("...")
    assert 30 < len(shown) < 60
    assert example_sheet._font(13).getlength(shown) <= 300
    odd = ["", "two\nlines", "机场", "\ud800 alone", "\x00", "a" * 500]
    assert draw_sheet([search(caption=text, named=[(text, False)]) for text in odd]).size[0] > 0
