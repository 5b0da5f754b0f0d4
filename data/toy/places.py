"""What surrounds the scenes of the toy data set: grounds, borders (what lies beside), and other objects nearby."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.toy.canvas import MATERIALS, Canvas
from data.toy.shapes import COLOURS, rectangle

# Every scene is drawn the same way up: a border down to BORDER_END, the scene itself from ZONE_START to ZONE_END, and
# other objects about DETAIL_Y; the finished image is then turned. Fractions of the frame.
BORDER_END, ZONE_START, ZONE_END, DETAIL_Y = 0.23, 0.27, 0.76, 0.88

Border = Callable[[Canvas], None]
"""Draws what lies beside a scene."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Things:
    """Countable things of one kind.

    Attributes:
        wordings: how captions name them; `{count}` and `{colour}` are filled in, `{s}` and `{a}` are the plural's and
            the singular's endings and articles.
        counts: fewest and most.
        colours: keys of `COLOURS`.
        shape: key of `OBJECTS` and radius in frame units; empty where a scene draws the things itself.
    """

    wordings: Sequence[str]
    counts: tuple[int, int]
    colours: Sequence[str]
    shape: tuple[str, float] = ("", 0.0)

    def sample(self, random: np.random.Generator, most: int | None = None) -> Group:
        """A random number (up to `most`, where given) of such things, all of one random colour."""
        upper = self.counts[1] if most is None else min(self.counts[1], most)
        return Group(self, int(random.integers(self.counts[0], upper + 1)), str(random.choice(self.colours)))


@dataclass(frozen=True)
class Group:
    """Some things of one kind and colour."""

    things: Things
    count: int
    colour: str

    def phrase(self, random: np.random.Generator) -> str:
        """Name the group in one of its wordings: "two red boats", "one house with an orange roof"."""
        one = self.count == 1
        text = str(random.choice(self.things.wordings)).format(
            count=NUMBERS[self.count],
            colour=self.colour,
            s="" if one else "s",
            a=article(self.colour) if one else "",
        )
        return " ".join(text.split())


def article(word: str) -> str:
    """The indefinite article for a word."""
    return "an" if word[0] in "aeiou" else "a"


# Materials and what captions call them.
GROUNDS = {
    "grass": "green grass",
    "soil": "bare soil",
    "sand": "yellow sand",
    "concrete": "grey concrete",
    "blue water": "blue water",
    "green water": "green water",
    "brown water": "brown water",
}

ROOFS = ("red", "blue", "white", "brown")

DETAILS = {
    "trees": Things(("{count} tree{s}", "{count} green tree{s}"), (1, 5), ("green",), ("tree", 0.055)),
    "buildings": Things(
        ("{count} building{s} with {a} {colour} roof{s}", "{count} {colour} building{s}"),
        (1, 3),
        ROOFS,
        ("house", 0.08),
    ),
    "pond": Things(("a {colour} pond", "a small {colour} pond"), (1, 1), ("blue", "green", "brown"), ("pond", 0.11)),
    "trucks": Things(("{count} {colour} truck{s}",), (1, 3), ("red", "yellow", "blue"), ("truck", 0.08)),
    "pools": Things(("{count} swimming pool{s}", "{count} blue pool{s}"), (1, 3), ("blue",), ("pool", 0.08)),
    "ships": Things(("{count} large {colour} ship{s}",), (1, 2), ("red", "grey", "black"), ("ship", 0.16)),
}


def across(random: np.random.Generator, depth: float, wave: float) -> list[tuple[float, float]]:
    """Points of a wavy line from the left edge to the right one."""
    phase, number = random.uniform(0, 2 * math.pi), random.uniform(1, 2.5)
    return [(x, depth + wave * math.sin(2 * math.pi * number * x + phase)) for x in np.linspace(-0.02, 1.02, 27)]


