"""Progress: a bar in a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from runtime import progress
from runtime.progress import progress_bar


@pytest.mark.parametrize("by_hand", [True, False])
def test_without_a_terminal_long_work_is_told_in_the_log(
    by_hand: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    caplog.set_level(logging.INFO, logger="rsretrieval")
    if by_hand:
        with progress_bar(total=4, desc="images", unit="image") as bar:
            for _ in range(4):
                time.sleep(0.06)
                bar.update()
    else:
        for _ in progress_bar(range(4), desc="images", unit="image"):
            time.sleep(0.06)
    assert caplog.messages[0].startswith(("images: 1 of 4, ", "images: 2 of 4, "))
    assert 2 <= len(caplog.messages) <= 5
    assert not any("\r" in line or "\n" in line for line in caplog.messages)


def test_short_and_quiet_work_is_not_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rsretrieval")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert list(progress_bar(range(1000), desc="images", unit="image")) == list(range(1000))
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    assert list(progress_bar(range(3), desc="images", unit="image", quiet=True)) == [0, 1, 2]
    assert caplog.messages == []
