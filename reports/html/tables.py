"""Tables of a page: scores, shaded recalls, and lists of text."""

from __future__ import annotations

from collections.abc import Sequence

from reports.html.markup import SWIPE, Markup, join, tag
from reports.tables import LIMITS

KEPT = ("mR", "mean of all 15")
"""Headlines of a last column that stays in sight where the table is wider than the page."""
WIDE = 6  # columns that a phone can't show at once


def table(cells: Sequence[Sequence[str]]) -> Markup:
    """Rows of text as an HTML table; the first row and the first column are heads."""
    head, *body = cells
    rows = []
    for name, *values in body:
        style = "mean" if name == "mean ± sd" else "chance" if name in LIMITS.values() else ""
        rows.append(tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in values), class_=style))
    return framed(head, rows)


def framed(heads: Sequence[str], rows: Sequence[Markup], style: str = "") -> Markup:
    """A table of rows under headlines; where it is too wide it scrolls below its first column, and says so."""
    top = tag("tr", *(tag("th", head, scope="col") for head in heads))
    kept = "kept" if heads[-1] in KEPT else ""
    classes = " ".join(filter(None, ("scroll", kept, style)))
    frame = tag("div", tag("table", tag("thead", top), tag("tbody", *rows)), class_=classes)
    return join([frame, *([SWIPE] if len(heads) >= WIDE else [])])


def recall_row(name: str, counts: Sequence[object], recalls: Sequence[float]) -> Markup:
    """A row of counts and of recalls in percent, shaded by their value."""
    shaded = [tag("td", f"{value:.1f}", class_="heat", style=f"--share:{value:.1f}") for value in recalls]
    return tag("tr", tag("th", name, scope="row"), *(tag("td", str(count)) for count in counts), *shaded)