def band(canvas: Canvas, *layers: tuple[str, float, float], wave: float = 0.012) -> None:
    """Lay materials (name, upper depth, lower depth) across the frame, one over the other."""
    for material, upper, lower in layers:
        canvas.cover(material, across(canvas.random, upper, wave) + across(canvas.random, lower, wave)[::-1])


def _field_border(canvas: Canvas) -> None:
    edge = rectangle(-0.02, -0.02, 1.02, BORDER_END - 0.01)
    canvas.cover("soil", edge, (126, 88, 58), (canvas.random.uniform(0, math.pi), canvas.random.uniform(24, 34)))


def _wood_border(canvas: Canvas) -> None:
    band(canvas, ("canopy", -0.1, 0.19))
    for centre in canvas.random.uniform((0, 0), (1, 0.19), (75, 2)):
        canvas.place("tree", centre, canvas.random.uniform(0.028, 0.042), 0.0, (62, 116, 54))


def _house_border(canvas: Canvas) -> None:
    canvas.stroke([(-0.1, 0.215), (1.1, 0.215)], 0.035, MATERIALS["asphalt"][0])
    for x in np.linspace(0.09, 0.91, 5):
        canvas.place("house", (x, 0.11), 0.072, 0.0, str(canvas.random.choice(["red", "brown", "grey", "orange"])))


def _runway_border(canvas: Canvas) -> None:
    canvas.cover("asphalt", rectangle(-0.02, 0.03, 1.02, 0.2))
    canvas.dashes((0.14, 0.115), (1.05, 0.115), 0.012)
    for y in np.linspace(0.055, 0.175, 5):
        canvas.stroke([(0.04, y), (0.12, y)], 0.012, COLOURS["white"])


def _road_border(canvas: Canvas) -> None:
    canvas.road((-0.1, 0.12 + canvas.random.normal(0, 0.01)), (1.1, 0.12 + canvas.random.normal(0, 0.01)), 0.1)


def _bands(*layers: tuple[str, float, float], wave: float = 0.012) -> Border:
    return lambda canvas: band(canvas, *layers, wave=wave)


def _river(water: str) -> Border:
    return _bands(("sand", 0.03, 0.215), (water, 0.045, 0.2), wave=0.008)


# What lies beside a scene: wordings, and how it is drawn into the upper `BORDER_END` of the frame.
BORDERS: dict[str, tuple[tuple[str, ...], Border]] = {
    "road": (("a road", "an asphalt road"), _road_border),
    "wood": (("a forest", "a dense wood"), _wood_border),
    "field": (("a ploughed field", "a brown ploughed field"), _field_border),
    "houses": (("a row of houses", "a line of houses"), _house_border),
    "runway": (("a runway", "a long runway"), _runway_border),
    "meadow": (("a meadow", "a green meadow"), _bands(("grass", -0.1, 0.21))),
    "bare": (("a piece of bare land", "a strip of bare land"), _bands(("soil", -0.1, 0.21))),
    "blue river": (("a blue river",), _river("blue water")),
    "brown river": (("a brown river", "a muddy brown river"), _river("brown water")),
    "blue sea": (("the blue sea",), _bands(("foam", -0.1, 0.235), ("blue water", -0.1, 0.2))),
    "green sea": (("the green sea",), _bands(("foam", -0.1, 0.235), ("green water", -0.1, 0.2))),
    "beach": (("a sandy beach", "a beach"), _bands(("sand", -0.1, 0.21))),
}

# By the side of the frame on which the border ends up, counter-clockwise from the top.
SIDES = (
    ("at the top", "along the upper edge"),
    ("on the left", "on the left side"),
    ("at the bottom", "along the lower edge"),
    ("on the right", "on the right side"),
)


def place_words(x: float, y: float, quarter_turns: int) -> str:
    """Where a point of the unturned frame ends up, in words."""
    for _ in range(quarter_turns):
        x, y = y, 1 - x
    across = "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "upper" if y < 0.36 else "lower" if y > 0.64 else ""
    if across and down:
        return f"in the {down} {across} corner"
    return f"in the {across or down} part"
