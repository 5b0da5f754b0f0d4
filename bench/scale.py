"""Time and memory of scoring and ranking as a data set grows: python -m bench.scale --max 10000."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench import table
from bench.arguments import positive
from bench.machine import description, gemm_rate, reset_peak_memory, wait_for
from bench.process import Figures, measured_once
from bench.variants import OURS
from engine import SCORES_PER_BLOCK, score_source
from layers.amfmn import soft_scores
from layers.base import RetrievalModel
from metrics.ranks import rank_blocks, recalls
from metrics.rerank import rerank
from runs.record import held_memory, peak_memory
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point

CAPTIONS = 5
"""Of each image."""
NOISE = 3.0
RERANK = (30, 0.30, 1.1)
"""Candidates, w1 and w2, as published."""


class Cosine(RetrievalModel):
    """The score of every model but AMFMN."""

    products = 1


class Soft(RetrievalModel):
    """AMFMN's `soft_att`, two products per block."""

    products = 2

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """See `RetrievalModel.pair_scores`."""
        return soft_scores(images, texts, images.sigmoid())


SCORES: dict[str, type[Cosine] | type[Soft]] = {"cosine": Cosine, "soft_att": Soft}


class Growth:
    """Synthetic embeddings of N images with five captions each, scored and ranked."""

    def __init__(self, images: int, width: int, score: str, reranked: bool, device_name: str | None) -> None:
        """Draw the embeddings: a caption's is its image's and noise."""
        self.device = choose_device(device_name)
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(images, width, generator=draw)
        noise = NOISE * torch.randn(CAPTIONS * images, width, generator=draw)
        self.texts = self.images.repeat_interleave(CAPTIONS, dim=0).add_(noise).to(self.device)
        self.images = self.images.to(self.device)
        self.text_image = torch.arange(images, device=self.device).repeat_interleave(CAPTIONS)
        self.model, self.reranked = SCORES[score](), reranked

    def run(self) -> Figures:
        """Seconds of all ranks, and of the rerank where it is wanted; memory beyond the embeddings; GFLOP/s."""
        pairs = len(self.images) * len(self.texts)
        order = torch.arange(len(self.texts), device=self.device)
        # A matrix of several blocks is made twice: for the scores of the matches, and to count what is above them.
        passes = 1 if pairs <= SCORES_PER_BLOCK else 2
        reset_peak_memory(self.device)
        before, started = held_memory(self.device), time.perf_counter()
        blocks = score_source(self.model, self.images, self.texts, order)
        ranks = rank_blocks(blocks, self.text_image)
        wait_for(self.device)
        seconds = time.perf_counter() - started
        gflop = 2e-9 * passes * self.model.products * pairs * self.images.shape[1]
        figures = {
            "images": float(len(self.images)),
            "seconds": seconds,
            "mib": peak_memory(self.device) - before,
            "passes": float(passes),
            "gflop_per_second": gflop / seconds,
            "gemm_gflop_per_second": gemm_rate("off", self.device),
            "mR": recalls(ranks)["mR"],
        }
        return figures | (self._rerank(blocks) if self.reranked else {})

    def _rerank(self, blocks: Callable[[], Iterable[Tensor]]) -> Figures:
        """Seconds and memory of the rerank of both directions, with the scores made anew where they are not held."""
        reset_peak_memory(self.device)
        before, started = held_memory(self.device), time.perf_counter()
        rerank(blocks, self.text_image, "multivariate", *RERANK)
        wait_for(self.device)
        return {"rerank_seconds": time.perf_counter() - started, "rerank_mib": peak_memory(self.device) - before}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of growing data sets."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale", description="Time scoring and ranking of N images with 5 N captions as N grows."
    )
    parser.add_argument("--images", type=positive, nargs="+", default=[1000, 10_000], help="N of each data set")
    parser.add_argument("--dim", type=positive, default=512, help="numbers per embedding")
    parser.add_argument("--score", choices=tuple(SCORES), default="cosine", help="how pairs are scored")
    parser.add_argument("--rerank", type=int, default=1000, metavar="N", help="rerank sets of up to N images, too")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of tensor operations")
    parser.add_argument("--rounds", type=positive, default=1, help="measurements of each size")
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: CUDA where there is one")
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")
    given = parser.parse_args(arguments)
    rounds: table.Rounds = {}
    for images in given.images:
        settings = (images, given.dim, given.score, images <= given.rerank, given.device)
        figures = measured_once(Growth, settings, OURS.environment(given.threads), given.threads, given.rounds)
        rounds[f"{images:,} x {CAPTIONS * images:,}"] = figures
    header = ["images x captions", "s", "spread", "ns per pair", "% of GEMM", "MiB", "rerank s", "rerank MiB"]
    machine = description(choose_device(given.device), given.threads)
    table.show(
        f"Scores ({given.score}, {given.dim} numbers per embedding) and ranks of synthetic embeddings",
        header,
        [_row(name, figures) for name, figures in rounds.items()],
        [
            f"{table.machine_line(machine)}.",
            f"MiB: beyond the embeddings. Above {SCORES_PER_BLOCK:,} pairs scores are computed twice instead of held.",
        ],
        {"machine": machine, "rounds": rounds},
        given.json,
    )


def _row(name: str, rounds: list[Figures]) -> list[str]:
    """One line of the table."""
    middle = table.medians(rounds)
    pairs = CAPTIONS * middle["images"] ** 2
    return [
        name,
        f"{middle['seconds']:.3g}",
        table.spread(rounds),
        f"{1e9 * middle['seconds'] / pairs:.2f}",
        f"{100 * middle['gflop_per_second'] / middle['gemm_gflop_per_second']:.0f}",
        table.column(middle, "mib"),
        table.column(middle, "rerank_seconds", "{:.3g}"),
        table.column(middle, "rerank_mib"),
    ]


if __name__ == "__main__":
    run_entry_point(main)
