"""CLIP's ways in: each kind of file and folder, made on the spot, gives the model that it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batches.augmentation import normalise
from layers import clip_files
from layers.clip import CLIP
from layers.clip_files import check_activation, is_torchscript, read_clip, uses_quick_gelu
from layers.clip_library import import_open_clip
from layers.clip_names import open_clip_names
from layers.released import load_released
from layers.sentences import import_transformers
from runtime.weights import TAKEN_FOR_ONE, read_checkpoint, without_wrappers
from tests import ROOT
from utils import InputError, file_sha256


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    open_clip = import_open_clip()
    open_clip.add_model_config(ROOT / "tests" / "clip_tiny.json")
    torch.manual_seed(3)
    found: dict[str, Tensor] = open_clip.create_model("clip_tiny").state_dict()
    return found


def write_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    save_file: Any = pytest.importorskip("safetensors.torch").save_file
    save_file({name: value.contiguous() for name, value in weights.items()}, path)


def write_wrapped(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"epoch": 3, "state_dict": {f"_orig_mod.module.{name}": value for name, value in weights.items()}}, path)


def write_hub(path: Path, weights: dict[str, Tensor]) -> None:
    path.mkdir()
    write_safetensors(path / "open_clip_model.safetensors", weights)


def write_model(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({f"model.{name}": value for name, value in weights.items()}, path)


@pytest.mark.parametrize("write", [write_safetensors, write_wrapped, write_hub, write_model])
def test_each_kind_gives_the_weights(
    write: Callable[[Path, dict[str, Tensor]], None], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    write(path, weights)
    found = read_clip(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_prefix_that_only_some_names_have_stays() -> None:
    some = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert without_wrappers(some).keys() == some.keys()


class Archived(nn.Module):
    """What OpenAI's archives hold beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2).half())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("context_length", torch.tensor(77))
        self.register_buffer("vocab_size", torch.tensor(49408))

    def forward(self, given: Tensor) -> Tensor:
        return given * self.weight


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_archive_of_torchscript_is_read_if_openai_published_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.script(Archived()), path)  # type: ignore[no-untyped-call,unused-ignore]
    assert is_torchscript(path)
    with pytest.raises(InputError, match=r"archive of TorchScript, which can run code, and none that OpenAI published"):
        read_clip(path)
    assert len(clip_files.published_archives()) >= 9
    monkeypatch.setattr(clip_files, "published_archives", lambda: {file_sha256(path)})
    assert {name: value.tolist() for name, value in read_clip(path).items()} == {"weight": [1, 1]}


def test_a_folder_of_transformers_gives_the_same_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    transformers: Any = import_transformers()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        text_config=sizes | {"hidden_size": 32, "vocab_size": 64, "max_position_embeddings": 8, "eos_token_id": 63},
        vision_config=sizes | {"hidden_size": 32, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    tower = {"width": 32, "layers": 2, "mlp_ratio": 4.0}
    ours = {
        "embed_dim": 16,
        "vision_cfg": tower | {"image_size": 64, "patch_size": 16, "head_width": 16},
        "text_cfg": tower | {"context_length": 8, "vocab_size": 64, "heads": 2},
    }
    (tmp_path / "hf_tiny.json").write_text(json.dumps(ours))
    import_open_clip().add_model_config(tmp_path / "hf_tiny.json")
    model = CLIP(import_open_clip().create_model("hf_tiny"), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    load_released(model, read_clip(tmp_path / "hf"))
    pixels = normalise(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    ids = torch.tensor([[1, 5, 9, 63, 0, 0, 0, 0], [1, 7, 63, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        images = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        texts = theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)
        torch.testing.assert_close(model.embed_images(pixels), images, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.embed_texts(ids + 1), texts, atol=1e-4, rtol=1e-4)
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "altclip"}')
    with pytest.raises(InputError, match="is a altclip of transformers; its CLIPs and SigLIPs can be read"):
        read_clip(tmp_path / "hf")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_of_another_activation_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    plain = import_open_clip().create_model("clip_tiny")
    quick = import_open_clip().create_model("clip_tiny", force_quick_gelu=True)
    hub, hf, none = (tmp_path / name for name in ("hub", "hf", "none"))
    write_hub(hub, weights)
    for folder in (hf, none):
        folder.mkdir()
    (hub / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    (hf / "config.json").write_text('{"model_type": "clip", "vision_config": {"layers": 2}}')
    archive = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.script(Archived()), archive)  # type: ignore[no-untyped-call,unused-ignore]
    for path in (hub, hf, archive):
        check_activation(path, quick)
        with pytest.raises(InputError, match=r"trained with QuickGELU, and this network has GELU.*with -quickgelu"):
            check_activation(path, plain)
    (hf / "config.json").write_text('{"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}')
    check_activation(hf, plain)
    with pytest.raises(InputError, match=r"trained with GELU, and this network has QuickGELU.*without -quickgelu"):
        check_activation(hf, quick)
    write_model(tmp_path / "weights.pt", weights)
    for path in (none, tmp_path / "weights.pt"):
        assert uses_quick_gelu(path) is None
        check_activation(path, quick)


def test_names_of_transformers_that_are_no_weights_are_left_out() -> None:
    assert open_clip_names({"text_model.embeddings.position_ids": torch.arange(3)}) == {}


@pytest.mark.parametrize("mark", TAKEN_FOR_ONE)
def test_what_is_no_checkpoint_is_named(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(mark + b" and more")
    with pytest.raises(InputError) as told:
        read_checkpoint(tmp_path / "weights.pt")
    assert f"is no checkpoint but {TAKEN_FOR_ONE[mark]}" in str(told.value)


def test_other_folders_and_damaged_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no weights; expected one of open_clip_model\.safetensors"):
        read_clip(tmp_path)
    (tmp_path / "a.safetensors").write_bytes((9).to_bytes(8, "little") + b'{"a": 1}!')
    with pytest.raises(InputError, match="can't be read as a checkpoint"):
        read_checkpoint(tmp_path / "a.safetensors")
