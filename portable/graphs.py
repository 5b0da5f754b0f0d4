"""The ONNX graphs of a model: its encoders, and its score where that is more than a cosine.

Letters: B batch, N images, M texts, S image side in pixels, L tokens, D embedding, R regions.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batches.augmentation import normalise
from batches.batch import Batch
from data.regions.file import SHAPES
from engine import image_verb
from layers.base import RetrievalModel
from option import Options
from portable import OPSET
from portable.recurrent import exportable
from utils import InputError, first_line, import_extra

NEEDS = "ONNX graphs need the extra onnx"


class ImageGraph(nn.Module):
    """Pixels in, embeddings out, in the views that the options ask for."""

    def __init__(self, model: RetrievalModel, options: Options) -> None:
        super().__init__()
        self.model, self.views = model, options.dataset.test_views

    def forward(self, images: Tensor, nodes: Tensor | None = None, adjacency: Tensor | None = None) -> Tensor:
        """RGB images [B, S, S, 3] uint8, for GaLR with the graphs of their regions -> [B, D]."""
        pixels = normalise(images.permute(0, 3, 1, 2))
        return image_verb(self.model, self.views)(Batch(images=pixels, nodes=nodes, adjacency=adjacency))


class TextGraph(nn.Module):
    """Token ids in, embeddings out."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids from 1, zero-padded, [B, L] int64 -> [B, D]."""
        return self.model.encode_text(Batch(tokens=tokens, lengths=(tokens != 0).sum(dim=1)))


class AudioGraph(nn.Module):
    """Spectrograms in, embeddings out."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor) -> Tensor:
        """RGB spectrograms [B, S, S, 3] uint8 -> [B, D]."""
        return self.model.encode_audio(Batch(audio=normalise(audio.permute(0, 3, 1, 2))))


class ScoreGraph(nn.Module):
    """Embeddings in, the scores of all pairs out."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """[N, D] and [M, D] -> [N, M]."""
        return self.model.pair_scores(images, texts)


@dataclass(frozen=True)
class Graph:
    """What a file of the folder computes.

    Attributes:
        file: its name.
        module: in evaluation mode.
        inputs: name -> sample, whose first dimension may have any size.
        output: its name.
        longer: inputs whose second dimension may have any size, too.
        rows: names of the first dimension of the inputs.
    """

    file: str
    module: nn.Module
    inputs: dict[str, Tensor]
    output: str
    longer: tuple[str, ...] = ()
    rows: tuple[str, ...] = ("batch",)

    def dimensions(self) -> dict[str, dict[int, str]]:
        """The dimensions of each input that may have any size, by their names."""
        rows = self.rows if len(self.rows) > 1 else self.rows * len(self.inputs)
        found = {name: {0: row} for name, row in zip(self.inputs, rows, strict=True)}
        return {name: sizes | ({1: "length"} if name in self.longer else {}) for name, sizes in found.items()}


def graphs_of(model: RetrievalModel, options: Options) -> list[Graph]:
    """The graphs that a model consists of, with small samples.

    Raises:
        InputError: what its text queries are made of is more than a sentence.
    """
    refuse_keywords(model, options)
    model, side = exportable(model), options.dataset.image_size
    pixels = torch.arange(2 * side * side * 3).remainder(251).to(torch.uint8).view(2, side, side, 3)
    images = {"images": pixels}
    if model.uses_regions and options.dataset.local_path is not None:
        images |= {name: torch.rand(2, *shape) for name, shape in SHAPES.items()}
    tokens = torch.tensor([[1, 2, 3, 1], [2, 1, 0, 0], [1, 1, 2, 0]])
    graphs = [
        Graph("image_encoder.onnx", ImageGraph(model, options), images, "embeddings"),
        Graph("text_encoder.onnx", TextGraph(model), {"tokens": tokens}, "embeddings", longer=("tokens",)),
    ]
    if model.uses_audio:
        graphs.append(Graph("audio_encoder.onnx", AudioGraph(model), {"audio": pixels}, "embeddings"))
    if not model.scores_by_cosine():
        with torch.no_grad():
            width = graphs[0].module(*images.values()).shape[1]
        pairs = {"images": torch.rand(2, width), "texts": torch.rand(3, width)}
        graphs.append(Graph("pair_scores.onnx", ScoreGraph(model), pairs, "scores", rows=("images", "texts")))
    return graphs


def refuse_keywords(model: RetrievalModel, options: Options) -> None:
    """Raise an InputError for a model that can't be exported: it would need an image's keywords with each sentence."""
    mode = model.query_mode(options.model)
    if mode != "none":
        raise InputError(
            f"model.keywords.mode is {mode}: the text encoder reads keywords beside the sentence, which come from the "
            "data set, so a folder that stands alone could not make its queries. Train with model.keywords.mode=none."
        )


def write_graph(graph: Graph, path: Path) -> None:
    """Write a graph as an ONNX file of opset `OPSET`.

    Raises:
        InputError: packages are missing, or PyTorch's exporter can't express the model.
    """
    import_extra("onnxscript", NEEDS, "onnx")
    try:
        with quiet("torch.onnx"), torch.no_grad():
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                input_names=list(graph.inputs),
                output_names=[graph.output],
                dynamic_shapes=tuple(graph.dimensions().values()),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
            )
    except Exception as fault:  # the exporter has errors of its own at every stage
        reason = first_line(fault.__cause__ if isinstance(fault.__cause__, Exception) else fault)
        raise InputError(f"{path.name}: PyTorch can't express this model in ONNX ({reason}).") from fault
    assert program is not None
    program.save(path, external_data=False)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a library's progress and its advice to its own developers off the screen, by the name of its log."""
    chatty = logging.getLogger(name)
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)


class Session:
    """An ONNX file, ready to run on the CPU."""

    def __init__(self, path: Path) -> None:
        runtime: Any = import_extra("onnxruntime", NEEDS, "onnx")
        settings = runtime.SessionOptions()
        settings.log_severity_level = 3
        self._session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """What the graph makes of its inputs, in their order."""
        names = [given.name for given in self._session.get_inputs()]
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(self._session.run(None, arrays)[0])
