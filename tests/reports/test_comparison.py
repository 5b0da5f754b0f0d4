"""Several experiments on one page: the numbers of the table, and a line of each in every chart."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from reports.experiments import read_experiment, spread_over_folds, table
from reports.export import RANKS_FORMAT
from reports.html.__main__ import main
from tests.reports.test_experiments import finished
from tests.reports.test_html_report import parse, section
from utils import InputError


def ranked(folder: Path, captions: list[int]) -> None:
    """The ranks of one fold: two images with a caption each."""
    with h5py.File(folder / "ranks.h5", "w") as file:
        file.attrs["format"] = RANKS_FORMAT
        file["image_names"], file["captions"], file["caption_image"] = ["1.jpg", "2.jpg"], ["a", "b"], [0, 1]
        fold = file.create_group("fold 0")
        fold["image_ranks"], fold["caption_ranks"] = [0, 0], captions


def test_the_page_has_the_tables_numbers(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "a", [10.0, 14.0], [20.0, 22.0], loss="triplet"),
        finished(tmp_path / "b<i>", [30.0, 31.0], [24.0, 24.0], loss="dynamic"),
    ]
    test = json.loads((folders[0] / "test.json").read_text())
    (folders[0] / "test.json").write_text(json.dumps(test | {"parameters": {"trained": 1200, "all": 34000}}))
    (folders[0] / "0" / "record.json").write_text('[{"started": "2026-03-01T10:00:00+00:00", "commit": "abc+"}]')
    for folder, places in zip(folders, ([0, 1], [0, 0]), strict=True):
        ranked(folder, places)
    main([*map(str, folders), "--out", str(tmp_path / "page.html")])
    page = parse((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("i")
    experiments = [read_experiment(folder) for folder in folders]
    _, *expected = table(experiments, spread_over_folds(experiments))
    rows = section(page, "scores").all("tbody")[0].all("tr")
    assert [[cell.text for cell in row.all("th") + row.all("td")] for row in rows] == [
        [cell.strip("*") for cell in cells] for cells in expected
    ]
    assert [bold.text for bold in section(page, "scores").all("b")] == ["+18.50"]  # standard error 1.68
    legends = [[key.text for key in figure.all("li")] for figure in section(page, "ranks").all("figure")]
    assert legends == [["chance", "a", "b<i>"]] * 2
    _, of_captions = section(page, "ranks").all("svg")
    ends = [line.attributes["points"].split()[0].split(",")[1] for line in of_captions.all("polyline")]
    assert ends == ["121.0", "121.0", "12.0"]  # R@1 of 50 % by chance and for a, of 100 % for b
    assert [len(figure.all("polyline")) for figure in section(page, "training").all("figure")] == [2, 2]
    made = [[cell.text for cell in row.all("td")] for row in section(page, "made").all("tbody")[0].all("tr")]
    assert made == [["34,000", "1,200", "2", "", "2026-03-01", "abc+"], ["", "", "2", "", "", ""]]


def test_single_folds_have_a_page_too(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "a", [10.0], [20.0]), finished(tmp_path / "b", [31.0], [24.0])]
    main([*map(str, folders), "--out", str(tmp_path / "page.html")])
    page = parse((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "+21.00" in section(page, "scores").text
    assert not section(page, "scores").all("b")
    assert [node.attributes["id"] for node in page.all("section")] == ["scores", "training", "made"]


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    folders = [finished(tmp_path / parent / "a", [10.0], [20.0]) for parent in ("one", "two")]
    for folder in folders:
        ranked(folder, [0, 1])
    main([*map(str, folders), "--out", str(tmp_path / "page.html")])
    page = parse((tmp_path / "page.html").read_text(encoding="utf-8"))
    for figure in section(page, "ranks").all("figure"):
        assert [key.text for key in figure.all("li")] == ["chance", *map(str, folders)]
    rows = section(page, "scores").all("tbody")[0].all("tr")
    assert [row.all("th")[0].text for row in rows] == list(map(str, folders))


def test_an_untested_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the result of a test"):
        main([str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()
