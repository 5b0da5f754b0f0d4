"""The entry points as a user runs them: YAML in, averaged table out, and what happens when something is wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import option
import test as test_entry
import train as train_entry
from engine import encode
from metrics import rank, recalls
from runs import checkpoints
from runs.checkpoints import FORMAT
from runs.folders import best_checkpoint
from runs.record import read_record
from runs.scoring import load_scored, open_test_set
from runs.tensorboard import note_hparams
from runtime.weights import read_checkpoint
from tests import ROOT, reference_inputs
from tests.tiny import make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML whose two folds are trained for two epochs each."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_experiment(folder, make_precomp(folder / "data"))
    train_entry.main(["--path_opt", str(path)])
    return path


def experiment(path: Path) -> Path:
    return path.parent / "checkpoint" / "tiny"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*")}


def test_a_run_folder_holds_all_it_should(trained: Path) -> None:
    for fold in ("0", "1"):
        folder = experiment(trained) / fold
        assert (folder / "options.yaml").is_file()
        assert "val mR" in (folder / "train.log").read_text()
        names = [(folder / "split" / f"{side}.txt").read_text().split() for side in ("train", "val")]
        assert [len(side) for side in names] == [19, 5]
        assert not set(names[0]) & set(names[1])
        assert list(folder.glob("events.out.tfevents.*"))
        assert read_checkpoint(folder / "last.pth")["epoch"] == 2
        best = read_checkpoint(folder / "AMFMN_best.pth.tar")
        assert best["format"] == FORMAT
        assert best["scores"]["val_mR"] == read_checkpoint(folder / "last.pth")["best"]
        with (folder / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [float(row["epoch"]) for row in rows] == [1, 2]
        assert float(rows[1]["loss"]) > 0
        (record,) = read_record(folder)
        assert record["peak_memory_mib"] > 100


def test_tensorboard_has_losses_rates_and_recalls(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(experiment(trained) / "0"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/image_to_text", "train/text_to_image", "train/lr"} <= tags
    assert {"train/images_per_second", "train/data_wait_share", "val/mR", "val/i2t_R@1", "val/t2i_R@10"} <= tags
    assert [event.step for event in events.Scalars("val/mR")] == [5, 10]  # 5 steps an epoch
    assert [event.step for event in events.Images("val/examples")] == [5, 10]
    (text,) = events.Tensors("options/text_summary")
    assert b"experiment_name: tiny" in text.tensor_proto.string_val[0]


def test_hparams_have_options_and_scores_of_the_last_test(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for score in (10.0, 20.0):
        note_hparams(tmp_path, {"optim.lr": 0.1, "optim.loss": "triplet", "optim.resume": None}, {"test/mR": score})
    events = EventAccumulator(str(tmp_path / "hparams"))
    events.Reload()
    assert [event.value for event in events.Scalars("test/mR")] == [20.0]
    assert "_hparams_/session_start_info" in events.summary_metadata
    (tmp_path / "a").write_text("in the way")
    note_hparams(tmp_path / "a", {}, {"test/mR": 1.0})  # warns, and goes on


def scores_of(trained: Path, fold: int) -> Tensor:
    """Scores of all pairs of the test split [12, 24]."""
    options = option.load_options(trained)
    device = torch.device("cpu")
    test_set = open_test_set(options, device)
    model, _ = load_scored(options, test_set.vocabulary, best_checkpoint(options, fold), device)
    images, texts = encode(model, test_set.loader, device)
    with torch.no_grad():
        return model.score(images, texts[test_set.loader.caption_row])


def test_the_table_averages_the_folds(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = snapshot(trained.parent / "data")
    test_entry.main(["--path_opt", str(trained), "--scenes", "--ensemble", "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    result = json.loads((experiment(trained) / "test.json").read_text())
    assert " zero-shot |" in printed
    assert result["scenes"]["classes"] == ["field", "pond", "roof"]
    assert result["scenes"]["rows"].keys() == result["rows"].keys()
    assert all(list((experiment(trained) / fold / "hparams").glob("events.*")) for fold in "01")
    assert json.loads((tmp_path / "out.json").read_text()) == result
    folds = [result["rows"]["fold 0"], result["rows"]["fold 1"]]
    for name, mean in result["mean"].items():
        assert mean == pytest.approx((folds[0][name] + folds[1][name]) / 2)
        assert result["standard_deviation"][name] == pytest.approx(abs(folds[0][name] - folds[1][name]) / 2**0.5)
    assert f"{result['mean']['mR']:.2f} ± {result['standard_deviation']['mR']:.2f}" in printed
    assert result["chance"]["t2i_R@1"] == pytest.approx(100 / 12)
    assert "12 images, 24 captions; 2 folds, split strategy random" in printed
    assert (experiment(trained) / "test.md").read_text().split("\n\n")[0] in printed
    with (experiment(trained) / "test.csv").open() as file:
        assert [float(row["mR"]) for row in csv.DictReader(file)] == [fold["mR"] for fold in folds]
    assert json.loads((experiment(trained) / "1" / "test.json").read_text()) == folds[1]
    together = torch.stack([scores_of(trained, fold) for fold in (0, 1)]).mean(0)
    expected = recalls(rank(together, torch.arange(24) // 2))
    assert {name: result["ensemble"][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert "| ensemble " in printed
    assert "ensemble: the mean of the scores of 2 folds" in printed
    assert snapshot(trained.parent / "data") == before


def test_one_model_is_no_ensemble(trained: Path) -> None:
    for alone in (["--folds", "1"], ["--checkpoint", str(experiment(trained) / "1" / "AMFMN_best.pth.tar")]):
        with pytest.raises(InputError, match=r"--ensemble: expected two folds or more to join"):
            test_entry.main(["--path_opt", str(trained), "--ensemble", *alone])


def test_one_checkpoint_alone_leaves_the_table(trained: Path, tmp_path: Path) -> None:
    test_entry.main(["--path_opt", str(trained)])
    table = (experiment(trained) / "test.json").read_text()
    checkpoint = experiment(trained) / "1" / "AMFMN_best.pth.tar"
    test_entry.main(["--path_opt", str(trained), "--checkpoint", str(checkpoint), "--json", str(tmp_path / "one.json")])
    one = json.loads((tmp_path / "one.json").read_text())
    assert one["rows"] == {"AMFMN_best.pth.tar": json.loads(table)["rows"]["fold 1"]}
    test_entry.main(["--path_opt", str(trained), "--folds", "0"])
    assert (experiment(trained) / "test.json").read_text() == table


def test_a_begun_run_is_not_overwritten_and_a_finished_one_is_skipped(trained: Path) -> None:
    before = snapshot(experiment(trained))
    with pytest.raises(InputError, match=r"already holds a run.*--resume never"):
        train_entry.main(["--path_opt", str(trained), "--resume", "never"])
    train_entry.main(["--path_opt", str(trained)])
    weights = {name: stamp for name, stamp in before.items() if "pth" in name}
    assert {name: stamp for name, stamp in snapshot(experiment(trained)).items() if "pth" in name} == weights


EVERYTHING = [
    *("optim.loss={triplet: 1, dynamic: 0.5, contrastive: 0.5}", "optim.mask=caption", "optim.optimizer=adamw"),
    *("optim.weight_decay=0.01", "optim.warmup_steps=7", "optim.schedule=cosine", "optim.schedule_epochs=3"),
    *("optim.ema=0.9", "optim.lr_backbone=0.1", "optim.grad_clip=2"),
]


def test_every_choice_of_the_optimiser_resumes_exactly(trained: Path, tmp_path: Path) -> None:
    def arguments(name: str, epochs: int) -> list[str]:
        overrides = [f"logs.ckpt_save_path={tmp_path}", f"k_fold.experiment_name={name}", f"optim.epochs={epochs}"]
        return ["--path_opt", str(trained), "--folds", "0", "--set", *overrides, *EVERYTHING]

    train_entry.main(arguments("whole", 3))
    train_entry.main(arguments("parts", 1))
    train_entry.main([*arguments("parts", 3), "--resume"])
    whole, parts = (read_checkpoint(tmp_path / name / "0" / "last.pth") for name in ("whole", "parts"))
    for part in ("model", "average", "objective"):
        assert whole[part].keys() == parts[part].keys()
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), name
    timed = ("seconds", "images_per_second", "data_wait_share")
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in run["history"]] for run in (whole, parts)]
    assert rows[0] == rows[1]
    last = rows[0][-1]
    assert {"triplet", "dynamic", "contrastive"} <= last.keys()
    assert last["temperature"] != pytest.approx(0.07, rel=1e-4)
    assert 0 < last["masked_share"] < 0.3
    assert list((tmp_path / "whole" / "cache").glob("prior-*.npz"))
    test_entry.main(arguments("whole", 3))
    with pytest.raises(InputError, match=r"optim\.ema: 0\.9 when it was begun, 0\.0 now"):
        train_entry.main([*arguments("parts", 4), "optim.ema=0", "--resume"])


def test_training_starts_from_given_weights(trained: Path, tmp_path: Path) -> None:
    checkpoint = experiment(trained) / "0" / "AMFMN_best.pth.tar"
    overrides = [f"logs.ckpt_save_path={tmp_path}", f"optim.resume={checkpoint}", "optim.lr=1e-12", "optim.epochs=1"]
    train_entry.main(["--path_opt", str(trained), "--folds", "0", "--set", *overrides])
    started = read_checkpoint(tmp_path / "tiny" / "0" / "last.pth")["model"]["image_encoder.solo.weight"]
    torch.testing.assert_close(started, read_checkpoint(checkpoint)["model"]["image_encoder.solo.weight"])


def test_a_missing_checkpoint_names_the_command(trained: Path) -> None:
    overrides = ["--set", "k_fold.experiment_name=never"]
    with pytest.raises(InputError) as fault:
        test_entry.main(["--path_opt", str(trained), *overrides])
    assert "never/0/AMFMN_best.pth.tar" in str(fault.value)
    assert f"python train.py --path_opt {trained} --folds 0,1 --set k_fold.experiment_name=never" in str(fault.value)


def test_another_model_than_the_checkpoint_names_the_options(trained: Path) -> None:
    with pytest.raises(InputError, match=r"model\.embed\.embed_dim: 32 in the checkpoint, 16 now"):
        test_entry.main(["--path_opt", str(trained), "--set", "model.embed.embed_dim=16"])


def test_options_that_an_older_version_did_not_know_are_not_named_as_differing(trained: Path, tmp_path: Path) -> None:
    content = read_checkpoint(experiment(trained) / "0" / "AMFMN_best.pth.tar")
    del content["options"]["model"]["seq2vec"]["equal_captions"]
    torch.save(content, tmp_path / "older.pth.tar")
    changes = ["--checkpoint", str(tmp_path / "older.pth.tar"), "--set", "model.embed.embed_dim=16"]
    with pytest.raises(InputError, match=r"model\.embed\.embed_dim: 32 in the checkpoint, 16 now") as fault:
        test_entry.main(["--path_opt", str(trained), *changes])
    assert "equal_captions" not in str(fault.value)


def test_an_option_of_several_forms_is_named_once() -> None:
    stored, given = {"model": {"image": {"train": "none"}}}, {"model": {"image": {"train": {"last": 8}}}}
    assert "model.image.train: none in the checkpoint, {last: 8} now\nGive" in checkpoints._differences(stored, given)


def test_damaged_options_are_compared_all_the_same() -> None:
    assert "model.embed: 5 in the checkpoint" in checkpoints._differences({"model": {1: 2, "embed": 5}}, {"model": {}})


def test_another_vocabulary_than_the_checkpoint_is_refused(trained: Path, tmp_path: Path) -> None:
    stored = json.loads((trained.parent / "vocab.json").read_text())
    words = list(stored["word2idx"])
    words[0], words[1] = words[1], words[0]
    Vocabulary({word: index for index, word in enumerate(words, start=1)}).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="trained with another vocabulary"):
        test_entry.main(["--path_opt", str(trained), "--set", f"dataset.vocab_path={tmp_path / 'other.json'}"])


def test_a_released_checkpoint_is_scored(trained: Path, tmp_path: Path) -> None:
    Vocabulary({word: index for index, word in enumerate(reference_inputs.WORDS, 1)}).save(tmp_path / "vocab.json")
    released = {"epoch": 7, "model": reference_inputs.released_state("AMFMN_soft_att"), "best_rsum": 1.0, "Eiters": 3}
    torch.save(released, tmp_path / "released.pth.tar")
    content = yaml.safe_load(trained.read_text())
    content["model"] = {"name": "AMFMN", "seq2vec": {"arch": "skipthoughts"}, "backbone": {"pretrained": "none"}}
    content["dataset"] |= {"image_size": 256, "vocab_path": str(tmp_path / "vocab.json")}
    (tmp_path / "released.yaml").write_text(yaml.safe_dump(content))
    files = {kind: str(tmp_path / f"released.{kind}") for kind in ("yaml", "pth.tar", "json")}
    test_entry.main(["--path_opt", files["yaml"], "--checkpoint", files["pth.tar"], "--json", files["json"]])
    scores = json.loads((tmp_path / "released.json").read_text())["rows"]["released.pth.tar"]
    assert 0 <= scores["mR"] <= 100


def test_a_checkpoint_with_code_in_it_is_refused(trained: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    torch.save({"model": Harmful()}, tmp_path / "harmful.pth.tar")
    with pytest.raises(InputError, match="was refused"):
        test_entry.main(["--path_opt", str(trained), "--checkpoint", str(tmp_path / "harmful.pth.tar")])
    assert not (tmp_path / "ran").exists()
    (tmp_path / "empty.pth.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.pth\.tar"):
        test_entry.main(["--path_opt", str(trained), "--checkpoint", str(tmp_path / "empty.pth.tar")])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--folds", "2"], "has the folds 0 to 1"),
        (["--folds", "x"], "expected numbers"),
        (["--device", "tpu9"], "expected cpu, cuda"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--set", "dataset.vocab_path=none.json"], "python -m vocab"),
        (["--set", "dataset.data_path=nowhere", "k_fold.experiment_name=other"], "nowhere"),
        (["--set", "optim.resume=nofile.pth", "logs.ckpt_save_path=elsewhere"], "no checkpoint nofile.pth"),
    ],
)
def test_faults_of_the_command_line(
    trained: Path, overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ["--path_opt", str(trained)]
    extra = [] if "--set" in overrides else ["--set", "optim.seed=0"]
    with pytest.raises(InputError, match=message):
        train_entry.main([*path, *overrides, *extra])


def test_a_fault_ends_in_one_message_and_status_2(trained: Path) -> None:
    command = [
        sys.executable,
        "train.py",
        "--path_opt",
        str(trained),
        "--set",
        "optim.lrr=1",
        "dataset.batch_size=many",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "optim.lrr" in done.stderr
    assert "dataset.batch_size" in done.stderr
