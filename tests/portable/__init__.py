"""The portable form of a model."""

from __future__ import annotations

import importlib.util

import pytest


def skip_without(*modules: str) -> None:
    """Skip where a module is not installed; unlike pytest's own, it imports none, since some want torchvision."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
