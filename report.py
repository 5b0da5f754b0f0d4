"""Tables of recalls, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

RECALLS = ("i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "mR")
HEADLINES = ("I→T R@1", "R@5", "R@10", "T→I R@1", "R@5", "R@10", "mR")


def recall_table(
    rows: Mapping[str, Mapping[str, float]],
    mean: Mapping[str, tuple[float, float]],
    chance: Mapping[str, float],
) -> str:
    """An aligned Markdown table: a row per fold, mean ± standard deviation over them, and chance.

    Args:
        rows: label -> scores in percent, see `metrics.recalls`.
        mean: score -> mean and standard deviation over the rows.
        chance: expected scores of a random order.
    """
    cells = [["", *HEADLINES]]
    cells += [[label, *(f"{scores[name]:.2f}" for name in RECALLS)] for label, scores in rows.items()]
    if len(rows) > 1:
        cells.append(["mean ± sd", *(f"{mean[name][0]:.2f} ± {mean[name][1]:.2f}" for name in RECALLS)])
    cells.append(["chance", *(f"{chance[name]:.2f}" for name in RECALLS)])
    return markdown(cells)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text as an aligned Markdown table, the first row its head; numbers right, labels left."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def scores_csv(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line per row with every score at full precision."""
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *names])
    writer.writerows([label, *(scores.get(name, "") for name in names)] for label, scores in rows.items())
    return text.getvalue()
