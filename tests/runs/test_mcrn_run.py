"""MCRN as a user runs it: train, test, one table for text, speech and images, the same numbers each time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import test as test_entry
import train as train_entry
from batches.augmentation import margin_size, right_angle_views
from batches.batch import Batch
from data.annotations import read_annotations
from data.images import load_square
from dataloader import EvaluationLoader
from engine import encode, evaluate, rank_tasks, score_source
from layers import build_model
from layers.base import RetrievalModel
from metrics.limits import chance, source_chance
from metrics.ranks import Ranks, Tasks, rank, recalls, task_recalls
from option import Options, load_options
from option.dataset import Views
from option.images import ImageRule
from runs.loaders import evaluation_loader, read_vocabulary, train_loader
from runs.media import Media
from tests.tiny import add_spectrograms, make_precomp, write_experiment
from utils import InputError

CPU = torch.device("cpu")
FIFTEEN = [
    *(f"{direction}_R@{cutoff}" for direction in ("i2t", "t2i", "i2a", "a2i", "i2i") for cutoff in (1, 5, 10)),
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a small MCRN on small data with spectrograms."""
    folder = tmp_path_factory.mktemp("mcrn")
    data = make_precomp(folder / "data")
    path = write_experiment(folder, data)
    content = yaml.safe_load(path.read_text())
    content["model"] |= {"name": "MCRN", "embed": {"embed_dim": 64}, "discriminator": {"in_size": 64}}
    content["dataset"]["audio_path"] = str(add_spectrograms(data))
    content["optim"] = {"epochs": 2, "lr_finetune": 1e-3, "schedule": "cosine"}
    content["k_fold"]["nums"] = 1
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def trained(experiment: Path) -> Path:
    train_entry.main(["--path_opt", str(experiment)])
    return experiment


def loader_of(options: Options, batch_size: int = 5, load: bool = True) -> EvaluationLoader:
    dataset = options.dataset.model_copy(update={"batch_size_val": batch_size})
    options = options.model_copy(update={"dataset": dataset})
    annotations = read_annotations(options.dataset.folder, "test", options.dataset.audio_path)
    vocabulary = read_vocabulary(options)
    return evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU, load=load)


