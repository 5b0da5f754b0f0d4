"""localize.py from its command line, and the plain path of the benchmark as its slow twin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from rasterio.enums import ColorInterp

import localize
import option
from batches.batch import Captions
from bench import localize as bench
from layers import build_model
from localization.indicators import attention_centres, indicators
from localization.large_image import open_large
from localization.windows import encode_queries, mean_map, score_windows, window_grid
from option.images import ImageRule
from runs.checkpoints import save_checkpoint
from runs.loaders import read_vocabulary
from runs.models import load_model
from tests.data.test_rasters import write
from tests.rasters import north_up
from tests.tiny import make_precomp, write_experiment
from utils import InputError

POLYGON = [[20, 30], [90, 30], [90, 100], [20, 100]]
FILES = ["centres.csv", "localization.json"]
FLAGS = ["--windows", "64,96", "--median", "31"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with untrained weights, an image and annotations."""
    folder = tmp_path_factory.mktemp("localize")
    path = write_experiment(folder, make_precomp(folder / "tiny_precomp"))
    options = option.load_options(path, [])
    vocabulary = read_vocabulary(options)
    torch.manual_seed(0)
    model = build_model(options, vocabulary, load_weights=False)
    save_checkpoint(folder / "model.pth.tar", {"model": model.state_dict(), "vocabulary": vocabulary.digest}, options)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    Image.fromarray(pixels).save(folder / "image.png")
    form = {"crs": "EPSG:32633", "transform": north_up(500_000, 4_600_000, 2), "photometric": "RGB"}
    with rasterio.open(
        folder / "image.tif", "w", driver="GTiff", dtype="uint8", count=3, height=144, width=180, **form
    ) as dataset:
        dataset.write(pixels.transpose(2, 0, 1))
    entries = [
        {"jpg_name": "image.tif", "caption": "a red roof", "points": [POLYGON]},
        {"jpg_name": "image.png", "caption": "a green pond", "points": [POLYGON]},
        {
            "jpg_name": "image.tif",
            "caption": "a blue field",
            "points": [POLYGON, [[100, 100], [179, 99], [120, 144]]],
        },
    ]
    (folder / "anno.json").write_text(json.dumps(entries))
    return folder


def run(folder: Path, *arguments: str, flags: Sequence[str] = FLAGS) -> None:
    checkpoint = ["--checkpoint", str(folder / "model.pth.tar")] if "--checkpoint" not in arguments else []
    localize.main(["--path_opt", str(folder / "tiny.yaml"), "--device", "cpu", *checkpoint, *flags, *arguments])


def test_without_a_model_it_takes_the_ready_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.ready.folder.READY", tmp_path)
    image = ["--image", str(folder / "image.png"), "--query", "red", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"model\.safetensors: this copy of the project has no weights"):
        localize.main(image)
    shutil.copy(folder / "model.pth.tar", tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"options\.yaml of the packed model is missing"):
        localize.main(image)


