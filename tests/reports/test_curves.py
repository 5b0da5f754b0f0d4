"""Tables, CSV and curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reports.curves import draw_curves, main
from reports.history import read_history
from reports.tables import RECALLS, recall_table
from utils import InputError, as_csv, markdown


def scores(start: float) -> dict[str, float]:
    return {name: start + place for place, name in enumerate(RECALLS)}


def test_markdown_is_aligned() -> None:
    assert markdown([["", "R@1"], ["fold 0", "7.50"], ["chance", "10.00"]]) == (
        "|        |   R@1 |\n| ------ | ----: |\n| fold 0 |  7.50 |\n| chance | 10.00 |"
    )


def test_table_has_folds_mean_and_chance() -> None:
    mean = {name: (value + 1, 1.5) for name, value in scores(10).items()}
    lines = markdown(recall_table({"fold 0": scores(10), "fold 1": scores(12)}, mean, {"chance": scores(1)})).split(
        "\n"
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "I→T R@1", "R@5", "R@10", "T→I R@1", "R@5", "R@10", "mR"]
    assert cells[2] == ["fold 0", "10.00", "11.00", "12.00", "13.00", "14.00", "15.00", "16.00"]
    assert cells[3][0] == "fold 1"
    assert cells[4][:2] == ["mean ± sd", "11.00 ± 1.50"]
    assert cells[5][-1] == "7.00"
    assert len({len(line) for line in lines}) == 1


def test_one_row_needs_no_mean() -> None:
    limits = {"chance": scores(1), "scene class alone": {}, "ceiling": scores(90)}
    table = recall_table({"best": scores(10)}, {name: (value, 0.0) for name, value in scores(10).items()}, limits)
    assert [row[0] for row in table] == ["", "best", "chance", "ceiling"]
    assert table[-1][1] == "90.00"


def test_csv_leaves_missing_values_empty() -> None:
    rows = list(csv.reader(io.StringIO(as_csv([{"epoch": 1.0, "loss": 0.1 + 0.2}, {"epoch": 2.0, "val": 3}]))))
    assert rows == [["epoch", "loss", "val"], ["1.0", "0.30000000000000004", ""], ["2.0", "", "3"]]


def history(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [{"epoch": float(epoch), "loss": loss} for epoch, loss in enumerate(losses, start=1)]
    rows[-1]["val_mR"] = 12.5
    (folder / "history.csv").write_text(as_csv(rows))


def test_history_is_read_back(tmp_path: Path) -> None:
    history(tmp_path / "0", [3.0, 2.0])
    assert read_history(tmp_path / "0") == [{"epoch": 1, "loss": 3}, {"epoch": 2, "loss": 2, "val_mR": 12.5}]


@pytest.mark.parametrize("content", [None, "epoch,loss\n1,many\n", "epoch\n1,2,3\n"])
def test_a_broken_history_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "history.csv").write_text(content)
    with pytest.raises(InputError, match=r"history\.csv: not a training history"):
        read_history(tmp_path)


def test_curves_become_an_image(tmp_path: Path) -> None:
    history(tmp_path / "run" / "0", [3.0, 2.0, 1.0])
    history(tmp_path / "run" / "1", [3.5, 2.5, 1.5])
    main([str(tmp_path / "run"), "--out", str(tmp_path / "curves.png")])
    image = Image.open(tmp_path / "curves.png").convert("RGB")
    assert image.size == (1100, 440)
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50  # axes, letters and two smoothed lines


def test_a_pretraining_has_curves_of_its_own_score(tmp_path: Path) -> None:
    images = []
    for last in (40.0, 90.0, 40.0):
        (tmp_path / "history.csv").write_text(f"epoch,loss,val_accuracy\n1,3.0,20.0\n2,2.0,{last}\n")
        draw_curves(tmp_path, tmp_path / "curves.png")
        images.append(np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")))
    assert images[0].shape == (440, 1100, 3)
    assert np.array_equal(images[0], images[2])
    changed = (images[0] != images[1]).any(axis=(0, 2)).nonzero()[0]
    assert changed.min() > 550  # the right half, where the score is drawn


def test_no_folds_no_curves(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no fold with a history\.csv"):
        draw_curves(tmp_path, tmp_path / "curves.png")
