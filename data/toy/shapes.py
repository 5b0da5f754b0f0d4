"""Colours, outlines and small objects seen from above, of which the toy data set is made."""

from __future__ import annotations

import math

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236),
    "grey": (128, 131, 137),
    "black": (34, 34, 40),
    "red": (196, 42, 36),
    "blue": (36, 84, 196),
    "yellow": (236, 204, 48),
    "green": (58, 138, 66),
    "orange": (232, 126, 34),
    "brown": (122, 78, 44),
    "purple": (118, 66, 158),
    "light green": (140, 190, 84),
    "dark green": (38, 92, 52),
}


def ellipse(x: float, y: float, width: float, height: float, corners: int = 20) -> list[Point]:
    """Corners of an ellipse about (x, y) with the given half axes."""
    angles = [2 * math.pi * corner / corners for corner in range(corners)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


def rectangle(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Corners of an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _blob() -> list[Point]:
    """A rounded, uneven outline of mean radius 0.85."""
    angles = [2 * math.pi * corner / 36 for corner in range(36)]
    radii = [0.85 + 0.11 * math.sin(2 * angle) + 0.07 * math.cos(3 * angle) for angle in angles]
    return [(r * math.cos(angle), 0.8 * r * math.sin(angle)) for r, angle in zip(radii, angles, strict=True)]


BLOB = _blob()


def _points(text: str) -> list[Point]:
    """Corners written as in SVG: "x,y x,y ..."."""
    pairs = (pair.split(",") for pair in text.split())
    return [(float(x), float(y)) for x, y in pairs]


def _mirrored(text: str) -> list[Point]:
    """A half outline (y >= 0, from front to back) closed by its mirror image."""
    half = _points(text)
    return [*half, *((x, -y) for x, y in reversed(half))]


Part = tuple[float | str, list[Point]]
"""A polygon with its paint: a name from `COLOURS`, or a factor on the object's own colour."""

_DISC = ellipse(0, 0, 1, 1, 10)
_COURT_LINES = (  # frame, net, service line
    *((-0.75, -0.36, 0.75, -0.32), (-0.75, 0.32, 0.75, 0.36), (-0.75, -0.36, -0.71, 0.36), (0.71, -0.36, 0.75, 0.36)),
    *((-0.03, -0.42, 0.03, 0.42), (-0.4, -0.02, 0.4, 0.02)),
)


def _object(height: float, *parts: Part) -> tuple[float, tuple[Part, ...]]:
    """One of `OBJECTS`.

    Args:
        height: length of its shadow, in radii.
        parts: from the ground up, facing +x in a circle of radius 1; the first one throws the shadow.
    """
    return height, parts


OBJECTS = {
    "plane": _object(
        0.14,
        (0.88, _mirrored("1,0 0.3,0.13 -0.2,0.95 -0.4,0.95 -0.15,0.12 -0.7,0.08 -0.92,0.38 -1,0.38 -0.95,0")),
        ("grey", ellipse(0.12, 0.42, 0.13, 0.06)),
        ("grey", ellipse(0.12, -0.42, 0.13, 0.06)),
        (1.05, ellipse(0.0, 0.0, 0.98, 0.12)),
        ("black", ellipse(0.84, 0.0, 0.06, 0.06)),
    ),
    "tank": _object(0.4, *((shade, ellipse(0, 0, r, r)) for shade, r in ((0.7, 1), (1.0, 0.9), (0.8, 0.14)))),
    "boat": _object(
        0.06,
        (0.75, _mirrored("1,0 0.4,0.32 -0.95,0.28")),
        (1.0, _mirrored("0.85,0 0.35,0.24 -0.85,0.21")),
        ("grey", rectangle(-0.6, -0.13, 0.1, 0.13)),
    ),
    "ship": _object(
        0.06,
        (0.7, _mirrored("1,0 0.7,0.2 -0.95,0.2")),
        (1.0, _mirrored("0.9,0 0.66,0.15 -0.9,0.15")),
        ("white", rectangle(-0.85, -0.14, -0.5, 0.14)),
        ("black", rectangle(-0.3, -0.1, 0.0, 0.1)),
        ("black", rectangle(0.12, -0.1, 0.42, 0.1)),
    ),
    "car": _object(
        0.16,
        (1.0, _mirrored("1,0.34 0.9,0.44 -0.95,0.44 -1,0.38")),
        ("black", rectangle(0.26, -0.36, 0.5, 0.36)),
        ("black", rectangle(-0.8, -0.34, -0.62, 0.34)),
    ),
    "truck": _object(0.2, (1.0, rectangle(-1, -0.36, 0.5, 0.36)), (0.6, rectangle(0.56, -0.32, 1, 0.32))),
    "house": _object(
        0.35,
        (1.1, rectangle(-0.88, -0.66, 0.88, 0.0)),
        (0.72, rectangle(-0.88, 0.0, 0.88, 0.66)),
        (0.55, rectangle(-0.88, -0.04, 0.88, 0.04)),
    ),
    "court": _object(
        0.0,
        (0.65, rectangle(-1, -0.56, 1, 0.56)),
        (1.0, rectangle(-0.75, -0.36, 0.75, 0.36)),
        *(("white", rectangle(*line)) for line in _COURT_LINES),
    ),
    "diamond": _object(
        0.0,
        ("green", [(-0.95, 0.0), *ellipse(-0.1, 0.0, 1.0, 0.95)[15:], *ellipse(-0.1, 0.0, 1.0, 0.95)[:6]]),
        (1.0, _points("-0.9,0 -0.3,0.6 0.05,0.45 0.2,0 0.05,-0.45 -0.3,-0.6")),
        ("green", _points("-0.68,0 -0.32,0.34 0.02,0 -0.32,-0.34")),
        (1.0, ellipse(-0.32, 0.0, 0.09, 0.09)),
    ),
    "umbrella": _object(0.35, (1.0, _DISC), (0.75, [(0, 0), *_DISC[:3]]), ("white", ellipse(0, 0, 0.2, 0.2))),
    "tree": _object(
        0.4,
        (0.5, ellipse(0, 0, 1, 1, 11)),
        (0.7, ellipse(-0.1, -0.1, 0.75, 0.75, 9)),
        (0.95, ellipse(-0.2, -0.2, 0.4, 0.4, 7)),
    ),
    "pond": _object(0.0, ("brown", [(1.08 * x, 1.08 * y) for x, y in BLOB]), (1.0, BLOB)),
    "pool": _object(0.0, ("white", rectangle(-0.9, -0.56, 0.9, 0.56)), (1.0, rectangle(-0.76, -0.42, 0.76, 0.42))),
}