def test_two_queries_write_maps_drawings_and_coordinates(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(folder / "image.tif")
    run(folder, "--image", image, "--query", "A red roof!", "--query", "blue", "--out", str(tmp_path / "out"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = ["000_a_red_roof", "001_blue"]
    assert names == sorted([f"{s}.{e}" for s in stems for e in ("geojson", "npy", "png", "tif")] + FILES)
    options = option.load_options(folder / "tiny.yaml", [])
    vocabulary = read_vocabulary(options)
    model, _ = load_model(options, vocabulary, folder / "model.pth.tar", torch.device("cpu"))
    windows = window_grid(144, 180, [64, 96])
    texts = encode_queries(model, Captions.encode(["A red roof!", "blue"], vocabulary), torch.device("cpu"))
    with open_large(folder / "image.png", ImageRule()) as large:  # the same pixels
        scores = score_windows(model, large, windows, texts, image_size=64, batch_size=5)
    result = json.loads((tmp_path / "out" / "localization.json").read_text())
    assert (result["windows"], result["median"]) == ([64, 96], 31)
    for stem, own, entry in zip(stems, scores.T, result["queries"], strict=True):
        expected = mean_map(windows, own)
        levels = np.load(tmp_path / "out" / f"{stem}.npy", allow_pickle=False)
        np.testing.assert_array_equal(levels, expected.levels(31))
        with rasterio.open(tmp_path / "out" / f"{stem}.tif") as written:
            np.testing.assert_array_equal(written.read(1), levels)
            assert written.transform == north_up(500_000, 4_600_000, 2)
        with Image.open(tmp_path / "out" / f"{stem}.png") as drawing:
            assert drawing.width == 180
        assert entry["lowest"] == pytest.approx(expected.values.min())
        assert entry["highest"] == pytest.approx(expected.values.max())
        assert entry["attention_centres"] == attention_centres(levels).round(1).tolist()
    assert "000_a_red_roof: attention centres at (x, y)" in capsys.readouterr().out


def test_16_bits_in_another_order_with_nodata_make_the_map_of_the_rest(folder: Path, tmp_path: Path) -> None:
    """Reflectance of 0 to 3060 as blue, green, red, whose right third holds no data: in every file that is written."""
    with Image.open(folder / "image.png") as plain:
        pixels = np.asarray(plain)
    deep = np.where(np.arange(180) < 120, 12 * pixels.transpose(2, 0, 1).astype(np.uint16), 9999)
    kinds = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    form = {"crs": "EPSG:32633", "transform": north_up(500_000, 4_600_000, 2), "nodata": 9999}
    path = write(tmp_path / "deep.tif", deep[::-1], kinds=kinds, **form)
    with open_large(path, ImageRule(range=(0, 3060))) as large:
        np.testing.assert_array_equal(np.asarray(large.read(0, 0, 144, 120).image), pixels[:, :120])
        valid = large.valid()
    assert valid is not None
    assert valid.tolist() == [[column < 120 for column in range(180)]] * 144
    out = tmp_path / "out"
    run(folder, "--image", str(path), "--query", "a red roof", "--out", str(out), "--set", "dataset.range=[0,3060]")
    (entry,) = json.loads((out / "localization.json").read_text())["queries"]
    assert entry["range"] == [0, 3060]
    assert all(x < 120 for x, _ in entry["attention_centres"])
    with rasterio.open(out / "000_a_red_roof.tif") as written:
        np.testing.assert_array_equal(written.dataset_mask() > 0, valid)
    found = json.loads((out / "000_a_red_roof.geojson").read_text())["features"]
    assert {feature["properties"]["kind"] for feature in found} <= {"centre", "area"}
    assert found
    for feature in found:
        points = np.array(feature["geometry"]["coordinates"]).reshape(-1, 2)
        assert (points[:, 0] <= 500_240).all()
    rows = (out / "centres.csv").read_text().splitlines()
    assert len(rows) == 1 + len(entry["attention_centres"])


def test_annotations_give_a_table_and_means(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--annotations", str(folder / "anno.json"), "--images", str(folder), "--out", str(tmp_path))
    result = json.loads((tmp_path / "localization.json").read_text())
    assert [entry["query"] for entry in result["queries"]] == ["a red roof", "a green pond", "a blue field"]
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert not list(tmp_path.glob("*.npy"))
    for name in ("rsu", "ras", "rda", "rmi"):
        values = [entry["indicators"][name] for entry in result["queries"]]
        assert result["mean"][name] == pytest.approx(sum(values) / 3)
    run(folder, "--image", str(folder / "image.tif"), "--query", "a red roof", "--out", str(tmp_path / "alone"))
    levels = np.load(tmp_path / "alone" / "000_a_red_roof.npy", allow_pickle=False)
    alone = indicators(levels, attention_centres(levels), [np.array(POLYGON, dtype=float)])
    assert result["queries"][0]["indicators"] == vars(alone)
    rows = capsys.readouterr().out.splitlines()
    mean = next(row for row in rows if row.startswith("| mean"))
    assert [float(cell) for cell in mean.split("|")[2:6]] == pytest.approx(list(result["mean"].values()), abs=5e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.tif", "--query", "red"], r"none\.tif: no such image"),
        (["--image", "IMAGE", "--query", " .,"], r"--query ' \.,': it has no word"),
        (["--image", "IMAGE", "--query", ""], "it has no word"),
        (["--image", "IMAGE", "--query", "red", "--query", "xylophone <unk>"], "vocabulary has none of its words"),
        (["--image", "IMAGE"], "--image takes one or more --query"),
        (["--image", "IMAGE", "--query", "red", "--images", "x"], "--images belongs to --annotations"),
        (["--annotations", "none.json"], "--annotations takes --images"),
        (["--annotations", "none.json", "--images", "x"], r"none\.json: can't be read"),
        (["--annotations", "x", "--images", "x", "--query", "red"], "no --query"),
        (["--image", "IMAGE", "--query", "red", "--windows", "64,150"], r"180 x 144 pixels .* try --windows 64$"),
        (["--image", "IMAGE", "--query", "red", "--windows", "150"], "try --windows 144"),
        (["--image", "IMAGE", "--query", "red", "--windows", "a"], "--windows a: expected numbers"),
        (["--image", "IMAGE", "--query", "red", "--windows", "1,64"], "at least 2 pixels"),
        (["--image", "IMAGE", "--query", "red", "--median", "30"], "--median 30: expected an odd number"),
        (["--image", "IMAGE", "--query", "red", "--median", "257"], "from 1 to 255"),
        (["--image", "IMAGE", "--query", "red", "--checkpoint", "none.pth"], r"no checkpoint none\.pth"),
        (["--image", "IMAGE", "--query", "red", "--set", "dataset.max_pixels=9"], "at most 9 are allowed"),
    ],
)
def test_a_fault_ends_in_one_message_and_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(folder / "image.tif") if word == "IMAGE" else word for word in arguments]
    with pytest.raises(InputError, match=message):
        run(folder, *given, "--out", "out")
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(folder: Path) -> None:
    with pytest.raises(InputError, match="this is a file"):
        run(folder, "--image", "x", "--query", "red", "--out", str(folder / "image.png"))


def test_an_image_cut_short(folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.tif"
    short.write_bytes((folder / "image.tif").read_bytes()[:-20_000])
    with pytest.raises(InputError, match=r"short\.tif: the image is damaged or cut short"):
        run(folder, "--image", str(short), "--query", "red", "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": [[[0, 0], [181, 0], [5, 5]]]}, r"0\.points\.0\.1: \[181\.0, 0\.0\] lies outside of image\.png"),
        ({"caption": "xylophone"}, r"anno\.json: 0\.caption 'xylophone'"),
        ({"jpg_name": "none.png"}, r"none\.png: no such image"),
    ],
)
def test_a_fault_of_an_annotation_has_its_place(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    entry = {"jpg_name": "image.png", "caption": "red", "points": [POLYGON], **change}
    (tmp_path / "anno.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=message):
        run(folder, "--annotations", str(tmp_path / "anno.json"), "--images", str(folder), "--out", str(tmp_path / "o"))


def test_a_model_that_needs_regions_is_refused(folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((folder / "tiny.yaml").read_text())
    content["model"] = {"name": "GaLR", "backbone": {"pretrained": "none"}}
    content["dataset"]["local_path"] = "regions.h5"
    (tmp_path / "galr.yaml").write_text(yaml.safe_dump(content))
    arguments = ["--checkpoint", "x", "--image", "x", "--query", "red", "--out", "x"]
    with pytest.raises(InputError, match="GaLR reads regions"):
        localize.main(["--path_opt", str(tmp_path / "galr.yaml"), *arguments])


def test_the_plain_path_makes_the_same_map(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One window at a time through PNG files and a loop over the pixels."""
    files = ["--path_opt", str(folder / "tiny.yaml"), "--checkpoint", str(folder / "model.pth.tar"), "--device", "cpu"]
    given = ["--image", str(folder / "image.tif"), "--query", "a red roof", "--query", "blue", "--windows", "64,96"]
    sizes = ["--part", "128", "--sample", "3", "--rows", "2", "--json", str(tmp_path / "bench.json")]
    bench.main([*files, *given, *sizes])
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["differences"]["mean_lossless"] <= bench.MEAN_TOLERANCE
    assert result["differences"]["levels_lossless"] <= bench.LEVEL_TOLERANCE
    assert result["differences"]["mean_jpeg"] > result["differences"]["mean_lossless"]
    assert result["ours"]["windows"] == len(window_grid(144, 180, [64, 96]))
    assert (result["plain"]["sample"], result["plain"]["rows"]) == (3, 2)
    assert "all, 2 queries" in capsys.readouterr().out
