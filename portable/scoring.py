"""What the graphs of a folder score on a test list, beside the model that they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metrics
from batches.augmentation import IMAGENET_MEAN, IMAGENET_STD
from batches.batch import Batch
from engine import encode, score_source
from layers.base import RetrievalModel
from portable.graphs import NEEDS, Session, quiet
from runs.scoring import TestSet
from utils import import_extra

INT8 = "_int8.onnx"
CPU = torch.device("cpu")


class OnnxModel(RetrievalModel):
    """The graphs of a folder in the place of a model."""

    def __init__(self, folder: Path, ending: str = ".onnx") -> None:
        """Open those whose names end so."""
        super().__init__()
        paths = {name: folder / f"{name}{ending}" for name in ("image_encoder", "text_encoder", "pair_scores")}
        self.sessions = {name: Session(path) for name, path in paths.items() if path.is_file()}

    def encode_image(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_image`."""
        regions = [value for value in (batch.nodes, batch.adjacency) if value is not None]
        return self.sessions["image_encoder"]([_pixels(batch.need("images")), *regions])

    def encode_text(self, batch: Batch) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        return self.sessions["text_encoder"]([batch.need("tokens")])

    def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """See `RetrievalModel.pair_scores`."""
        pairs = self.sessions.get("pair_scores")
        return super().pair_scores(images, texts) if pairs is None else pairs([images, texts])


def _pixels(images: Tensor) -> Tensor:
    """Normalised images [B, 3, S, S] as the bytes that they were, [B, S, S, 3]."""
    mean, deviation = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * deviation + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def quantise(folder: Path) -> None:
    """Write each encoder once more with weights of 8 bits, the activations scaled as they come."""
    import_extra("onnxruntime", NEEDS, "onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for path in sorted(folder.glob("*_encoder.onnx")):
        with quiet("root"):  # advice to run a step first that knows no GRU
            quantize_dynamic(path, path.with_name(f"{path.stem}{INT8}"), weight_type=QuantType.QInt8)
    pairs = folder / "pair_scores.onnx"
    if pairs.is_file():
        (folder / f"{pairs.stem}{INT8}").write_bytes(pairs.read_bytes())  # embeddings stay as exact as they are


def score_folder(model: RetrievalModel, folder: Path, test_set: TestSet, views: Any) -> dict[str, dict[str, float]]:
    """Recalls in percent of the model and of its graphs, by `PyTorch`, `ONNX` and `ONNX int8`.

    Args:
        model: that the folder was made of, on the CPU; computes in float32.
        folder: of the graphs.
        test_set: the images and captions, read on the CPU.
        views: of each image, `dataset.test_views`; the graphs take them by themselves.
    """
    scored = {"PyTorch": _score(model, test_set, views), "ONNX": _score(OnnxModel(folder), test_set, "one")}
    if any(folder.glob(f"*{INT8}")):
        scored["ONNX int8"] = _score(OnnxModel(folder, INT8), test_set, "one")
    return scored


def _score(model: RetrievalModel, test_set: TestSet, views: Any) -> dict[str, float]:
    loader = test_set.loader
    images, texts = encode(model, loader, CPU, "off", views)
    blocks = score_source(model, images, texts, loader.caption_row)
    # sounds and second views have no part in this: not all graphs know them
    return metrics.task_recalls(metrics.Tasks(metrics.rank_blocks(blocks, loader.text_image), None, None))
