"""Time training steps beside the published path: python -m bench.train --path_opt option/UCM_AMFMN.yaml."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence

from torch.utils.flop_counter import FlopCounterMode

from batches.batch import Batch
from bench import table
from bench.arguments import add_comparison, bench_parser, positive
from bench.comparison import Comparison
from bench.machine import wait_for
from bench.naive import loop_adam
from bench.naive_data import FileBatches
from bench.process import Figures
from bench.subject import Experiment
from bench.variants import Variant
from dataloader import TrainLoader
from layers.losses.objective import build_objective
from runs.loaders import pair_source, train_loader
from runs.models import start_state
from runs.record import peak_memory
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from training.epoch import autocast
from training.learner import Losses
from training.optimiser import slow_backbones
from training.state import optimiser_step

PARTS = ("data", "forward", "backward", "optimiser")
IMAGES = 400
"""Of the train list, so that no side starts with decoding thousands."""


class TrainingSteps:
    """Training steps of one side, each part timed."""

    def __init__(
        self,
        path_opt: str,
        overrides: list[str],
        variant: Variant,
        device_name: str | None,
        steps: int,
        most: int | None = IMAGES,
    ) -> None:
        """Build model, optimiser and loader, and take one step that does not count; `most` images, None: all."""
        device = choose_device(device_name)
        experiment = Experiment.of(path_opt, overrides, "train", device, most)
        options = experiment.options
        self.loader = self._loader_of(experiment, variant)
        model = experiment.model(variant).train()
        groups = slow_backbones(model, model.parameter_groups(options), options.optim.lr_backbone)
        objective = build_objective(options.optim).to(device)
        objective.prepare(experiment.annotations)
        self.state = start_state(model, groups, options.optim, device, objective)
        if not variant.fused:
            self.state.optimizer = loop_adam(groups)
        self.losses_of = Losses(model, objective, pair_source(options, experiment.annotations))
        self.variant, self.steps, self.device = variant, steps, device
        self.grad_clip = options.optim.grad_clip
        self.batches = self._batches()
        with FlopCounterMode(display=False) as counter:
            self._step()
        self.operations = counter.get_total_flops()

    @staticmethod
    def _loader_of(experiment: Experiment, variant: Variant) -> TrainLoader | FileBatches:
        """What gives the batches of an epoch: from memory, or from files."""
        if not variant.once:
            return FileBatches(experiment)
        parts = (experiment.vocabulary, experiment.annotations, experiment.media, experiment.device)
        return train_loader(experiment.options, 0, *parts)

    def _batches(self) -> Iterator[Batch]:
        """Batches without end."""
        for number in itertools.count():
            yield from (batch.to(self.device) for batch in self.loader.epoch(number))

    def _step(self) -> list[float]:
        """Seconds of each of `PARTS` of one step."""
        marks = [time.perf_counter()]
        batch = next(self.batches)
        self._mark(marks)
        with autocast(self.device, self.variant.amp):
            losses = self.losses_of(batch)
        self._mark(marks)
        losses["loss"].backward()
        self._mark(marks)
        optimiser_step(self.state, self.grad_clip)
        self._mark(marks)
        return [end - start for start, end in itertools.pairwise(marks)]

    def _mark(self, marks: list[float]) -> None:
        wait_for(self.device)
        marks.append(time.perf_counter())

    def run(self) -> Figures:
        """Median seconds of a step and of its parts, peak memory, and operations."""
        steps = [self._step() for _ in range(self.steps)]
        seconds = statistics.median(map(sum, steps))
        parts = {name: statistics.median(step[place] for step in steps) for place, name in enumerate(PARTS)}
        return {
            "seconds": seconds,
            **parts,
            "peak_mib": peak_memory(self.device),
            "gflop": self.operations / 1e9,
            "gflop_per_second": self.operations / seconds / 1e9,
        }


def _of_gemm(middle: Figures) -> str:
    if "gflop_per_second" not in middle:
        return ""
    return f"{100 * middle['gflop_per_second'] / middle['gemm_gflop_per_second']:.0f}"


COMPARISON = Comparison(
    "Training steps",
    TrainingSteps,
    "dataset.batch_size",
    ("allocator", "once", "ours", "channels_last", "fused"),
    "s/step",
    PARTS,
    {
        "peak MiB": lambda middle: table.column(middle, "peak_mib"),
        "GFLOP/step": lambda middle: table.column(middle, "gflop"),
        "GFLOP/s": lambda middle: table.column(middle, "gflop_per_second"),
        "% of GEMM": _of_gemm,
    },
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all sides."""
    parser = bench_parser("python -m bench.train", "Time training steps of the published path and of ours, in turn.")
    add_comparison(parser, "pairs per batch; default: dataset.batch_size")
    parser.add_argument("--steps", type=positive, default=2, help="steps in each measurement")
    given = parser.parse_args(arguments)
    note = "GFLOP: of matrix products and convolutions, as computed by that side."
    COMPARISON.show(given, (given.steps,), lambda _: [note])


if __name__ == "__main__":
    run_entry_point(main)
