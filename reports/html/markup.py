"""HTML and SVG elements, built so that no text can become markup by accident."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

from PIL import Image

VOID = frozenset(("br", "img", "meta"))


class Markup(str):
    """Text that is markup already; any other text is escaped where it enters an element."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """An element.

    Children that are `Markup` are taken as they are, any other text is escaped, and so are attributes: `class_` is
    `class`, `stroke_width` is `stroke-width`, numbers are rounded to two decimals.
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts in a row; what is no `Markup` is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def data_uri(image: Image.Image) -> str:
    """An image as JPEG inside a URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


SWIPE = tag("p", "Wider than this screen: swipe it sideways.", class_="cue")
"""Under what a phone can't show at once; the style shows it there alone."""
