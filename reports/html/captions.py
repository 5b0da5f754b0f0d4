"""The sections that count every caption: recalls by its length, and each query that misses the first places."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from reports.html.charts import bar_chart
from reports.html.collect import Fold, Gallery
from reports.html.findings import BEYOND, Miss, captions_found, length_groups, recall_curve
from reports.html.markup import Markup, tag
from reports.html.tables import framed, recall_row
from runs.scoring import TestSet
from vocab import tokenize


def captions_section(subject: TestSet, folds: Sequence[Fold]) -> list[Markup]:
    """Text to image recalls by the number of words, and how many captions of an image find it; means of the folds."""
    annotations, text_image = subject.annotations, subject.loader.text_image
    ranks = [fold.ranks["t2i"] for fold in folds]
    rows = []
    for name, numbers in length_groups([len(tokenize(caption)) for caption in annotations.captions]).items():
        curves = [recall_curve(places[numbers], (1, 5, 10)) for places in ranks]
        median = fmean(float((places[numbers] + 1).double().quantile(0.5)) for places in ranks)
        recalls = [fmean(values) for values in zip(*curves, strict=True)]
        rows.append(recall_row(name, [len(numbers), f"{median:g}"], recalls))
    counts = [captions_found(places, text_image) for places in ranks]
    shares = {name: fmean(count.get(name, 0.0) for count in counts) for name in counts[0]}
    title = f"Images by how many of their captions find them on places 1 to {BEYOND}"
    averaged = "; means of the folds" if len(folds) > 1 else ""
    note = f"A caption looks for its image: recalls in % of the captions of a length{averaged}."
    chart = bar_chart(title, list(shares), list(shares.values()), "captions that find their image", "c1")
    heads = ["words", "captions", "median place", "R@1", "R@5", "R@10"]
    return [tag("p", note), framed(heads, rows), tag("div", chart, class_="grid")]


def misses_section(subject: TestSet, gallery: Gallery, fold: str) -> list[Markup]:
    """Every query whose match lies beyond place `BEYOND`, the worst first, folded away."""
    names, captions = subject.annotations.image_names, subject.annotations.captions
    owner = subject.loader.text_image.tolist()
    by_caption = [
        (miss, (captions[miss.number], names[owner[miss.number]], names[miss.first]))
        for miss in gallery.missed_captions
    ]
    by_image = [(miss, (names[miss.number], captions[miss.first])) for miss in gallery.missed_images]
    note = (
        f"Of {fold}: the place of the match, counted from 1, and what stands on place 1 instead. The worst are first."
    )
    return [
        tag("p", note),
        _listed(
            f"of {len(captions)} captions find their image", ["place", "caption", "its image", "found"], by_caption
        ),
        _listed(f"of {len(names)} images find a caption of theirs", ["place", "image", "found"], by_image),
    ]


def _listed(what: str, heads: Sequence[str], misses: Sequence[tuple[Miss, Sequence[str]]]) -> Markup:
    rows = [
        tag("tr", tag("th", str(miss.rank + 1), scope="row"), *(tag("td", text) for text in texts))
        for miss, texts in misses
    ]
    summary = f"{len(misses)} {what} beyond place {BEYOND}"
    if not rows:
        return tag("p", f"{summary}.")
    return tag("details", tag("summary", summary), framed(heads, rows, "list"))
