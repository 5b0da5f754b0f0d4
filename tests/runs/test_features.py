"""Features of frozen towers: with them a run is what it is without them, and they are made once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import option
import test as test_entry
import train as train_entry
import vocab
from batches.batch import Batch, Captions
from batches.features import NO_FEATURES, ListFeatures
from data.annotations import Annotations, read_annotations
from data.regions.file import write_regions
from engine import encode
from layers import build_model, swan_image
from layers.base import RetrievalModel
from layers.towers import TimmTower
from option import Options
from runs.features import list_features, quick_start, train_views
from runs.loaders import evaluation_loader, read_vocabulary, train_loader
from runs.media import Media
from runtime.weights import read_checkpoint
from tests.interrupted import asked_to_stop, assert_equal, comparable
from tests.tiny import make_precomp
from training import epoch
from utils import InputError, logger

CPU = torch.device("cpu")
TINY = "timm/test_efficientnet"
Experiment = Callable[..., Path]


@pytest.fixture
def experiment(tmp_path: Path, tiny_bert: Callable[[], str]) -> Experiment:
    """`experiment(data=..., **changes)`: the YAML of a dual encoder with frozen towers; dotted keys change it."""

    def write(data: Path | None = None, name: str = "dual", text: str | None = None, **changes: Any) -> Path:
        folder = data or tmp_path / "data"
        if not folder.exists():
            make_precomp(folder)
        captions = (folder / "train_caps.txt").read_text().splitlines()
        vocab.build(captions, min_count=1).save(tmp_path / "vocab.json")
        weights = tmp_path / "image.pth"
        if not weights.exists():
            torch.manual_seed(0)
            torch.save(TimmTower(TINY, "none", True).network.state_dict(), weights)
        content: dict[str, Any] = {
            "model": {
                "name": "DualEncoder",
                "image": {"architecture": TINY, "pretrained": str(weights), "train": "none"},
                "text": {"encoder": text or tiny_bert(), "train": "none"},
                "head": {"kind": "mlp", "width": 16},
                "embed_dim": 16,
            },
            "dataset": {
                "data_path": str(folder),
                "vocab_path": str(tmp_path / "vocab.json"),
                "image_size": 64,
                "batch_size": 8,
                "batch_size_val": 5,
                "batching": "one_caption",
                "augmentation": "right_angles",
                "feature_path": str(tmp_path / "features"),
                "workers": 0,
            },
            "optim": {"epochs": 2, "lr": 1e-2, "optimizer": "adamw", "loss": "contrastive"},
            "logs": {"ckpt_save_path": str(tmp_path / "checkpoint"), "print_freq": 1},
            "k_fold": {"experiment_name": name, "nums": 2},
        }
        for key, value in changes.items():
            block, _, leaf = key.partition("__")
            content[block][leaf] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def built(path: Path) -> tuple[Options, RetrievalModel, Annotations, vocab.Vocabulary]:
    """Options, model, train list and vocabulary of an experiment."""
    options = option.load_options(path)
    words = read_vocabulary(options)
    torch.manual_seed(0)
    model = build_model(options, words).eval()
    return options, model, read_annotations(options.dataset.folder, "train"), words


def features_of(path: Path, views: int | None = None) -> ListFeatures:
    options, model, train, words = built(path)
    return list_features(model, options, train, words, views or train_views(options), CPU)


def close(one: Tensor, other: Tensor) -> None:
    spread = float(other.std(dim=0).max())
    assert spread > 1e-5  # else anything would do
    torch.testing.assert_close(one, other, atol=1e-3 * spread, rtol=1e-5)


@pytest.mark.parametrize("augmentation", ["none", "right_angles"])
@pytest.mark.parametrize("batching", ["pairs", "images", "one_caption"])
def test_batches_hold_what_the_frozen_towers_make_of_the_same_views(
    experiment: Experiment, augmentation: str, batching: str
) -> None:
    path = experiment(dataset__augmentation=augmentation, dataset__batching=batching)
    options, model, train, words = built(path)
    kept = list_features(model, options, train, words, train_views(options), CPU)
    media = Media.of(options, (train,), CPU)
    plain, cached = (train_loader(options, 0, words, train, media, CPU, features=f) for f in (NO_FEATURES, kept))
    image, text = model.frozen_image(), model.frozen_text()
    assert image is not None
    assert text is not None
    for number in (1, 2):
        pairs = list(zip(plain.epoch(number), cached.epoch(number), strict=True))
        assert len(pairs) == len(plain)
        for batch, other in pairs:
            for field in ("tokens", "lengths", "image_ids", "caption_ids"):
                assert torch.equal(batch.need(field), other.need(field)), field
            assert other.images is None
            with torch.no_grad():
                close(other.need("image_features"), image(batch.need("images")))
                close(other.need("text_features"), text(batch.need("tokens")))
    later = list(cached.epoch(2, skip=1))
    assert torch.equal(later[0].need("image_features"), list(cached.epoch(2))[1].need("image_features"))


@pytest.mark.parametrize(("views", "name"), [(1, "one"), (8, "right_angles")])
def test_evaluation_reads_them(experiment: Experiment, views: int, name: Any) -> None:
    options, model, train, words = built(experiment())
    loader = evaluation_loader(options, train, words, Media.of(options, (train,), CPU), CPU)
    kept = list_features(model, options, train, words, views, CPU)
    expected = encode(model, loader, CPU, "off", name)
    for one, other in zip(encode(model, loader.reading(kept), CPU, "off", name), expected, strict=True):
        close(one, other)


@pytest.mark.parametrize(("learns", "reads"), [("none", "none"), ({"last": 2}, {"last": 1})])
def test_a_training_ends_the_same(experiment: Experiment, tmp_path: Path, learns: Any, reads: Any) -> None:
    found: dict[str, Any] = {}
    for name in ("auto", "off"):
        path = str(experiment(name=name, dataset__features=name))
        # Adam makes steps of one length of gradients that are rounding errors, too: short ones here.
        content = yaml.safe_load(Path(path).read_text())
        content["model"]["image"]["train"], content["optim"]["lr"] = learns, 1e-3
        content["model"]["text"]["train"] = reads
        Path(path).write_text(yaml.safe_dump(content))
        train_entry.main(["--path_opt", path, "--folds", "0"])
        test_entry.main(["--path_opt", path, "--folds", "0", "--json", str(tmp_path / f"{name}.json")])
        found[name] = read_checkpoint(tmp_path / "checkpoint" / name / "0" / "last.pth")
    kept, plain = found["auto"], found["off"]
    assert kept["model"].keys() == plain["model"].keys()
    for weight, value in plain["model"].items():
        torch.testing.assert_close(kept["model"][weight], value, atol=1e-4, rtol=1e-4)
    assert [row["val_mR"] for row in kept["history"]] == [row["val_mR"] for row in plain["history"]]
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in found)
    assert one["mean"] == other["mean"]


SWAN = {
    "name": "SWAN",
    "embed": {"embed_dim": 16},
    "word_dim": 8,
    "freeze_statistics": True,
    "backbone": {"pretrained": "none"},
}


def swan(path: Path, **changes: Any) -> Path:
    """The experiment with a SWAN in place of the dual encoder."""
    content = yaml.safe_load(path.read_text())
    content["model"] = SWAN | changes
    content["optim"] |= {"epochs": 1, "lr": 1e-3}
    path.write_text(yaml.safe_dump(content))
    return path


def test_swan_trains_on_what_its_frozen_backbone_gave_once(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    for name in ("off", "auto"):
        path = swan(experiment(name=name, dataset__features=name, dataset__augmentation="none"))
        if name == "auto":
            monkeypatch.setattr(swan_image.SceneImageEncoder, "stages", refuse)
        train_entry.main(["--path_opt", str(path), "--folds", "0"])
        found[name] = read_checkpoint(tmp_path / "checkpoint" / name / "0" / "last.pth")
    kept, plain = found["auto"], found["off"]
    for weight, value in plain["model"].items():
        torch.testing.assert_close(kept["model"][weight], value, atol=1e-4, rtol=1e-4)
    assert kept["history"][0]["loss"] == pytest.approx(plain["history"][0]["loss"], rel=1e-4)
    assert kept["history"][0]["val_mR"] == plain["history"][0]["val_mR"]


def multiscale(path: Path, name: str, train: Any) -> Path:
    """The experiment with a small AMFMN or GaLR whose backbone learns in part; GaLR with random regions."""
    content = yaml.safe_load(path.read_text())
    content["model"] = {
        "name": name,
        "seq2vec": {"arch": "gru", "word_dim": 8, "hidden_dim": 16},
        "embed": {"embed_dim": 16},
        "backbone": {"architecture": TINY, "pretrained": content["model"]["image"]["pretrained"], "train": train},
    }
    if name == "GaLR":
        heads = {"mca_MULTI_HEAD": 2, "mca_HIDDEN_SIZE_HEAD": 8}
        content["model"]["fusion"] = {"mca_HIDDEN_SIZE": 16, "mca_FF_SIZE": 16, **heads}
        content["dataset"]["local_path"] = str(random_regions(path.with_suffix(".h5"), path.parent / "data/images"))
    content["optim"] |= {"epochs": 1, "lr": 1e-3, "loss": "triplet"}
    path.write_text(yaml.safe_dump(content))
    return path


def random_regions(path: Path, images: Path) -> Path:
    random = np.random.default_rng(0)
    arrays = {image.stem: tuple(random.random((2, 20, 20), np.float32)) for image in sorted(images.iterdir())}
    write_regions(path, arrays, "random", "a test")
    return path


@pytest.mark.parametrize(("name", "train"), [("AMFMN", "none"), ("GaLR", {"last": 1})])
def test_amfmn_and_galr_train_on_the_maps_of_their_frozen_stages(
    experiment: Experiment, tmp_path: Path, name: str, train: Any
) -> None:
    found: dict[str, Any] = {}
    for features in ("off", "auto"):
        path = multiscale(experiment(name=features, dataset__features=features), name, train)
        train_entry.main(["--path_opt", str(path), "--folds", "0"])
        test_entry.main(["--path_opt", str(path), "--folds", "0", "--json", str(tmp_path / f"{features}.json")])
        found[features] = read_checkpoint(tmp_path / "checkpoint" / features / "0" / "last.pth")
    assert (tmp_path / "features").is_dir()
    kept, plain = found["auto"], found["off"]
    for weight, value in plain["model"].items():
        torch.testing.assert_close(kept["model"][weight], value, atol=1e-4, rtol=1e-4)
    assert kept["history"][0]["loss"] == pytest.approx(plain["history"][0]["loss"], rel=1e-4)
    assert kept["history"][0]["val_mR"] == plain["history"][0]["val_mR"]
    one, other = (json.loads((tmp_path / f"{features}.json").read_text()) for features in found)
    assert one["mean"] == other["mean"]


def test_a_backbone_that_learns_whole_is_not_kept(experiment: Experiment) -> None:
    _, model, _, _ = built(multiscale(experiment(), "AMFMN", "all"))
    assert model.frozen_image() is None


def refuse(*ignored: object) -> None:
    pytest.fail("the backbone was computed again")


@pytest.mark.parametrize("change", [{"freeze_statistics": False}, {"is_finetune": True}])
def test_a_backbone_of_swan_that_changes_is_not_kept(experiment: Experiment, change: dict[str, bool]) -> None:
    _, model, _, _ = built(swan(experiment(), **change))
    assert model.frozen_image() is None


@pytest.mark.parametrize("name", ["dual", "swan", "amfmn"])
def test_a_step_that_keeps_nothing_folds_what_is_frozen(experiment: Experiment, name: str) -> None:
    path = experiment(dataset__augmentation="published", optim__amp="off")
    if name != "dual":
        path = swan(path) if name == "swan" else multiscale(path, "AMFMN", {"last": 2})
    options, model, train, words = built(path)
    begin = quick_start(model, options, CPU)
    assert begin is not None
    loader = train_loader(options, 0, words, train, Media.of(options, (train,), CPU), CPU)
    batch = next(iter(loader.epoch(1)))
    begun = begin(batch)
    assert begun.images is None
    with torch.no_grad():
        close(model.encode_image(begun), model.encode_image(batch))


def test_what_learns_or_is_compiled_is_not_folded(experiment: Experiment) -> None:
    options, model, _, _ = built(experiment(optim__compile=True))
    assert quick_start(model, options, CPU) is None
    _, model, _, _ = built(swan(experiment(), freeze_statistics=False))
    assert quick_start(model, option.load_options(swan(experiment())), CPU) is None


def test_the_second_fold_and_another_run_make_nothing_again(
    experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    train_entry.main(["--path_opt", str(experiment())])
    # The second fold trains on the first one's val list, of which one view was kept.
    assert caplog.text.count("computed, kept in") == 5
    caplog.clear()
    train_entry.main(["--path_opt", str(experiment(name="again"))])
    assert "computed, kept in" not in caplog.text


def test_random_crops_keep_captions_alone_and_say_why(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger.name):
        kept = features_of(experiment(dataset__augmentation="published"))
    assert kept.images is None
    assert kept.captions is not None
    assert "dataset.augmentation published: every step draws another view" in caplog.text


def test_what_learns_is_not_kept(experiment: Experiment, tmp_path: Path) -> None:
    path = experiment(text="gru")
    assert features_of(path).captions is None
    content = yaml.safe_load(path.read_text())
    content["model"]["image"]["train"] = "all"
    path.write_text(yaml.safe_dump(content))
    kept = features_of(path)
    assert kept.images is kept.captions is None


def test_off_keeps_nothing(experiment: Experiment, tmp_path: Path) -> None:
    assert features_of(experiment(dataset__features="off")) is NO_FEATURES
    assert not (tmp_path / "features").exists()


def test_equal_images_share_a_row_and_a_changed_one_gets_another(experiment: Experiment, tmp_path: Path) -> None:
    path = experiment(text="gru")
    names = read_annotations(tmp_path / "data", "train").image_names
    images = tmp_path / "data" / "images"
    shutil.copy(images / names[0], images / names[1])
    table = features_of(path).images
    assert table is not None
    assert len(table) == len(names) * 8
    assert torch.equal(table.places[:8], table.places[8:16])
    different = {(images / name).read_bytes() for name in names}
    assert len(table.places.unique(dim=0)) == len(different) * 8 < len(names) * 8
    before = table.rows(torch.arange(len(table)))
    shutil.copy(images / names[2], images / names[0])
    changed = features_of(path).images
    assert changed is not None
    after = changed.rows(torch.arange(len(table)))
    assert torch.equal(after[:8], before[16:24])
    assert torch.equal(after[8:], before[8:])


def test_other_weights_sizes_and_precisions_have_stores_of_their_own(experiment: Experiment, tmp_path: Path) -> None:
    stores = tmp_path / "features"
    features_of(experiment(text="gru"))
    changes: list[dict[str, Any]] = [{"dataset__image_size": 96}, {"optim__amp": "bf16"}]
    for count, change in enumerate(changes, start=2):
        features_of(experiment(text="gru", **change))
        assert len(list(stores.iterdir())) == count
    weights = torch.load(tmp_path / "image.pth", weights_only=True)
    weights["bn2.bias"][0] += 1e-3
    torch.save(weights, tmp_path / "image.pth")
    features_of(experiment(text="gru"))
    assert len(list(stores.iterdir())) == 4


def test_what_a_build_does_not_show_decides_as_well(experiment: Experiment, tmp_path: Path) -> None:
    path = experiment()
    content = yaml.safe_load(path.read_text())
    found = []
    for pooling in ("mean", "cls"):
        content["model"]["text"]["pooling"] = pooling
        path.write_text(yaml.safe_dump(content))
        captions = features_of(path).captions
        assert captions is not None
        found.append(captions.rows(torch.arange(4)))
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_run_that_reads_them_goes_on_as_it_would_have(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    matching = {"layers": layers, "width": 16, "heads": 2}  # which reads tokens, and draws its negatives
    whole, parts = (
        ["--path_opt", str(experiment(name=name, model__matching=matching)), "--folds", "0"]
        for name in ("whole", "parts")
    )
    train_entry.main(whole)
    with asked_to_stop(monkeypatch, epoch, "optimiser_step", 2):
        train_entry.main(parts)
    train_entry.main(parts)
    one, other = (read_checkpoint(tmp_path / "checkpoint" / name / "0" / "last.pth") for name in ("whole", "parts"))
    assert_equal(comparable(one), comparable(other))
    if layers:
        test_entry.main([*whole, "--rerank-path_opt", whole[1], "--json", str(tmp_path / "found.json")])
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["rows"]["fold 0"]["in_first_t2i"] == 100  # 12 images, all of them candidates
        assert found["rows"]["fold 0"]["two_stage_mR"] != found["rows"]["fold 0"]["mR"]


def test_check_says_how_large_they_will_be(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ["--path_opt", str(experiment()), "--folds", "0", "--device", "cpu", "--check"]
    train_entry.main(path)
    # 24 x 8 x 256 and 24 x 32 numbers of four bytes each
    expected = f"kept in {tmp_path / 'features'}: at most 24 images x 8 views x 256 numbers (192 KiB), "
    captions = len(set((tmp_path / "data" / "train_caps.txt").read_text().splitlines()))
    assert f"{expected}{captions} captions x 32 numbers (" in capsys.readouterr().out
    assert not (tmp_path / "features").exists()
    monkeypatch.setattr("preflight.training.free_bytes", lambda path: 190 * 1024)
    with pytest.raises(InputError, match=r"features of frozen towers take 19[0-9] KiB, 190 KiB are free"):
        train_entry.main(path)
    train_entry.main([*path, "--set", "dataset.features=off"])
    assert "frozen towers" not in capsys.readouterr().out


def learning_in_part(path: Path) -> Path:
    """The experiment with a sentence encoder whose last layer learns."""
    content = yaml.safe_load(path.read_text())
    content["model"]["text"]["train"] = {"last": 1}
    path.write_text(yaml.safe_dump(content))
    return path


def test_states_of_tokens_are_kept_without_padding(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = learning_in_part(experiment())
    file = tmp_path / "data" / "train_caps.txt"
    file.write_text("\n".join(["red", "a large field", *file.read_text().splitlines()[2:]]) + "\n")
    options, model, train, words = built(path)
    different = [words.encode(caption) for caption in sorted(set(train.captions))]
    tokens = sum(map(len, different))  # at most: captions of equal tokens share rows
    train_entry.main(["--path_opt", str(path), "--folds", "0", "--device", "cpu", "--check"])
    assert f"{tokens} tokens of captions x 32 numbers (" in capsys.readouterr().out
    kept, text = list_features(model, options, train, words, 1, CPU), model.frozen_text()
    assert kept.captions is not None
    assert text is not None
    rows = [
        len(np.load(shard)) for shard in (tmp_path / "features").glob("*/*.npy") if np.load(shard).shape[1:] == (32,)
    ]
    assert sum(rows) == sum(map(len, {tuple(ids) for ids in different}))
    captions = Captions.encode(train.captions, words)
    assert len(captions.lengths.unique()) == 3
    batch = captions.batch(torch.tensor([5, 0, 7, 5]))
    found = kept.of_captions(torch.tensor([5, 0, 7, 5]))
    assert found is not None
    real = batch.need("tokens") != 0
    with torch.no_grad():
        close(found[real], text(batch.need("tokens"))[real])
    assert not found[~real].any()


def test_a_missing_image_is_named_before_the_work(experiment: Experiment, tmp_path: Path) -> None:
    path = experiment()
    (tmp_path / "data" / "images" / "roof_train4.png").unlink()
    with pytest.raises(InputError, match=r"roof_train4\.png"):
        features_of(path)
    assert not (tmp_path / "features").exists()


def test_one_view_of_each_image(experiment: Experiment) -> None:
    kept = features_of(experiment(text="gru"))
    images, views = torch.tensor([3, 0, 3]), torch.tensor([7, 1, 0])
    assert kept.images is not None
    every = kept.of_images(torch.arange(4))
    chosen = kept.of_views(images, views)
    assert every is not None
    assert chosen is not None
    assert torch.equal(chosen, every[images, views])
    assert Batch(image_features=chosen).need("image_features") is chosen
