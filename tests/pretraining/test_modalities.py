"""MCRN's pretraining: who learns when, what is reported, and that a run can be resumed and trained from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import option
import pretrain as pretrain_entry
import train as train_entry
import vocab
from layers import build_model
from layers.mcrn import MODALITIES
from option import ModalityOptions
from pretraining import adversaries
from pretraining.adversaries import Adversaries, adversarial_step, validate
from pretraining.modalities import start_adversaries
from pretraining.unpaired_sources import Sources
from runs.record import read_record
from runtime.weights import read_checkpoint
from tests.interrupted import asked_to_stop, assert_equal, comparable
from tests.pretraining.test_unpaired import CPU, opened, read_options, write_options
from tests.tiny import add_spectrograms, make_precomp
from utils import InputError
from vocab import Vocabulary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_precomp(tmp_path_factory.mktemp("data") / "tiny_precomp", train=16)
    add_spectrograms(folder)
    return folder


@pytest.fixture(scope="module")
def words(data: Path) -> Vocabulary:
    return vocab.build((data / "train_caps.txt").read_text().splitlines(), min_count=1)


@pytest.fixture(scope="module")
def pretrained(data: Path, words: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a run of two epochs."""
    path = write_options(tmp_path_factory.mktemp("pretrained"), data, words)
    pretrain_entry.main(["--path_opt", str(path)])
    return path


def run_folder(path: Path) -> Path:
    return path.parent / "checkpoint" / "pretraining"


@pytest.fixture
def sides(data: Path, words: Vocabulary, tmp_path: Path) -> tuple[Adversaries, Sources, ModalityOptions]:
    """Both sides before their first step, and what they learn from."""
    options = read_options(write_options(tmp_path, data, words))
    return (
        start_adversaries(options, options.model, words, CPU, begun=None),  # type: ignore[arg-type]
        opened(tmp_path, data, words),
        options,
    )


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name, value in module.named_parameters() if not torch.equal(value, before[name])}


class TestStep:
    def test_the_discriminator_learns_alone(self, sides: tuple[Adversaries, Sources, ModalityOptions]) -> None:
        both, sources, options = sides
        model, discriminator = weights(both.model), weights(both.discriminator)
        views = next(iter(sources.train["image"].views(0, 0)))
        losses = adversarial_step(both, "image", views, 1, False, CPU, options.optim)
        assert set(losses) == {"discriminator_loss", "discriminator_accuracy"}
        assert moved(both.model, model) == set()
        assert all(parameter.grad is None for parameter in both.model.parameters())
        assert moved(both.discriminator, discriminator) == {"expand", "classify"}

    @pytest.mark.parametrize(
        ("modality", "encoder"),
        [("image", "image_encoder"), ("text", "caption_encoder"), ("audio", "audio_encoder")],
    )
    def test_the_generator_learns_with_one_encoder(
        self, sides: tuple[Adversaries, Sources, ModalityOptions], modality: str, encoder: str
    ) -> None:
        both, sources, options = sides
        model = weights(both.model)
        views = next(iter(sources.train[modality].views(0, 0)))  # type: ignore[index]
        losses = adversarial_step(both, modality, views, 0, True, CPU, options.optim)  # type: ignore[arg-type]
        assert moved(both.model, model) == {encoder, "share"}
        parts = [losses[f"generator_{part}"] for part in ("mmd", "mse_view", "adversarial", "norm")]
        torch.testing.assert_close(torch.stack(parts).sum(), losses["generator_loss"].to(parts[0].dtype))
        assert all(parameter.grad is None for parameter in both.discriminator.parameters())

    def test_the_discriminator_steps_alike_with_and_without_the_generator(
        self, sides: tuple[Adversaries, Sources, ModalityOptions], words: Vocabulary
    ) -> None:
        _, sources, options = sides
        views = next(iter(sources.train["text"].views(0, 0)))
        after = []
        for generate in (False, True):
            fresh = start_adversaries(options, options.model, words, CPU, begun=None)  # type: ignore[arg-type]
            adversarial_step(fresh, "text", views, 0, generate, CPU, options.optim)
            after.append(weights(fresh.discriminator))
        for name, value in after[0].items():
            torch.testing.assert_close(after[1][name], value)

    def test_the_discriminator_can_learn_to_tell_modalities_apart(
        self, sides: tuple[Adversaries, Sources, ModalityOptions]
    ) -> None:
        both, sources, options = sides
        both.discriminating.optimizer.param_groups[0]["lr"] = 0.01
        views = {modality: next(iter(sources.train[modality].views(0, 0))) for modality in MODALITIES}
        found: list[list[float]] = []
        for _ in range(40):
            steps = [adversarial_step(both, name, views[name], 0, False, CPU, options.optim) for name in MODALITIES]
            found.append([float(losses["discriminator_accuracy"]) for losses in steps])
        assert torch.tensor(found[:3]).mean() < 60  # chance is 33
        assert torch.tensor(found[-10:]).mean() > 90


