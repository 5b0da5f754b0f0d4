"""Imports of a library without what it loads besides."""

from __future__ import annotations

import threading

import pytest

from runtime.imports import _Missing


def test_only_the_named_ones_are_missing_and_to_one_thread_alone() -> None:
    missing = _Missing(["scipy"])
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        missing.find_spec("scipy")
    missing.find_spec("scipyx")
    faults: list[Exception] = []

    def look() -> None:
        try:
            missing.find_spec("scipy")
        except ImportError as fault:
            faults.append(fault)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert faults == []
