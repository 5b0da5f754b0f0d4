"""Pretraining of a backbone: which images it sees, that it learns, and that a model starts from what it writes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import option
import pretrain as pretrain_entry
from batches.augmentation import Augmentation, Draws, augment
from batches.batch import Batch
from data.image_store import ImageStore
from layers import build_model
from layers.backbone import import_torchvision, read_backbone_file
from option import BackboneOptions
from option.architecture import RESNETS
from option.images import ImageRule
from option.pretraining import BackboneImages
from pretraining.backbone import split_classes
from pretraining.scenes import SceneClassifier, list_images
from pretraining.unpaired import Schedule, TwoViewLoader
from pretraining.views import ViewMatcher, first_found, view_task
from runs.loaders import read_vocabulary
from runs.record import read_record
from runtime.weights import read_checkpoint
from tests.interrupted import asked_to_stop, assert_equal, comparable
from tests.tiny import make_precomp, write_experiment
from training import epoch
from training.epoch import autocast
from utils import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 train images of 3 classes. The test images are gone, so that reading one would fail."""
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


class TestImages:
    def test_a_data_set_gives_its_train_images_only(self, data: Path) -> None:
        found = list_images(BackboneImages(data_path=data))
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
        found = list_images(BackboneImages(image_path=tmp_path))
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
        found = list_images(BackboneImages(image_path=tmp_path / "images", exclude=tmp_path / "test_filename.txt"))
        assert "Airport/airport_2.jpg" not in found.names
        assert len(found.names) == 4
        assert "Left out: 1 excluded images." in caplog.text

    def test_a_missing_list_of_excluded_names_is_told_with_its_key(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none\.txt: can't be read \(No such file .*; check dataset\.exclude$"):
            list_images(BackboneImages(data_path=data, exclude=tmp_path / "none.txt"))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ([], "no image there"),
            (["a_1.jpg", "a_2.jpg"], "1 classes"),
            (["a_1.jpg", "a_2.jpg", "b_1.jpg"], "one image only in: b"),
            (["1.jpg", "2.jpg"], "0 images with a class"),
        ],
    )
    def test_too_few(self, names: list[str], message: str, tmp_path: Path) -> None:
        for name in names:
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=message):
            list_images(BackboneImages(image_path=tmp_path))

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
        options = option.load_options(
            path, [f"model.backbone.pretrained={file}", "model.backbone.architecture=resnet18"]
        )
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
        with asked_to_stop(monkeypatch, epoch, "optimiser_step", 2):
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


VIEWS = ("optim.task=views", "dataset.augmentation=overhead", "dataset.smallest_part=0.3", "dataset.colour_jitter=0.4")
TINY = "backbone.architecture=timm/test_efficientnet"


