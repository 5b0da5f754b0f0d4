"""The scene classes of the toy data set, and an image with its five captions of any of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from data.toy import scenes
from data.toy.canvas import Canvas
from data.toy.places import BORDERS, DETAIL_Y, DETAILS, GROUNDS, SIDES, Things, place_words
from data.toy.scenes import Sketch


@dataclass(frozen=True)
class SceneClass:
    """One scene class.

    Attributes:
        titles: names of such a place.
        things: what is counted in it.
        draw: draws the things and says how they lie.
        grounds: materials of the ground, named in the captions where there is a choice.
        borders: keys of `BORDERS`: what may lie beside.
        details: keys of `DETAILS`: what else may stand there.
        crossed: roads cross the strip of the details, so these keep to a corner.
        ground_word: preposition before the ground.
    """

    titles: Sequence[str]
    things: Things
    draw: Callable[[Sketch], str]
    grounds: Sequence[str]
    borders: Sequence[str]
    details: Sequence[str]
    crossed: bool = False
    ground_word: str = "on"


def _read_class(titles: Sequence[str], things: Sequence[str], counts: Sequence[int], **others: Any) -> SceneClass:
    """A class from its keys in `classes.yaml`."""
    fewest, most = counts
    draw = others.pop("draw", None)
    return SceneClass(
        titles=titles,
        things=Things(things, (fewest, most), others.pop("colours")),
        draw=getattr(scenes, draw) if draw else partial(scenes.spread, **others.pop("spread")),
        **others,
    )


_TABLE = yaml.safe_load(Path(__file__).with_name("classes.yaml").read_text(encoding="utf-8"))
SCENES = {name: _read_class(**keys) for name, keys in _TABLE.items()}
CLASSES = tuple(SCENES)

# Each names the counted things and at least one more fact, so that it tells an image from others of its class.
CAPTIONS = (
    "{subject} {are} {state} beside {border}",
    "{subject} {are} {state} and {border} lies {side}",
    "{title} with {subject} and {detail} lies next to {border}",
    "there {are} {subject} {state} near {detail}",
    "{detail} and {subject} can be seen in this view of {title}",
    "in this view of {title} we see {subject} {state}, with {detail} {place}",
    "{border} runs along {title} that has {subject} and {detail}",
    "{detail} can be seen {place}, close to {subject} {state}",
    "this is {title} with {subject}, {detail} and {border}",
    "an aerial view shows {subject} {state}, {border} {side} and {detail} {place}",
    "{border} is {side} and {subject} {are} {state}",
    "the picture shows {detail} {place} of {title} with {subject}",
)


def draw_scene(scene_class: str, number: int, size: int = 128, seed: int = 0) -> tuple[Image.Image, list[str]]:
    """Draw one image; it depends on nothing but the arguments.

    Args:
        scene_class: one of `CLASSES`.
        number: number of the image within its class.
        size: edge, pixels; changes neither what is drawn nor the captions.
        seed: root of the randomness.

    Returns:
        The RGB image [size, size] and five different captions.
    """
    random = np.random.default_rng([seed, zlib.crc32(scene_class.encode()), number])
    scene = SCENES[scene_class]
    subject = scene.things.sample(random)
    detail = DETAILS[str(random.choice(scene.details))].sample(random, most=2 if scene.crossed else None)
    ground, border = str(random.choice(scene.grounds)), str(random.choice(scene.borders))
    shape, radius = detail.things.shape
    row = 2.2 * radius * (np.arange(detail.count) - (detail.count - 1) / 2)
    reach = row[-1] + radius + 0.04
    detail_x = float(random.choice([0.2, 0.8]) if scene.crossed else random.uniform(reach, 1 - reach))

    canvas = Canvas(size, random)
    canvas.cover(ground)
    border_wordings, draw_border = BORDERS[border]
    draw_border(canvas)
    state = scene.draw(Sketch(canvas, subject.count, subject.colour, detail_x))
    for offset in row:
        canvas.place(shape, (detail_x + offset, DETAIL_Y), radius, 0.0, detail.colour)
    if len(scene.grounds) > 1:
        state = f"{state} {scene.ground_word} {GROUNDS[ground]}"
    turns = int(random.integers(0, 4))

    captions = []
    for index in random.permutation(len(CAPTIONS))[:5]:
        text = CAPTIONS[index].format(
            subject=subject.phrase(random),
            detail=detail.phrase(random),
            are="is" if subject.count == 1 else "are",
            title=random.choice(scene.titles),
            border=random.choice(border_wordings),
            side=random.choice(SIDES[turns]),
            place=place_words(detail_x, DETAIL_Y, turns),
            state=state,
        )
        captions.append(f"{text[0].upper()}{text[1:]}.")
    return canvas.finish(turns), captions
