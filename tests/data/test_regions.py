"""Regions: from boxes to nodes and graph, the file's form, what is refused, the built-in proposals and the commands."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.regions import __main__ as commands
from data.regions.coco import read_detections
from data.regions.file import by_region_name, read_regions, region_fields, region_name, write_regions
from data.regions.graph import (
    CLASSES,
    SCORE,
    WIDTH,
    Detections,
    box_overlaps,
    cosine,
    distinct,
    graph,
    region_arrays,
)
from data.regions.proposals import APPEARANCES, borders, describe, elongation, propose, segment
from data.regions.published import read_published
from option.images import ImageRule
from utils import InputError


def detections(*objects: tuple[float, float, float, float, int, float]) -> Detections:
    """Centre x, centre y, width, height, class, score of each object."""
    table = np.array(objects, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4].astype(np.int64), table[:, 5])


def random_detections(count: int, seed: int = 0) -> Detections:
    draw = np.random.default_rng(seed)
    boxes = np.hstack([draw.random((count, 2)), draw.random((count, 2)) * 0.2]).astype(np.float32)
    scores = draw.random(count).astype(np.float32)
    return Detections(boxes, draw.integers(0, CLASSES, count), scores)


class TestGraph:
    def test_a_row_by_hand(self) -> None:
        nodes, adjacency = region_arrays(detections((0.5, 0.25, 0.2, 0.1, 3, 0.8)))
        row = np.zeros(WIDTH, np.float32)
        row[3], row[15:] = 0.8, (0.5, 0.25, 0.2, 0.1, 0.8)
        assert np.array_equal(nodes[0], row)
        assert not nodes[1:].any()
        assert adjacency[0, 0] == 1
        assert adjacency.sum() == 1

    def test_adjacency_by_hand(self) -> None:
        # rows (score, cx, cy, w, h, score): classes differ, so the cosine comes from the boxes and the score
        pair = detections((0.5, 0.5, 0.4, 0.5, 0, 1.0), (0.5, 0.5, 0.2, 0.5, 1, 0.5))
        dot = 0.25 + 0.25 + 0.08 + 0.25 + 0.5
        norms = np.sqrt(1 + 0.25 + 0.25 + 0.16 + 0.25 + 1) * np.sqrt(0.25 + 0.25 + 0.25 + 0.04 + 0.25 + 0.25)
        similarity = dot / norms
        saliency = (0.5 * 0.2 * 0.5) / (1.0 * 0.4 * 0.5)
        expected = [
            [1 / (1 + similarity * saliency), similarity * saliency / (1 + similarity * saliency)],
            [similarity / (1 + similarity), 1 / (1 + similarity)],
        ]
        assert np.allclose(graph(pair.rows), expected, atol=1e-6)

    def test_near_duplicates_leave_the_better_one(self) -> None:
        same = ((0.5, 0.5, 0.2, 0.2, 0, 0.6), (0.51, 0.5, 0.2, 0.2, 1, 0.9), (0.1, 0.1, 0.1, 0.1, 2, 0.3))
        nodes, _ = region_arrays(detections(*same))
        assert nodes[:4, SCORE].tolist() == pytest.approx([0.9, 0.3, 0, 0])
        assert (region_arrays(detections(*same), max_iou=1)[0][:3, SCORE] > 0).all()
        alike = ((0.50, 0.5, 0.01, 0.01, 0, 0.9), (0.52, 0.5, 0.01, 0.01, 0, 0.8))
        assert (region_arrays(detections(*alike), max_cosine=0.9999)[0][:, SCORE] > 0).sum() == 2
        assert (region_arrays(detections(*alike), max_cosine=0.99)[0][:, SCORE] > 0).sum() == 1

    def test_at_most_twenty_the_best_first(self) -> None:
        many = random_detections(200)
        nodes, adjacency = region_arrays(many, max_iou=1, max_cosine=1)
        assert np.array_equal(nodes[:, SCORE], np.sort(many.scores)[::-1][:20])
        assert np.allclose(adjacency.sum(axis=1), 1, atol=1e-6)
        assert (adjacency >= 0).all()

    def test_any_number_of_detections_takes_little_memory(self) -> None:
        many, one = random_detections(20_000), np.ones(20_000, np.float32)
        alike = Detections(np.tile(many.boxes[:1], (20_000, 1)), np.zeros(20_000, np.int64), one)
        tracemalloc.start()
        nodes = [region_arrays(detections)[0] for detections in (many, alike)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50 * 2**20
        assert [int((rows != 0).any(axis=1).sum()) for rows in nodes] == [20, 1]

    @given(seed=st.integers(0, 10**6), count=st.integers(0, 60))
    @settings(max_examples=25, deadline=None)
    def test_kept_are_those_that_a_whole_table_keeps(self, seed: int, count: int) -> None:
        found = random_detections(count, seed)
        overlaps, cosines = box_overlaps(found.boxes, found.boxes), cosine(found.rows, found.rows)
        kept: list[int] = []
        for index in np.lexsort((*found.rows.T[:SCORE], -found.scores)).tolist():
            if len(kept) < 20 and all(overlaps[index, k] <= 0.1 and cosines[index, k] <= 0.9 for k in kept):
                kept.append(index)
        assert distinct(found, 0.1, 0.9) == kept

    @given(seed=st.integers(0, 10**6), count=st.integers(0, 30))
    @settings(max_examples=25, deadline=None)
    def test_the_order_of_the_detections_does_not_matter(self, seed: int, count: int) -> None:
        one = random_detections(count, seed)
        order = np.random.default_rng(seed + 1).permutation(count)
        other = Detections(one.boxes[order], one.classes[order], one.scores[order])
        for first, second in zip(region_arrays(one), region_arrays(other), strict=True):
            assert np.array_equal(first, second)

    def test_overlap_pixel_by_pixel(self) -> None:
        boxes = np.array([[3, 3, 4, 4], [5, 4, 4, 6], [9, 9, 2, 2], [3, 3, 4, 4]], dtype=np.float32)
        masks = np.zeros((4, 12, 12), dtype=bool)
        for mask, (x, y, width, height) in zip(masks, boxes.astype(int), strict=True):
            mask[y - height // 2 : y + height // 2, x - width // 2 : x + width // 2] = True
        for i, j in itertools.product(range(4), repeat=2):
            expected = (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
            assert box_overlaps(boxes, boxes)[i, j] == pytest.approx(expected, abs=1e-6)


def arrays(names: list[str]) -> dict[str, tuple[Any, Any]]:
    draw = np.random.default_rng(0)
    return {name: tuple(draw.random((2, 20, 20)).astype(np.float32)) for name in names}


def message(call: Any, *given: Any) -> str:
    with pytest.raises(InputError) as fault:
        call(*given)
    return str(fault.value)


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        given = arrays(["b", "a/été", "v1.5_x"])
        write_regions(tmp_path / "r.h5", given, "a design", "a source", ["plane", "ship"])
        file = read_regions(tmp_path / "r.h5")
        found = file.of(["a/été.jpg", "b.tif", "v1.5_x.png"], "error")
        for row, name in enumerate(["a/été", "b", "v1.5_x"]):
            assert torch.equal(found.nodes[row], torch.from_numpy(given[name][0]))
            assert torch.equal(found.adjacency[row], torch.from_numpy(given[name][1]))
        assert file.classes == ("plane", "ship")
        with h5py.File(tmp_path / "r.h5") as content:
            assert (content.attrs["design"], content.attrs["source"]) == ("a design", "a source")
        fields = region_fields(found, torch.tensor([2, 0]))
        assert torch.equal(fields["nodes"], found.nodes[[2, 0]])
        assert region_fields(None, torch.tensor([0])) == {}

    def test_the_same_content_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("one.h5", "two.h5"):
            write_regions(tmp_path / name, arrays(["a", "b"]), "d", "s")
        assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()

    def test_images_without_regions(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_regions(tmp_path / "r.h5", arrays(["a", "b"]), "d", "s")
        file = read_regions(tmp_path / "r.h5")
        names = ["a.jpg", *(f"{number}.jpg" for number in range(8)), "b.jpg"]
        text = message(file.of, names, "error")
        assert "8 of 10 images have no regions" in text
        assert "4.jpg\n  ... and 3 more" in text
        assert "5.jpg" not in text
        assert "dataset.missing_regions=zeros" in text
        found = file.of(names, "zeros")
        assert "8 of 10 images have no regions" in caplog.text
        assert found.nodes.flatten(1).any(dim=1).tolist() == [True] + [False] * 8 + [True]
        assert not found.adjacency[1:9].any()
        assert file.nodes.any(axis=(1, 2)).all()  # the file's own arrays stay

    def test_no_file_and_the_published_form_name_the_command(self, tmp_path: Path) -> None:
        assert "python -m data.regions build" in message(read_regions, tmp_path / "r.h5")
        np.save(tmp_path / "r.npy", np.zeros(3))
        assert f"convert {tmp_path / 'r.npy'} {tmp_path / 'r.h5'}" in message(read_regions, tmp_path / "r.npy")

    @pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
    def test_content_in_another_file_is_refused(self, tmp_path: Path, kind: str) -> None:
        write_regions(tmp_path / "other.h5", arrays(["a"]), "d", "s")
        write_regions(tmp_path / "r.h5", arrays(["a"]), "d", "s")
        (tmp_path / "raw").write_bytes(bytes(1600))
        with h5py.File(tmp_path / "r.h5", "a") as file:
            del file["nodes"]
            if kind == "external link":
                file["nodes"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/nodes")
            elif kind == "soft link":
                file["nodes"] = h5py.SoftLink("/adjacency")
            elif kind == "external storage":
                raw = [(str(tmp_path / "raw"), 0, 1600)]
                file.create_dataset("nodes", (1, 20, 20), "f4", external=raw)
            else:
                layout = h5py.VirtualLayout((1, 20, 20), "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "nodes", (1, 20, 20))
                file.create_virtual_dataset("nodes", layout)
        assert "nodes is" in message(read_regions, tmp_path / "r.h5")

    @pytest.mark.parametrize(
        ("key", "value", "fault"),
        [
            ("nodes", np.full((2, 20, 20), np.nan, np.float32), "nodes: 'a' holds numbers that are not finite"),
            ("nodes", np.zeros((3, 20, 20), np.float32), "nodes: shape (3, 20, 20) of float32, expected (2, 20, 20)"),
            ("adjacency", np.zeros((2, 20, 20), np.int64), "adjacency: shape (2, 20, 20) of int64"),
            ("adjacency", None, "no data set adjacency"),
            ("names", np.array(["a", "a"], "S1"), "names: 'a' comes 2 times"),
            ("names", [1, 2], "not a region file"),
        ],
    )
    def test_faults(self, tmp_path: Path, key: str, value: Any, fault: str) -> None:
        write_regions(tmp_path / "r.h5", arrays(["a", "b"]), "d", "s")
        with h5py.File(tmp_path / "r.h5", "a") as file:
            del file[key]
            if value is not None:
                file[key] = value
        assert fault in message(read_regions, tmp_path / "r.h5")

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "r.h5").write_text("no HDF5")
        assert "not a region file" in message(read_regions, tmp_path / "r.h5")

    @pytest.mark.parametrize("name", ["a\0b", "a\udce9"])
    def test_a_name_that_can_not_be_stored(self, tmp_path: Path, name: str) -> None:
        given = arrays([name])
        assert "an image's name can't be stored" in message(write_regions, tmp_path / "r.h5", given, "d", "s")
        assert not (tmp_path / "r.h5").exists()

    def test_names(self) -> None:
        assert [region_name(name) for name in ("12.jpg", "a/b.c.tif", "x")] == ["12", "a/b.c", "x"]
        assert "differ in their ending alone" in message(by_region_name, ["a/b.jpg", "a/b.png"])


def published(count: int = 3, dtype: str = "<f8") -> dict[str, Any]:
    draw = np.random.default_rng(1)
    return {
        key: {f"image_{number}.txt": np.asarray(draw.random((20, 20)), dtype) for number in range(count)}
        for key in ("local_rep", "adj_matrix")
    }


def save_pickled(path: Path, value: object, protocol: int) -> None:
    """An `.npy` as older NumPy versions and Pythons wrote it."""
    holder = np.empty((), dtype=object)
    holder[()] = value
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(holder, file, protocol=protocol)


class _Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class TestPublished:
    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
    @pytest.mark.parametrize("dtype", ["<f8", "<f4", ">f4"])
    def test_converts(self, tmp_path: Path, dtype: str, protocol: int) -> None:
        content = published(dtype=dtype)
        content["adj_matrix"]["image_1.txt"] = np.asfortranarray(content["adj_matrix"]["image_1.txt"])
        save_pickled(tmp_path / "p.npy", content, protocol)
        commands.main(["convert", str(tmp_path / "p.npy"), str(tmp_path / "r.h5")])
        found = read_regions(tmp_path / "r.h5").of([f"image_{number}.jpg" for number in range(3)], "error")
        for number in range(3):
            for values, key in ((found.nodes, "local_rep"), (found.adjacency, "adj_matrix")):
                expected = content[key][f"image_{number}.txt"].astype("<f4")
                assert torch.equal(values[number], torch.from_numpy(np.ascontiguousarray(expected)))
        with h5py.File(tmp_path / "r.h5") as file:
            assert "never published" in file.attrs["design"]

    def test_converts_what_numpy_saves(self, tmp_path: Path) -> None:
        np.save(tmp_path / "p.npy", published(2))  # type: ignore[arg-type]
        assert list(read_published(tmp_path / "p.npy")) == ["image_0", "image_1"]

    def test_code_is_refused_by_name_and_does_not_run(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"
        for number, (call, name) in enumerate(
            [
                (_Calls(os.mkdir, str(ran)), f"{os.mkdir.__module__}.mkdir"),
                (_Calls(os.system, f"touch {ran}"), f"{os.system.__module__}.system"),
                (_Calls(eval, f"__import__('os').mkdir({str(ran)!r})"), "eval"),
                (_Calls(Path.touch, ran), "Path"),
                (_Calls(getattr, 1, "real"), "getattr"),
                (_Calls(np.load, "x.npy"), "load"),
                (np.float64(1), "scalar"),
            ]
        ):
            content = published()
            content["local_rep"]["image_1.txt"] = call
            path = tmp_path / f"{number}.npy"
            save_pickled(path, content, 4)
            text = message(commands.main, ["convert", str(path), str(tmp_path / "r.h5")])
            assert "was refused: it asks for" in text
            assert name in text
        assert not ran.exists()
        assert not (tmp_path / "r.h5").exists()
        # the same file does run code where it is loaded without care: the test above can fail
        np.load(tmp_path / "0.npy", allow_pickle=True)
        assert ran.exists()

    def test_array_types_other_than_numbers_are_refused(self, tmp_path: Path) -> None:
        for value in (np.array(["a"]), np.zeros(2, [("x", "f4")]), np.array(["2020"], "M8[s]")):
            save_pickled(tmp_path / "p.npy", {"local_rep": {"a.txt": value}, "adj_matrix": {}}, 4)
            assert "only numbers are read" in message(read_published, tmp_path / "p.npy")

    def test_faults_name_the_entries(self, tmp_path: Path) -> None:
        wrong = [np.zeros((20, 19)), np.full((20, 20), np.inf), [[1.0]], np.array([{}], dtype=object), None]
        for value in wrong:
            content = published()
            content["adj_matrix"]["image_2.txt"] = value
            save_pickled(tmp_path / "p.npy", content, 4)
            assert "adj_matrix['image_2.txt']: expected a finite array of 20 x 20" in message(
                read_published, tmp_path / "p.npy"
            )
        content = published()
        del content["adj_matrix"]["image_0.txt"]
        save_pickled(tmp_path / "p.npy", content, 4)
        assert "image_0: in local_rep or adj_matrix, but not in both" in message(read_published, tmp_path / "p.npy")
        others: list[object] = [[1, 2], {"local_rep": {}}, {"local_rep": {}, "adj_matrix": {}}]
        for other in others:
            save_pickled(tmp_path / "p.npy", other, 4)
            assert "p.npy" in message(read_published, tmp_path / "p.npy")
        np.save(tmp_path / "p.npy", np.zeros(3))
        assert "expected one pickled dictionary" in message(read_published, tmp_path / "p.npy")
        assert "can't be read" in message(read_published, tmp_path / "absent.npy")

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_damaged_bytes_end_in_a_message(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("damaged") / "p.npy"
        save_pickled(path, published(1), data.draw(st.sampled_from([0, 2, 4])))
        content = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, 400), max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            found = read_published(path)
        except InputError:
            return
        assert all(array.shape == (20, 20) for pair in found.values() for array in pair)


COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 9, "file_name": "b/c.png", "width": 10, "height": 10, "license": 1},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 30, "bbox": [20, 10, 40, 50], "score": 0.5},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [150, -20, 100, 40]},
        {"id": 3, "image_id": 7, "category_id": 4, "bbox": [300, 10, 20, 20]},
    ],
    "categories": [{"id": 30, "name": "ship"}, {"id": 4, "name": "plane"}],
}


def coco(folder: Path, **changes: Any) -> Path:
    path = folder / "detections.json"
    path.write_text(json.dumps(COCO | changes))
    return path


class TestDetections:
    def test_boxes_in_units_of_the_image(self, tmp_path: Path) -> None:
        found, classes = read_detections(coco(tmp_path))
        assert classes == ["plane", "ship"]
        assert np.allclose(found["a.jpg"].boxes, [[0.2, 0.35, 0.2, 0.5], [0.875, 0.1, 0.25, 0.2]])
        assert found["a.jpg"].classes.tolist() == [1, 0]
        assert found["a.jpg"].scores.tolist() == [0.5, 1.0]
        assert found["b/c.png"].boxes.shape == (0, 4)

    def test_build_and_its_label(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "r.h5"
        commands.main(["build", "--detections", str(coco(tmp_path)), "--out", str(out)])
        assert "regions of 2 images (detections of detections.json), 1.0 per image, 1 images without any" in (
            capsys.readouterr().out
        )
        file = read_regions(out)
        assert list(file.row) == ["a", "b/c"]
        assert file.nodes[0, :2, SCORE].tolist() == [1.0, 0.5]
        assert not file.nodes[1].any()
        with h5py.File(out) as content:
            assert "own design, not the published DREA" in content.attrs["design"]
            assert [name.decode() for name in content.attrs["classes"]] == ["plane", "ship"]

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"images": []}, "images: List should have at least 1 item"),
            ({"categories": None}, "categories: "),
            ({"annotations": [{"image_id": 7, "category_id": 4, "bbox": [1, 2, 3]}]}, "annotations.0.bbox.3: "),
            ({"annotations": [COCO["annotations"][0] | {"score": 1.5}]}, "annotations.0.score: "),
            ({"annotations": [COCO["annotations"][0] | {"image_id": 8}]}, "annotations.0: no image has the id 8"),
            ({"annotations": [COCO["annotations"][0] | {"category_id": 8}]}, "annotations.0: no category has the id"),
            ({"images": COCO["images"][:1] * 2}, "images: id 7 comes 2 times"),
            ({"categories": [{"id": i, "name": "x"} for i in range(16)]}, "16 categories, at most 15 have a column"),
        ],
    )
    def test_faults(self, tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
        assert fault in message(read_detections, coco(tmp_path, **changes))

    def test_a_bare_list_is_told_what_to_do(self, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text(json.dumps(COCO["annotations"]))
        assert "A bare list of results goes under the key annotations" in message(
            read_detections, tmp_path / "results.json"
        )


def scene(path: Path, side: int = 96) -> Path:
    """A bright roof and a blue pond on dull ground."""
    pixels = np.full((side, side, 3), (90, 100, 80), dtype=np.uint8)
    pixels[side // 8 : side // 4, side // 2 : 7 * side // 8] = (230, 225, 220)
    pixels[side // 2 : 3 * side // 4, side // 8 : 3 * side // 8] = (30, 60, 160)
    Image.fromarray(pixels).save(path)
    return path


class TestProposals:
    def test_finds_what_is_there(self, tmp_path: Path) -> None:
        nodes, _ = region_arrays(propose(scene(tmp_path / "a.png"), ImageRule()))
        best = nodes[:2]
        assert [APPEARANCES[row[:CLASSES].argmax()] for row in best] == ["long grey", "broad blue"]
        expected = [[11 / 16, 3 / 16, 3 / 8, 1 / 8], [1 / 4, 5 / 8, 1 / 4, 1 / 4]]
        assert np.allclose(best[:, CLASSES:SCORE], expected, atol=1e-6)

    def test_even_ground_has_no_objects(self, tmp_path: Path) -> None:
        Image.new("RGB", (64, 64), (10, 90, 30)).save(tmp_path / "even.png")
        assert len(propose(tmp_path / "even.png", ImageRule()).scores) == 0

    def test_segments_by_hand(self) -> None:
        pixels = np.zeros((6, 9, 3))
        pixels[:, 3:6] = 200
        pixels[2, 7] = 250  # a single pixel joins what is around it
        labels = segment(pixels, evenness=50, smallest=3)
        expected = np.repeat([[0, 1, 2]], 6, axis=0).repeat(3, axis=1)
        assert np.array_equal(np.unique(labels), [0, 1, 2])
        for column in range(9):
            assert len(np.unique(labels[:, column])) == 1
        assert np.array_equal(labels[0] == labels[0, 0], expected[0] == 0)
        assert np.array_equal(labels[0] == labels[0, 4], expected[0] == 1)

    def test_contrast_step_by_step(self) -> None:
        draw = np.random.default_rng(3)
        labels = draw.integers(0, 4, (7, 8))
        labels[0, :4] = range(4)
        colour = draw.random((4, 3)) * 255
        steps: dict[int, list[float]] = {label: [] for label in range(4)}  # of each pair of pixels on its border
        for y, x in itertools.product(range(7), range(8)):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < 7 and u < 8 and labels[y, x] != labels[v, u]:
                    for label in (labels[y, x], labels[v, u]):
                        steps[int(label)].append(float(np.linalg.norm(colour[labels[y, x]] - colour[labels[v, u]])))
        expected = [min(sum(found) / len(found) / 255, 1) for found in steps.values()]
        contrast, lengths = borders(colour, labels)
        assert np.allclose(contrast, expected)
        assert lengths.tolist() == [len(found) for found in steps.values()]

    def test_elongation_of_a_bar(self) -> None:
        rows, columns = (axis.ravel() for axis in np.mgrid[:2, :10])
        flat = np.zeros(20, dtype=np.int64)
        assert elongation(flat, rows, columns)[0] == pytest.approx(5)  # moments of a bar: side squared over 12

    def test_what_covers_more_than_half_is_ground(self) -> None:
        labels = np.zeros((10, 10), dtype=np.int64)
        labels[2:4, 3:8] = 1
        pixels = np.where(labels[..., None] == 1, 200.0, 50.0).repeat(3, axis=2)
        found = describe(pixels, labels)
        assert np.allclose(found.boxes, [[0.55, 0.3, 0.5, 0.2]])
        # 150 * sqrt(3) grey levels are more than 255; 10 pixels in a border of 14 are 20 / 14 pixels thick, of 4
        assert found.scores[0] == pytest.approx(20 / 14 / 4)

    def test_any_number_of_workers_gives_the_same_file(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "deeper").mkdir(parents=True)
        for number in range(3):
            scene(tmp_path / "in" / f"{number}.png", 40 + 10 * number)
        scene(tmp_path / "in" / "deeper" / "x.tif")
        (tmp_path / "in" / "notes.txt").write_text("no image")
        for workers in ("1", "2"):
            out = str(tmp_path / f"{workers}.h5")
            commands.main(["build", "--images", str(tmp_path / "in"), "--out", out, "--workers", workers])
        assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()
        assert list(read_regions(tmp_path / "1.h5").row) == ["0", "1", "2", "deeper/x"]

    def test_unreadable_images_are_named_and_nothing_is_written(self, tmp_path: Path) -> None:
        scene(tmp_path / "good.png")
        (tmp_path / "bad.jpg").write_bytes(b"")
        arguments = ["build", "--images", str(tmp_path), "--out", str(tmp_path / "r.h5"), "--workers", "1"]
        assert "1 of 2 images can't be read:\n" in (text := message(commands.main, arguments))
        assert "bad.jpg: the image is empty" in text
        assert not (tmp_path / "r.h5").exists()
        assert "no image there" in message(commands.main, ["build", "--images", str(tmp_path / "none"), *arguments[3:]])


class TestShow:
    def test_draws_boxes_and_edges(self, tmp_path: Path) -> None:
        image = scene(tmp_path / "a.png")
        build = ["build", "--images", str(tmp_path), "--out", str(tmp_path / "r.h5"), "--workers", "1"]
        commands.main(build)
        commands.main(["show", str(image), "--regions", str(tmp_path / "r.h5"), "--out", str(tmp_path / "s.jpg")])
        with Image.open(tmp_path / "s.jpg") as image_of_them:
            assert image_of_them.format == "PNG"
            drawn = np.asarray(image_of_them)
        plain = np.asarray(Image.open(image).resize((640, 640), Image.Resampling.BICUBIC))
        changed = (drawn[:640, :640] != plain).any(axis=2)
        row = read_regions(tmp_path / "r.h5").nodes[0, 1]
        x, y, width, height = (row[CLASSES:SCORE] * 640).tolist()
        assert changed[round(y), round(x - width / 2)]  # left side of the second box
        assert changed[round(y + height / 2), round(x)]
        assert 0.001 < changed.mean() < 0.1

    def test_what_can_not_be_drawn(self, tmp_path: Path) -> None:
        image = scene(tmp_path / "a.png")
        write_regions(tmp_path / "r.h5", arrays(["a"]), "d", "s")
        rest = ["--regions", str(tmp_path / "r.h5"), "--out", str(tmp_path / "s.png")]
        assert "meaning of its columns is not known" in message(commands.main, ["show", str(image), *rest])
        assert "no regions of b" in message(commands.main, ["show", str(tmp_path / "b.png"), *rest])


def test_real_images_have_regions() -> None:
    if "RSR_DATA" not in os.environ:
        pytest.skip("RSR_DATA is not set")
    folder = Path(os.environ["RSR_DATA"]) / "data" / "ucm_precomp" / "images"
    for name in ("105.jpg", "1310.jpg", "1950.jpg"):
        nodes, adjacency = region_arrays(propose(folder / name, ImageRule()))
        assert (nodes[:, SCORE] > 0).sum() >= 15
        assert (nodes[:, CLASSES:SCORE] <= 1).all()
        assert np.allclose(adjacency.sum(axis=1)[nodes[:, SCORE] > 0], 1, atol=1e-6)
