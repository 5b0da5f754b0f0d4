"""Scene pretraining: which pictures it sees, that it learns, and that a model starts from what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import engine
import option
import pretrain as pretrain_entry
from experiment import read_vocabulary
from layers import build_model
from layers.backbone import RESNETS, SceneClassifier, import_torchvision, read_backbone_file
from option.pretraining import ScenePictures
from run_record import read_record
from scene_pretraining import list_pictures, split_classes
from tests.interrupted import asked_to_stop, assert_equal, comparable
from tests.tiny import make_precomp, write_experiment
from utils import InputError, read_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train pictures of 3 classes. The test pictures are gone, so that reading one would fail."""
    folder = make_precomp(tmp_path_factory.mktemp("data") / "tiny_precomp")
    for name in (folder / "test_filename.txt").read_text().split():
        (folder / "images" / name).unlink()
    return folder


def write_options(folder: Path, data: Path, epochs: int = 2, name: str = "scenes") -> Path:
    """Write a YAML for a ResNet-18 on 64 pixels; returns its path."""
    content = {
        "backbone": {"architecture": "resnet18"},
        "dataset": {"data_path": str(data), "batch_size": 8, "image_size": 64, "workers": 0, "val_share": 0.25},
        "optim": {"epochs": epochs, "lr": 1e-3, "schedule": "cosine"},
        "logs": {"ckpt_save_path": str(folder / "checkpoint"), "experiment_name": name},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain_entry.main(["--path_opt", str(write_options(folder, data))])
    return folder / "checkpoint" / "scenes"


class TestPictures:
    def test_a_data_set_gives_its_train_pictures_only(self, data: Path) -> None:
        found = list_pictures(ScenePictures(data_path=data))
        assert set(found.names) == set((data / "train_filename.txt").read_text().split())
        assert found.classes == ("field", "pond", "roof")
        assert [found.classes[label] for label in found.labels] == [name.split("_")[0] for name in found.names]

    def test_a_plain_folder_is_read_by_name_and_by_sub_folder(self, data: Path, tmp_path: Path) -> None:
        for number in range(2):
            for name in (
                f"Airport/airport_{number}.jpg",
                f"Farm land/x{number}.png",
                f"port_{number}.tif",
                f"{number}.jpg",
            ):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                shutil.copy(data / "images" / "pond_train2.png", tmp_path / name)
        found = list_pictures(ScenePictures(image_path=tmp_path))
        assert found.classes == ("Airport", "Farm land", "port")
        assert len(found.names) == 6

    def test_excluded_names_are_left_out_wherever_they_lie(
        self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "images" / "Airport").mkdir(parents=True)
        for name in (
            "Airport/airport_1.jpg",
            "Airport/airport_2.jpg",
            "Airport/airport_3.jpg",
            "port_1.jpg",
            "port_2.jpg",
        ):
            shutil.copy(data / "images" / "pond_train2.png", tmp_path / "images" / name)
        (tmp_path / "test_filename.txt").write_text("airport_2.jpg\n")
        found = list_pictures(ScenePictures(image_path=tmp_path / "images", exclude=tmp_path / "test_filename.txt"))
        assert "Airport/airport_2.jpg" not in found.names
        assert len(found.names) == 4
        assert "0 pictures whose name says no class, 1 excluded" in caplog.text

    def test_a_missing_list_of_excluded_names_is_told_with_its_key(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.txt: can't be read \(No such file .*; check dataset\.exclude$"):
            list_pictures(ScenePictures(data_path=data, exclude=tmp_path / "none.txt"))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "no picture there"),
            (["a_1.jpg", "a_2.jpg"], "1 classes"),
            (["a_1.jpg", "a_2.jpg", "b_1.jpg"], "one picture only in: b"),
            (["1.jpg", "2.jpg"], "0 pictures with a class"),
        ],
    )
    def test_too_few(self, names: list[str], message: str, tmp_path: Path) -> None:
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=message):
            list_pictures(ScenePictures(image_path=tmp_path))

    def test_no_folder_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("backbone: {}\ndataset: {batch_size: 8}\nlogs: {experiment_name: x}\n")
        with pytest.raises(InputError, match=r"one of dataset\.data_path and dataset\.image_path is needed"):
            option.load_pretraining_options(tmp_path / "x.yaml")

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
    @settings(deadline=None)
    def test_a_split_keeps_every_class_on_both_sides(self, labels: list[int], share: float, seed: int) -> None:
        labels = labels + sorted(set(labels))  # two of each at least
        train, val = split_classes(labels, share, seed)
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
        for label in set(labels):
            size, held = labels.count(label), sum(labels[place] == label for place in val.tolist())
            assert 1 <= held < size
            assert abs(held - share * size) <= 1


