"""ONNX graphs equal the models that they were made of, for every registered model and every recurrent encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layers.skip_thoughts as skip_thoughts
from batches.augmentation import normalise
from batches.batch import Batch
from engine import image_verb
from layers import build_model
from layers.base import RetrievalModel
from layers.mcrn import AudioEncoder
from layers.pyramid import Pyramid
from layers.registry import registered
from layers.swan_text import ContextCaptionEncoder
from layers.text import PlainGru
from layers.towers import TimmTower
from option import Options
from portable.graphs import Graph, Session, graphs_of, write_graph
from portable.recurrent import FORMS
from tests.layers.test_layers import random_batch
from tests.portable import skip_without
from utils import InputError
from vocab import Vocabulary

TOLERANCE = 1e-4
PAIRS = 5
CHANGES: dict[str, dict[str, Any]] = {
    "AMFMN": {"cross_attention.att_type": "fusion_att", "cross_attention.vgmf": True},
    "DualEncoder": {"text.encoder": "a tiny BERT", "dataset.test_views": "right_angles"},
}
"""What makes a model small, or its graphs harder; a model that is not named here is exported as it is."""


@pytest.fixture(autouse=True)
def _extra() -> None:
    skip_without("onnxruntime", "onnxscript")


class Together(nn.Module):
    """Some graphs as one, which is exported in a fraction of the time."""

    def __init__(self, graphs: list[Graph]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(graph.module for graph in graphs)
        self.counts = [len(graph.inputs) for graph in graphs]

    def forward(
        self, a: Tensor, b: Tensor, c: Tensor | None = None, d: Tensor | None = None, e: Tensor | None = None
    ) -> Tensor:
        left = iter((a, b, c, d, e))  # not *inputs, for which the exporter wants other names of dimensions
        outputs = [part(*islice(left, count)) for part, count in zip(self.parts, self.counts, strict=True)]
        return torch.cat([output.flatten() for output in outputs])


def joined(graphs: list[Graph]) -> Graph:
    inputs = {
        f"{graph.output}_{place}_{name}": value
        for place, graph in enumerate(graphs)
        for name, value in graph.inputs.items()
    }
    rows = []
    for place, graph in enumerate(graphs):
        rows += [f"{row}_{place}" for row in (graph.rows if len(graph.rows) > 1 else graph.rows * len(graph.inputs))]
    longer = tuple(name for name in inputs if name.endswith("_tokens"))
    return Graph("all.onnx", Together(graphs), inputs, "all", longer, tuple(rows))


class Stages(nn.Module):
    """Four maps as a pyramid gives them, by one convolution each."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = pairwise([3, *channels])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, stride, stride)
            for (inputs, outputs), stride in zip(widths, (4, 2, 2, 2), strict=True)
        )
        self.channels = channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for convolution in self.convolutions:
            images = convolution(images)
            maps.append(images)
        return tuple(maps)


