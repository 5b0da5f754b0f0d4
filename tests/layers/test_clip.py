"""CLIP through open_clip: the same numbers as open_clip's own, weights of all kinds, faults, and a whole run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train as train_entry
from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD
from batches.batch import Batch, Captions
from layers import build_model
from layers.clip import CLIP
from layers.clip_library import architecture_name, import_open_clip
from layers.clip_tokens import BytePairs
from option import Options
from runtime.weights import read_checkpoint
from tests import ROOT
from tests.tiny import make_precomp
from utils import InputError

TINY = ROOT / "tests" / "clip_tiny.json"
CAPTION = "Many green trees are around a building!"


@pytest.fixture
def options(tiny_options: Callable[..., Options]) -> Options:
    return tiny_options("CLIP")


@pytest.fixture
def words(options: Options) -> BytePairs:
    found = CLIP.own_vocabulary(options.model)
    assert isinstance(found, BytePairs)
    return found


@pytest.fixture
def model(options: Options, words: BytePairs) -> CLIP:
    torch.manual_seed(0)
    built = build_model(options, words).eval()
    assert isinstance(built, CLIP)
    return built


def test_captions_are_the_tokenizers(words: BytePairs) -> None:
    expected = import_open_clip().get_tokenizer("clip_tiny")([CAPTION])[0]
    ids = words.encode(CAPTION)
    assert [index - 1 for index in ids] == expected[: len(ids)].tolist()
    assert expected[len(ids) :].tolist() == [0] * (24 - len(ids))
    assert len(words.encode(CAPTION * 9)) == 24
    assert len(words) == 49408 + 1
    assert words.knows("Zwiebelturm")


def test_the_log_has_no_line_of_open_clip(options: Options, words: BytePairs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build_model(options, words)
    assert "No pretrained weights loaded" not in caplog.text  # what is loaded later, or not, is said by our own line
    assert not logging.getLogger().filters


@torch.no_grad()
def test_embeddings_are_open_clips(model: CLIP, words: BytePairs) -> None:
    """From images in 0..1 and texts, as open_clip's documentation does it."""
    images = torch.rand(3, 3, 64, 64)
    captions = ["a pond", CAPTION, "two planes beside a terminal ."]
    preparation = import_open_clip().get_model_preprocess_cfg(model.clip)
    mean, std = (torch.tensor(preparation[name])[:, None, None] for name in ("mean", "std"))
    ours_mean, ours_std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    texts = Captions.encode(captions, words).batch(torch.arange(3))
    clip: Any = model.clip
    torch.testing.assert_close(
        model.encode_image(Batch(images=(images - ours_mean) / ours_std)), clip.encode_image((images - mean) / std)
    )
    torch.testing.assert_close(
        model.encode_text(texts), clip.encode_text(import_open_clip().get_tokenizer("clip_tiny")(captions))
    )


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_has_no_gradient(tiny_options: Callable[..., Options], words: BytePairs, tower: str) -> None:
    frozen = build_model(tiny_options("CLIP", {"freeze": tower}), words)
    still = {name.removeprefix("clip.") for name, value in frozen.named_parameters() if not value.requires_grad}
    both = {name.removeprefix("clip.") for name, _ in frozen.named_parameters()}
    image = {name for name in both if name.startswith("visual.")}
    assert still == (image if tower == "image" else both - image)
    assert 0 < len(image) < len(both)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_can_be_had_by_itself(
    tiny_options: Callable[..., Options], words: BytePairs, tower: str
) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_options("CLIP", {"freeze": tower}), words).train()
    image, text = model.frozen_image(), model.frozen_text()
    assert (text if tower == "image" else image) is None
    part = image if tower == "image" else text
    assert part is not None
    assert not any(module.training for module in part.modules() if module is not part)
    assert model.clip.visual.training == (tower == "text")  # type: ignore[union-attr]
    assert model.clip.transformer.training == (tower == "image")  # type: ignore[union-attr]
    still = {id(value) for value in model.parameters() if not value.requires_grad}
    assert {id(value) for value in part.parameters()} == still
    batch = Captions.encode([CAPTION, "a pond"], words).batch(torch.arange(2))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        if tower == "image":
            features = part(images)
            expected, found = Batch(images=images), Batch(image_features=features)
            assert torch.equal(model.encode_image(found), model.encode_image(expected))
        else:
            features = part(batch.need("tokens"))
            assert torch.equal(model.encode_text(Batch(text_features=features)), model.encode_text(batch))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_training_on_kept_features_ends_the_same(tmp_path: Path, tower: str, model: CLIP) -> None:
    data = make_precomp(tmp_path / "data")
    torch.save({name.removeprefix("clip."): value for name, value in model.state_dict().items()}, tmp_path / "zero.pt")
    weights = {}
    for name in ("auto", "off"):
        content = {
            "model": {
                "name": "CLIP",
                "architecture": str(TINY),
                "pretrained": str(tmp_path / "zero.pt"),
                "freeze": tower,
            },
            "dataset": {
                **{"data_path": str(data), "vocab_path": "absent.json", "image_size": 64, "batch_size": 8},
                **{"workers": 0, "augmentation": "none", "features": name, "feature_path": str(tmp_path / "features")},
            },
            "optim": {"epochs": 2, "lr": 1e-3, "loss": "contrastive"},
            "logs": {"ckpt_save_path": str(tmp_path / "checkpoint")},
            "k_fold": {"experiment_name": name, "nums": 1},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        train_entry.main(["--path_opt", str(path)])
        weights[name] = read_checkpoint(tmp_path / "checkpoint" / name / "0" / "last.pth")["model"]
    assert any((tmp_path / "features").iterdir())
    for name, value in weights["off"].items():
        torch.testing.assert_close(weights["auto"][name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wrapped", ["alone", "state_dict", "module."])
def test_weights_of_others_are_read(
    tiny_options: Callable[..., Options], model: CLIP, words: BytePairs, tmp_path: Path, wrapped: str
) -> None:
    prefix = wrapped if wrapped == "module." else ""
    weights = {prefix + name.removeprefix("clip."): value for name, value in model.state_dict().items()}
    weights[prefix + "logit_scale"] = torch.tensor(4.6)
    torch.save({"state_dict": weights} if wrapped == "state_dict" else weights, tmp_path / "weights.pt")
    torch.manual_seed(1)
    other = build_model(tiny_options("CLIP", {"pretrained": str(tmp_path / "weights.pt")}), words)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ViT-B-33"}, r"open_clip has no 'ViT-B-33'. Did you mean ViT-B-32"),
        ({"architecture": "none.json"}, r"none\.json can't be read"),
        ({"pretrained": "absent.pt"}, r"pretrained absent\.pt: open_clip can't build it .*takes none, the path"),
        ({"dataset.image_size": 96}, r"dataset\.image_size: .* reads images of 64 pixels, got 96"),
    ],
)
def test_faults_are_explained(
    tiny_options: Callable[..., Options], words: BytePairs, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_model(tiny_options("CLIP", changes), words)


def test_a_file_that_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "part.json").write_text('{"embed_dim": 3}')
    with pytest.raises(InputError, match=r"lacks text_cfg, vision_cfg"):
        architecture_name(str(tmp_path / "part.json"))


def test_weights_of_others_must_fit(tiny_options: Callable[..., Options], words: BytePairs, tmp_path: Path) -> None:
    torch.save({"visual.conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"does not fit CLIP as built from these options"):
        build_model(tiny_options("CLIP", {"pretrained": str(tmp_path / "other.pt")}), words)


def test_without_open_clip_the_message_says_how_to_get_it(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"environment\.sh clip"):
        CLIP.own_vocabulary(options.model)
