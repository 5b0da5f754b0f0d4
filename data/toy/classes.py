"""The scene classes of the toy data set, and an image with its five captions of any of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from data.toy import scenes as toy_scenes
from data.toy.canvas import Canvas
from data.toy.places import BORDERS, DETAIL_Y, DETAILS, GROUNDS, SIDES, Things, place_words
from data.toy.scenes import Sketch, spread

VEHICLES = ("white", "red", "blue", "yellow")


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

    titles: tuple[str, ...]
    things: Things
    draw: Callable[[Sketch], str]
    grounds: tuple[str, ...]
    borders: tuple[str, ...]
    details: tuple[str, ...]
    crossed: bool = False
    ground_word: str = "on"


SCENES: dict[str, SceneClass] = {
    "airport": SceneClass(
        ("an airport", "an airfield"),
        Things(("{count} {colour} plane{s}", "{count} {colour} airplane{s}"), (1, 6), VEHICLES),
        partial(spread, shape=("plane", 0.2), verbs=("parked", "standing")),
        ("concrete",),
        ("runway", "road", "meadow", "wood", "bare"),
        ("buildings", "trucks", "trees"),
    ),
    "storagetanks": SceneClass(
        ("a tank farm", "an oil depot"),
        Things(
            ("{count} {colour} storage tank{s}", "{count} round {colour} tank{s}"),
            (1, 8),
            ("white", "brown", "green", "red"),
        ),
        partial(spread, shape=("tank", 0.13), verbs=("standing", "arranged")),
        ("concrete", "soil", "grass"),
        ("road", "wood", "field", "blue river", "brown river"),
        ("buildings", "trucks", "trees", "pond"),
    ),
    "harbour": SceneClass(
        ("a harbour", "a port"),
        Things(
            ("{count} {colour} boat{s}", "{count} small {colour} boat{s}"), (1, 8), ("white", "red", "yellow", "orange")
        ),
        toy_scenes.harbour,
        ("blue water", "green water"),
        ("wood", "field", "beach", "meadow", "bare"),
        ("ships",),
        ground_word="in",
    ),
    "baseballfield": SceneClass(
        ("a sports ground", "a baseball ground"),
        Things(
            (
                "{count} baseball field{s} with {colour} dirt",
                "{count} baseball diamond{s} with {a} {colour} infield{s}",
            ),
            (1, 4),
            ("orange", "brown", "yellow", "red"),
        ),
        partial(spread, shape=("diamond", 0.23), verbs=("arranged", "laid out"), layouts=("in a row", "in two rows")),
        ("grass", "soil"),
        ("road", "wood", "field", "houses", "blue river"),
        ("buildings", "trees", "pond"),
    ),
    "farmland": SceneClass(
        ("a piece of farmland", "a stretch of farmland"),
        Things(
            ("{count} {colour} field{s}", "{count} {colour} crop field{s}"),
            (2, 6),
            ("green", "light green", "yellow", "brown"),
        ),
        toy_scenes.fields,
        ("grass", "soil"),
        ("road", "wood", "houses", "blue river", "brown river"),
        ("buildings", "trees", "pond"),
        ground_word="amid",
    ),
    "bridge": SceneClass(
        ("a river landscape", "a river valley"),
        Things(
            ("{count} {colour} bridge{s}", "{count} bridge{s} with {colour} edges"),
            (1, 3),
            ("white", "red", "brown", "black"),
        ),
        toy_scenes.bridges,
        ("grass", "soil"),
        ("road", "wood", "field"),
        ("buildings", "trees", "pond"),
        crossed=True,
        ground_word="amid",
    ),
    "residential": SceneClass(
        ("a residential area", "a neighbourhood"),
        Things(
            ("{count} house{s} with {a} {colour} roof{s}", "{count} home{s} with {a} {colour} roof{s}"),
            (3, 9),
            ("red", "blue", "white", "brown", "orange"),
        ),
        toy_scenes.street,
        ("grass", "soil"),
        ("road", "wood", "field", "blue river", "brown river"),
        ("pools", "trees", "pond"),
    ),
    "parkinglot": SceneClass(
        ("a parking lot", "a car park"),
        Things(("{count} {colour} car{s}", "{count} {colour} vehicle{s}"), (2, 9), VEHICLES),
        toy_scenes.parking,
        ("grass", "soil", "concrete"),
        ("road", "wood", "field", "houses", "blue river", "brown river"),
        ("trucks", "trees", "buildings"),
        ground_word="amid",
    ),
    "roundabout": SceneClass(
        ("a roundabout", "a traffic circle"),
        Things(("{count} road{s}", "{count} street{s}"), (3, 5), ("green", "brown", "yellow", "red")),
        toy_scenes.roundabout,
        ("grass", "soil", "concrete"),
        ("wood", "field", "blue river", "brown river"),
        ("trees", "buildings", "pond"),
        crossed=True,
        ground_word="amid",
    ),
    "crossroads": SceneClass(
        ("a crossing", "an intersection"),
        Things(("{count} {colour} car{s}", "{count} {colour} vehicle{s}"), (1, 6), VEHICLES),
        toy_scenes.crossroads,
        ("grass", "soil", "concrete"),
        ("wood", "field", "blue river", "brown river"),
        ("trees", "buildings", "pond"),
        crossed=True,
        ground_word="amid",
    ),
    "forest": SceneClass(
        ("a forest", "a woodland"),
        Things(
            ("{count} bare clearing{s}", "{count} sandy clearing{s}"),
            (1, 5),
            ("dark green", "light green", "yellow", "orange"),
        ),
        toy_scenes.clearings,
        ("grass",),
        ("road", "field", "bare", "blue river", "brown river"),
        ("buildings", "pond"),
    ),
    "beach": SceneClass(
        ("a beach", "a sandy beach"),
        Things(
            ("{count} {colour} umbrella{s}", "{count} {colour} parasol{s}"),
            (1, 8),
            ("red", "blue", "yellow", "green", "purple"),
        ),
        partial(spread, shape=("umbrella", 0.075), verbs=("standing", "set up")),
        ("sand",),
        ("blue sea", "green sea"),
        ("trees", "buildings", "trucks", "pools"),
    ),
    "solarfarm": SceneClass(
        ("a solar farm", "a solar power station"),
        Things(
            ("{count} row{s} of {colour} solar panels", "{count} line{s} of {colour} panels"),
            (2, 7),
            ("blue", "black", "grey"),
        ),
        toy_scenes.panels,
        ("grass", "soil", "sand"),
        ("road", "wood", "field", "blue river"),
        ("buildings", "trucks", "trees", "pond"),
    ),
    "tenniscourt": SceneClass(
        ("a tennis club", "a tennis centre"),
        Things(
            ("{count} {colour} tennis court{s}", "{count} {colour} court{s}"),
            (1, 6),
            ("blue", "red", "green", "orange", "purple"),
        ),
        partial(spread, shape=("court", 0.2), verbs=("arranged", "laid out"), layouts=("in a row", "in two rows")),
        ("grass", "concrete", "soil"),
        ("road", "wood", "houses", "field", "blue river"),
        ("buildings", "trees", "pools"),
    ),
    "stadium": SceneClass(
        ("a stadium", "a sports stadium"),
        Things(("{count} white stand{s}", "{count} white grandstand{s}"), (1, 4), ("red", "blue", "orange", "brown")),
        toy_scenes.stadium,
        ("grass", "concrete", "soil"),
        ("road", "wood", "houses", "field", "blue river"),
        ("buildings", "trees", "pond"),
        ground_word="amid",
    ),
    "railway": SceneClass(
        ("a railway", "a rail yard"),
        Things(("{count} railway track{s}", "{count} track{s}"), (2, 5), ("red", "blue", "yellow", "white", "green")),
        toy_scenes.railway,
        ("grass", "soil", "concrete"),
        ("road", "wood", "field", "houses", "blue river"),
        ("buildings", "trucks", "trees", "pond"),
        ground_word="amid",
    ),
}
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
    draw_border(canvas, random)
    state = scene.draw(Sketch(canvas, random, subject.count, subject.colour, detail_x))
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
