"""The rules of the house: what lies at the door, which room may enter which, and that nothing goes in a circle.

import-linter reads packages alone, and our commands are single files: so the imports are read here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests import ROOT

COMMANDS = ("train", "test", "pretrain", "search", "localize")
FLOORS = (
    *("utils", "runtime", "option", "vocab", "data", "metrics", "batches", "dataloader", "layers", "training"),
    *("engine", "runs", "portable", "pretraining", "preflight", "localization", "reports", "sweep", "archive"),
    *("rsretrieval", *COMMANDS, "bench", "docs", "exec"),
)
"""Data flows one way: a module enters only rooms that stand before its own."""
ALONE = {"utils": (), "metrics": (), "runtime": ("utils",)}
"""Rooms that may enter few others, whatever stands before them."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name, tests aside."""
    files = [*ROOT.glob("*.py"), *(file for room in FLOORS for file in (ROOT / room).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports, for types alone, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            known = name if name in modules() else name.rpartition(".")[0]
            if known in modules():
                yield known


def room_of(module: str) -> str:
    return module.split(".")[0]


def is_command(module: str) -> bool:
    return module in COMMANDS or module.endswith("__main__")


def violations(module: str) -> Iterator[str]:
    """What a module imports and should not: both files, and the rule."""
    room = room_of(module)
    for other in sorted(set(imported(modules()[module]))):
        target, pair = room_of(other), f"{modules()[module].relative_to(ROOT)} -> {modules()[other].relative_to(ROOT)}"
        if is_command(other):
            yield f"{pair}: nobody imports a command"
        elif is_command(module) or target == room:
            continue
        elif target not in ALONE.get(room, FLOORS[: FLOORS.index(room)]):
            yield f"{pair}: {room}/ may not enter {target}"


def test_the_door_shows_eight_files() -> None:
    assert {file.stem for file in ROOT.glob("*.py")} == {*COMMANDS, "engine", "dataloader", "utils"}


def test_every_room_is_known() -> None:
    rooms = {file.parent.name for file in ROOT.glob("*/*.py")} - {"tests"}
    assert rooms | {file.stem for file in ROOT.glob("*.py")} == set(FLOORS)


@pytest.mark.parametrize("module", list(modules()))
def test_a_room_enters_only_rooms_below_it(module: str) -> None:
    assert list(violations(module)) == []


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: set(imported(file)) - {module} for module, file in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as fault:
        pytest.fail(" -> ".join(fault.args[1]))
