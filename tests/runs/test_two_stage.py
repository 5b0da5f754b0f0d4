"""`test.py --rerank-path_opt`: a second model puts the first items in order; what it changes, costs and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import option
import test as test_entry
from engine import encode
from metrics.ranks import Ranks, rank, recalls
from runs.checkpoints import save_checkpoint
from runs.folders import best_checkpoint
from runs.scoring import open_test_set
from runs.two_stage import pair_scorers
from tests.metrics.test_two_stage import joined
from tests.small_model import SmallModel, use_small_model
from tests.tiny import make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_model(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_precomp(tmp_path_factory.mktemp("data") / "data")


def experiment(folder: Path, data: Path, seed: int) -> Path:
    """A YAML whose two folds have checkpoints of random weights."""
    folder.mkdir()
    path = write_experiment(folder, data)
    options = option.load_options(path)
    vocabulary = Vocabulary.load(options.dataset.vocab_path)
    for fold in range(2):
        torch.manual_seed(seed + fold)
        stored = {"model": SmallModel(len(vocabulary)).state_dict(), "epoch": 1, "fold": fold}
        save_checkpoint(best_checkpoint(options, fold), stored | {"vocabulary": vocabulary.digest}, options)
    return path


def run(path: Path, *arguments: object) -> None:
    test_entry.main(["--path_opt", str(path), *map(str, arguments)])


def scores_of(path: Path, fold: int) -> tuple[Tensor, Tensor]:
    """The whole score matrix of a fold, and the image of each caption."""
    options = option.load_options(path)
    test_set = open_test_set(options, CPU)
    model = SmallModel(len(test_set.vocabulary))
    model.load_state_dict(torch.load(best_checkpoint(options, fold), weights_only=True)["model"])
    images, texts = encode(model, test_set.loader, CPU)
    with torch.no_grad():
        return model.score(images, texts)[:, test_set.loader.caption_row], test_set.loader.text_image


def test_each_fold_is_put_in_the_order_of_the_second_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = experiment(tmp_path / "a", data, 0), experiment(tmp_path / "b", data, 10)
    run(first, "--rerank-path_opt", second, "--rerank-top", 4)
    result: dict[str, Any] = json.loads((first.parent / "checkpoint" / "tiny" / "test.json").read_text())
    for fold in range(2):
        (old, text_image), (new, _) = scores_of(first, fold), scores_of(second, fold)
        by_image = rank(joined(old.tolist(), new.tolist(), 4), text_image)
        by_text = rank(joined(old.T.tolist(), new.T.tolist(), 4).T, text_image)
        places = by_image.image_to_text, by_text.text_to_image
        expected = recalls(Ranks(*places, by_image.image_ties, by_text.text_ties, by_image.own_texts))
        row = result["rows"][f"fold {fold}"]
        assert {name: row[f"two_stage_{name}"] for name in expected} == pytest.approx(expected)
        assert expected != recalls(rank(old, text_image))
        # Of a caption that nothing equals, the match is found among four candidates or not at all
        before = (old > old.gather(0, text_image[None])).sum(dim=0)
        assert row["in_first_t2i"] == pytest.approx(100 * float((before < 4).double().mean()))
    stage = result["two_stage"]
    assert (stage["model"], stage["top"], stage["checkpoint"]) == ("AMFMN", 4, None)
    cost = stage["cost"]["fold 1"]
    assert (cost["first"]["i2t_pairs"], cost["first"]["t2i_pairs"], cost["second"]["t2i_pairs"]) == (24, 12, 4)
    assert cost["second"]["i2t_pairs"] <= 4
    assert all(value > 0 for stage in cost.values() for value in stage.values())
    printed = capsys.readouterr().out
    assert "After the second stage: the first 4 of AMFMN in the order of AMFMN:" in printed
    assert f"{result['mean']['two_stage_mR']:.2f} ± " in printed
    assert "| I→T in first 4 |" in printed
    assert "| 2. AMFMN |" in printed


def test_equal_captions_have_equal_scores() -> None:
    torch.manual_seed(0)
    model, rows = SmallModel(5), torch.arange(37).repeat(3)
    of_image, of_caption = pair_scorers(model, torch.randn(3, 37), torch.randn(37, 37), rows)
    scores, pairs = of_image(1, torch.arange(111))
    assert pairs == 37
    assert torch.equal(scores[:37], scores[37:74])
    torch.testing.assert_close(scores[[5]], of_caption(5, torch.tensor([1]))[0])


def test_faults(data: Path, tmp_path: Path) -> None:
    first = experiment(tmp_path / "a", data, 0)
    weights = best_checkpoint(option.load_options(first), 0)
    with pytest.raises(InputError, match="--rerank-checkpoint: give --rerank-path_opt, too"):
        run(first, "--rerank-checkpoint", weights)
    with pytest.raises(InputError, match="--rerank-top 0: expected 1 or more"):
        run(first, "--rerank-path_opt", first, "--rerank-top", 0)
    with pytest.raises(InputError, match="with --checkpoint give --rerank-checkpoint, too"):
        run(first, "--rerank-path_opt", first, "--checkpoint", weights)
    content = yaml.safe_load(first.read_text())
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content | {"k_fold": {"experiment_name": "none", "nums": 1}}))
    with pytest.raises(InputError, match=r"no checkpoint .*none/0/AMFMN_best.*Train it: python train.py --path_opt"):
        run(first, "--rerank-path_opt", tmp_path / "other.yaml", "--folds", "0")
    content["dataset"]["data_path"] = str(make_precomp(tmp_path / "data", test=11))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"its test list, .*test_filename.txt, is not that of the first model"):
        run(first, "--rerank-path_opt", tmp_path / "other.yaml", "--rerank-checkpoint", weights)
