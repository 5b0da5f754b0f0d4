"""Charts as SVG: lines, bars, a matrix and points. Colours are classes of style.css, so that they follow the theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.html.markup import SWIPE, Markup, join, tag

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
CELLS = (22, 44)  # side of a matrix's cell: the least, with many classes, and the most
MATRIX = 400  # side of all cells, between these bounds
PHONE = 330  # width that a phone shows of a chart
NAME, LETTER = 24, 7  # letters of a class name that are shown, and the width of one
MARKED = 30  # points of a line that still get a dot each
COLOURS = 6


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: in the legend; "" for a line that needs none.
        points: x and y of each.
        style: classes of style.css: `c0` ... `c5`, `chance`, `faint`.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Cloud:
    """Points of one colour in a scatter plot.

    Attributes:
        title: shown when the pointer rests on a point.
        points: x and y of each.
        kind: class of style.css: `image` or `caption`.
        colour: CSS colour.
    """

    title: str
    points: Sequence[tuple[float, float]]
    kind: str
    colour: str


def line_chart(title: str, lines: Sequence[Line], x_label: str, y_label: str, log_x: bool = False) -> Markup:
    """Lines over a common x; y starts at 0.

    Args:
        title: what the chart shows, also for those who can't see it.
        lines: at least one, with at least one point.
        x_label: under the chart.
        y_label: above its y axis.
        log_x: whether x, then at least 1, has a logarithmic scale.
    """
    xs = [x for line in lines for x, _ in line.points]
    low, high = min(xs), max(xs)
    top = _ceiling(max(y for line in lines for _, y in line.points))
    scale = (lambda x: math.log(x)) if log_x else float
    span = (scale(high) - scale(low)) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (scale(x) - scale(low)) / span * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    x_ticks = _decades(low, high) if log_x else [x for x in _ticks(high) if x >= low]
    drawn = [_rule(*place(low, y), *place(high, y), f"{y:g}") for y in _ticks(top)]
    drawn += [tag("text", f"{x:g}", x=place(x, 0)[0], y=HEIGHT - BOTTOM + 15, text_anchor="middle") for x in x_ticks]
    for line in lines:
        places = [place(x, y) for x, y in line.points]
        drawn.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), class_=line.style))
        if len(places) <= MARKED and "chance" not in line.style:
            drawn += [tag("circle", cx=x, cy=y, r=2.5, class_=line.style) for x, y in places]
    drawn.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"))
    drawn.append(tag("text", y_label, x=LEFT + 6, y=TOP + 10))
    return _figure(title, _svg(title, WIDTH, HEIGHT, drawn), [(line.label, line.style) for line in lines if line.label])


def bar_chart(title: str, labels: Sequence[str], values: Sequence[float], x_label: str, style: str) -> Markup:
    """Upright bars with their values in percent on top.

    Args:
        title: what the chart shows.
        labels: under the bars.
        values: in percent.
        x_label: under the labels.
        style: class of style.css: `c0` ... `c5`.
    """
    step = (WIDTH - RIGHT - RIGHT) / len(values)
    top = max(values) or 1.0
    floor = HEIGHT - BOTTOM
    drawn = []
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        height = value / top * (floor - TOP - 16)
        middle = RIGHT + (number + 0.5) * step
        drawn += [
            tag("rect", x=middle - 0.4 * step, y=floor - height, width=0.8 * step, height=height, class_=style),
            tag("text", f"{value:.1f} %", x=middle, y=floor - height - 5, text_anchor="middle"),
            tag("text", label, x=middle, y=floor + 15, text_anchor="middle", class_="bin"),
        ]
    drawn.append(tag("text", x_label, x=WIDTH / 2, y=HEIGHT - 6, text_anchor="middle"))
    return _figure(title, _svg(title, WIDTH, HEIGHT, drawn), [])


def matrix(title: str, names: Sequence[str], shares: Sequence[Sequence[float]], x_label: str, y_label: str) -> Markup:
    """A square of cells, the fuller the larger the share, those of 5 % and more with their number.

    Args:
        title: what the chart shows.
        names: of rows and columns.
        shares: rows in percent.
        x_label: above the columns' names.
        y_label: above the rows' names.
    """
    cell = min(max(MATRIX / len(names), CELLS[0]), CELLS[1])
    shown = [name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in names]
    edge = 14 + LETTER * max(len(y_label), *map(len, shown))  # of the cells, from the left and from the top
    side = cell * len(names)
    drawn = [
        tag("text", y_label, x=0, y=edge - 8, class_="axis"),
        tag("text", x_label, x=edge, y=11, class_="axis"),
    ]
    top = edge + 12
    for row, name in enumerate(shown):
        middle = (row + 0.5) * cell + 4
        drawn.append(tag("text", name, x=edge - 5, y=top + middle, text_anchor="end"))
        drawn.append(tag("text", name, transform=f"translate({edge + middle:.2f} {top - 5:.2f}) rotate(-90)"))
        for column, share in enumerate(shares[row]):
            if share > 0:
                place = (edge + column * cell, top + row * cell)
                drawn.append(_cell(*place, cell, share, f"{names[row]}, found {names[column]}"))
    drawn.append(tag("rect", x=edge, y=top, width=side, height=side, class_="outline"))
    width = edge + side + 2
    # No scale of its own: letters stay as large as the page's, whatever the number of classes.
    svg = _svg(title, width, top + side + 2, drawn, f"width:{width:.0f}px;max-width:none")
    return _figure(title, svg, [], "matrix", [SWIPE] if width > PHONE else [])


def scatter(
    title: str, clouds: Sequence[Cloud], numbers: Sequence[tuple[str, float, float]], caption: Sequence[str]
) -> Markup:
    """Points in a plane of equal scales.

    Args:
        title: what the chart shows.
        clouds: the later lie over the earlier.
        numbers: texts written over all, each with its x and y.
        caption: put under the chart.
    """
    points = [point for cloud in clouds for point in cloud.points]
    (x_low, x_high), (y_low, y_high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    unit = (2 * WIDTH - 24) / max(x_high - x_low, y_high - y_low, 1e-12)
    height = (y_high - y_low) * unit + 24

    def place(x: float, y: float) -> tuple[float, float]:
        return 12 + (2 * WIDTH - 24 - (x_high - x_low) * unit) / 2 + (x - x_low) * unit, 12 + (y_high - y) * unit

    drawn = []
    for cloud in clouds:
        radius = 6 if cloud.kind == "image" else 3.5
        dots = [tag("circle", cx=x, cy=y, r=radius) for x, y in (place(*point) for point in cloud.points)]
        drawn.append(tag("g", tag("title", cloud.title), *dots, class_=cloud.kind, fill=cloud.colour))
    for text, x, y in numbers:
        across, down = place(x, y)
        drawn.append(tag("text", text, x=across, y=down + 6, text_anchor="middle", class_="number"))
    return _figure(title, _svg(title, 2 * WIDTH, height, drawn), [], "plane", caption)


def _cell(x: float, y: float, side: float, share: float, title: str) -> Markup:
    name = tag("title", f"{title}: {share:.1f} %")
    drawn = [tag("rect", name, x=x, y=y, width=side, height=side, class_="c0", fill_opacity=0.08 + 0.92 * share / 100)]
    if share >= 5:
        style = "inside" if share > 50 else "small"
        across, down = x + side / 2, y + side / 2 + 3.5
        drawn.append(tag("text", f"{share:.0f}", x=across, y=down, text_anchor="middle", class_=style))
    return join(drawn)


def _rule(x1: float, y1: float, x2: float, y2: float, label: str) -> Markup:
    line = tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="rule")
    return join([line, tag("text", label, x=x1 - 5, y=y1 + 4, text_anchor="end")])


def _svg(title: str, width: float, height: float, drawn: Sequence[str], style: str = "") -> Markup:
    """A drawing that fills the width it is given, but for a `style` that says otherwise."""
    given = {"style": style} if style else {}
    return tag("svg", *drawn, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=title, **given)


def _figure(
    title: str, svg: Markup, legend: Sequence[tuple[str, str]], style: str = "", caption: Sequence[str] = ()
) -> Markup:
    keys = [tag("li", tag("span", class_=f"key {style}"), label) for label, style in legend]
    under = [*([tag("ul", *keys, class_="legend")] if keys else []), *caption]
    return tag("figure", tag("figcaption", title), tag("div", svg, class_="chart"), *under, class_=style)


def _step(top: float) -> float:
    """Distance of about five ticks up to `top`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    return power * next(factor for factor in (1, 2, 5, 10) if 5 * factor * power >= top * (1 - 1e-9))


def _ceiling(top: float) -> float:
    """The lowest tick that is not below `top`; 1 where that is next to nothing."""
    return math.ceil(top / _step(top) - 1e-9) * _step(top) if top > 1e-9 else 1.0


def _ticks(top: float) -> list[float]:
    """0 and all ticks up to `top`."""
    return [number * _step(top) for number in range(int(top / _step(top) + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... within the bounds."""
    powers = range(int(math.log10(high)) + 1)
    return [factor * 10**power for power in powers for factor in (1, 2, 5) if low <= factor * 10**power <= high]
