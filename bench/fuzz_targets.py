"""The parsers that a fuzzer feeds: any bytes give a result that keeps its promises, or an `InputError`.

A check is given a file in a folder of its own. It raises an InputError where the bytes are refused, and AssertionError
where a result breaks a promise.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import tempfile
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import option
from data.annotations import read_annotations
from data.audio.sounds import read_sound
from data.images import decode
from data.keywords.file import read_keywords, write_keywords
from data.lists import name_fault
from data.polygons import read_places, write_places
from data.prepare.captions import Captions, gather_entries
from data.prepare.descriptions import read_descriptions
from data.prepare.nested import read_json, read_json_lines
from data.prepare.tables import read_table
from data.regions.coco import read_detections
from data.regions.file import read_regions, region_name, write_regions
from data.regions.graph import CLASSES, region_arrays
from data.regions.published import read_published
from data.similarity.prior import ORDERS, PriorSimilarity
from data.similarity.ragged import Ragged
from layers.skip_thoughts import WORD_DIM, SkipThoughts, Weights, load_skip_thoughts
from layers.text import load_glove
from option.images import ImageRule
from reports.history import read_history
from runtime.untrusted import is_plain_weight
from runtime.weights import read_checkpoint
from utils import InputError, logger
from vocab import UNKNOWN, Vocabulary

SEPARATOR = b"\n====\n"
"""Between the files of a target that reads several."""
EXPERIMENT = """model: {name: AMFMN}
dataset: {data_path: data/x_precomp, vocab_path: vocab/x.json}
k_fold: {experiment_name: x}
"""
_WORDS = {"plane": 1, "airport": 2, UNKNOWN: 3}
_LARGEST_IMAGE = 10_000  # pixels


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
        check: reads a file.
        file: its name.
        seeds: sound and nearly sound contents to start from, the first of them sound.
    """

    check: Callable[[Path], None]
    file: str
    seeds: tuple[bytes, ...]


TARGETS: dict[str, Target] = {}