def test_two_evaluations_give_the_same_table_of_16_numbers(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [trained.parent / f"{run}.json" for run in (1, 2)]
    for file in files:
        test_entry.main(["--path_opt", str(trained), "--json", str(file)])
    first, second = (json.loads(file.read_text()) for file in files)
    assert first == second
    row = first["rows"]["fold 0"]
    assert row["mean_of_15"] == pytest.approx(sum(row[name] for name in FIFTEEN) / 15)
    assert row["tasks_mR"] == pytest.approx((row["mR"] + row["audio_mR"] + row["image_mR"]) / 3)
    assert first["chance"].keys() >= {*FIFTEEN, "mR", "audio_mR", "image_mR", "mean_of_15", "tasks_mR"}
    printed = capsys.readouterr().out
    assert printed.count("| chance") == printed.count("| fold 0") >= 6
    for name in (*FIFTEEN, "mean_of_15"):
        assert f"{row[name]:.2f}" in printed
    assert "Spoken captions" in printed
    assert "each fold's best epoch by the mean mR of all tasks on val" in printed


def test_the_best_epoch_is_the_one_of_the_three_tasks(trained: Path) -> None:
    from runtime.weights import read_checkpoint

    folder = trained.parent / "checkpoint" / "tiny" / "0"
    last = read_checkpoint(folder / "last.pth")
    assert last["best"] == max(row["val_tasks_mR"] for row in last["history"])
    assert {"triplet_text", "triplet_audio", "mse_view", "kd", "alignment"} <= last["history"][0].keys()
    assert last["history"][1]["lr"] == pytest.approx(0.5 * last["history"][0]["lr"])


def test_spectrograms_and_views_of_evaluation(experiment: Path) -> None:
    options = load_options(experiment)
    loader = loader_of(options)
    audio = torch.cat([batch.need("audio") for batch in loader.audio_batches()])
    assert len(audio) == 24  # 12 images with two captions each, all different
    assert loader.caption_audio.unique().tolist() == list(range(24))
    views = torch.cat([batch.need("images") for batch in loader.view_batches()])
    other_size = torch.cat([batch.need("images") for batch in loader_of(options, batch_size=4).view_batches()])
    again = torch.cat([batch.need("images") for batch in loader.view_batches()])
    assert torch.equal(views, again)
    assert torch.equal(views, other_size)
    plain = torch.cat([batch.need("images") for batch in loader.image_batches()])
    assert not (views == plain).flatten(1).all(dim=1).any()


def test_without_load_each_kind_of_image_is_decoded_when_it_is_read(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[str, int]] = []

    def noted(path: Path, size: int, rule: ImageRule) -> np.ndarray:
        decoded.append((path.parent.name, size))
        return load_square(path, size, rule)

    monkeypatch.setattr("data.image_store.load_square", noted)
    options = load_options(experiment)
    size, folder, audio = options.dataset.image_size, "images", Path(str(options.dataset.audio_path)).name
    loader = loader_of(options, load=False)
    assert decoded == []
    for read, expected in (
        (loader.audio_batches, {(audio, size): 24}),
        (loader.view_batches, {(folder, margin_size(size)): 12}),
        (loader.image_batches, {(folder, size): 12}),
    ):
        next(read())
        assert Counter(decoded) == expected  # all of them with the first batch, so that all faults are told at once
        decoded.clear()


def test_second_views_are_embedded_as_the_images_are(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = load_options(experiment)
    loader, model = loader_of(options, batch_size=12), build_model(options, read_vocabulary(options))
    seen: list[Tensor] = []
    images, texts = encode(model, loader, CPU)
    blocks = score_source(model, images, texts, loader.caption_row)
    plain = type(model).encode_image

    def kept(self: RetrievalModel, batch: Batch) -> Tensor:
        seen.append(batch.need("images"))
        return plain(self, batch)

    monkeypatch.setattr(type(model), "encode_image", kept)
    (views,) = (batch.need("images") for batch in loader.view_batches())
    choices: tuple[tuple[Views, list[Tensor]], ...] = (("one", [views]), ("right_angles", [*right_angle_views(views)]))
    for choice, expected in choices:
        seen.clear()
        rank_tasks(model, loader, images, blocks, CPU, views=choice)
        whole = [batch for batch in seen if len(batch) > 1]  # a single one tries the folded copy out
        assert len(whole) == len(expected)
        assert all(map(torch.equal, whole, expected))


@pytest.mark.parametrize(
    ("flags", "means"),
    [
        ((True, True), ["mR", "audio_mR", "image_mR", "mean_of_15", "tasks_mR"]),
        ((True, False), ["mR", "audio_mR", "tasks_mR"]),
        ((False, True), ["mR", "image_mR", "tasks_mR"]),
        ((False, False), ["mR"]),
    ],
)
def test_each_task_of_an_evaluation_follows_from_its_own_flag(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[bool, bool], means: list[str]
) -> None:
    options = load_options(experiment)
    torch.manual_seed(0)
    model = build_model(options, read_vocabulary(options))
    whole = evaluate(model, loader_of(options), CPU)
    for flag, value in zip(("uses_audio", "uses_second_view"), flags, strict=True):
        monkeypatch.setattr(type(model), flag, value)
    table = evaluate(model, loader_of(options), CPU)
    assert [name for name in table if "_R@" not in name and not name.startswith(("i2", "t2", "a2"))] == means
    assert all(table[name] == whole[name] for name in table if name != "tasks_mR")
    tasks = [table[name] for name in ("mR", "audio_mR", "image_mR") if name in means]
    assert table.get("tasks_mR", table["mR"]) == pytest.approx(sum(tasks) / len(tasks))


def test_training_batches_carry_all_sources_of_the_same_pairs(experiment: Path) -> None:
    options = load_options(experiment)
    annotations = read_annotations(options.dataset.folder, "train", options.dataset.audio_path)
    vocabulary = read_vocabulary(options)
    loader = train_loader(options, 0, vocabulary, annotations, Media.of(options, [annotations], CPU), CPU)
    assert loader.audio is not None
    assert annotations.audio_names is not None
    names = sorted(set(annotations.audio_names))
    for batch in loader.epoch(1):
        assert batch.need("second_view").shape == batch.need("images").shape == batch.need("audio").shape
        for caption in batch.need("caption_ids").tolist():
            assert names[int(loader.audio.rows[caption])] == annotations.audio_names[caption]
    first, again = (next(iter(loader.epoch(1))) for _ in range(2))
    for field in ("images", "second_view", "audio"):
        assert torch.equal(first.need(field), again.need(field))


def test_an_experiment_without_spectrograms_says_how_to_make_them(experiment: Path, tmp_path: Path) -> None:
    arguments = ["--path_opt", str(experiment), "--set", f"logs.ckpt_save_path={tmp_path}"]
    with pytest.raises(InputError, match=r"dataset\.audio_path: missing; MCRN needs .*python -m data\.audio"):
        train_entry.main([*arguments, "dataset.audio_path=null"])
    with pytest.raises(InputError, match=r"python -m data\.audio"):
        train_entry.main([*arguments, f"dataset.audio_path={tmp_path}", f"dataset.data_path={bare(tmp_path)}"])


def bare(folder: Path) -> Path:
    """A data set without lists of spectrograms."""
    return make_precomp(folder / "bare")


class TestMetrics:
    def test_a_hand_made_table(self) -> None:
        # 12 images; in every task all matches come first, but for the parts that are put elsewhere.
        perfect = torch.zeros(12, dtype=torch.int64)
        late = torch.tensor([0] * 6 + [4] * 3 + [11] * 3)
        table = task_recalls(Tasks(Ranks(perfect, perfect), Ranks(late, perfect), Ranks(perfect, late)))
        assert (table["mR"], table["i2a_R@1"], table["i2a_R@5"], table["i2a_R@10"]) == (100, 50, 75, 75)
        assert table["audio_mR"] == pytest.approx((50 + 75 + 75 + 300) / 6)
        assert [table[f"i2i_R@{cutoff}"] for cutoff in (1, 5, 10)] == [75, 87.5, 87.5]
        assert table["image_mR"] == pytest.approx(250 / 3)
        assert table["mean_of_15"] == pytest.approx((600 + 500 + 250) / 15)
        assert table["tasks_mR"] == pytest.approx((100 + 500 / 6 + 250 / 3) / 3)

    def test_text_numbers_are_those_of_the_other_models(self) -> None:
        scores = torch.randn(7, 14, generator=torch.Generator().manual_seed(0))
        text = rank(scores, torch.arange(14) // 2)
        table = task_recalls(Tasks(text, text, rank(scores[:, :7], torch.arange(7))))
        assert recalls(text).items() <= table.items()
        assert table["a2i_R@5"] == table["t2i_R@5"]

    def test_chance_of_speech_is_that_of_text(self) -> None:
        text_image = torch.arange(24) // 2
        table, text = source_chance(text_image), chance(text_image)
        assert text.items() <= table.items()
        assert [table["i2a_R@1"], table["a2i_R@10"], table["audio_mR"]] == [
            text["i2t_R@1"],
            text["t2i_R@10"],
            text["mR"],
        ]
        assert table["i2i_R@5"] == pytest.approx(100 * 5 / 12)
        assert table["mean_of_15"] == pytest.approx(sum(table[name] for name in FIFTEEN) / 15)
