"""A dual encoder on tiny installed weights, as training would leave it, for the tests of the ready model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn

import option
from batches.augmentation import normalise
from batches.batch import Batch, Captions
from layers import build_model
from layers.backbone import import_timm
from layers.base import RetrievalModel
from layers.installed import PACKAGES, Package
from option import Options
from runs.checkpoints import save_checkpoint
from runs.loaders import read_vocabulary
from tests.tiny_bert import write_bert
from utils import file_sha256
from vocab import Vocabulary

IMAGE, TEXT = "timm/test_efficientnet", "installed/tiny"
MODULE = "tiny_installed_weights"
DUAL = {
    "image.architecture": IMAGE,
    "image.pretrained": "installed",
    "image.train": {"last": 2},
    "text.encoder": TEXT,
    "text.train": "all",
    "head.width": 48,
    "embed_dim": 32,
    "dataset.workers": 0,
    "dataset.batch_size_val": 5,
}
SENTENCES = ["a red field", "large field", "a plane", "red"]


@dataclass(frozen=True)
class Tuned:
    """A checkpoint of a dual encoder whose towers have learned."""

    options: Options
    checkpoint: Path
    model: RetrievalModel
    vocabulary: Vocabulary

    def start(self) -> dict[str, Tensor]:
        """The installed weights."""
        return build_model(self.options, self.vocabulary, load_weights=False).installed_weights()


@contextmanager
def tiny_packages(folder: Path) -> Iterator[None]:
    """Packages with the weights of a tiny network of timm and a tiny BERT, which can be imported meanwhile."""
    pytest.importorskip("safetensors", reason="the extra weights are not installed")
    package = folder / MODULE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_bert(package / "model")
    torch.manual_seed(1)
    network = import_timm().create_model(IMAGE.removeprefix("timm/"), num_classes=0)
    torch.save(network.state_dict(), package / "image.pth")

    def of(name: str, file: str) -> Package:
        return Package(name, MODULE, file, file_sha256(package / file), "none", "random", 64, 0.5, 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setitem(PACKAGES, IMAGE, of("tiny-image-weights", "image.pth"))
        patch.setitem(PACKAGES, TEXT, of("tiny-text-weights", "model/model.safetensors"))
        yield
    sys.modules.pop(MODULE, None)
    shutil.rmtree(package)


def make_tuned(
    folder: Path, tiny_options: Callable[..., Options], changes: Mapping[str, object] = MappingProxyType({})
) -> Tuned:
    """Move what learns: matrices by something of rank 2, of the table of words the rows 5 to 8, all else at random."""
    options = tiny_options("DualEncoder", DUAL | dict(changes))
    vocabulary = read_vocabulary(options)
    torch.manual_seed(0)
    model = build_model(options, vocabulary).eval()
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_head." in name and parameter.dim() == 1:
                parameter.zero_()  # beside it the features of a network with random weights would not count
            if not parameter.requires_grad or "_tower." not in name:
                continue
            change = torch.randn_like(parameter)
            if parameter.dim() == 2:
                change = torch.randn(len(parameter), 2) @ torch.randn(2, parameter.shape[1])
            if id(parameter) in tables:
                change[:5] = change[9:] = 0
            parameter.add_(0.3 * (parameter.std() or 0.5) * change)  # half of an adapter starts as zeros
    state = {"model": model.state_dict(), "vocabulary": vocabulary.digest, "epoch": 3, "fold": 0}
    save_checkpoint(folder / "best.pth.tar", state, options)
    (folder / "tiny.yaml").write_text(option.to_yaml(options))
    return Tuned(options, folder / "best.pth.tar", model, vocabulary)


def embeddings(model: RetrievalModel, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Of four images and `SENTENCES`."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 3, 8, 8), generator=draw, dtype=torch.uint8)
    images = normalise(coarse.repeat_interleave(8, -1).repeat_interleave(8, -2))
    captions = Captions.encode(SENTENCES, vocabulary).batch(torch.arange(len(SENTENCES)))
    with torch.inference_mode():
        return model.encode_image(Batch(images=images)), model.encode_text(captions)
