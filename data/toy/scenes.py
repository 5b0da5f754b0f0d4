"""How the scenes of the toy data set are drawn.

Each public function draws what a sketch asks for into the middle of the frame and returns the participle phrase that
says how it lies there, such as "parked in two rows".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data.toy.canvas import MATERIALS, Canvas
from data.toy.places import DETAIL_Y, NUMBERS, ZONE_END, ZONE_START, across, article, band
from data.toy.shapes import BLOB, COLOURS, ellipse, rectangle

ZONE_MIDDLE = (ZONE_START + ZONE_END) / 2
LAYOUTS = ("in a row", "in two rows", "at scattered places")


@dataclass(frozen=True)
class Sketch:
    """What a scene function has to draw, and with what."""

    canvas: Canvas
    count: int
    colour: str
    detail_x: float


def _row(count: int, spacing: float, y: float) -> list[tuple[float, float]]:
    """Centres of `count` things in a row about the middle of the frame."""
    return [(0.5 + (index - (count - 1) / 2) * spacing, y) for index in range(count)]


def _scatter(random: np.random.Generator, count: int, radius: float) -> tuple[NDArray[np.float64], float]:
    """Random centres [count, 2] in the scene's zone that keep two radii apart; the radius shrinks until they fit."""
    while True:
        low, high = (0.06 + radius, ZONE_START + 0.8 * radius), (0.94 - radius, ZONE_END - 0.8 * radius)
        centres: list[NDArray[np.float64]] = []
        for centre in random.uniform(low, high, (60, 2)):
            if len(centres) < count and all(np.linalg.norm(centre - other) > 2.1 * radius for other in centres):
                centres.append(centre)
        if len(centres) == count:
            return np.array(centres), radius
        radius *= 0.95


