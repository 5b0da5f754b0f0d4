"""The frame of a page: its head, its header with links to the sections, and the sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.html.markup import Markup, tag

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Section = tuple[str, str, Sequence[Markup]]
"""Name, heading and content."""


def document(title: str, summary: Sequence[Markup], sections: Sequence[Section]) -> str:
    """A whole HTML document; it loads nothing and runs nothing.

    Args:
        title: of the page.
        summary: under the title.
        sections: in their order, each with a link to it.
    """
    links = [tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body = [tag("section", tag("h2", heading), *content, id=name) for name, heading, content in sections]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    header = tag("header", tag("h1", title), *summary, tag("nav", tag("ul", *links)))
    return "<!doctype html>\n" + tag("html", head, tag("body", header, tag("main", *body)), lang="en") + "\n"
