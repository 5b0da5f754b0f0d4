"""The bench of the page's load counts what is answered and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import search
from bench.load import SENTENCES, main
from option import Options
from tests.archives import make_trained

# Imported here, it would replace parts of the standard library; the bench tells it not to.
pytestmark = pytest.mark.skipif(find_spec("locust") is None, reason="the extra load is not installed")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, tiny_options: Callable[..., Options]) -> Path:
    """Of a model that knows some words of the bench's sentences, as any that learned captions would."""
    folder = tmp_path_factory.mktemp("load")
    search.main(make_trained(folder / "model", tiny_options, "GaLR").arguments(folder / "index"))
    return folder / "index"


def test_requests_of_all_kinds_are_answered(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(SENTENCES) == len(set(SENTENCES)) == 120
    monkeypatch.setattr("bench.load.SENTENCES", ("a red field", "a green roof"))
    out = tmp_path / "load.json"
    count = ["--text", "3", "--uploads", "2", "--thumbnails", "2", "--seconds", "5", "--device", "cpu"]
    main([str(index), *count, "--json", str(out)])
    found = json.loads(out.read_text())
    assert found["refused"] == {"text": {}, "upload": {}, "thumbnail": {}}
    assert all(len(times) > 2 and min(times) > 0 for times in found["milliseconds"].values())
    assert len(found["memory_mib"]) == 1
    assert found["memory_mib"][0] > 50
    assert "7 clients at one address, 5 s, 12 images" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([str(index), *count, "--rate", "1"])  # a minute: of five seconds' searches all but the first
    assert caught.value.code == 1
    assert "text: " in capsys.readouterr().out
