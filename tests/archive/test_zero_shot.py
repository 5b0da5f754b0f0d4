"""Zero-shot classes: the numbers by hand, and the program on a small data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from archive.zero_shot import embed_classes, main, zero_shot
from data.prompts import PHRASES, TEMPLATES, prompts_of
from layers.base import l2norm
from option import Options
from tests.archives import make_trained
from tests.tiny import make_precomp
from utils import InputError


def test_accuracy_and_precision_by_hand() -> None:
    classes = ["beach", "beach", "river", "river"]
    prompts = {"beach": ["a beach"], "river": ["a river"]}
    scores = torch.tensor(
        [[0.9, 0.1], [0.3, 0.4], [0.2, 0.6], [0.5, 0.5]]
    )  # right, wrong, right, a tie, which is wrong
    result = zero_shot(scores, classes, prompts)
    assert result["accuracy"] == 50.0
    assert result["classes"]["beach"]["accuracy"] == 50.0  # type: ignore[index]
    # With four images in all, the ten best are the four.
    assert result["precision@10"] == 50.0
    assert result["best precision@10"] == 20.0


def test_precision_counts_the_ten_best_of_a_class() -> None:
    classes = ["a"] * 12 + ["b"] * 12
    scores = torch.zeros(24, 2)
    scores[:, 0] = torch.arange(24, 0, -1)  # all of class a come first
    scores[:, 1] = torch.arange(24)
    scores[12:15, 1] = 100.0
    scores[0:4, 1] = 50.0  # four wrong images among the ten best of b
    rows = zero_shot(scores, classes, {"a": ["a"], "b": ["b"]})["classes"]
    assert rows["a"]["precision@10"] == 100.0  # type: ignore[index]
    assert rows["b"]["precision@10"] == pytest.approx(60.0)  # type: ignore[index]


def test_prompts() -> None:
    assert prompts_of("storagetanks") == [template.format("storage tanks") for template in TEMPLATES]
    assert prompts_of("BaseballField")[0] == "baseball field"
    assert prompts_of("dense_residential")[0] == "dense residential"
    assert len(set(PHRASES.values())) == 21


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"all images are of one class \(a\)"):
        zero_shot(torch.zeros(2, 1), ["a", "a"], {"a": ["a"]})


def test_a_class_is_the_mean_of_its_unit_embeddings() -> None:
    class Double:
        @staticmethod
        def text(sentence: str) -> torch.Tensor:
            return {"x": torch.tensor([[3.0, 0.0]]), "y": torch.tensor([[0.0, 0.5]])}[sentence]

    found = embed_classes(Double(), {"c": ["x", "y"], "d": ["x"]})  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(l2norm(found[:1]), torch.tensor([[0.5**0.5, 0.5**0.5]]))


def test_the_program(tmp_path: Path, tiny_options: Callable[..., Options], capsys: pytest.CaptureFixture[str]) -> None:
    trained = make_trained(tmp_path / "model", tiny_options, "GaLR", {"dataset.local_path": None})
    data = make_precomp(tmp_path / "data")
    model = ["--path_opt", str(trained.options), "--checkpoint", str(trained.checkpoint), "--data_path", str(data)]
    query = ["--query", "a red field", "--sheet", str(tmp_path / "sheet.jpg")]
    main([*model, "--json", str(tmp_path / "result.json"), *query])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 12
    assert list(result["classes"]) == ["field", "pond", "roof"]
    assert result["classes"]["pond"]["prompts"] == [template.format("pond") for template in TEMPLATES]
    assert f"| all   |     12 |{result['accuracy']:9.1f} |" in printed
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
    with pytest.raises(InputError, match="--query and --sheet belong together"):
        main([*model, *query[:2]])


def test_a_model_of_pair_scores_is_refused(tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
    trained = make_trained(tmp_path, tiny_options, "AMFMN")
    with pytest.raises(InputError, match="AMFMN scores each pair by more than a cosine: prompts can't be averaged"):
        main(["--path_opt", str(trained.options), "--checkpoint", str(trained.checkpoint), "--data_path", "absent"])
