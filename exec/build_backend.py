"""How pip builds the package `rsretrieval`: the rooms that it needs move below it, and their imports follow.

The project is run from its root, where a room is imported as `layers` or `utils`. Installed under those names they
would shadow other people's modules; on a path that the package adds, too. So the wheel holds one package, in which
`from layers.base import X` reads `from rsretrieval.layers.base import X`. A mapping of folders to packages
(setuptools' `package_dir`) moves files, but leaves their imports as they are.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGE = "rsretrieval"
ROOMS = (
    *("utils", "runtime", "option", "vocab", "data", "metrics", "batches", "dataloader", "layers", "training"),
    *("engine", "runs", "portable", "archive"),
)
"""What `rsretrieval` imports, and what those import."""
KEPT = (
    *("*.py", "py.typed", "vocab/stop_words.txt", "data/keywords/function_words.txt", "data/toy/classes.yaml"),
    *("runs/ready/model", "runs/ready/model/*"),
)
"""Files and plain folders that the wheel holds; what else lies in a room, such as a data set, is the user's."""
ROOT = Path(__file__).resolve().parents[1]
OTHER = ("pyproject.toml", "LICENSE")


def build_wheel(folder: str, settings: Mapping[str, Any] | None = None, metadata: str | None = None) -> str:
    """PEP 517: write the wheel, and give its name."""
    from setuptools import build_meta

    with _elsewhere():
        return str(build_meta.build_wheel(folder, settings, None))


def build_sdist(folder: str, settings: Mapping[str, Any] | None = None) -> str:
    """PEP 517 asks for it; a clone is the source."""
    raise RuntimeError("there is no source archive: build a wheel from a clone (pip wheel .)")


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Work in a folder that holds what is to be packed, so that nothing is left in the project."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def lay_out(folder: Path) -> None:
    """Copy the package and its rooms, with imports rewritten; in a copy without rooms the package is empty."""
    for name in OTHER:
        shutil.copyfile(ROOT / name, folder / name)
    if not (ROOT / PACKAGE).is_dir():
        return
    for name in (PACKAGE, *ROOMS):
        place = folder / PACKAGE / (name if name != PACKAGE else "")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place, ignore=_left_behind, dirs_exist_ok=True)
        else:
            shutil.copyfile(ROOT / f"{name}.py", place.with_suffix(".py"))
    for path in (folder / PACKAGE).rglob("*.py"):
        path.write_text(moved(path.read_text(encoding="utf-8")), encoding="utf-8")


def _left_behind(folder: str, names: Sequence[str]) -> set[str]:
    """All but `KEPT` and packages; commands stay with the clone."""
    places = {name: Path(folder, name) for name in names if name != "__main__.py"}
    kept = {name for name, path in places.items() if (path / "__init__.py").is_file() or any(map(path.match, KEPT))}
    return set(names) - kept


def moved(source: str) -> str:
    """Python source whose imports of rooms start at the package."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        place = getattr(node, "lineno", 1) - 1
        if isinstance(node, ast.ImportFrom) and not node.level and _is_room(node.module or ""):
            lines[place] = lines[place].replace(f"from {node.module} import", f"from {PACKAGE}.{node.module} import", 1)
        elif isinstance(node, ast.Import) and any(_is_room(alias.name) for alias in node.names):
            if len(node.names) > 1 or "." in node.names[0].name:
                raise ValueError(f"{lines[place]}: import one room to a line, or `from` it")
            lines[place] = lines[place].replace("import ", f"from {PACKAGE} import ", 1)
    return "\n".join(lines)


def _is_room(module: str) -> bool:
    return module.partition(".")[0] in ROOMS