class TestViews:
    def run(self, folder: Path, data: Path, name: str, epochs: int) -> Path:
        path = write_options(folder, data, epochs, name)
        pretrain_entry.main(["--path_opt", str(path), "--set", TINY, *VIEWS])
        return folder / "checkpoint" / name

    def test_learns_which_views_are_of_one_image(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        (tmp_path / "images").mkdir()
        for number in range(24):  # each of two colours of its own
            halves = draw.integers(0, 256, (1, 2, 3), dtype=np.uint8)
            Image.fromarray(halves.repeat(72, axis=0).repeat(36, axis=1)).save(tmp_path / f"images/{number}.png")
        path = write_options(tmp_path, tmp_path, 8, "views")
        source = ("dataset.data_path=null", f"dataset.image_path={tmp_path / 'images'}")
        pretrain_entry.main(["--path_opt", str(path), "--set", *VIEWS, "dataset.colour_jitter=0.1", *source])
        run = tmp_path / "checkpoint" / "views"
        last, best = (read_checkpoint(run / name) for name in ("last.pth", "ViewMatcher_best.pth.tar"))
        losses = [row["loss"] for row in last["history"]]
        assert min(losses) < 0.5 * losses[0]
        assert last["best"] == max(row["val_first_found"] for row in last["history"]) >= 66  # chance is 17
        kept = read_backbone_file(run / "backbone.pth")
        assert kept
        for name, value in kept.items():
            assert torch.equal(value, best["model"][f"backbone.{name}"]), name
        options = option.load_options(
            write_experiment(tmp_path, make_precomp(tmp_path / "data")),
            ["model.backbone.architecture=resnet18", f"model.backbone.pretrained={run / 'backbone.pth'}"],
        )
        started = build_model(options, read_vocabulary(options)).state_dict()
        assert all(torch.equal(started[f"image_encoder.pyramid.resnet.{name}"], value) for name, value in kept.items())

    def test_a_stopped_run_goes_on_as_if_it_had_not(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = self.run(tmp_path, data, "whole", 2)
        with asked_to_stop(monkeypatch, epoch, "optimiser_step", 2):
            self.run(tmp_path, data, "parts", 2)
        parts = self.run(tmp_path, data, "parts", 2)
        assert_equal(*(comparable(read_checkpoint(run / "last.pth")) for run in (whole, parts)))
        assert_equal(*(torch.load(run / "backbone.pth", weights_only=True) for run in (whole, parts)))

    def test_both_views_are_drawn_as_the_options_say(self, data: Path) -> None:
        store = ImageStore(sorted((data / "images").glob("*.png"))[:6], 70, "off", None, CPU, ImageRule())
        choice = Augmentation("overhead", 0.3, 0.4)
        loader = TwoViewLoader(
            Schedule(6, 6, 1), store, torch.arange(6), image_size=64, workers=0, device=CPU, augmentation=choice
        )
        (batch,), (again,) = list(loader.epoch(1)), list(loader.epoch(1))
        first, second = batch.need("images"), batch.need("second_view")
        assert torch.equal(first, again.need("images"))
        assert torch.equal(second, again.need("second_view"))
        (ids,), generator = loader.schedule.draw(1)
        stored = store.batch(ids)
        for view in (first, second):
            assert torch.equal(view, augment(stored, 64, Draws.draw(6, 6, generator, augmentation=choice)))

    def test_the_score_is_the_share_whose_other_view_comes_first(self) -> None:
        first = torch.eye(4)
        second = torch.tensor([[0.9, 0.1, 0, 0], [0.8, 0.1, 0, 0], [0, 0, 0.5, 0], [0, 0, 0.5, 0.6]])
        # The first view of image 1 ties with both 0 and 1, that of image 2 with 2 and 3: a tie is no find.
        assert first_found(Flat(), Given(first, second), CPU, "off") == {"first_found": 50.0}
        second[2, 0] = math.nan
        with pytest.raises(InputError, match="1 of 4 image embeddings are not finite"):
            first_found(Flat(), Given(first, second), CPU, "off")

    @pytest.mark.parametrize("amp", ["off", "bf16"])
    def test_scores_of_the_loss_are_float32(self, amp: str, data: Path, tmp_path: Path) -> None:
        path = write_options(tmp_path, data)
        options = option.load_pretraining_options(path, [*VIEWS, "optim.temperature=0.01"])
        assert isinstance(options, BackboneOptions)
        task = view_task(options, tmp_path, None, CPU)
        batch = next(iter(task.loader.epoch(1)))
        with autocast(CPU, amp), torch.no_grad():
            loss = task.losses_of(batch)["loss"]
            first, second = (task.model(batch.need(name)).float() for name in ("images", "second_view"))
        scores = first.double() @ second.double().T / 0.01
        own = torch.arange(len(scores))
        expected = sum(F.cross_entropy(rows, own, reduction="sum") for rows in (scores, scores.T)) / 2
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)

    def test_another_task_is_another_run(self, data: Path, pretrained: Path, tmp_path: Path) -> None:
        run = tmp_path / "checkpoint" / "scenes"
        shutil.copytree(pretrained, run)
        content = torch.load(run / "last.pth", weights_only=True)
        del content["options"]["optim"]["task"]  # as of a version that had one task
        torch.save(content, run / "last.pth")
        arguments = ["--path_opt", str(write_options(tmp_path, data))]
        pretrain_entry.main(arguments)
        with pytest.raises(InputError, match=r"optim\.task: scenes when it was begun, views now"):
            pretrain_entry.main([*arguments, "--set", "optim.task=views"])

    def test_the_check_says_what_would_be_learned(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write_options(data.parent, data, name="checked")
        pretrain_entry.main(["--path_opt", str(path), "--check", "--set", *VIEWS])
        printed = capsys.readouterr().out
        assert "learns which two views are of one image from 24 images" in printed
        assert f"ram ({24 * 3 * 70 * 70 / 1024:.0f} KiB)" in printed

    @pytest.mark.parametrize(
        ("share", "sides"),
        [("0.05", "23 would be trained on and 1 held out"), ("0.95", "1 would be trained on and 23")],
    )
    def test_a_side_of_one_image_would_say_nothing(self, share: str, sides: str, data: Path, tmp_path: Path) -> None:
        path = write_options(tmp_path, data)
        source = ("dataset.data_path=null", f"dataset.image_path={data / 'images'}", f"dataset.val_share={share}")
        with pytest.raises(InputError, match=rf"24 images were found, of which {sides}"):
            pretrain_entry.main(["--path_opt", str(path), "--set", *VIEWS, *source])


class Flat(ViewMatcher):
    """Images are their own embeddings."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Given(TwoViewLoader):
    """Two views of four images, in two batches."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.given = first[:, :, None, None], second[:, :, None, None]

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        for rows in ([0, 1, 2], [3]):
            yield Batch(images=self.given[0][rows], second_view=self.given[1][rows])
