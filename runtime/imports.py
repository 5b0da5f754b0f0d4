"""Imports of a library without what it loads besides."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


class _Missing(MetaPathFinder):
    """Makes libraries look as if they were not installed, to the imports of one thread."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names, self.thread = frozenset(names), threading.get_ident()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """See `MetaPathFinder`; all but these libraries are left to the finders behind."""
        if fullname in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def import_nltk(module: str) -> ModuleType:
    """A module of NLTK, such as `tokenize`.

    NLTK loads SciPy and scikit-learn where they are installed, 2 s of processor time, for parts that nothing here uses.
    """
    missing = _Missing(("scipy", "sklearn"))
    sys.meta_path.insert(0, missing)
    try:
        return importlib.import_module(f"nltk.{module}")
    finally:
        sys.meta_path.remove(missing)