def target(name: str, file: str, *seeds: bytes) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Make a function the check of a target, see `Target`."""

    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        TARGETS[name] = Target(check, file, seeds)
        return check

    return add


def run_target(target: Target, content: bytes, folder: Path) -> bool:
    """Feed a target once; returns whether the bytes were taken.

    Raises:
        Exception: anything but an `InputError`: a finding.
    """
    logger.disabled = True
    try:
        path = folder / target.file
        path.write_bytes(content)
        target.check(path)
    except InputError:
        return False
    finally:
        logger.disabled = False
    return True


def _saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _npz(**arrays: NDArray[np.generic]) -> bytes:
    return _saved(lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(range(200)))
    return file.getvalue()


def _prior_file() -> bytes:
    rows = Ragged(np.array([0, 1], np.int32), np.array([0, 2]))
    kinds = (*(f"grams{order}" for order in ORDERS), "words")
    kept = {
        f"{side}_{kind}/{part}": value
        for side in ("caption", "image")
        for kind in kinds
        for part, value in vars(rows).items()
    }
    return _npz(
        **kept,
        word_shares=np.array([0.5, 0.5]),
        lengths=np.array([2]),
        wording=np.array([0]),
        caption_image=np.array([0]),
    )


def _region_pickle(protocol: int) -> bytes:
    grid = np.zeros((20, 20), np.float32)
    holder = np.empty((), dtype=object)
    holder[()] = {"local_rep": {"a.txt": grid}, "adj_matrix": {"a.txt": grid}}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    pickle.dump(holder, file, protocol=protocol)
    return file.getvalue()


def _region_h5() -> bytes:
    grid = np.zeros((20, 20), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        write_regions(path, {"a": (grid, grid), "b": (grid, grid)}, "design", "source", ["ship", "plane"])
        return path.read_bytes()


def _checkpoint_file(legacy: bool) -> bytes:
    content = {"model": {"a": torch.zeros(2), "b": torch.ones(1, 2)}, "opt": argparse.Namespace(margin=0.2), "epoch": 3}
    return _saved(lambda file: torch.save(content, file, _use_new_zipfile_serialization=not legacy))


def _image_file(kind: str, mode: str = "RGB") -> bytes:
    return _saved(lambda file: Image.new(mode, (7, 5), 100 if mode == "L" else (9, 90, 200)).save(file, kind))


def _json(content: object) -> bytes:
    return json.dumps(content).encode()


_SKIP_THOUGHTS = (
    b"UNK\nplane\n",
    _saved(lambda file: np.save(file, np.zeros((2, WORD_DIM), np.float32))),
    _npz(encoder_W=np.zeros((2, 2), np.float32)),
)
_VOCABULARY = {"word2idx": {"a": 1, UNKNOWN: 2}, "idx2word": {"1": "a", "2": UNKNOWN}, "idx": 3}
_COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}],
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3.5, 4], "score": 0.5}],
    "categories": [{"id": 2, "name": "ship"}],
}
_COCO_CAPTIONS = {"images": _COCO["images"], "annotations": [{"image_id": 1, "caption": "a ship ."}]}
_KARPATHY = {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a ship ."}]}]}
_NWPU = {"port": [{"filename": "a.jpg", "split": "test", "raw": "a ship .", "raw_1": "two ships ."}]}


@target(
    "annotations",
    "x",
    b"a.jpg\nb.jpg" + SEPARATOR + b"one\ntwo\nthree\nfour\n",
    b"a.jpg\na.jpg\n" + SEPARATOR + b"one\r\ntwo",
    b"a.jpg\nb.jpg" + SEPARATOR + b"one\ntwo\nthree\nthree\n" + SEPARATOR + b"4\n",
)
def _annotation_lists(path: Path) -> None:
    folder = path.parent
    parts = path.read_bytes().split(SEPARATOR, 2)
    for kind, content in zip(("filename", "caps", "copies"), [*parts, b"", b""], strict=False):
        (folder / f"train_{kind}.txt").write_bytes(content)
    found = read_annotations(folder, "train")
    assert 0 < len(set(found.image_names)) == len(found.image_names)
    assert len(found.caption_counts) == len(found.image_names)
    assert (found.caption_counts > 0).all()
    assert all((folder / name).resolve().is_relative_to(folder.resolve()) for name in found.image_names)


@target(
    "options",
    "x.yaml",
    EXPERIMENT.encode(),
    b"model:\n  name: SWAN\n  embed: {embed_dim: 512}\n" + EXPERIMENT.encode().partition(b"\n")[2],
    b"backbone: {architecture: resnet18}\ndataset: {image_path: x}\nlogs: {experiment_name: y}\n",
    b"a: &x [1]\nb: *x\nc: !!python/object/apply:os.getpid []\n",
)
def _options(path: Path) -> None:
    """The YAML of an experiment, and of a pretraining."""
    if option.is_pretraining(path):
        option.load_pretraining_options(path)
        return
    loaded = option.load_options(path)
    path.write_text(option.to_yaml(loaded), encoding="utf-8")
    assert option.load_options(path) == loaded


@target("overrides", "x.txt", b"optim.lr=1e-4\ndataset.batch_size=64", b"model.name=GaLR", b"optim.resume=False")
def _overrides(path: Path) -> None:
    """Values of `--set`, one a line, as the command line hands them over."""
    experiment = path.with_suffix(".yaml")
    experiment.write_text(EXPERIMENT, encoding="utf-8")
    option.load_options(experiment, path.read_bytes().decode("utf-8", "surrogateescape").split("\n"))


@target(
    "vocabulary",
    "x.json",
    _json({"word2idx": {"a": 1, UNKNOWN: 2}, "idx2word": {"1": "a", "2": UNKNOWN}, "idx": 3}),
    b"[" * 100,
)
def _vocabulary(path: Path) -> None:
    """The JSON of a vocabulary."""
    loaded = Vocabulary.load(path)
    assert sorted(loaded.word2idx.values()) == list(range(1, len(loaded) + 1))
    loaded.save(path)
    assert Vocabulary.load(path) == loaded


@target("detections", "x.json", _json(_COCO))
def _detections(path: Path) -> None:
    """Detections in COCO's form, and the regions that are made from them."""
    found, classes = read_detections(path)
    assert len(classes) <= CLASSES
    for name, boxes in found.items():
        assert name_fault(name, "image") is None
        assert region_name(name)
        assert ((boxes.boxes >= 0) & (boxes.boxes <= 1)).all()
        assert (boxes.boxes[:, 2:] > 0).all()
        nodes, adjacency = region_arrays(boxes)
        assert np.isfinite(nodes).all()
        assert np.isfinite(adjacency).all()


@target("glove", "x.txt", b"plane 0.5 -1e-3\nairport 1 2\nof 3 4\n", b"the 1 2\nplane 1\n")
def _glove(path: Path) -> None:
    """Word vectors as text."""
    table = nn.Embedding(4, 2)
    load_glove(table, path, _WORDS)
    assert bool(table.weight.isfinite().all())


class _WordTable(SkipThoughts):
    """The smallest encoder that reads all three published files."""

    def released_state(self, weights: Weights) -> dict[str, NDArray[np.float32]]:
        """Nothing besides the word table, but every array of the file counts."""
        assert all(isinstance(value, np.ndarray) and not value.dtype.hasobject for value in weights.values())
        return {}


