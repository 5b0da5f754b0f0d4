"""The arguments that several commands share. Nothing heavy is imported here, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path


def entry_parser(description: str) -> argparse.ArgumentParser:
    """A parser of the arguments that every entry point of an experiment takes."""
    parser = argparse.ArgumentParser(description=description)
    add_experiment(parser)
    return parser


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose the options and the device."""
    parser.add_argument("--path_opt", required=True, help="the experiment's YAML")
    add_settings(parser)
    add_device(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a trained model, see `runs.ready.folder.chosen`, and the device."""
    parser.add_argument("--path_opt", help="the experiment's YAML; without it and --checkpoint: the ready model's")
    parser.add_argument("--checkpoint", type=Path, help="the model's weights: ours, or published by its authors")
    add_settings(parser)
    add_device(parser)


def add_settings(parser: argparse.ArgumentParser, text: str = "override options") -> None:
    """The argument that overrides options."""
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help=text)


def add_image_settings(parser: argparse.ArgumentParser) -> None:
    """The same where only images are read, see `option.load_image_rule`."""
    add_settings(parser, "how images are read (docs/images.md), such as dataset.bands=[3,2,1]")


def add_device(parser: argparse.ArgumentParser) -> None:
    """The argument that chooses the device."""
    parser.add_argument("--device", help="cpu, cuda or cuda:NUMBER; default: CUDA where there is one")


def add_folds(parser: argparse.ArgumentParser) -> None:
    """The argument that chooses folds."""
    parser.add_argument("--folds", help="only these folds, e.g. 0,2")


def add_force(parser: argparse.ArgumentParser) -> None:
    """The argument that lets mismatches through, see `utils.Gate`."""
    parser.add_argument(
        "--force", action="store_true", help="load weights of another vocabulary, model or data set all the same"
    )


def add_check(parser: argparse.ArgumentParser) -> None:
    """The argument that only looks for faults, see `preflight`."""
    parser.add_argument(
        "--check", action="store_true", help="read everything that the run needs, list all faults, and do no work"
    )


def command(script: str, path_opt: str, overrides: Sequence[str], *flags: str) -> str:
    """The command that a message tells the user to type."""
    repeated = ["--set", *overrides] if overrides else []
    return shlex.join(["python", script, "--path_opt", path_opt, *flags, *repeated])


def add_resume(parser: argparse.ArgumentParser) -> None:
    """The argument that says what to do where a run was begun."""
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        default="auto",
        choices=("auto", "never"),
        help="auto (default): go on where a run was begun, leave a finished one as it is; never: refuse both",
    )
