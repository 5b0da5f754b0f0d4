"""A signal that arrives at a chosen step, and what of two runs must be equal to the last bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from utils import Interrupted

TIMED = {"seconds", "images_per_second", "data_wait_share"}


@contextmanager
def asked_to_stop(monkeypatch: pytest.MonkeyPatch, where: Any, function: str, call: int) -> Iterator[None]:
    """SIGTERM arrives during a call of a function."""
    calls = []
    real = getattr(where, function)

    def signalled(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, function, signalled)
        with pytest.raises(Interrupted):
            yield
    assert len(calls) == call  # not one step more


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in history]


def assert_equal(one: Any, other: Any, *, place: str = "") -> None:
    """Nested states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], place=f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_equal(first, second, place=f"{place}.{number}")
    else:
        assert one == other, place


def comparable(state: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in state.items() if key not in ("meter", "history", "options")}
    return kept | {"history": untimed(state["history"])}
