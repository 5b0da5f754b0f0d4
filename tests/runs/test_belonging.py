"""What does not belong to a checkpoint is refused, or with --force said, noted and let through."""

from __future__ import annotations

import json
import shutil
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch

import test as test_entry
import train as train_entry
from data.annotations import list_digest, read_annotations
from data.splits import Strategy, deciding, split_images
from layers.released import load_fitting, misfits
from option import load_options
from runs.checkpoints import scored_weights
from runs.folders import run_folder
from runs.loaders import read_vocabulary
from runs.models import load_model
from runs.provenance import LIST_DIGEST, check_fold, check_model, train_digest
from runtime.weights import read_checkpoint
from tests.small_model import SmallModel, use_small_model
from tests.tiny import make_precomp, write_experiment
from utils import Gate, InputError
from vocab import Vocabulary

STRATEGIES: tuple[Strategy, ...] = ("random", "kfold", "stratified", "blocks")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The YAML of two folds, trained for one epoch."""
    use_small_model(monkeypatch)
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data"), epochs=1)
    train_entry.main(["--path_opt", str(path)])
    return path


def score(path: Path, *overrides: str, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """The result of test.py."""
    out = path.parent / "result.json"
    test_entry.main(["--path_opt", str(path), *flags, "--json", str(out), "--set", "optim.seed=0", *overrides])
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def best(path: Path, fold: int) -> Path:
    return path.parent / "checkpoint" / "tiny" / str(fold) / "AMFMN_best.pth.tar"


def edit(path: Path, **changes: object) -> None:
    torch.save(read_checkpoint(path) | changes, path)


class TestWeights:
    def test_the_table_counts_and_names(self) -> None:
        wanted = {f"layer{number}.weight": torch.zeros(2, 3) for number in range(5)} | {"head": torch.zeros(4)}
        given = {"layer0.weight": torch.zeros(2, 3), "head": torch.zeros(5), "other": torch.zeros(1)}
        assert misfits(wanted, wanted) == (0, "")
        assert misfits(wanted, given) == (
            5,
            "\n  missing           4  layer1.weight, layer2.weight, layer3.weight, and 1 more"
            "\n  unexpected        1  other"
            "\n  another shape     1  head: [5] in the checkpoint, [4] in the model",
        )

    def test_forced_weights_are_those_that_fit(self) -> None:
        torch.manual_seed(0)
        model, other = SmallModel(5), SmallModel(9)
        words = model.words.weight.detach().clone()
        gate = Gate(forced=True)
        load_fitting(model, other.state_dict(), "it", "advice", gate)
        assert torch.equal(model.colours.weight, other.colours.weight)
        assert torch.equal(model.words.weight, words)
        assert gate.passed == [
            "it does not fit SmallModel as built from these options (1 of 3 tensors would not come from it)"
        ]

    def test_weights_of_which_nothing_fits_can_not_be_forced(self) -> None:
        with pytest.raises(InputError, match="not in one tensor"):
            load_fitting(SmallModel(5), {"other": torch.zeros(1)}, "it", "advice", Gate(forced=True))

    def test_another_model_is_refused_and_forced_into_the_protocol(self, trained: Path) -> None:
        content = read_checkpoint(best(trained, 0))
        edit(best(trained, 0), model={k: v for k, v in content["model"].items() if k != "colours.bias"})
        with pytest.raises(InputError, match=r"(?s)1 of 3 tensors.*missing +1  colours\.bias.*--force"):
            score(trained)
        assert "FORCED: " not in score(trained, flags=("--folds", "1"))["protocol"]
        protocol = score(trained, flags=("--force",))["protocol"]
        assert "FORCED: " in protocol
        assert "(1 of 3 tensors would not come from it)" in protocol

    def test_a_missing_checkpoint_is_never_scored(self, trained: Path) -> None:
        best(trained, 1).unlink()
        for flags in ((), ("--force",), ("--force", "--checkpoint", str(best(trained, 1)))):
            with pytest.raises(InputError, match="no checkpoint"):
                score(trained, flags=flags)


class TestComputation:
    """Options that change what a trained model computes, but no tensor's shape."""

    @pytest.mark.parametrize(
        ("override", "named"),
        [
            ("dataset.image_size=96", "dataset.image_size: 64 in the checkpoint, 96 now"),
            (
                "model.cross_attention.att_type=fusion_att",
                "model.cross_attention.att_type: soft_att in the checkpoint, fusion_att now",
            ),
        ],
    )
    def test_it_is_refused_unless_forced(self, trained: Path, override: str, named: str) -> None:
        with pytest.raises(InputError) as caught:
            score(trained, override)
        assert f"\n  {named}\n" in str(caught.value)
        assert "was trained to compute something else" in score(trained, override, flags=("--force",))["protocol"]

    @pytest.mark.parametrize(
        ("key", "decides"),
        [
            ("dataset.image_size", True),
            ("dataset.batch_size", False),
            ("model.tcge.rounding", True),
            ("model.cross_attention.att_type", True),
            ("model.cross_attention.block_mib", False),
            ("model.backbone.pretrained", False),
            ("model.image.train", False),
            ("model.text.layer_decay", False),
            ("model.seq2vec.dropout", False),
            ("model.fusion.mca_DROPOUT_R", False),
            ("model.dropout.words", False),
            ("model.keywords.mode", False),
        ],
    )
    def test_which_options_decide(self, key: str, decides: bool) -> None:
        stored = {"options": nested(key, 1)}
        given = nested(key, 2)
        if decides:
            with pytest.raises(InputError, match=f"{key}: 1 in the checkpoint, 2 now"):
                check_model(stored, Path("best.pth"), given, None)
        else:
            check_model(stored, Path("best.pth"), given, None)
        check_model({"options": {}}, Path("older.pth"), given, None)

    @pytest.mark.parametrize("key", ["model.backbone.pretrained", "model.image.pretrained"])
    def test_installed_weights_normalise_images_in_their_own_way(self, key: str) -> None:
        stored = {"options": nested(key, "installed")}
        check_model(stored, Path("best.pth"), nested(key, "installed"), None)
        with pytest.raises(InputError, match=f"{key}: installed in the checkpoint, none now"):
            check_model(stored, Path("best.pth"), nested(key, "none"), None)


