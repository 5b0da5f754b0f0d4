"""Experiments side by side: what differs, the spread, what counts as no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest

from reports.experiments import differing, main, read_experiment, spread_over_folds, table
from reports.export import RANKS_FORMAT
from reports.tables import RECALLS
from runs.checkpoints import flat_options
from utils import InputError, as_csv


def finished(folder: Path, scores: list[float], validation: list[float], **options: Any) -> Path:
    """An experiment whose folds have some mR on test and val."""
    rows = {f"fold {i}": dict.fromkeys(RECALLS, 1.0) | {"mR": score} for i, score in enumerate(scores)}
    tree = {"optim": options, "k_fold": {"experiment_name": folder.name}}
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps({"options": tree, "rows": rows}))
    for i, best in enumerate(validation):
        (folder / str(i)).mkdir()
        epochs = [{"epoch": 1.0, "loss": 2.0, "val_mR": best - 3}, {"epoch": 2.0, "loss": 1.0, "val_mR": best}]
        (folder / str(i) / "history.csv").write_text(as_csv(epochs))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        finished(tmp_path / "a", [10.0, 14.0], [20.0, 22.0], loss="triplet", mask="none", lr=0.1),
        finished(tmp_path / "b", [13.0, 14.0], [24.0, 24.0], loss="dynamic", mask="none", lr=0.1),
        finished(tmp_path / "c", [20.0, 20.0], [30.0, 31.0], loss="dynamic", mask="caption", lr=0.1),
    ]


def test_only_what_differs_is_a_column(folders: list[Path]) -> None:
    experiments = [read_experiment(folder) for folder in folders]
    assert differing(experiments) == ["optim.loss", "optim.mask"]
    assert differing(experiments[:2]) == ["optim.loss"]


def test_the_table_by_hand(folders: list[Path]) -> None:
    experiments = [read_experiment(folder) for folder in folders]
    # Sums of squares around the means: 8, 0.5 and 0, with one degree of freedom each
    assert spread_over_folds(experiments) == pytest.approx((8.5 / 3) ** 0.5)
    head, first, second, third = table(experiments, spread_over_folds(experiments))
    assert head[:4] == ["experiment", "loss", "mask", "val mR"]
    assert head[-2:] == ["mR", "against the first"]
    assert (first[0], first[3], first[-2], first[-1]) == ("a", "21.00", "12.00 ± 2.83", "")
    # The standard error of a difference is 1.68 * sqrt(1 / 2 + 1 / 2).
    assert (second[-2], second[-1]) == ("13.50 ± 0.71", "+1.50")
    assert third == ["c", "dynamic", "caption", "30.50", *["1.00"] * 6, "20.00 ± 0.00", "**+8.00**"]


def test_the_worst_order_of_ties_has_a_column_in_older_results_too(folders: list[Path]) -> None:
    path = folders[1] / "test.json"
    content = json.loads(path.read_text())
    for number, row in enumerate(content["rows"].values()):
        row |= {f"random_ties_{name}": 15.0 + 2 * number for name in RECALLS}
    path.write_text(json.dumps(content))
    head, first, second, _ = table([read_experiment(folder) for folder in folders], 1.0)
    assert head[-2:] == ["against the first", "mR, worst order of ties"]
    assert (first[-1], second[-1]) == ("", "13.50 ± 0.71")
    assert second[-3] == "16.00 ± 1.41"


def test_different_test_lists_are_refused(folders: list[Path]) -> None:
    def tested(folder: Path, protocol: str) -> None:
        content = json.loads((folder / "test.json").read_text())
        (folder / "test.json").write_text(json.dumps(content | {"protocol": protocol}))

    for folder in folders[:2]:  # the third is older and tells nothing
        tested(folder, "Protocol: test split, 210 images, 1050 captions; 2 folds.")
    assert len(table([read_experiment(folder) for folder in folders], 1.0)) == 4
    tested(folders[1], "Protocol: test split, 128 images, 640 captions; 2 folds.")
    with pytest.raises(InputError, match=r"a and .*b are not of the same test list \(210 images, 1050 captions; 128"):
        main(list(map(str, folders)))


def test_lists_of_equal_length_are_told_apart_by_their_names(folders: list[Path]) -> None:
    def ranked(folder: Path, names: list[str]) -> None:
        with h5py.File(folder / "ranks.h5", "w") as file:
            file.attrs["format"] = RANKS_FORMAT
            file["image_names"], file["captions"], file["caption_image"] = names, ["a field", "a pond"], [0, 1]

    ranked(folders[0], ["1.jpg", "2.jpg"])
    ranked(folders[1], ["1.jpg", "2.jpg"])
    ranked(folders[2], ["1.jpg", "3.jpg"])
    assert len(table([read_experiment(folder) for folder in folders[:2]], 1.0)) == 3
    with pytest.raises(InputError, match=r"not of the same test list .*image 1 differs"):
        table([read_experiment(folder) for folder in folders], 1.0)


def test_losses_are_one_column() -> None:
    options = flat_options({"optim": {"loss": {"triplet": 1.0, "contrastive": 0.5}, "lr": 1}})
    assert options == {"optim.lr": 1, "optim.loss": "0.5 contrastive + triplet"}


def test_the_command_prints_and_writes(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = folders[0].parent / "table.md"
    main([*map(str, folders), "--out", str(out)])
    assert capsys.readouterr().out == out.read_text()
    assert "pooled over all rows, is 1.68" in out.read_text()


def test_faults_are_explained(folders: list[Path]) -> None:
    with pytest.raises(InputError, match="not the result of a test"):
        read_experiment(folders[0] / "absent")
    (folders[0] / "test.json").write_text("[]")
    with pytest.raises(InputError, match="not the result of a test"):
        read_experiment(folders[0])
    single = finished(folders[0].parent / "single", [1.0], [2.0])
    with pytest.raises(InputError, match="have one fold"):
        main([str(single)])
