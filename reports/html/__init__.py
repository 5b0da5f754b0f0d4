"""The report of a test as one HTML file: `test.py --report`; docs/report.md says what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layers.base import RetrievalModel
from metrics.ranks import Blocks, Tasks
from reports.html.collect import Fold, Gallery, examine
from reports.html.findings import by_direction, first_scenes
from reports.html.page import Outcome, page
from reports.tables import Table
from runs.scoring import TestSet
from utils import write_text_atomic


class Report:
    """Collects what the page shows, one fold after the other, and writes it."""

    def __init__(self, subject: TestSet) -> None:
        """Start without any fold."""
        self.subject = subject
        self.folds: list[Fold] = []
        self.gallery: Gallery | None = None

    def add(
        self,
        label: str,
        checkpoint: Path,
        epoch: object,
        model: RetrievalModel,
        images: Tensor,
        texts: Tensor,
        blocks: Blocks,
        tasks: Tasks,
    ) -> None:
        """Take in a fold; queries and examples are those of the first one.

        Args:
            label: its row in the tables.
            checkpoint: the file of its weights.
            epoch: that they were saved after.
            model: holding them.
            images: [N, D] embeddings.
            texts: [U, D] embeddings of the different captions.
            blocks: scores of images and captions, see `engine.score_source`; they are held as a whole here.
            tasks: see `engine.rank_tasks`.
        """
        scores = torch.cat([block.cpu() for block in blocks()])
        ranks, scenes = by_direction(tasks), self.subject.scenes
        first = None if scenes is None else first_scenes(scores, self.subject.loader.text_image, scenes)
        self.folds.append(Fold(label, checkpoint, epoch, ranks, first))
        if self.gallery is None:
            self.gallery = examine(self.subject, model, images, texts, scores, ranks)

    def write(self, path: Path, result: Mapping[str, Any], tables: Sequence[Table], command: str) -> None:
        """Write the page to a file; one that is there is replaced.

        Args:
            path: the file.
            result: what `reports.results.summary` gives.
            tables: recall tables, see `reports.tables.score_tables`.
            command: that made the report.

        Raises:
            InputError: an image can't be read.
            OSError: the file can't be written.
            ValueError: no fold was added.
        """
        if self.gallery is None:
            raise ValueError("a report needs at least one fold")
        write_text_atomic(path, page(Outcome(self.subject, self.folds, self.gallery, result, tables, command)))
