"""Files from a stranger: no code runs, no memory is claimed, nothing outside is read, and one message says why."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import option
from bench.fuzz_targets import EXPERIMENT, TARGETS, run_target
from data.annotations import list_files, read_annotations
from data.audio.drawing import draw_wavs
from data.audio.sounds import read_sound
from data.audio.spectrogram import RATE
from data.images import decode, image_names
from data.lists import LONGEST_LINE, read_lines
from data.polygons import read_places
from data.prepare.__main__ import Request, prepare
from data.prepare.captions import Captions, gather_entries
from data.prepare.nested import read_json
from data.prepare.sources import find_images
from data.prepare.tables import read_table
from data.prepare.writer import RECORD, compare_record
from data.regions.coco import read_detections
from data.regions.file import read_regions, write_regions
from data.regions.published import read_published
from data.similarity.prior import PriorSimilarity
from layers.backbone import read_backbone_file
from layers.text import load_glove
from option import Options
from option.images import ImageRule
from option.load import MOST_HINTS
from reports.export import RANKS_FORMAT
from reports.history import read_history
from reports.significance import read_ranks
from runs.checkpoints import FORMAT, fit_weights
from runs.resume import begun_run
from runtime import untrusted
from runtime.untrusted import check_pickle, read_array, read_arrays, read_bytes
from runtime.weights import read_checkpoint
from utils import InputError
from vocab import UNKNOWN, Vocabulary

MEBIBYTE = 2**20
HUGE = 10**11  # numbers that a header announces


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def refused(read: Callable[..., object], path: Path, *arguments: object) -> str:
    """The message with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        read(path, *arguments)
    assert str(path) in str(caught.value)
    return str(caught.value)


def gathered(path: Path, reader: Callable[[Path], Captions]) -> object:
    return gather_entries(path, reader(path).rows)


