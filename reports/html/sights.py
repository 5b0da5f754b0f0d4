"""The sections of a page that show images: queries, the plane of the common space, what the model weighed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from localization.overlay import overlay
from reports.html.charts import Cloud, scatter
from reports.html.collect import Example, Gallery
from reports.html.findings import Found, Query
from reports.html.markup import Markup, data_uri, tag
from runs.scoring import TestSet

LARGE = 256  # side of an image in pixels, at most; the style shows most of them smaller
POINTS = 1000  # of images and of captions in the plane, at most


def queries_section(subject: TestSet, gallery: Gallery, fold: str) -> list[Markup]:
    """Best and worst queries of both directions."""
    note = (
        f"Of {fold}, by rank and then by the distance to the nearest wrong answer"
        f"{', one of each scene class' if subject.scenes is not None else ''}. What is right is framed and has a ✓. "
        "A place counts from 1, the highest score; of equal scores the wrong answers come first. Click an image to "
        "enlarge it."
    )
    content = [tag("p", note)]
    for title, (best, worst), show in (
        ("A caption looks for its image", gallery.captions, _caption_query),
        ("An image looks for its captions", gallery.images, _image_query),
    ):
        columns = [
            tag("div", tag("h4", kind.capitalize()), *(show(subject, query, kind) for query in queries))
            for kind, queries in (("best", best), ("worst", worst))
        ]
        content += [tag("h3", title), tag("div", *columns, class_="grid")]
    return content


def _caption_query(subject: TestSet, query: Query, kind: str) -> Markup:
    """A caption, the images that it found, and its own where that is not among them."""
    own = int(subject.loader.text_image[query.number])
    shown = [_thumb(subject, answer.items[0], _place(place, answer), answer.right) for place, answer in _counted(query)]
    if not any(answer.right for answer in query.found):
        shown.append(_thumb(subject, own, f"✓ right, place {query.rank + 1}", True))
    heading = tag("h5", f"“{subject.annotations.captions[query.number]}”")
    content = tag(
        "div", heading, tag("p", f"finds its image on place {query.rank + 1} of {len(subject.annotations.image_names)}")
    )
    return tag("article", tag("div", content, tag("ul", *shown, class_="thumbs")), class_=f"query {kind}")


def _image_query(subject: TestSet, query: Query, kind: str) -> Markup:
    """An image, the sentences that it found, and one of its own where none is among them."""
    name = subject.annotations.image_names[query.number]
    captions = subject.annotations.captions
    shown = [
        tag("li", *_sentence(captions[answer.items[0]], answer), class_="right" if answer.right else "")
        for answer in query.found
    ]
    verdict = f"finds the first of its captions on place {query.rank + 1} of {len(captions)}"
    content = [tag("p", verdict), tag("ol", *shown, class_="answers")]
    if not any(answer.right for answer in query.found):
        mine = dict.fromkeys(captions[int(own)] for own in (subject.loader.text_image == query.number).nonzero())
        content.append(tag("p", "Its own: ", " / ".join(mine)))
    thumb = _image(_square(subject, query.number), f"query image {name}", "thumb")
    return tag("article", thumb, tag("div", tag("h5", name), *content), class_=f"query {kind}")


def _counted(query: Query) -> Iterator[tuple[int, Found]]:
    return enumerate(query.found, start=1)


def _place(place: int, answer: Found) -> str:
    return f"{'✓ right, ' if answer.right else ''}place {place}, {answer.score:.3f}"


def _sentence(text: str, answer: Found) -> tuple[str, Markup]:
    times = f" ({len(answer.items)} times)" if len(answer.items) > 1 else ""
    return f"{'✓ ' if answer.right else ''}{text}{times} ", tag("small", f"{answer.score:.3f}")


def _thumb(subject: TestSet, image: int, text: str, right: bool) -> Markup:
    name = subject.annotations.image_names[image]
    thumb = _image(_square(subject, image), f"{name}, {text}", "thumb")
    return tag("li", thumb, text, class_="right" if right else "")


def _square(subject: TestSet, image: int) -> Image.Image:
    """The image squeezed into a square, as the model sees it, and never larger than it is."""
    decoded = subject.decoded(image)
    side = min(LARGE, max(decoded.size))
    return decoded.resize((side, side), Image.Resampling.BILINEAR)


def _image(image: Image.Image, alt: str, style: str) -> Markup:
    """An image that a click, or Enter, enlarges and makes small again."""
    shown = tag("img", src=data_uri(image), alt=alt, class_=style, width=image.width, height=image.height)
    return tag("details", tag("summary", shown), class_="zoom")


def plane_section(subject: TestSet, gallery: Gallery, fold: str) -> list[Markup]:
    """Images and captions in the plane in which they spread most."""
    images, captions = gallery.image_points, gallery.caption_points
    kept_images, kept_captions = _sample(len(images)), _sample(len(captions))
    first = subject.loader.first_caption
    groups = torch.zeros(len(images), dtype=torch.int64) if subject.scenes is None else subject.scenes
    caption_groups = groups[subject.loader.text_image[first]]
    names = subject.scene_names or {0: "images and captions"}
    clouds, numbers, legend = [], [], []
    for number, (group, name) in enumerate(names.items(), start=1):
        colour = f"hsl({number * 137.5 % 360:.0f} 65% {(40, 52, 64)[number % 3]}%)"
        mine = captions[kept_captions][caption_groups[kept_captions] == group]
        clouds.append(Cloud(f"captions: {name}", _points(mine), "caption", colour))
        mine = images[kept_images][groups[kept_images] == group]
        clouds.append(Cloud(f"images: {name}", _points(mine), "image", colour))
        if subject.scenes is not None:
            middle = images[groups == group].mean(dim=0)
            numbers.append((str(number), float(middle[0]), float(middle[1])))
            legend.append(tag("li", tag("span", class_="dot", style=f"background:{colour}"), f"{number} {name}"))
    clouds.sort(key=lambda cloud: cloud.kind == "image")
    left = len(images) - len(kept_images) + len(captions) - len(kept_captions)
    note = (
        f"Embeddings of {fold}, scaled to length 1, in the plane in which they spread most (PCA; "
        f"{gallery.plane_shares[0]:.0f} % and {gallery.plane_shares[1]:.0f} % of the variance). Large dots are images, "
        f"small pale ones different captions{'; a number stands amid the images of its class' if legend else ''}."
        f"{f' {left} points are left out, evenly.' if left else ''}"
    )
    caption = [tag("ul", *legend, class_="legend")] if legend else []
    return [tag("p", note), scatter("Images and captions", clouds, numbers, caption)]


def _sample(count: int) -> Tensor:
    """At most `POINTS` numbers below `count`, evenly spread."""
    return torch.linspace(0, count - 1, min(count, POINTS)).round().long()


def _points(points: Tensor) -> Sequence[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in points.tolist()]


def examples_section(subject: TestSet, gallery: Gallery, fold: str) -> list[Markup]:
    """What the model of one fold weighed in some images and their captions."""
    first = gallery.examples[0]
    notes = {
        "Yellow is where the most of the image passes the sigmoid of multiscale self-attention, dark blue where the "
        "least does, stretched from each map's lowest to its highest value. A map is of the image alone: no caption "
        "changes it.": first.attention,
        "The stronger the shade of a word and its number (%), the more of it the last word takes, which becomes the "
        "caption's vector; <unk> is a word that the vocabulary lacks.": first.captions[0][1],
        "Numbered boxes are the regions that the graph is made of; a line joins a region with those it takes most "
        "from.": first.regions,
    }
    shown = [note for note, part in notes.items() if part is not None]
    text = f"Of {fold}, in the images of the best captions above and of the worst. {' '.join(shown)}"
    return [tag("p", text), tag("div", *(_example(subject, example) for example in gallery.examples), class_="grid")]


def _example(subject: TestSet, example: Example) -> Markup:
    name = subject.annotations.image_names[example.image]
    plain = _square(subject, example.image)
    images = [_image(plain, name, "shown")]
    note = []
    if example.attention is not None:
        images.append(_image(overlay(plain, example.attention), f"attention over {name}", "shown"))
        low, high = float(example.attention.min()), float(example.attention.max())
        note.append(tag("p", f"attention from {low:.2f} to {high:.2f}"))
    if example.regions is not None:
        note.append(_image(example.regions, f"regions of {name}", ""))
    for caption, words in example.captions:
        note.append(tag("p", f"“{subject.annotations.captions[caption]}”"))
        note += [] if words is None else [tag("p", *_shaded(words), class_="words")]
    return tag("figure", tag("figcaption", name), tag("div", *images, class_="pair"), *note)


def _shaded(words: Sequence[tuple[str, float]]) -> list[Markup]:
    """Words with their shares in percent, shaded from nothing to the largest share."""
    most = max(share for _, share in words)
    return [
        tag("span", word, tag("small", f" {100 * share:.0f}"), class_="heat", style=f"--share:{100 * share / most:.1f}")
        for word, share in words
    ]
