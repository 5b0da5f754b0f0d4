"""What the prior similarities of a list look like: means, distribution, the captions most like an image's own.

Letters: N images, M captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from data.annotations import Annotations
from data.similarity.margin import dynamic_margin
from data.similarity.prior import PriorSimilarity
from utils import import_extra, markdown, write_atomic

BINS = 50
LIKE = 0.5
NEIGHBOURS = 5
KINDS = ("own", "other")


@dataclass(frozen=True, eq=False)
class Summary:
    """Pairs of captions and images, those of the caption's own image ("own") apart from all others ("other").

    Attributes:
        counts: by kind [BINS], pairs by similarity, in equal steps from 0 to 1.
        similarity: by kind, mean S.
        margin: by kind, mean dynamic margin.
        none: by kind, share of pairs whose S is 0.
        like: by kind, share of pairs whose S is at least `LIKE`.
    """

    counts: dict[str, np.ndarray]
    similarity: dict[str, float]
    margin: dict[str, float]
    none: dict[str, float]
    like: dict[str, float]


def margins(similarity: np.ndarray, gamma: float, beta: float) -> np.ndarray:
    """The dynamic margin at each similarity."""
    return dynamic_margin(torch.from_numpy(similarity), gamma, beta).numpy()


def summarise(prior: PriorSimilarity, gamma: float, beta: float, matrix: Path | None = None) -> Summary:
    """Pass over all pairs once, in blocks; `matrix` is a NumPy file to write S [M, N] float16 into on the way."""
    blocks: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []

    def write(file: BinaryIO) -> None:
        shape = (len(prior.lengths), len(prior.image_words))
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for captions, similarity in prior.blocks():
            blocks.append(_summary_of(prior, captions, similarity, gamma, beta))
            file.write(np.ascontiguousarray(similarity.T, dtype="<f2").tobytes())

    if matrix is None:
        blocks = [_summary_of(prior, captions, similarity, gamma, beta) for captions, similarity in prior.blocks()]
    else:
        write_atomic(matrix, write)
    counts = {kind: np.sum([block[kind][0] for block in blocks], axis=0) for kind in KINDS}
    means = {kind: np.sum([block[kind][1] for block in blocks], axis=0) / max(1, counts[kind].sum()) for kind in KINDS}
    return Summary(counts, *({kind: float(means[kind][place]) for kind in KINDS} for place in range(4)))


def _summary_of(
    prior: PriorSimilarity, captions: np.ndarray, similarity: np.ndarray, gamma: float, beta: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By kind: the histogram, and the sums of S, of the margin, of S == 0 and of S >= LIKE."""
    own = np.arange(len(similarity))[:, None] == prior.caption_image[captions]
    result = {}
    for kind, chosen in zip(KINDS, (own, ~own), strict=True):
        values = similarity[chosen]
        histogram = np.histogram(values, BINS, (0, 1))[0]
        sums = [values.sum(), margins(values, gamma, beta).sum(), (values == 0).sum(), (values >= LIKE).sum()]
        result[kind] = (histogram, np.array(sums, dtype=np.float64))
    return result


def table(summary: Summary) -> str:
    """A Markdown table of the means."""
    rows = [["", "its own image", "other images"]]
    rows.append(["pairs", *(f"{int(count.sum()):,}" for count in summary.counts.values())])
    for title, figures, form in (
        ("mean similarity S", summary.similarity, ".3f"),
        ("mean margin", summary.margin, ".3f"),
        ("S = 0", summary.none, ".1%"),
        (f"S ≥ {LIKE}", summary.like, ".3%"),
    ):
        rows.append([title, *(format(figures[kind], form) for kind in summary.counts)])
    return markdown(rows)


def show(annotations: Annotations, prior: PriorSimilarity, image: int, gamma: float, beta: float) -> str:
    """An image's own captions, and the most similar captions of others, as a Markdown table."""
    similarity = prior.between(np.array([image]), np.arange(len(annotations.captions)))[0]
    own = np.flatnonzero(annotations.caption_image == image)
    others = [caption for caption in np.argsort(-similarity, kind="stable") if caption not in own][:NEIGHBOURS]
    rows = [["S", "margin", "image", "caption"]]
    for caption in [*own, *others]:
        name = annotations.image_names[annotations.caption_image[caption]]
        margin = margins(similarity[caption : caption + 1], gamma, beta)[0]
        rows.append([f"{similarity[caption]:.3f}", f"{margin:.3f}", name, annotations.captions[caption].strip()])
    return markdown(rows)


def draw(summary: Summary, gamma: float, beta: float, out: Path) -> None:
    """Draw the distribution of S and the margin over S into a PNG.

    Raises:
        InputError: matplotlib (extra `plot`) is missing.
    """
    figures = import_extra("matplotlib.figure", "drawing needs matplotlib", "plot")
    figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.linspace(0, 1, BINS + 1)
    for kind, colour in (("other", "#4477aa"), ("own", "#ee6677")):
        count = summary.counts[kind]
        left.stairs(100 * count / max(1, count.sum()), edges, fill=True, alpha=0.6, color=colour, label=f"{kind} image")
    left.set(title="captions and images", xlabel="prior similarity S", ylabel="pairs of the kind, %", yscale="log")
    left.legend(fontsize="small")
    right.plot(edges, margins(edges, gamma, beta), color="#228833")
    right.set(title="dynamic margin", xlabel="prior similarity S", ylabel="margin", ylim=(0, None))
    right.grid(alpha=0.3)
    write_atomic(out, lambda file: figure.savefig(file, format="png", dpi=110))
