"""Memory of training and evaluation, at several batch sizes: python -m bench.memory --path_opt YAML --batch 25 100."""

from __future__ import annotations

from collections.abc import Sequence

from bench import table
from bench.arguments import bench_parser, positive
from bench.evaluate import Evaluation
from bench.machine import description
from bench.process import Figures, measured_once
from bench.train import TrainingSteps
from bench.variants import sides
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point

MIB = 2**20


class TrainingMemory(TrainingSteps):
    """What a training step of one side holds."""

    def run(self) -> Figures:
        """MiB of weights, gradients, optimiser and, at its peak, of the whole process."""
        parameters = list(self.state.model.parameters())
        held = [value for state in self.state.optimizer.state.values() for value in state.values()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        figures = super().run()
        return {
            "weights": sum(p.nbytes for p in parameters) / MIB,
            "gradients": sum(p.nbytes for p in trained) / MIB,
            "optimiser": sum(value.nbytes for value in held) / MIB,
            "peak_mib": figures["peak_mib"],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all sides and batch sizes."""
    parser = bench_parser(
        "python -m bench.memory", "Peak memory of training steps and of an evaluation, each in a process of its own."
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[100], help="pairs per batch")
    parser.add_argument("--blocks", type=positive, default=2, help="blocks of the published evaluation that are run")
    given = parser.parse_args(arguments)
    rows: dict[str, Figures] = {}
    for variant in sides(given.amp, not given.alone):
        process = variant.environment(given.threads), given.threads
        for batch in given.batch:
            overrides = [*given.set, f"dataset.batch_size={batch}"]
            settings = (given.path_opt, overrides, variant, given.device, 2)
            (rows[f"training, batch {batch}, {variant.name}"],) = measured_once(TrainingMemory, settings, *process)
        scoring = (given.path_opt, given.set, variant, given.device, given.blocks, None)
        (rows[f"evaluation, {variant.name}"],) = measured_once(Evaluation, scoring, *process)
    names = ("weights", "gradients", "optimiser", "peak_mib")
    machine = description(choose_device(given.device), given.threads)
    table.show(
        f"Memory in MiB, {given.path_opt} {' '.join(given.set)}".rstrip(),
        ["", "weights", "gradients", "optimiser", "peak of the process"],
        [[row, *(table.column(figures, name) for name in names)] for row, figures in rows.items()],
        [f"{machine['device']}, torch {machine['torch']}. An idle process with PyTorch loaded is part of each peak."],
        {"machine": machine, "rows": rows},
        given.json,
    )


if __name__ == "__main__":
    run_entry_point(main)