def spread(sketch: Sketch, shape: tuple[str, float], verbs: Sequence[str], layouts: Sequence[str] = LAYOUTS) -> str:
    """Draw the things in a row, in two rows or scattered."""
    random, count = sketch.canvas.random, sketch.count
    name, radius = shape
    fitting = {
        "in a row": 2 <= count <= 5,
        "in two rows": count >= 4 and count % 2 == 0,
        "at scattered places": count >= 2,
    }
    layout = str(random.choice([layout for layout in layouts if fitting[layout]] or ["alone"]))
    turns = np.full(count, random.choice([0, 0.5, 1, 1.5]) * math.pi + random.normal(0, 0.15))
    if layout == "at scattered places":
        centres, radius = _scatter(random, count, min(radius, 0.1))
        turns = random.uniform(0, 2 * math.pi, count)
    elif layout == "in two rows":
        spacing = min(0.85 / (count // 2), 0.26)
        radius = min(radius, 0.46 * spacing, 0.115)
        centres = np.array([*_row(count // 2, spacing, 0.39), *_row(count // 2, spacing, 0.64)])
    else:
        spacing = min(0.88 / count, 0.34)
        radius = min(radius, 0.46 * spacing, 0.22)
        slack = 0.6 * (0.44 - spacing * count / 2)
        centres = np.array(_row(count, spacing, ZONE_MIDDLE)) + np.array([random.uniform(-slack, slack), 0])
    for centre, turn in zip(centres, turns, strict=True):
        sketch.canvas.place(name, centre, radius, turn, sketch.colour)
    return f"{random.choice(list(verbs))} {layout}"


def harbour(sketch: Sketch) -> str:
    """Boats at one or two piers, or out on the water."""
    canvas, random = sketch.canvas, sketch.canvas.random
    piers = int(random.integers(0, 3))
    if piers == 0:
        return spread(sketch, ("boat", 0.09), ("floating", "anchored"), ("at scattered places",))
    slots = []
    for x in ((0.5,), (0.27, 0.73))[piers - 1]:
        canvas.stroke([(x, 0.19), (x, 0.75)], 0.028, (186, 172, 150))
        slots += [(x + side * 0.1, y) for side in (-1, 1) for y in (0.35, 0.46, 0.57, 0.68)]
    for slot in random.permutation(len(slots))[: sketch.count]:
        canvas.place("boat", slots[slot], 0.075, math.pi * random.integers(0, 2), sketch.colour)
    return f"{random.choice(['moored', 'docked'])} at {NUMBERS[piers]} wooden pier{'s' * (piers > 1)}"


def street(sketch: Sketch) -> str:
    """Houses along a street, or scattered."""
    canvas, random = sketch.canvas, sketch.canvas.random
    if random.random() < 0.4:
        return spread(sketch, ("house", 0.085), ("built", "standing"), ("at scattered places",))
    canvas.road((-0.1, ZONE_MIDDLE), (1.1, ZONE_MIDDLE), 0.08)
    slots = [(x, y) for x in (0.12, 0.31, 0.5, 0.69, 0.88) for y in (0.36, 0.67)]
    for slot in random.permutation(len(slots))[: sketch.count]:
        canvas.place("house", slots[slot], 0.083, 0.0, sketch.colour)
    return f"{random.choice(['built', 'standing'])} along a straight street"


def parking(sketch: Sketch) -> str:
    """Cars in the stalls of a parking lot."""
    canvas, random = sketch.canvas, sketch.canvas.random
    canvas.cover("asphalt", rectangle(0.03, ZONE_START, 0.97, ZONE_END))
    stalls = np.linspace(0.13, 0.87, 6)
    for y in (0.36, 0.67):
        for x in np.linspace(0.056, 0.944, 7):
            canvas.stroke([(x, y - 0.07), (x, y + 0.07)], 0.007, COLOURS["white"])
    one_row = sketch.count < 6 and random.random() < 0.5
    upper = sketch.count if one_row else int(random.integers(max(1, sketch.count - 6), min(6, sketch.count - 1) + 1))
    for y, number in ((0.36, upper), (0.67, sketch.count - upper)):
        for stall in random.permutation(6)[:number]:
            heading = math.pi * (0.5 + random.integers(0, 2)) + random.normal(0, 0.04)
            canvas.place("car", (stalls[stall], y), 0.068, heading, sketch.colour)
    return "parked in one row" if one_row else "parked in two rows"


def panels(sketch: Sketch) -> str:
    """Long rows of solar panels."""
    pitch = min(0.88 / sketch.count, 0.2)
    for x, y in _row(sketch.count, pitch, ZONE_MIDDLE):
        left, right, top, bottom = x - 0.36 * pitch, x + 0.36 * pitch, y - 0.22, y + 0.22
        sketch.canvas.polygon(rectangle(left, top, right, bottom), COLOURS[sketch.colour], 0.015)
        for line in np.linspace(top, bottom, 10):
            sketch.canvas.stroke([(left, line), (right, line)], 0.006, (176, 186, 200))
        sketch.canvas.stroke([(x, top), (x, bottom)], 0.006, (176, 186, 200))
    return str(sketch.canvas.random.choice(["installed side by side", "mounted side by side"]))


def fields(sketch: Sketch) -> str:
    """Fields side by side."""
    canvas, random = sketch.canvas, sketch.canvas.random
    steps = random.uniform(0.75, 1.25, sketch.count)
    ends = np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])
    hedges = bool(random.random() < 0.5)
    for left, right in pairwise(ends):
        crop = 0.75 * np.array(COLOURS[sketch.colour]) + 0.25 * np.array(MATERIALS["soil"][0])
        red, green, blue = (int(value) for value in crop * random.uniform(0.78, 1.0))
        furrows = (random.choice([0.0, 0.5]) * math.pi, random.uniform(22, 38))
        canvas.cover("soil", rectangle(left, ZONE_START, right, ZONE_END), (red, green, blue), furrows)
    for x in ends[1:-1]:
        canvas.stroke([(x, ZONE_START), (x, ZONE_END)], 0.03, (60, 84, 44) if hedges else (206, 182, 144))
        for y in np.arange(ZONE_START + 0.02, ZONE_END, 0.045) if hedges else ():
            canvas.place("tree", (x, y), 0.027, 0.0, "dark green")
    return "separated by green hedges" if hedges else "separated by dirt paths"


def bridges(sketch: Sketch) -> str:
    """A river that runs along the border, and roads that cross it."""
    canvas, random = sketch.canvas, sketch.canvas.random
    water = str(random.choice(["blue", "green", "brown"]))
    band(canvas, ("sand", 0.34, 0.7), (f"{water} water", 0.36, 0.68), wave=0.02)
    first = 0.44 if sketch.detail_x < 0.5 else 0.15
    for slot in sorted(random.permutation(3)[: sketch.count]):
        x = first + 0.205 * slot
        canvas.road((x, -0.1), (x, 1.1), 0.07)
        canvas.polygon(rectangle(x - 0.055, 0.31, x + 0.055, 0.73), COLOURS[sketch.colour], 0.025)
        canvas.stroke([(x, 0.31), (x, 0.73)], 0.06, MATERIALS["asphalt"][0])
        canvas.dashes((x, 0.31), (x, 0.73), 0.007)
    return f"built across a {water} river" if random.random() < 0.5 else f"leading across a {water} river"


def roundabout(sketch: Sketch) -> str:
    """Roads that meet in a roundabout."""
    canvas, centre = sketch.canvas, np.array([0.5, ZONE_MIDDLE])
    # The middle between two roads points at the details, so that none of these stands on a road.
    gap = math.pi / sketch.count
    start = (
        math.atan2(DETAIL_Y - centre[1], sketch.detail_x - centre[0]) + gap + sketch.canvas.random.uniform(-0.1, 0.1)
    )
    for road in range(sketch.count):
        angle = start + 2 * gap * road
        canvas.road(tuple(centre), tuple(centre + 0.9 * np.array([math.cos(angle), math.sin(angle)])), 0.09)
    canvas.polygon(ellipse(0.5, ZONE_MIDDLE, 0.21, 0.21, 48), (150, 148, 142))
    canvas.polygon(ellipse(0.5, ZONE_MIDDLE, 0.2, 0.2, 48), MATERIALS["asphalt"][0])
    canvas.polygon(ellipse(0.5, ZONE_MIDDLE, 0.115, 0.115, 40), COLOURS["white"])
    canvas.polygon(ellipse(0.5, ZONE_MIDDLE, 0.105, 0.105, 40), COLOURS[sketch.colour])
    return f"joined by a roundabout with a {sketch.colour} island"


def crossroads(sketch: Sketch) -> str:
    """Cars on the straight road of a junction of three or four roads."""
    canvas, random, y = sketch.canvas, sketch.canvas.random, ZONE_MIDDLE
    # The road that may be missing is the one towards the border.
    roads = int(random.integers(3, 5))
    canvas.road((-0.1, y), (1.1, y), 0.15)
    canvas.road((0.5, y if roads == 3 else -0.1), (0.5, 1.1), 0.15)
    canvas.polygon(rectangle(0.425, y - 0.075, 0.575, y + 0.075), MATERIALS["asphalt"][0])
    for offset in (-0.05, -0.017, 0.017, 0.05):
        for edge in (0.375, 0.605):
            canvas.stroke([(edge, y + offset), (edge + 0.03, y + offset)], 0.016, COLOURS["white"])
    forward, backward = (0.07, 0.19, 0.31, 0.7, 0.82, 0.94), (0.1, 0.25, 0.73, 0.9)
    lanes = [*((x, 1) for x in forward), *((x, -1) for x in backward)]
    for lane in random.permutation(len(lanes))[: sketch.count]:
        x, way = lanes[lane]
        canvas.place("car", (x, y + 0.037 * way), 0.05, 0.0 if way > 0 else math.pi, sketch.colour)
    return f"{random.choice(['standing', 'seen'])} at a junction of {NUMBERS[roads]} roads"


def clearings(sketch: Sketch) -> str:
    """Clearings in a forest."""
    canvas, random = sketch.canvas, sketch.canvas.random
    red, green, blue = COLOURS[sketch.colour]
    outline = [*across(random, 0.25, 0.01), (1.02, 1.02), (-0.02, 1.02)]
    canvas.cover("canopy", outline, (red // 2, green // 2, blue // 2))
    for centre in random.uniform((0, ZONE_START), (1, 1), (260, 2)):
        canvas.place("tree", centre, random.uniform(0.03, 0.048), 0.0, sketch.colour)
    centres, radius = _scatter(random, sketch.count, 0.11)
    for centre in centres:
        canvas.cover("sand", centre + np.array(BLOB) * radius * random.uniform(0.85, 1.0))
    return f"surrounded by dense {sketch.colour} trees"


def stadium(sketch: Sketch) -> str:
    """Stands about a running track."""
    canvas, y = sketch.canvas, ZONE_MIDDLE
    stands = [
        (0.25, 0.275, 0.75, 0.315),
        (0.25, 0.715, 0.75, 0.755),
        (0.09, 0.38, 0.145, 0.65),
        (0.855, 0.38, 0.91, 0.65),
    ]
    for index in canvas.random.permutation(4)[: sketch.count]:
        left, top, right, bottom = stands[index]
        canvas.polygon(rectangle(left, top, right, bottom), COLOURS["white"], 0.02)
        wide = right - left > bottom - top
        for part in (0.3, 0.7):
            line = [(left, top + part * (bottom - top)), (right, top + part * (bottom - top))]
            upright = [(left + part * (right - left), top), (left + part * (right - left), bottom)]
            canvas.stroke(line if wide else upright, 0.009, COLOURS["grey"])
    canvas.polygon(ellipse(0.5, y, 0.33, 0.185, 60), COLOURS[sketch.colour])
    for inset in (0.02, 0.04):
        canvas.stroke(ellipse(0.5, y, 0.33 - inset, 0.185 - inset, 60), 0.004, COLOURS["white"])
    canvas.cover("grass", ellipse(0.5, y, 0.27, 0.125, 60))
    canvas.stroke([*rectangle(0.32, y - 0.08, 0.68, y + 0.08), (0.32, y - 0.08)], 0.007, COLOURS["white"])
    canvas.stroke([(0.5, y - 0.08), (0.5, y + 0.08)], 0.007, COLOURS["white"])
    return f"{canvas.random.choice(['built', 'set'])} along {article(sketch.colour)} {sketch.colour} running track"


def railway(sketch: Sketch) -> str:
    """Parallel tracks with one or two trains."""
    canvas, random = sketch.canvas, sketch.canvas.random
    heights = [ZONE_MIDDLE + (index - (sketch.count - 1) / 2) * 0.095 for index in range(sketch.count)]
    canvas.cover("soil", rectangle(-0.02, heights[0] - 0.045, 1.02, heights[-1] + 0.045), (138, 128, 120))
    for y in heights:
        for x in np.arange(0, 1, 0.025):
            canvas.stroke([(x, y - 0.025), (x, y + 0.025)], 0.008, (92, 74, 62))
        for rail in (-0.015, 0.015):
            canvas.stroke([(-0.1, y + rail), (1.1, y + rail)], 0.006, (206, 208, 212))
    trains = int(random.integers(1, 3))
    for track in random.permutation(sketch.count)[:trains]:
        start = random.uniform(0.05, 0.3)
        for wagon in range(4):
            left, y = start + 0.16 * wagon, heights[track]
            canvas.polygon(rectangle(left, y - 0.027, left + 0.15, y + 0.027), COLOURS[sketch.colour], 0.015)
            canvas.stroke([(left + 0.02, y), (left + 0.13, y)], 0.012, COLOURS["grey"])
    return f"carrying {NUMBERS[trains]} {sketch.colour} train{'s' * (trains > 1)}"