def pooled(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def shrink(model: RetrievalModel) -> RetrievalModel:
    """A convolution in the place of each backbone or stage of one, which are not ours and take long to export."""
    parent: Any
    part: Any
    for parent in list(model.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Pyramid):
                setattr(parent, name, Stages([8, 8, 8, part.channels[-1]]))
                parent.reduce_lower = nn.Conv2d(16, parent.reduce_lower.out_channels, 3, 4)
                parent.reduce_higher = nn.Conv2d(8 + part.channels[-1], parent.reduce_higher.out_channels, 1)
            elif isinstance(parent, AudioEncoder) and name == "resnet":
                setattr(parent, name, pooled(parent.projection.in_features))
            elif isinstance(parent, TimmTower) and name == "network":
                setattr(parent, name, pooled(parent.width))
            elif name.startswith("layer") and hasattr(part, "__len__") and hasattr(part[-1], "conv3"):
                inputs, outputs = part[0].conv1.in_channels, part[-1].conv3.out_channels
                setattr(parent, name, nn.Conv2d(inputs, outputs, 1, 1 if name == "layer1" else 2))
    return model.eval()


@torch.no_grad()
def expected(model: RetrievalModel, options: Options, batch: Batch, pixels: Tensor) -> dict[str, Tensor]:
    """What the model itself gives for the inputs of each graph."""
    images = normalise(pixels.permute(0, 3, 1, 2))
    seen = Batch(images=images, nodes=batch.nodes, adjacency=batch.adjacency, audio=images)
    found = {
        "image_encoder.onnx": image_verb(model, options.dataset.test_views)(seen),
        "text_encoder.onnx": model.encode_text(batch),
    }
    if model.uses_audio:
        found["audio_encoder.onnx"] = model.encode_audio(seen)
    found["pair_scores.onnx"] = model.score(found["image_encoder.onnx"][:3], found["text_encoder.onnx"])
    return found


@pytest.mark.parametrize("name", list(registered()))
def test_graphs_equal_the_model(
    name: str, tiny_options: Callable[..., Options], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    options = tiny_options(name, CHANGES.get(name))
    own = registered()[name].model.own_vocabulary(options.model)
    torch.manual_seed(0)
    model = shrink(build_model(options, own or vocabulary))
    graphs = graphs_of(model, options)
    write_graph(joined(graphs), tmp_path / "all.onnx")
    batch, side = random_batch(PAIRS), options.dataset.image_size
    pixels = torch.randint(0, 256, (PAIRS, side, side, 3), dtype=torch.uint8)
    want = expected(model, options, batch, pixels)
    values = {
        "images": pixels,
        "audio": pixels,
        "tokens": batch.need("tokens"),
        "nodes": batch.need("nodes"),
        "adjacency": batch.need("adjacency"),
    }
    pairs = {"images": want["image_encoder.onnx"][:3], "texts": want["text_encoder.onnx"]}
    inputs = [(pairs if "texts" in graph.inputs else values)[key] for graph in graphs for key in graph.inputs]
    got = Session(tmp_path / "all.onnx")(inputs)
    assert {graph.file for graph in graphs} >= {"image_encoder.onnx", "text_encoder.onnx"}
    assert ("pair_scores.onnx" in {graph.file for graph in graphs}) != model.scores_by_cosine()
    torch.testing.assert_close(got, torch.cat([want[graph.file].flatten() for graph in graphs]), atol=TOLERANCE, rtol=0)


def test_every_recurrent_encoder_has_a_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, size in (("STATE_DIM", 24), ("WORD_DIM", 12)):
        monkeypatch.setattr(skip_thoughts, name, size)
    torch.manual_seed(0)
    encoders: list[nn.Module] = [PlainGru(20, 12, 24, 0.5, False)]
    encoders += [kind(20, 0.5, False) for kind in skip_thoughts.SKIP_THOUGHTS.values()]
    drops: dict[str, Any] = {"word_dropout": 0.4, "context_dropout": 0.2, "caption_dropout": 0.1}
    shape: dict[str, Any] = {"words": 20, "word_dim": 12, "embed_dim": 24, "bidirectional": True, "floor": False}
    encoders.append(ContextCaptionEncoder(**shape, layers=2, **drops))
    assert {type(encoder) for encoder in encoders} == set(FORMS)

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.forms = nn.ModuleList(FORMS[type(encoder)](encoder.eval()) for encoder in encoders)

        def forward(self, tokens: Tensor) -> Tensor:
            return torch.cat([form(tokens, (tokens != 0).sum(dim=1)) for form in self.forms], dim=1)

    write_graph(
        Graph("x.onnx", All(), {"tokens": torch.tensor([[1, 2, 3], [4, 0, 0]])}, "states", ("tokens",)),
        tmp_path / "x.onnx",
    )
    batch = random_batch(PAIRS)
    with torch.no_grad():
        want = torch.cat([encoder(batch.tokens, batch.lengths) for encoder in encoders], dim=1)
    torch.testing.assert_close(Session(tmp_path / "x.onnx")([batch.need("tokens")]), want, atol=TOLERANCE, rtol=0)


def test_keywords_are_refused_with_their_reason(tiny_options: Callable[..., Options], vocabulary: Vocabulary) -> None:
    options = tiny_options("AMFMN", {"keywords.mode": "both"})
    with pytest.raises(
        InputError, match=r"model.keywords.mode is both: the text encoder reads keywords .* come from the data set"
    ):
        graphs_of(build_model(options, vocabulary), options)


def test_what_onnx_can_not_express_is_said(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            raise NotImplementedError("no operator for this")

    graph = Graph("odd.onnx", Odd(), {"tokens": torch.ones(2, 2, dtype=torch.int64)}, "x")
    with pytest.raises(
        InputError, match=r"^odd.onnx: PyTorch can't express this model in ONNX \(no operator for this\)\.$"
    ):
        write_graph(graph, tmp_path / "odd.onnx")
    assert not list(tmp_path.iterdir())