def test_validation_is_repeatable_and_averages_the_modalities(
    sides: tuple[Adversaries, Sources, ModalityOptions],
) -> None:
    both, sources, _ = sides
    table = validate(both, sources.val, CPU, "off")
    assert validate(both, sources.val, CPU, "off") == table
    for name in ("discriminator_accuracy", "distance_f", "distance_g"):
        assert table[name] == pytest.approx(sum(table[f"{name}_{modality}"] for modality in MODALITIES) / 3)
    assert table["distance_f"] > 0


class TestRun:
    def test_history_and_tensorboard(self, pretrained: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        last = read_checkpoint(run_folder(pretrained) / "last.pth")
        assert [row["epoch"] for row in last["history"]] == [1, 2]
        assert {"generator_loss", "discriminator_loss", "val_distance_g", "lr"} <= last["history"][0].keys()
        events = EventAccumulator(str(run_folder(pretrained)))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"train/generator_loss", "train/discriminator_loss", "train/discriminator_accuracy"} <= tags
        assert {"val/discriminator_accuracy", "val/distance_f", "val/distance_g"} <= tags
        drawn = [event.value for event in events.Scalars("train/modality")]
        assert len(drawn) == 2 * (2 + 2 + 3)
        assert len(set(drawn)) > 1
        assert set(drawn) <= {0.0, 1.0, 2.0}
        assert "peak_memory_mib" in read_record(run_folder(pretrained))[0]

    def test_resume_gives_the_weights_of_an_uninterrupted_run(
        self, data: Path, words: Vocabulary, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["--path_opt", str(write_options(tmp_path, data, words))]
        with asked_to_stop(monkeypatch, adversaries, "adversarial_step", 4):
            pretrain_entry.main(arguments)
        assert read_checkpoint(run_folder(tmp_path / "x") / "last.pth")["batch"] == 4
        with pytest.raises(InputError, match=r"already holds a run.*logs\.experiment_name"):
            pretrain_entry.main([*arguments, "--resume", "never"])
        with pytest.raises(InputError, match=r"(?s)warmup_steps: 0 when it was begun, 3 now.*logs\.experiment_name"):
            pretrain_entry.main([*arguments, "--resume", "--set", "optim.warmup_steps=3"])
        pretrain_entry.main([*arguments, "--resume"])
        whole, parts = (read_checkpoint(run_folder(path) / "last.pth") for path in (pretrained, tmp_path / "x"))
        assert_equal(*(comparable(run | {"discriminating": None}) for run in (whole, parts)))
        assert_equal(*(comparable(run["discriminating"]) for run in (whole, parts)))
        assert_equal(
            *(read_checkpoint(run_folder(p) / "pretrained.pth.tar")["model"] for p in (pretrained, tmp_path / "x"))
        )
        pretrain_entry.main([*arguments, "--resume"])

    def test_a_model_starts_from_it(self, pretrained: Path, data: Path, tmp_path: Path) -> None:
        file = run_folder(pretrained) / "pretrained.pth.tar"
        options = option.load_options(fine_tuning(pretrained, data), [f"model.init_from={file}"])
        started = build_model(options, Vocabulary.load(options.dataset.vocab_path)).state_dict()
        for name, value in read_checkpoint(file)["model"].items():
            assert torch.equal(started[name], value), name
        path = str(fine_tuning(pretrained, data))
        begun = [f"optim.resume={file}", "optim.lr_finetune=1e-12", f"logs.ckpt_save_path={tmp_path}"]
        train_entry.main(["--path_opt", path, "--set", *begun])
        weight = read_checkpoint(tmp_path / "tiny_mcrn" / "0" / "last.pth")["model"]["share.patterns.0"]
        torch.testing.assert_close(weight, read_checkpoint(file)["model"]["share.patterns.0"])

    def test_images_alone(self, data: Path, words: Vocabulary, tmp_path: Path) -> None:
        alone = {"data_path": None, "audio_path": None, "image_path": str(data / "images")}
        path = write_options(tmp_path, data, words, **alone)
        pretrain_entry.main(["--path_opt", str(path), "--set", "optim.epochs=1", "optim.amp=bf16"])
        last = read_checkpoint(run_folder(path) / "last.pth")
        assert last["history"][0]["generator_loss"] > 0
        assert "val_distance_f_image" in last["history"][0]

    def test_other_models_have_no_such_pretraining(self, pretrained: Path, tmp_path: Path) -> None:
        text = pretrained.read_text().replace("name: MCRN", "name: AMFMN")
        kept = [line for line in text.splitlines() if "discriminator" not in line and "_size: 64" not in line]
        path = tmp_path / "other.yaml"
        path.write_text("\n".join(line for line in kept if "mid_size" not in line and "in_size" not in line))
        with pytest.raises(InputError, match="a pretraining without pairs is MCRN's"):
            pretrain_entry.main(["--path_opt", str(path)])


def fine_tuning(pretrained: Path, data: Path) -> Path:
    """Write the YAML of a fine-tuning of the pretrained model; returns its path."""
    import yaml

    content = yaml.safe_load(pretrained.read_text())
    del content["dataset"]["val_share"]
    content["optim"] = {"epochs": 1, "lr_finetune": 1e-3, "methods": "all"}
    content["logs"] = {"ckpt_save_path": str(pretrained.parent / "checkpoint")}
    content["k_fold"] = {"experiment_name": "tiny_mcrn", "nums": 1}
    path = pretrained.parent / "fine_tuning.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
