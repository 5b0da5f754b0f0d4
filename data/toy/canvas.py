"""Drawing for the toy data set: textured grounds and small objects seen from above, in frame units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data.toy.shapes import COLOURS, OBJECTS, Colour, Point

OVERSAMPLE = 3  # edges are drawn at this multiple of the final size and averaged down

# Mean colour and roughness (standard deviation of the texture, in grey levels).
MATERIALS: dict[str, tuple[Colour, float]] = {
    "grass": ((106, 138, 70), 13),
    "soil": ((166, 128, 88), 13),
    "sand": ((224, 204, 156), 7),
    "concrete": ((166, 164, 158), 7),
    "asphalt": ((88, 88, 93), 6),
    "canopy": ((44, 74, 38), 14),
    "foam": ((236, 240, 240), 6),
    "blue water": ((46, 96, 156), 6),
    "green water": ((58, 116, 92), 6),
    "brown water": ((132, 108, 70), 6),
}


class Canvas:
    """A square image in the making. Points are fractions of the frame, (0, 0) top left; y runs down.

    The amount of randomness used while drawing does not depend on `size`, so an image shows the same at any size.

    Args:
        size: edge of the finished image, pixels.
        random: source of the texture, the light and small differences between objects of one colour.
    """

    def __init__(self, size: int, random: np.random.Generator) -> None:
        self.size = size
        self.random = random
        self._edge = size * OVERSAMPLE
        self._image = Image.new("RGB", (self._edge, self._edge))
        self._pen = ImageDraw.Draw(self._image, "RGBA")
        self._noise = self._make_noise()
        angle = random.uniform(0, 2 * math.pi)
        self._sun = np.array([math.cos(angle), math.sin(angle)])

    def _make_noise(self) -> NDArray[np.float32]:
        """Texture [edge, edge] of mean 0 and deviation 1: octaves from 4 to 256 cells across the frame."""
        noise = np.zeros((2, 2), dtype=np.float32)
        for cells, weight in ((4, 1.0), (8, 0.7), (16, 0.6), (32, 0.5), (64, 0.5), (128, 0.6), (256, 0.7)):
            enlarged = _resize(noise, cells)
            noise = enlarged + weight * self.random.standard_normal((cells, cells), dtype=np.float32)
        noise = _resize(noise, self._edge)
        return (noise - noise.mean()) / noise.std()

    def _pixels(self, points: Any) -> list[Point]:
        """Frame units to pixels of the oversampled image."""
        return [(float(x), float(y)) for x, y in np.asarray(points, dtype=float) * self._edge]

    def cover(
        self, material: str, outline: Any = None, tint: Colour | None = None, furrows: tuple[float, float] | None = None
    ) -> None:
        """Lay a textured ground.

        Args:
            material: a key of `MATERIALS`.
            outline: polygon [N, 2] to fill; the whole frame without it.
            tint: replaces the material's mean colour.
            furrows: direction (radians) and number per frame of parallel stripes.
        """
        mean, roughness = MATERIALS[material]
        corners = self._pixels([(0, 0), (1, 0), (1, 1), (0, 1)] if outline is None else outline)
        left, top = (max(0, math.floor(low)) for low in np.min(corners, axis=0))
        right, bottom = (min(self._edge, math.ceil(high) + 1) for high in np.max(corners, axis=0))
        # Mirrored, so that no two grounds show the same pattern.
        flip_x, flip_y = self.random.choice([1, -1], 2)
        level = roughness * self._noise[::flip_y, ::flip_x][top:bottom, left:right]
        if furrows is not None:
            angle, number = furrows
            across, down = np.arange(left, right) * math.cos(angle), np.arange(top, bottom) * math.sin(angle)
            level = 0.6 * level + 13 * np.sin(2 * math.pi * number / self._edge * (across[None, :] + down[:, None]))
        texture = np.array(tint or mean, np.float32) + level[..., None] * np.array((1.0, 0.95, 0.8), np.float32)
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in corners], fill=255)
        self._image.paste(Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8)), (left, top), mask)

    def polygon(self, points: Any, colour: Colour, height: float = 0.0) -> None:
        """Fill a polygon [N, 2] over the shadow that an object of the given height would throw."""
        if height:
            self._pen.polygon(self._pixels(np.asarray(points) + height * self._sun), fill=(20, 22, 30, 120))
        self._pen.polygon(self._pixels(points), fill=colour)

    def stroke(self, points: Any, width: float, colour: Colour) -> None:
        """Draw a line through points [N, 2]."""
        self._pen.line(self._pixels(points), fill=colour, width=max(1, round(width * self._edge)), joint="curve")

    def dashes(self, start: Point, end: Point, width: float) -> None:
        """Draw a dashed white line, 12 dashes for a line as long as the frame."""
        first, last = np.array(start), np.array(end)
        number = max(1, round(12 * float(np.linalg.norm(last - first))))
        for dash in range(number):
            ends = [first + (last - first) * (dash + part) / number for part in (0.2, 0.7)]
            self.stroke(ends, width, COLOURS["white"])

    def road(self, start: Point, end: Point, width: float) -> None:
        """Draw a straight asphalt road with a dashed centre line."""
        self.stroke([start, end], width * 1.15, (150, 148, 142))
        self.stroke([start, end], width, MATERIALS["asphalt"][0])
        self.dashes(start, end, width * 0.09)

    def place(self, name: str, centre: Any, radius: float, heading: float, colour: str | Colour) -> None:
        """Draw one of `OBJECTS`, slightly off its nominal colour as real objects are.

        Args:
            name: a key of `OBJECTS`.
            centre: point [2].
            radius: half the object's length, frame units.
            heading: radians, clockwise on the image, 0 faces right.
            colour: a key of `COLOURS`, or red, green and blue.
        """
        height, parts = OBJECTS[name]
        nominal = COLOURS[colour] if isinstance(colour, str) else colour
        body = np.array(nominal) + self.random.normal(0, 6) + self.random.normal(0, 3, 3)
        turn = np.array([[math.cos(heading), math.sin(heading)], [-math.sin(heading), math.cos(heading)]])
        for index, (paint, outline) in enumerate(parts):
            shade = np.array(COLOURS[paint]) if isinstance(paint, str) else body * paint
            points = np.asarray(outline) @ turn * radius + np.asarray(centre)
            red, green, blue = (int(value) for value in np.clip(shade, 0, 255))
            self.polygon(points, (red, green, blue), height * radius if index == 0 else 0.0)

    def finish(self, quarter_turns: int) -> Image.Image:
        """The finished RGB image [size, size], turned counter-clockwise, under slightly uneven light."""
        small = np.asarray(self._image.reduce(OVERSAMPLE), dtype=np.float32)
        position = np.linspace(-1, 1, self.size, dtype=np.float32)
        slope_x, slope_y, gain = self.random.normal(0, (0.03, 0.03, 0.05))
        light = 1 + gain + slope_x * position[None, :] + slope_y * position[:, None]
        grain = self.random.normal(0, 2.5, (self.size, self.size, 1))
        pixels = np.clip(small * light[..., None] + grain, 0, 255).astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, quarter_turns)))


def _resize(field: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """A float field [a, a] resampled to [edge, edge]."""
    image = Image.fromarray(field).resize((edge, edge), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)
