"""Time an evaluation beside the published path: python -m bench.evaluate --path_opt option/UCM_AMFMN.yaml."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench import table
from bench.arguments import bench_parser, measure, positive, reference_of
from bench.machine import description, wait_for
from bench.naive_data import blockwise_scores
from bench.process import Figures
from bench.subject import Experiment
from bench.variants import Variant, ladder, sides
from dataloader import EvaluationLoader
from engine import embed, score_source
from metrics.ranks import rank_blocks, recalls
from runs.loaders import evaluation_loader
from runs.record import peak_memory
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point

PARTS = ("data", "images", "captions", "ranks")
CHANGES = ("once", "allocator", "ours", "channels_last")


class Evaluation:
    """The evaluation of one side, from the image files to the recalls of images and captions."""

    def __init__(
        self,
        path_opt: str,
        overrides: list[str],
        variant: Variant,
        blocks: int | None,
        checkpoint: Path | None,
        device_name: str | None,
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
            experiment.options, experiment.annotations, experiment.vocabulary, experiment.media, self.device
        )
        once = self.variant.once
        figures = self._once(loader, started) if once else self._blockwise(loader, *experiment.captions())
        return figures | {"peak_mib": peak_memory(self.device)}

    def _once(self, loader: EvaluationLoader, started: float) -> Figures:
        """As `engine.evaluate`: each image and each different caption is encoded once."""
        marks = [started, time.perf_counter()]
        arguments = (self.device, self.variant.amp)
        images = embed(self.model, self.model.encode_image, loader.image_batches(), "image", *arguments)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all sides."""
    parser = bench_parser(
        "python -m bench.evaluate", "Time an evaluation of the test split on the published path and on ours, in turn."
    )
    parser.add_argument("--batch", type=positive, help="items encoded at a time by ours; default: batch_size_val")
    parser.add_argument("--blocks", type=positive, help="time so many blocks of the published path and scale to all")
    parser.add_argument("--checkpoint", type=Path, help="weights to score; default: random ones")
    parser.add_argument("--ladder", action="store_true", help="from the published path to ours, one change at a time")
    given = parser.parse_args(arguments)
    overrides = [*given.set, *([f"dataset.batch_size_val={given.batch}"] if given.batch else [])]
    variants = ladder(CHANGES, given.amp[-1]) if given.ladder else sides(given.amp, not given.alone)
    makers = {
        variant.name: (given.path_opt, overrides, variant, given.blocks, given.checkpoint, given.device)
        for variant in variants
    }
    device = choose_device(given.device)
    rounds = measure(variants, Evaluation, makers, device, given)
    reference = reference_of(given, variants)
    ratio = table.ratios(rounds, reference, "seconds")
    machine = description(device, given.threads)
    header = ["side", "s", "spread", f"{reference} / side", *(f"{part} %" for part in PARTS), "peak MiB", "mR"]
    table.show(
        f"Evaluation of the test split, {given.path_opt} {' '.join(overrides)}".rstrip(),
        header,
        [_row(side, figures, ratio[side]) for side, figures in rounds.items()],
        [table.machine_line(machine, rounds), *_scaled(rounds)],
        {"machine": machine, "rounds": rounds, "ratios": ratio},
        given.json,
    )


def _row(side: str, rounds: list[Figures], ratio: list[float]) -> list[str]:
    """One line of the table."""
    middle = table.medians(rounds)
    return [
        side,
        f"{middle['seconds']:.3g}",
        table.spread([figures["seconds"] for figures in rounds]),
        table.in_turn(ratio),
        *(table.column(middle, part, scale=100 / middle["seconds"]) for part in PARTS),
        table.column(middle, "peak_mib"),
        table.column(middle, "mR", "{:.2f}"),
    ]


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