class TestRun:
    def test_learns_and_keeps_its_best(self, data: Path, tmp_path: Path) -> None:
        pretrain_entry.main(["--path_opt", str(write_options(tmp_path, data, epochs=6))])
        folder = tmp_path / "checkpoint" / "scenes"
        last, best = read_checkpoint(folder / "last.pth"), read_checkpoint(folder / "SceneClassifier_best.pth.tar")
        assert last["history"][-1]["loss"] < 0.5 * last["history"][0]["loss"]
        assert last["best"] == max(row["val_accuracy"] for row in last["history"]) == best["scores"]["val_accuracy"]
        assert last["best"] >= 66  # chance is 33
        kept = torch.load(folder / "backbone.pth", weights_only=True)
        assert kept["classes"] == ["field", "pond", "roof"]
        assert "peak_memory_mib" in read_record(folder)[0]
        assert kept["epoch"] == best["epoch"]
        for name, value in kept["state_dict"].items():
            assert torch.equal(value, best["model"][f"backbone.{name}"]), name

    def test_a_model_starts_from_it(self, pretrained: Path, tmp_path: Path) -> None:
        file = pretrained / "backbone.pth"
        path = write_experiment(tmp_path, make_precomp(tmp_path / "data"))
        options = option.load_options(path, [f"model.backbone.pretrained={file}"])
        started = build_model(options, read_vocabulary(options)).state_dict()
        for name, value in read_backbone_file(file).items():
            assert torch.equal(started[f"image_encoder.pyramid.resnet.{name}"], value), name

    def test_a_model_starts_from_a_network_of_timm(self, data: Path, tmp_path: Path) -> None:
        path = write_options(tmp_path, data, epochs=1)
        pretrain_entry.main(["--path_opt", str(path), "--set", "backbone.architecture=timm/convnext_atto"])
        file = tmp_path / "checkpoint" / "scenes" / "backbone.pth"
        architecture = "model.backbone.architecture=timm/convnext_atto"
        experiment = write_experiment(tmp_path, make_precomp(tmp_path / "data"))
        options = option.load_options(experiment, [architecture, f"model.backbone.pretrained={file}"])
        started = build_model(options, read_vocabulary(options)).state_dict()
        weights = read_backbone_file(file)
        unused = {"head.norm.weight", "head.norm.bias"}  # comes after the last stage, and so the pyramid leaves it out
        for name in weights.keys() - unused:
            assert torch.equal(started[f"image_encoder.pyramid.backbone.network.{name}"], weights[name]), name

    def test_resume_gives_the_weights_of_an_uninterrupted_run(
        self, data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ["--path_opt", str(write_options(tmp_path, data))]
        run = tmp_path / "checkpoint" / "scenes"
        with asked_to_stop(monkeypatch, engine, "optimiser_step", 2):
            pretrain_entry.main(arguments)
        begun = read_checkpoint(run / "last.pth")
        assert (begun["epoch"], begun["batch"]) == (0, 2)
        pretrain_entry.main(arguments)
        assert_equal(*(comparable(read_checkpoint(folder / "last.pth")) for folder in (pretrained, run)))
        assert_equal(*(torch.load(folder / "backbone.pth", weights_only=True) for folder in (pretrained, run)))

    def test_a_begun_run_is_kept(self, data: Path, pretrained: Path, tmp_path: Path) -> None:
        before = (pretrained / "last.pth").stat().st_mtime_ns
        arguments = ["--path_opt", str(write_options(pretrained.parents[1], data))]
        with pytest.raises(InputError, match=r"already holds a run.*logs\.experiment_name"):
            pretrain_entry.main([*arguments, "--resume", "never"])
        pretrain_entry.main(arguments)
        assert (pretrained / "last.pth").stat().st_mtime_ns == before
        with pytest.raises(InputError, match=r"optim\.schedule_epochs: 2 when it was begun, 3 now"):
            pretrain_entry.main([*arguments, "--set", "optim.epochs=3"])
        longer = [*arguments, "--set", "optim.epochs=3", "optim.schedule_epochs=2"]
        with pytest.raises(InputError, match=r"(?s)architecture: resnet18 when it was.*, resnet34.*experiment_name"):
            pretrain_entry.main([*longer, "backbone.architecture=resnet34"])
        with pytest.raises(InputError, match=r"optim\.warmup_steps: 0 when it was begun, 3 now"):
            pretrain_entry.main([*longer, "optim.warmup_steps=3"])
        fewer = make_precomp(tmp_path / "fewer")
        names = [name for name in (fewer / "train_filename.txt").read_text().split() if not name.startswith("pond")]
        (fewer / "train_filename.txt").write_text("\n".join(names) + "\n")
        (fewer / "train_caps.txt").write_text("a roof .\n" * 2 * len(names))
        with pytest.raises(InputError, match="knows 3 classes, not the 2 that are found now"):
            pretrain_entry.main([*longer, f"dataset.data_path={fewer}"])

    def test_a_retrieval_experiment_is_sent_to_train(self, data: Path, tmp_path: Path) -> None:
        path = write_experiment(tmp_path, data)
        with pytest.raises(InputError, match=f"python train.py --path_opt {path}"):
            pretrain_entry.main(["--path_opt", str(path)])


@pytest.mark.parametrize("architecture", RESNETS)
def test_every_architecture_exists_with_its_weights(architecture: str) -> None:
    with torch.device("meta"):
        model = SceneClassifier(architecture, "none", 30)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 30)
    names = [name.lower() for name in vars(import_torchvision("torchvision.models.resnet"))]
    assert names.count(f"{architecture}_weights") == 1