@target("skip_thoughts", "x", *(bytes([place]) + sound for place, sound in enumerate(_SKIP_THOUGHTS)))
def _skip_thoughts(path: Path) -> None:
    """The published skip-thoughts files; the first byte says which of the three is replaced."""
    folder, content = path.parent, path.read_bytes()
    names = ("dictionary.txt", _WordTable.table_file, _WordTable.weight_file)
    for place, (name, sound) in enumerate(zip(names, _SKIP_THOUGHTS, strict=True)):
        chosen = content[:1] == bytes([place])
        (folder / name).write_bytes(content[1:] if chosen else sound)
    encoder = _WordTable(len(_WORDS), 0.0, False)
    load_skip_thoughts(encoder, folder, _WORDS)
    assert bool(encoder.embedding.weight.isfinite().all())


@target(
    "captions",
    "x",
    b"\0" + _json(_KARPATHY),
    b"\0" + _json(_NWPU),
    b'\1filepath,caption,split\na.jpg,"a ship, two",train\n',
    b"\2" + b"12 a ship .\n13 two ships .\n",
    b"\1a.jpg#0\ta ship .\na.jpg#1\ttwo\n",
    b"\1image;captions\na.jpg;\"['a ship .' \n 'two']\"\n",
    b"\3" + _json({"filename": "a.jpg", "captions": ["a ship ."]}),
    b"\0" + _json(_COCO_CAPTIONS),
)
def _captions(path: Path) -> None:
    """The forms in which captioned sets are published; the first byte chooses one."""
    readers: Sequence[Callable[[Path], Captions]] = (read_json, read_table, read_descriptions, read_json_lines)
    content = path.read_bytes()
    path.write_bytes(content[1:])
    entries = gather_entries(path, readers[content[0] % len(readers) if content else 0](path).rows)
    assert 0 < len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.captions
        assert name_fault(entry.name, "image") is None
        assert not any(set("\r\n\0") & set(caption) for caption in entry.captions)


@target("published_regions", "x.npy", *map(_region_pickle, (0, 2, 4)))
def _published_regions(path: Path) -> None:
    """GaLR's published region files, which are pickles."""
    for arrays in read_published(path).values():
        assert all(array.shape == (20, 20) and np.isfinite(array).all() for array in arrays)


@target("region_file", "x.h5", _region_h5())
def _region_file(path: Path) -> None:
    """Our region files, which are HDF5."""
    found = read_regions(path)
    assert found.nodes.shape == found.adjacency.shape == (len(found.row), 20, 20)
    assert np.isfinite(found.nodes).all()
    assert np.isfinite(found.adjacency).all()


@target("checkpoint", "x.pth", _checkpoint_file(False), _checkpoint_file(True))
def _checkpoint(path: Path) -> None:
    assert all(map(is_plain_weight, read_checkpoint(path)["model"].values()))


@target("prior", "x.npz", _prior_file())
def _prior(path: Path) -> None:
    """The kept counts of the prior similarity, which are an `.npz`."""
    found = PriorSimilarity.load(path)
    images, each = np.arange(len(found.image_words.starts) - 1), np.arange(len(found.lengths))
    assert found.between(images, each).shape == (len(images), len(each))


@target("images", "x.jpg", _image_file("PNG"), _image_file("JPEG"), _image_file("TIFF"), _image_file("PNG", "L"))
def _images(path: Path) -> None:
    image = decode(path, ImageRule(max_pixels=_LARGEST_IMAGE))
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= _LARGEST_IMAGE


@target("sounds", "x.wav", _wav())
def _sounds(path: Path) -> None:
    sound = read_sound(path)
    assert len(sound)
    assert np.isfinite(sound).all()


@target("keywords", "x.txt", b"green trees,- port\nwhite planes\n")
def _keywords(path: Path) -> None:
    """Keywords of two images."""
    found = read_keywords(path, 2)
    assert all(rows and all(len(keyword) == 2 for keyword in rows) for rows in found)
    write_keywords(path, found)
    assert read_keywords(path, 2) == found


@target("places", "x.json", _json([{"jpg_name": "a.tif", "caption": "a ship", "points": [[[0, 0], [9, 0.5], [9, 9]]]}]))
def _places(path: Path) -> None:
    """Places in large images, annotated with sentences."""
    found = read_places(path)
    assert found
    assert all(name_fault(place.image, "image") is None for place in found)
    assert all(
        polygon.shape[1:] == (2,) and np.isfinite(polygon).all() for place in found for polygon in place.polygons
    )
    write_places(path, found)
    assert len(read_places(path)) == len(found)


@target("history", "history.csv", b"epoch,loss,val_mR\n1,0.5,\n2,0.25,30.5\n")
def _history(path: Path) -> None:
    """The table of a training's epochs."""
    assert all({"epoch", "loss"} <= row.keys() for row in read_history(path.parent))
