"""From captions of unequal number to a table: `data.prepare`, then `test.py`, against loops over the source."""

from __future__ import annotations

import json
import string
from pathlib import Path

import h5py
import pytest
import torch

import option
import test as test_entry
from data.prepare.__main__ import Request, prepare
from layers import build_model
from metrics.limits import ceiling, chance
from reports.significance import read_ranks
from runs.checkpoints import load_weights, save_checkpoint
from runs.folders import best_checkpoint
from runs.loaders import read_vocabulary
from tests.data.test_copies import naive_recalls
from tests.tiny import make_precomp, write_experiment

TEST_COUNTS = (1, 4, 2, 3, 1, 1, 4, 2, 1, 3, 1, 2)


def write_source(folder: Path) -> dict[str, list[str]]:
    """A JSON of unequal numbers of captions, no two alike, and its images; returns those of test."""
    made = make_precomp(folder, train=6, test=len(TEST_COUNTS))
    letters = string.ascii_lowercase
    rows: list[dict[str, object]] = []
    given: dict[str, list[str]] = {}
    for split, counts in (("train", (3, 1, 2, 5, 1, 1)), ("test", TEST_COUNTS)):
        for image, name in enumerate((made / f"{split}_filename.txt").read_text().split()):
            texts = [f"a {letters[image]}x by {letters[k]}y {split}" for k in range(counts[image])]
            rows.append({"filename": name, "split": split, "sentences": [{"raw": text} for text in texts]})
            given |= {name: texts} if split == "test" else {}
    (folder / "own.json").write_text(json.dumps({"images": rows}))
    return given


def test_scores_are_those_of_the_captions_that_were_given(tmp_path: Path) -> None:
    given = write_source(tmp_path / "source")
    prepare(Request(str(tmp_path / "source" / "own.json"), tmp_path / "set"))
    path = write_experiment(tmp_path, tmp_path / "set")
    options = option.load_options(path)
    vocabulary, checkpoint = read_vocabulary(options), best_checkpoint(options, 0)
    torch.manual_seed(0)
    model = build_model(options, vocabulary)
    stored = {"model": model.state_dict(), "epoch": 1, "vocabulary": vocabulary.digest, "fold": 0}
    save_checkpoint(checkpoint, stored, options)
    save_checkpoint(best_checkpoint(options, 1), stored | {"fold": 1}, options)
    out = tmp_path / "out.h5"
    test_entry.main(["--path_opt", str(path), "--rerank", "--export", str(out), "--report"])
    result = json.loads((tmp_path / "checkpoint" / "tiny" / "test.json").read_text())

    with h5py.File(out) as file:
        names, listed = list(file["image_names"].asstr()[:]), list(file["captions"].asstr()[:])
        images, texts = (torch.from_numpy(file[f"fold 0/{kind}_embeddings"][:]) for kind in ("image", "caption"))
    captions = [caption for own in given.values() for caption in own]
    load_weights(model, checkpoint, options, vocabulary)
    with torch.no_grad():
        order = [names.index(name) for name in given]
        scores = model.eval().score(images[order], texts[[listed.index(caption) for caption in captions]])
    assert len(scores.unique()) == scores.numel()
    text_image = [image for image, own in enumerate(given.values()) for _ in own]
    expected = naive_recalls(scores.tolist(), text_image)
    assert {name: result["mean"][name] for name in expected} == pytest.approx(expected)
    assert result["chance"].items() >= chance(torch.tensor(text_image)).items()
    assert result["ceiling"] == ceiling(torch.tensor(text_image), torch.arange(len(captions)))
    ranks = read_ranks(tmp_path / "checkpoint" / "tiny")
    assert ranks.captions == listed == captions
    assert ranks.caption_image.tolist() == text_image