def nested(key: str, value: object) -> dict[str, Any]:
    """A dotted key as a tree."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


class TestAverage:
    def test_of_a_last_checkpoint_the_average_is_scored(self, trained: Path) -> None:
        weights = read_checkpoint(best(trained, 0))["model"]
        average = {"n_averaged": torch.tensor(3), **{f"module.{name}": value + 1 for name, value in weights.items()}}
        assert scored_weights({"model": weights}) is weights
        found = scored_weights({"model": weights, "average": average})
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name] + 1) for name in weights)

    def test_it_is_what_validation_scored(self, trained: Path) -> None:
        given = ["optim.ema=0.5", "k_fold.experiment_name=averaged", "optim.epochs=2"]
        train_entry.main(["--path_opt", str(trained), "--folds", "0", "--set", *given])
        options = load_options(trained, given)
        last = run_folder(options, 0) / "last.pth"
        model, content = load_model(options, read_vocabulary(options), last, torch.device("cpu"))
        for name, value in model.state_dict().items():
            assert torch.equal(value, content["average"][f"module.{name}"])
        assert any(not torch.equal(value, content["model"][name]) for name, value in model.state_dict().items())


class TestVocabulary:
    def swapped(self, trained: Path) -> str:
        """The same words with two ids changed."""
        words = list(Vocabulary.load(trained.parent / "vocab.json").word2idx)
        words[0], words[1] = words[1], words[0]
        Vocabulary({word: index for index, word in enumerate(words, start=1)}).save(trained.parent / "other.json")
        return f"dataset.vocab_path={trained.parent / 'other.json'}"

    def test_another_one_is_refused_unless_forced(self, trained: Path) -> None:
        other = self.swapped(trained)
        with pytest.raises(InputError, match=r"(?s)another vocabulary than .*other\.json.*--force"):
            score(trained, other)
        assert "another vocabulary" in score(trained, other, flags=("--force",))["protocol"]

    def test_training_from_weights_is_refused_unless_forced(
        self, trained: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        given = ["--path_opt", str(trained), "--folds", "0", "--set", f"optim.resume={best(trained, 0)}"]
        given += [self.swapped(trained), "k_fold.experiment_name=second"]
        with pytest.raises(InputError, match="another vocabulary"):
            train_entry.main(given)
        train_entry.main([*given, "--force"])
        assert "forced: " in caplog.text


class TestDataSet:
    def test_a_checkpoint_knows_its_list(self, trained: Path) -> None:
        annotations = read_annotations(trained.parent / "data", "train")
        assert read_checkpoint(best(trained, 0))[LIST_DIGEST] == list_digest(annotations)
        assert train_digest(trained.parent / "data") == list_digest(annotations)
        assert train_digest(trained.parent / "absent") is None
        assert list_digest(annotations.subset(range(23))) != list_digest(annotations)

    def test_another_train_list_is_refused_unless_forced(self, trained: Path) -> None:
        other = make_precomp(trained.parent / "elsewhere" / "data", train=23)
        with pytest.raises(
            InputError, match=r"(?s)was trained on .*whose train list is another than that of .*--force"
        ):
            score(trained, f"dataset.data_path={other}")
        assert (
            "whose train list is another"
            in score(trained, f"dataset.data_path={other}", flags=("--force",))["protocol"]
        )

    def test_a_data_set_may_move(self, trained: Path) -> None:
        shutil.copytree(trained.parent / "data", trained.parent / "moved")
        assert "FORCED" not in score(trained, f"dataset.data_path={trained.parent / 'moved'}")["protocol"]

    def test_without_a_digest_the_folder_s_name_decides(self, trained: Path) -> None:
        for fold in (0, 1):
            edit(best(trained, fold), **{LIST_DIGEST: None})
        shutil.copytree(trained.parent / "data", trained.parent / "moved")
        score(trained)
        with pytest.raises(InputError, match="was trained on"):
            score(trained, f"dataset.data_path={trained.parent / 'moved'}")

    def test_a_run_does_not_go_on_with_other_captions(self, trained: Path) -> None:
        captions = trained.parent / "data" / "train_caps.txt"
        captions.write_text(captions.read_text().replace("field", "meadow"))
        given = ["--path_opt", str(trained), "--folds", "0", "--set", "optim.epochs=2"]
        with pytest.raises(InputError, match="whose train list is another"):
            train_entry.main(given)
        train_entry.main([*given, "--force"])


class TestFolds:
    def test_a_copied_fold_is_refused_unless_forced(self, trained: Path) -> None:
        shutil.copy(best(trained, 0), best(trained, 1))
        with pytest.raises(InputError, match=r"(?s)is of fold 0, expected fold 1.*count one training twice"):
            score(trained)
        assert "is of fold 0, expected fold 1" in score(trained, flags=("--force",))["protocol"]
        score(trained, flags=("--checkpoint", str(best(trained, 1))))

    @pytest.mark.parametrize(
        ("override", "named"),
        [
            ("k_fold.strategy=kfold", "k_fold.strategy random (now kfold)"),
            ("k_fold.seed=5", "k_fold.seed 0 (now 5)"),
        ],
    )
    def test_another_split_is_refused(self, trained: Path, override: str, named: str) -> None:
        with pytest.raises(InputError) as caught:
            score(trained, override)
        assert named in str(caught.value)

    def test_the_number_of_folds_counts_for_a_partition_only(self, trained: Path) -> None:
        score(trained, "k_fold.nums=3", flags=("--folds", "0"))
        for fold in (0, 1):
            content = read_checkpoint(best(trained, fold))
            content["options"]["k_fold"]["strategy"] = "kfold"
            edit(best(trained, fold), options=content["options"])
        score(trained, "k_fold.strategy=kfold")
        with pytest.raises(InputError, match=r"k_fold\.nums 2 \(now 3\)"):
            score(trained, "k_fold.strategy=kfold", "k_fold.nums=3", flags=("--folds", "0"))

    @pytest.mark.parametrize("block", [["blocks"], {"strategy": "blocks", "nums": "many"}])
    def test_a_damaged_block_is_told(self, block: object) -> None:
        given = {"strategy": "blocks", "nums": 3, "seed": 0}
        with pytest.raises(InputError, match=r"best\.pth is damaged: the block k_fold of its options can't be read"):
            check_fold({"options": {"k_fold": block}}, Path("best.pth"), None, given, None)

    def test_what_decides_a_split_splits_otherwise(self, tmp_path: Path) -> None:
        """Options of equal `deciding` give equal splits, others give others."""
        train = read_annotations(make_precomp(tmp_path / "data", train=40), "train")
        every = [
            {"strategy": strategy, "nums": nums, "seed": seed}
            for strategy in STRATEGIES
            for nums in (2, 5, 8)
            for seed in (0, 1)
        ]
        vals = [split_images(train, *given)[1].tolist() for given in product(STRATEGIES, [0], (2, 5, 8), (0, 1))]
        for (one, val), (other, other_val) in combinations(zip(every, vals, strict=True), 2):
            assert (deciding(one) == deciding(other)) == (val == other_val), (one, other)
