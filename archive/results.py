"""What a query found, in a form for people or for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archive.question import Question
from archive.searcher import BY_COSINE, Answer, Hit, Searcher
from utils import as_csv, as_json


def remarks_on(question: Question, answer: Answer, searcher: Searcher) -> list[str]:
    """What is to be said of a query beside its hits: what was cut, unknown, or is gone."""
    remarks = searcher.encoder.remarks([*question.sentences, *question.without])
    if question.image is not None and not searcher.encoder.model.scores_by_cosine():
        remarks.append(BY_COSINE)
    if not searcher.presence.known():
        remarks.append(f"{searcher.images}, the folder of the images, is not there; --images says where it is now.")
    if answer.gone:
        remarks.append(f"{answer.gone} images that fit are gone from {searcher.images} and were left out.")
    return remarks


def question_in_words(asked: Mapping[str, Any]) -> str:
    """A query, for the title of what is drawn."""
    parts = [", ".join(asked["sentences"])]
    parts += [f"like {asked['image'].name}"] if asked["image"] is not None else []
    parts += [f"heard in {asked['audio'].name}"] if asked["audio"] is not None else []
    parts += [f"without {text}" for text in asked["without"]]
    return "; ".join(part for part in parts if part)


def as_table(hits: Sequence[Hit]) -> str:
    """Rank, score and name, a line each."""
    lines = ["rank   score  file"]
    for rank, hit in enumerate(hits, start=1):
        alike = f"  (and {hit.alike} nearly the same)" if hit.alike else ""
        lines.append(f"{rank:4}  {hit.score:6.4f}  {hit.label}{alike}")
    return "\n".join(lines)


def result_csv(answer: Answer, images: Path) -> str:
    """Rank, score, name, file and number of near-duplicates, a line each; a name that is not UTF-8 is escaped."""
    rows = _rows(answer, images)
    empty: dict[str, object] = dict.fromkeys(("rank", "score", "name", "file", "alike"))
    text = as_csv(rows or [empty])
    head, _, _ = text.partition("\n")
    return text.encode("utf-8", "backslashreplace").decode() if rows else f"{head}\n"


def result_json(answer: Answer, images: Path, query: Mapping[str, object], remarks: Sequence[str]) -> str:
    """The same as JSON, with the query, and what is to be said of it."""
    content: dict[str, Any] = {"query": query, "remarks": list(remarks), "gone": answer.gone}
    return as_json(content | {"hits": _rows(answer, images)})


def _rows(answer: Answer, images: Path) -> list[dict[str, object]]:
    return [
        {"rank": rank, "score": hit.score, "name": hit.name, "file": str(images / hit.name), "alike": hit.alike}
        for rank, hit in enumerate(answer.hits, start=1)
    ]