@contextmanager
def little_memory(most: int = 64 * MEBIBYTE) -> Iterator[None]:
    """Fails if Python or NumPy claims more than that at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class TestCheckpoints:
    @LEGACY
    @pytest.mark.parametrize("read", [read_checkpoint, read_backbone_file])
    def test_code_does_not_run(self, tmp_path: Path, legacy: bool, read: Callable[[Path], object]) -> None:
        mark = tmp_path / "code_ran"
        path = save(tmp_path / "x.pth", {"model": {"a": torch.zeros(2)}, "opt": Bomb(mark)}, legacy)
        assert "refused" in refused(read, path)
        assert not mark.exists()
        torch.load(path, weights_only=False)
        assert mark.exists()  # the bomb was live

    @LEGACY
    def test_the_namespace_of_published_files_is_let_in(self, tmp_path: Path, legacy: bool) -> None:
        content = {"model": {"a": torch.arange(3.0)}, "opt": argparse.Namespace(margin=0.2, data_name="rsicd")}
        found = read_checkpoint(save(tmp_path / "x.pth", content, legacy))
        assert found["opt"] == content["opt"]
        torch.testing.assert_close(found["model"]["a"], torch.arange(3.0))
        with pytest.raises(pickle.UnpicklingError):  # it is let in here alone
            torch.load(tmp_path / "x.pth", weights_only=True)

    @pytest.mark.parametrize("other", [argparse.Action, argparse.FileType(), Path("x"), os.getcwd])
    def test_nothing_else_is_let_in(self, tmp_path: Path, other: object) -> None:
        path = save(tmp_path / "x.pth", {"model": {"a": torch.zeros(2)}, "opt": argparse.Namespace(other=other)})
        assert "more than tensors and plain values" in refused(read_checkpoint, path)

    @LEGACY
    @pytest.mark.parametrize("read", [read_checkpoint, read_backbone_file])
    def test_a_few_bytes_claim_no_memory(self, tmp_path: Path, legacy: bool, read: Callable[[Path], object]) -> None:
        path = save(tmp_path / "x.pth", {"model": {"a": Call(bytearray, 4 * 2**30)}}, legacy)
        with little_memory():
            assert "asks for" in refused(read, path)

    def test_packed_weights_are_refused_before_they_are_unpacked(self, tmp_path: Path) -> None:
        path, packed = save(tmp_path / "x.pth", {"model": {"a": torch.zeros(4 * MEBIBYTE)}}), tmp_path / "packed.pth"
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
            for member in whole.infolist():
                small.writestr(member.filename, whole.read(member))
        assert packed.stat().st_size < MEBIBYTE
        assert "larger than the file" in refused(read_checkpoint, packed)

    def test_a_record_shorter_than_its_tensor(self, tmp_path: Path) -> None:
        path, cut = save(tmp_path / "x.pth", {"model": {"a": torch.zeros(1000)}}), tmp_path / "cut.pth"
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(cut, "w") as short:
            for member in whole.infolist():
                content = whole.read(member)
                short.writestr(member.filename, content[:4] if member.filename.endswith("data/0") else content)
        assert "can't be read as a checkpoint" in refused(read_checkpoint, cut)

    @pytest.mark.parametrize("read", [read_checkpoint, read_backbone_file])
    def test_a_flipped_bit_in_any_part(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        path = save(tmp_path / "x.pth", {"model": {"a": torch.arange(64.0), "b": torch.arange(999)}, "epoch": 3})
        sound = path.read_bytes()
        read(path)
        with zipfile.ZipFile(path) as parts:
            names = [member.filename for member in parts.infolist() if member.file_size > 40]
            places = [sound.index(parts.read(name)) for name in names]
        assert [name.partition("/")[2] for name in names] == ["data.pkl", "data/0", "data/1"]
        for name, place in zip(names, places, strict=True):
            content = bytearray(sound)
            content[place] ^= 4
            path.write_bytes(content)
            assert f"damaged: {name} in it does not match its checksum" in refused(read, path)

    @pytest.mark.parametrize(
        "weights",
        [
            {"a": 5},
            {"a": None},
            {"a": "text"},
            {1: torch.zeros(2)},
            {"a": torch.zeros(1).expand(10**6)},
            {"a": torch.zeros(2, 2).to_sparse()},
            {"a": torch.zeros(2, dtype=torch.complex64)},
            {"a": torch.zeros(2, device="meta")},
        ],
        ids=["number", "nothing", "text", "name", "view", "sparse", "complex", "meta"],
    )
    def test_odd_weights(self, tmp_path: Path, weights: dict[object, object]) -> None:
        path = save(tmp_path / "x.pth", {"model": weights | {"sound": torch.zeros(2)}})
        assert "1 of 2 weights are no plain tensors" in refused(read_checkpoint, path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(100), b"<html>not found</html>", b"\x80\x02.", bytes(1000)],
        ids=["empty", "magic", "zip", "text", "pickle", "zeros"],
    )
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.pth"
        path.write_bytes(content)
        refused(read_checkpoint, path)
        refused(read_backbone_file, path)

    def test_ours_without_its_options(
        self, tmp_path: Path, tiny_options: Callable[..., Options], vocabulary: Vocabulary
    ) -> None:
        deep: dict[str, Any] = {}
        wide: list[Any] = []
        for _ in range(2000):
            deep = {"a": deep}
        for _ in range(60):
            wide = [wide, wide]  # 2^60 lists to whoever writes it out
        stores: list[object] = [None, [], deep, {"a": wide}]
        options = tiny_options("AMFMN")
        for stored in stores:
            content = {"format": FORMAT, "model": {}, "vocabulary": vocabulary.digest, "options": stored, "epoch": 1}
            path = tmp_path / "last.pth"
            with pytest.raises(InputError, match="damaged: it has no options, or far too many"):
                fit_weights(nn.Module(), content, path, options, vocabulary)  # type: ignore[arg-type]
            if stored is deep:
                continue  # torch.save itself does not write what is nested so deeply
            save(path, content)
            with pytest.raises(InputError, match="damaged"):
                begun_run(tmp_path, options, True, "x")
        save(path, content | {"options": {}, "epoch": "many"})
        with pytest.raises(InputError, match="does not say how far it has come"):
            begun_run(tmp_path, options, True, "x")


def npy(shape: tuple[int, ...], content: bytes = b"", kind: str = "<f4") -> bytes:
    """An `.npy` whose header says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def archive(path: Path, members: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


class TestArrays:
    def test_objects_do_not_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "code_ran"
        np.save(tmp_path / "x.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
        np.savez(tmp_path / "x.npz", a=np.array([Bomb(mark)], dtype=object))
        for read, name in ((read_array, "x.npy"), (read_arrays, "x.npz"), (read_array, "x.npz")):
            with pytest.raises(ValueError, match=r"."):
                read(tmp_path / name)
        refused(PriorSimilarity.load, tmp_path / "x.npz")
        assert not mark.exists()
        np.load(tmp_path / "x.npy", allow_pickle=True)
        assert mark.exists()  # the bomb was live

    def test_a_header_alone_claims_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x.npy").write_bytes(npy((HUGE,)))
        with little_memory():
            with pytest.raises(ValueError, match="mmap length"):
                read_array(tmp_path / "x.npy")
            with pytest.raises(ValueError, match=r"a\.npy is no plain array of 128 bytes"):
                read_arrays(archive(tmp_path / "x.npz", {"a.npy": npy((HUGE,))}))
            assert "Delete it" in refused(PriorSimilarity.load, tmp_path / "x.npz")

    def test_a_zip_bomb_is_refused_before_it_is_unpacked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        size = 80 * MEBIBYTE
        path = archive(tmp_path / "x.npz", {"a.npy": npy((size // 4,), bytes(size))}, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < MEBIBYTE
        monkeypatch.setattr(untrusted, "MAX_UNPACKED_BYTES", size)
        with little_memory(), pytest.raises(ValueError, match="its arrays take more than 83,886,080 bytes"):
            read_arrays(path)

    def test_an_archive_that_says_less_than_it_holds(self, tmp_path: Path) -> None:
        content = bytearray(archive(tmp_path / "x.npz", {"a.npy": npy((9,), bytes(36))}).read_bytes())
        start = content.index(b"PK\x01\x02")
        content[start + 24 : start + 28] = struct.pack("<I", 130)
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"CRC|no plain array"):
            read_arrays(tmp_path / "x.npz")

    @pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
    def test_a_flipped_bit(self, tmp_path: Path, write: Callable[..., None]) -> None:
        path = tmp_path / "x.npz"
        write(path, a=np.arange(1000))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"CRC|Error -3"):
            read_arrays(path)

    def test_sound_arrays_are_read(self, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "x.npz", a=np.arange(6).reshape(2, 3), b=np.float32(1))
        found = read_arrays(tmp_path / "x.npz")
        assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["b"] == 1
        np.save(tmp_path / "x.npy", np.arange(4.0))
        assert read_array(tmp_path / "x.npy").tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("image_words/starts", np.array([0, 9])),
            ("image_words/starts", np.array([2, 0])),
            ("caption_grams1/values", np.array([0.5, 1.5])),
            ("lengths", np.array([HUGE])),
            ("lengths", np.array([-1])),
            ("lengths", np.zeros((0,), np.int64)),
            ("word_shares", np.array([0.5, np.nan])),
            ("caption_image", np.array([0, 0])),
        ],
    )
    def test_kept_counts_that_contradict_each_other(self, tmp_path: Path, name: str, value: np.ndarray) -> None:
        path = tmp_path / "x.npz"
        path.write_bytes(TARGETS["prior"].seeds[0])
        arrays = read_arrays(path)
        PriorSimilarity.load(path)
        np.savez(path, **(arrays | {name: value}))  # type: ignore[arg-type]
        assert "contradict" in refused(PriorSimilarity.load, path)


class TestOptions:
    @pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
    def test_tags_do_not_run(self, tmp_path: Path, tag: str) -> None:
        mark, path = tmp_path / "code_ran", tmp_path / "x.yaml"
        path.write_text(f"{EXPERIMENT}optim: !!python/{tag} [{mark}]\n")
        refused(option.load_options, path)
        path.write_text(EXPERIMENT)
        with pytest.raises(InputError, match="is not allowed"):
            option.load_options(path, [f"optim.lr=!!python/{tag} [{mark}]"])
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n", "aliases"),
            ("a: &a [*a]\n", "aliases"),
            ("a: &a {b: c}\nd: {<<: *a}\n", "aliases"),
            ("[" * 100_000, "nested deeper than 20 levels"),
            ("? " * 100_000, "nested deeper than 20 levels"),
            ("a: '" + "x" * MEBIBYTE + "'", "more than 1,048,576 bytes"),
        ],
        ids=["laughs", "cycle", "merge", "brackets", "keys", "long"],
    )
    def test_texts_that_grow(self, tmp_path: Path, text: str, reason: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        assert reason in refused(option.load_options, path)

    def test_nothing_but_unknown_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(EXPERIMENT + "optim:\n" + "".join(f"  lr_{number}: 1\n" for number in range(2000)))
        message = refused(option.load_options, path)
        assert "2000 faults" in message
        assert message.count("did you mean") == MOST_HINTS

    @pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "a/b", "a\0b"])
    def test_a_run_stays_in_its_folder(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(EXPERIMENT)
        with pytest.raises(InputError, match=r"k_fold\.experiment_name"):
            option.load_options(path, [f"k_fold.experiment_name={json.dumps(name)}"])

    @pytest.mark.parametrize("value", ["1e999", "-.inf", ".nan", "9" * 5000, "0x10"])
    def test_huge_and_odd_numbers(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_text(EXPERIMENT)
        with pytest.raises(InputError, match=r"dataset\.batch_size"):
            option.load_options(path, [f"dataset.batch_size={value}"])


def region_grids(path: Path) -> Path:
    grid = np.zeros((20, 20), np.float32)
    write_regions(path, {"a": (grid, grid), "b": (grid, grid)}, "design", "source")
    return path


class TestRegions:
    def test_a_file_that_announces_more_than_it_stores(self, tmp_path: Path) -> None:
        path = region_grids(tmp_path / "x.h5")
        with h5py.File(path, "a") as file:
            del file["nodes"]
            file.create_dataset("nodes", (10**6, 20, 20), "f4")  # 1.6 GB of which nothing is written
        with little_memory():
            assert "nodes announces 1,600,000,000 bytes and stores 0" in refused(read_regions, path)

    def test_packed_data(self, tmp_path: Path) -> None:
        path = region_grids(tmp_path / "x.h5")
        with h5py.File(path, "a") as file:
            del file["nodes"]
            file.create_dataset("nodes", data=np.zeros((1000, 20, 20), np.float32), compression="gzip")
        assert "packed data are not read" in refused(read_regions, path)

    def test_ranks_behind_a_link(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["captions"] = ["secret"]
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.attrs["format"] = RANKS_FORMAT
            file["image_names"] = ["a"]
            file["captions"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/captions")
            file["fold 0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        assert "captions is a link, which is refused" in refused(read_ranks, tmp_path / "x.h5")

    def test_texts_of_free_length(self, tmp_path: Path) -> None:
        # Fuzzing found damaged files in which HDF5 crashed or went round for ever while it looked for such texts.
        path = region_grids(tmp_path / "x.h5")
        sequence = np.empty(1, dtype=h5py.vlen_dtype(np.float64))
        sequence[0] = np.zeros(3)  # np.array would make numbers of it
        for classes in (["ship"], sequence):
            with h5py.File(path, "a") as file:
                file.attrs.create("classes", classes, dtype=getattr(classes, "dtype", h5py.string_dtype()))
            assert "classes is no list" in refused(read_regions, path)
        with h5py.File(path, "a") as file:
            del file["names"]
            file.create_dataset("names", data=["a", "b"], dtype=h5py.string_dtype())
        assert "names has no fixed width, which is refused: make the file anew" in refused(read_regions, path)

    @pytest.mark.parametrize("classes", ["text", 5, np.array(["x"] * 16, "S1"), np.zeros((2, 2))])
    def test_classes_that_are_no_list(self, tmp_path: Path, classes: object) -> None:
        path = region_grids(tmp_path / "x.h5")
        with h5py.File(path, "a") as file:
            file.attrs["classes"] = classes
        assert "classes is no list of at most 15 names" in refused(read_regions, path)

    def test_numbers_too_large_for_32_bits(self, tmp_path: Path) -> None:
        path = region_grids(tmp_path / "x.h5")
        with h5py.File(path, "a") as file:
            del file["nodes"]
            file["nodes"] = np.full((2, 20, 20), 1e300)
        assert "nodes: 'a' holds numbers that are not finite in 32 bits" in refused(read_regions, path)

    @pytest.mark.parametrize(
        ("operations", "reason"),
        [
            (b"\x80\x02]r\xff\xff\xff\x7f.", "makes room for 2,147,483,647 values"),
            (b"]p4000000000\n.", "makes room for 4,000,000,000 values"),
            (b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b".", "expected 100000000000 bytes"),
            (b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b".", "not a published region file"),
            (b"\x80\x04" + b"]" * 10 + b"a" * 9, "exhausted before seeing STOP"),
            (b"(" * 100_000 + b".", "unexpected MARK found"),
        ],
        ids=["place", "place as text", "bytes", "text", "cut", "marks"],
    )
    def test_pickles_that_claim_memory(self, tmp_path: Path, operations: bytes, reason: str) -> None:
        path = tmp_path / "x.npy"
        path.write_bytes(npy((), operations, "|O"))
        with little_memory():
            assert reason in refused(read_published, path)

    def test_numbers_of_a_pickle_too_large_for_32_bits(self, tmp_path: Path) -> None:
        grid = np.full((20, 20), -1e300)
        np.save(tmp_path / "x.npy", {"local_rep": {"a.txt": grid}, "adj_matrix": {"a.txt": grid}})  # type: ignore[arg-type]
        assert "expected a finite array" in refused(read_published, tmp_path / "x.npy")

    def test_a_sound_pickle_passes_the_check(self) -> None:
        content = pickle.dumps({"a": [1, "x" * 300, (2.5, None)] * 300}, protocol=2)
        check_pickle(io.BytesIO(content))
        with pytest.raises(pickle.UnpicklingError, match=r"asks for os|asks for posix"):
            check_pickle(io.BytesIO(pickle.dumps(os.mkdir, protocol=2)), {"os mkdir", "posix mkdir"})


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header says what it likes, with hardly a pixel in it."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *extra]
    parts += [(b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def tiff(width: int, height: int) -> bytes:
    """A TIFF whose header says what it likes."""
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height), (279, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def saved_as(kind: str, **extra: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 90, 200)).save(file, kind, **extra)
    return file.getvalue()


class TestImages:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("x.jpg", b"The quick brown fox", "not an image of a kind that is read"),
            ("x.png", b"PK\x03\x04" + bytes(200), "not an image of a kind that is read"),
            ("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "not an image of a kind"),
            ("x.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image of a kind that is read"),
            ("x.png", saved_as("GIF")[:60], "damaged or cut short"),
            ("x.jpg", saved_as("WEBP")[:40], "damaged or cut short"),
            ("x.jpg", saved_as("JPEG2000")[:100], "damaged or cut short"),
            ("x.png", gzip.compress(saved_as("PNG")), "not an image of a kind that is read"),
            ("x.png", png(60_000, 60_000), "more pixels than Pillow allows"),
            ("x.png", png(2**31 - 1, 2**31 - 1), "more pixels than Pillow allows"),
            ("x.jpg", png(5000, 5000), "5000 x 5000 pixels, at most 10000000 are allowed"),
            ("x.jpg", tiff(5000, 5000), "5000 x 5000 pixels, at most 10000000 are allowed"),
            ("x.tif", tiff(100_000, 100_000), "more pixels than Pillow allows"),
            ("x.png", png(10, 10, (b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * MEBIBYTE)))), "damaged or cut short"),
            ("x.jpg", saved_as("JPEG")[:300], "damaged or cut short"),
            ("x.tif", tiff(100, 100)[:40], "not an image"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, which commands leave out
    def test_what_is_no_image(self, tmp_path: Path, name: str, content: bytes, reason: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with little_memory():
            assert reason in refused(decode, path, ImageRule(max_pixels=10**7))

    def test_of_an_animation_the_first_image_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jpg"
        path.write_bytes(saved_as("PNG", save_all=True, append_images=[Image.new("RGB", (30, 20))] * 3))
        assert decode(path, ImageRule(max_pixels=600)).getpixel((3, 3)) == (9, 90, 200)

    def test_a_named_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.jpg")
        assert "no regular file" in refused(decode, tmp_path / "x.jpg", 10**6)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with a link to an image and a sound of another folder, and one to an image of its own."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    for place in (folder / "own.png", other / "secret.png"):
        Image.new("RGB", (8, 8)).save(place)
    (other / "secret.wav").write_bytes(TARGETS["sounds"].seeds[0])
    (folder / "link.png").symlink_to(folder / "own.png")
    (folder / "away.png").symlink_to(other / "secret.png")
    return folder


class TestPlaces:
    def test_images_behind_links(self, outside: Path) -> None:
        leads = "'away.png' leads outside of the folder by a symbolic link"
        assert leads in refused(image_names, outside)
        with pytest.raises(InputError, match=leads):
            find_images(outside, ["away.png"])
        assert list(find_images(outside, ["own.png"])) == ["own.png"]
        (outside / "away.png").unlink()
        assert image_names(outside) == ("link.png", "own.png")
        linked = outside.parent / "linked"
        linked.symlink_to(outside)
        assert image_names(linked) == ("link.png", "own.png")  # the folder itself may be a link
        assert list(find_images(linked, ["link.png"])) == ["link.png"]

    def test_sounds_behind_links(self, outside: Path, tmp_path: Path) -> None:
        (outside / "away.wav").symlink_to(tmp_path / "other" / "secret.wav")
        assert "'away.wav' leads outside" in refused(lambda folder: draw_wavs(folder, tmp_path / "out", 1), outside)
        assert not (tmp_path / "out").exists()

    def test_a_prepared_set_takes_nothing_from_outside(self, outside: Path, tmp_path: Path) -> None:
        captions = outside / "captions.txt"
        captions.write_text("own.png\ta ship .\naway.png\ttwo ships .\n")
        with pytest.raises(InputError, match=r"'away\.png' leads outside"):
            prepare(Request(str(outside), tmp_path / "set"))
        captions.write_text("own.png\ta ship .\nlink.png\ttwo ships .\n")
        (outside / "classes.txt").symlink_to(tmp_path / "other" / "secret.png")
        with pytest.raises(InputError, match=r"'classes\.txt' leads outside"):
            prepare(Request(str(outside), tmp_path / "set"))
        assert not (tmp_path / "set").exists()

    @pytest.mark.parametrize(
        "name", ["../x.jpg", "/etc/passwd", "a/../../x", "C:x", "a\\b", ".", "\x1b[2Jx.jpg", "x" * 300]
    )
    def test_names_of_every_source(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "x"
        path.write_text(json.dumps({"images": [{"filename": name, "sentences": [{"raw": "a"}]}]}))
        said = [refused(gathered, path, read_json)]
        path.write_text(f"filepath,caption\n{name},a\n")
        said.append(refused(gathered, path, read_table))
        path.write_text(f"{name}\ta\n")
        said.append(refused(gathered, path, read_table))
        coco = json.loads(TARGETS["detections"].seeds[0])
        coco["images"][0]["file_name"] = name
        path.write_text(json.dumps(coco))
        said.append(refused(read_detections, path))
        for file, content in zip(list_files(tmp_path, "train"), (f"{name}\n", "a\n"), strict=True):
            file.write_text(content)
        said.append(refused(lambda _: read_annotations(tmp_path, "train"), tmp_path))
        for message in said:
            assert any(part in message for part in ("leaves the", "backslash", "control", "longer than", "no file"))
            assert "\x1b" not in message  # nothing reaches the terminal as a command


class TestTexts:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"a\nb\0c\n", "line 2: holds a NUL character"),
            (b"x" * (LONGEST_LINE + 1), "line 1: 10,001 characters, at most 10,000 are read"),
            (b"a\n\xff\xfe\n", "line 2: byte 0xff at byte 1 is not UTF-8"),
            ("a ship\n".encode("utf-16"), "line 1: byte 0xff at byte 1 is not UTF-8"),
            ("a\n".encode("utf-32-be"), "line 1: holds a NUL character"),
        ],
        ids=["NUL", "long", "latin1", "utf-16", "utf-32"],
    )
    def test_lists(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "x.txt").write_bytes(content)
        assert reason in refused(read_lines, tmp_path / "x.txt")

    def test_the_longest_line_and_a_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + b"x" * LONGEST_LINE)
        assert read_lines(tmp_path / "x.txt") == ["x" * LONGEST_LINE]

    @pytest.mark.parametrize(
        "read",
        [
            read_lines,
            read_json,
            read_detections,
            Vocabulary.load,
            option.load_options,
            read_checkpoint,
            read_published,
            read_sound,
            read_places,
        ],
    )
    def test_named_pipes_are_not_waited_for(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        os.mkfifo(tmp_path / "x.txt")
        refused(read, tmp_path / "x.txt")

    def test_a_file_without_end(self) -> None:
        with pytest.raises(ValueError, match="no regular file"):
            read_bytes(Path("/dev/zero"))

    def test_a_file_larger_than_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(bytes(11))
        assert read_bytes(tmp_path / "x", 11) == bytes(11)
        with pytest.raises(ValueError, match="it has more than 10 bytes"):
            read_bytes(tmp_path / "x", 10)

    @pytest.mark.parametrize("open_bracket", ["[", '{"images":', '{"word2idx":', '{"lists":'])
    def test_json_nested_a_hundred_thousand_deep(self, tmp_path: Path, open_bracket: str) -> None:
        path = tmp_path / RECORD
        path.write_text(open_bracket * 100_000)
        for read in (Vocabulary.load, read_json, read_detections, read_places):
            refused(read, path)
        with pytest.raises(InputError, match=r"not a record of data\.prepare"):
            compare_record(tmp_path)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 30, "9" * 5000, "-1", "1.5", "true"])
    def test_json_with_odd_numbers(self, tmp_path: Path, number: str) -> None:
        path = tmp_path / "x.json"
        path.write_text(f'{{"word2idx": {{"{UNKNOWN}": {number}}}, "idx2word": {{"1": "{UNKNOWN}"}}, "idx": 2}}')
        refused(Vocabulary.load, path)
        path.write_text(TARGETS["detections"].seeds[0].decode().replace('"width": 20', f'"width": {number}'))
        if number != "true":  # which counts as 1
            refused(read_detections, path)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("plane 1", "expected 2 numbers after 'plane'"),
            ("plane 1 2 3", "expected 2 numbers after 'plane'"),
            ("plane 1 two", "expected 2 numbers after 'plane'"),
            ("plane nan 1", "expected 2 numbers after 'plane'"),
            ("plane 1 1e300", "expected 2 numbers after 'plane'"),
            ("of 1 2\n" + "x" * (MEBIBYTE + 1), "x.txt:2: more than 1,048,576 bytes"),
        ],
    )
    def test_glove(self, tmp_path: Path, content: str, reason: str) -> None:
        (tmp_path / "x.txt").write_text(content)
        table = nn.Embedding(2, 2)
        before = table.weight.clone()
        with little_memory(), pytest.raises(InputError) as caught:
            load_glove(table, tmp_path / "x.txt", {"plane": 1})
        assert reason in str(caught.value)
        assert torch.equal(table.weight, before)

    @pytest.mark.parametrize("content", ["epoch\n1\n", "epoch,loss\n1\n", "epoch\n" + "x" * 200_000])
    def test_histories(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "history.csv").write_text(content)
        assert "not a training history" in refused(lambda _: read_history(tmp_path), tmp_path)


def wav(rate: int = 16_000, channels: int = 1, bits: int = 16, announced: int = 200, kind: bytes = b"RIFF") -> bytes:
    """A WAV of 100 samples whose header says what it likes."""
    head = struct.pack("<HHIIHH", 1, channels, rate, min(rate * channels * 2, 2**32 - 1), 2 * channels & 0xFFFF, bits)
    wide = b"ds64" + struct.pack("<IQQQI", 28, HUGE, HUGE, HUGE, 0) if kind == b"RF64" else b""
    body = wide + b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", announced) + bytes(range(200))
    return kind + struct.pack("<I", len(body) + 4) + b"WAVE" + body


class TestSounds:
    @pytest.mark.parametrize(
        "content",
        [
            wav(kind=b"RF64", announced=2**32 - 1),
            wav(channels=0),
            wav(channels=65_535),
            wav(rate=0),
            wav(rate=2**32 - 1),
            wav(bits=65_535),
            b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WAVE",
        ],
        ids=["100 GB", "mute", "channels", "still", "fast", "bits", "bare"],
    )
    def test_absurd_headers(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.wav").write_bytes(content)
        with little_memory():
            refused(read_sound, tmp_path / "x.wav")

    def test_the_sound_behind_them_is_sound(self, tmp_path: Path) -> None:
        for announced in (200, 2**31, 2**32 - 1):
            (tmp_path / "x.wav").write_bytes(wav(rate=RATE, announced=announced))
            with little_memory():
                assert len(read_sound(tmp_path / "x.wav")) == 100


ODD = [b"\0", b"\n", b"9" * 25, b"1e999", b"NaN", b'"', b"[" * 99, b"\xff", b"../"]
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 9),
        st.binary(max_size=6) | st.sampled_from(ODD),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """Some bytes taken out, and others put in."""
    for share, gone, added in changes:
        start = round(share * len(content))
        content = content[:start] + added + content[start + gone :]
    return content


class TestAnyBytes:
    """Any bytes give a result that keeps its promises, or an InputError: see `bench.fuzz_targets`."""

    @pytest.mark.parametrize("name", TARGETS)
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_of_a_changed_file(self, name: str, tmp_path: Path, data: st.DataObject) -> None:
        seed = data.draw(st.sampled_from(TARGETS[name].seeds))
        run_target(TARGETS[name], changed(seed, data.draw(CHANGES)), tmp_path)

    @pytest.mark.parametrize("name", TARGETS)
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.binary(max_size=80))
    def test_of_no_file(self, name: str, tmp_path: Path, content: bytes) -> None:
        run_target(TARGETS[name], content, tmp_path)

    @pytest.mark.parametrize("name", TARGETS)
    def test_sound_files_are_taken(self, name: str, tmp_path: Path) -> None:
        assert run_target(TARGETS[name], TARGETS[name].seeds[0], tmp_path)
