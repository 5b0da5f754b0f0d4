"""Time an evaluation beside the published path: python -m bench.evaluate --path_opt option/UCM_AMFMN.yaml."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench import table
from bench.arguments import add_comparison, bench_parser, positive
from bench.comparison import Comparison
from bench.machine import wait_for
from bench.naive_data import blockwise_scores
from bench.process import Figures
from bench.subject import Experiment
from bench.variants import Variant
from dataloader import EvaluationLoader
from engine import embed, image_verb, score_source, with_folded_norms
from metrics.ranks import rank_blocks, recalls
from runs.loaders import evaluation_loader
from runs.record import peak_memory
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point

PARTS = ("data", "images", "captions", "ranks")


class Evaluation:
    """The evaluation of one side, from the image files to the recalls of images and captions."""

    def __init__(
        self,
        path_opt: str,
        overrides: list[str],
        variant: Variant,
        device_name: str | None,
        blocks: int | None,
        checkpoint: Path | None,
    ) -> None:
        """Build the model; images are read anew in each measurement."""
        self.device = choose_device(device_name)
        cache = "ram" if variant.once else "off"
        settings = [*overrides, f"dataset.cache={cache}"]
        self.experiment: Callable[[], Experiment] = partial(Experiment.of, path_opt, settings, "test", self.device)
        self.model = self.experiment().model(variant, checkpoint).eval()
        self.variant, self.blocks = variant, blocks

    def run(self) -> Figures:
        """Seconds of one evaluation and, where it has them, of its parts; mean recall and peak memory."""
        experiment = self.experiment()  # with an empty store of images
        started = time.perf_counter()
        loader = evaluation_loader(
            experiment.options, experiment.annotations, experiment.vocabulary, experiment.media, self.device, load=False
        )
        once = self.variant.once
        figures = self._once(loader, started) if once else self._blockwise(loader, *experiment.captions())
        return figures | {"peak_mib": peak_memory(self.device)}

    def _once(self, loader: EvaluationLoader, started: float) -> Figures:
        """As `engine.evaluate`: each image and each different caption is encoded once."""
        loader.store.load(loader.image_ids, "images")  # counted as data; no spectrograms: none is scored here
        marks = [started, time.perf_counter()]
        arguments = (self.device, self.variant.amp)
        verb_of = partial(image_verb, views="one")
        images = embed(*with_folded_norms(self.model, verb_of, loader.image_batches()), "image", *arguments)
        marks.append(self._now())
        texts = embed(self.model, self.model.encode_text, loader.caption_batches(), "caption", *arguments)
        marks.append(self._now())
        blocks = score_source(self.model, images, texts, loader.caption_row)
        scores = recalls(rank_blocks(blocks, loader.text_image.to(self.device)))
        marks.append(self._now())
        parts = dict(zip(PARTS, (end - start for start, end in itertools.pairwise(marks)), strict=True))
        return {"seconds": marks[-1] - started, **parts, "mR": scores["mR"], "share": 1.0}

    def _blockwise(self, loader: EvaluationLoader, tokens: torch.Tensor, lengths: torch.Tensor) -> Figures:
        """As the published code, see `bench.naive_data.blockwise_scores`."""
        result = blockwise_scores(self.model, loader, tokens, lengths, self.blocks)
        figures = {"seconds": result.seconds, "share": result.share}
        if result.share == 1:
            figures["mR"] = recalls(rank_blocks(lambda: [result.scores], loader.text_image))["mR"]
        return figures

    def _now(self) -> float:
        wait_for(self.device)
        return time.perf_counter()


COMPARISON = Comparison(
    "Evaluation of the test split",
    Evaluation,
    "dataset.batch_size_val",
    ("once", "allocator", "ours", "channels_last"),
    "s",
    PARTS,
    {
        "peak MiB": lambda middle: table.column(middle, "peak_mib"),
        "mR": lambda middle: table.column(middle, "mR", "{:.2f}"),
    },
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all sides."""
    parser = bench_parser(
        "python -m bench.evaluate", "Time an evaluation of the test split on the published path and on ours, in turn."
    )
    add_comparison(parser, "items encoded at a time by ours; default: batch_size_val")
    parser.add_argument("--blocks", type=positive, help="time so many blocks of the published path and scale to all")
    parser.add_argument("--checkpoint", type=Path, help="weights to score; default: random ones")
    given = parser.parse_args(arguments)
    COMPARISON.show(given, (given.blocks, given.checkpoint), _scaled)


def _scaled(rounds: table.Rounds) -> list[str]:
    """What was computed in part only."""
    shares = {side: figures[0].get("share", 1.0) for side, figures in rounds.items()}
    return [
        f"{side}: {100 * share:.1f} % of the blocks timed, scaled to all."
        for side, share in shares.items()
        if share < 1
    ]


if __name__ == "__main__":
    run_entry_point(main)
