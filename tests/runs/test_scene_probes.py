"""`test.py --scenes`: what is told of a small data set by prompts, neighbours and a probe, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.prompts import TEMPLATES, prompts_of
from engine import encode
from layers import build_model
from layers.base import l2norm
from metrics.probes import accuracies, nearest_classes
from option import Options
from reports.scenes import matrix_tables, scene_tables, scene_values
from runs.loaders import typed_queries_of
from runs.scene_probes import METHODS, open_scene_task, prompt_scores, scene_confusions
from runs.scoring import open_test_set
from tests.tiny import make_precomp
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")


def options_of(tiny_options: Callable[..., Options], model: str, folder: Path) -> Options:
    data = folder / "data"
    if not data.exists():
        make_precomp(data, train=9, test=6)
        Vocabulary({word: n for n, word in enumerate(["field", "pond", "a", "image", "<unk>"], start=1)}).save(
            folder / "words.json"
        )
    given = {"data_path": data, "vocab_path": folder / "words.json", "workers": 0, "feature_path": folder / "cache"}
    changes = {f"dataset.{key}": value for key, value in given.items()} | {"dataset.local_path": None}
    torch.manual_seed(0)
    return tiny_options(model, changes)


@pytest.mark.parametrize("model", ["DualEncoder", "AMFMN"])
def test_confusions_are_those_of_the_embeddings(
    model: str, tmp_path: Path, tiny_options: Callable[..., Options]
) -> None:
    options = options_of(tiny_options, model, tmp_path)
    test_set = open_test_set(options, CPU)
    network = build_model(options, test_set.vocabulary).eval()
    task = open_scene_task(test_set, CPU)
    assert task.names == ("field", "pond", "roof")
    images, _ = encode(network, test_set.loader, CPU)
    known, _ = encode(network, task.loader, CPU)
    found = scene_confusions(network, task, test_set, images, CPU)
    assert list(found) == list(METHODS)
    assert [int(each.sum()) for each in found.values()] == [6, 6, 6]
    assert found["nearest"].sum(dim=1).tolist() == [2, 2, 2]
    taken = nearest_classes(known, task.train_classes, images, 3)
    for truth in range(3):
        assert found["nearest"][truth].tolist() == [
            int(((task.test_classes == truth) & (taken == column)).sum()) for column in range(3)
        ]
    scores = prompt_scores(network, task, options, images, CPU)
    for place, name in enumerate(task.names):
        queries = typed_queries_of(options, prompts_of(name), test_set.vocabulary)
        with torch.no_grad():
            texts = torch.cat(
                [network.encode_text(queries.batch(row)) for row in torch.arange(len(TEMPLATES)).split(1)]
            )
            if network.scores_by_cosine():
                expected = network.score(images, l2norm(texts).mean(dim=0, keepdim=True))[:, 0]
            else:
                expected = network.score(images, texts).mean(dim=1)
        torch.testing.assert_close(scores[:, place], expected, atol=1e-5, rtol=1e-4)


def test_tables_and_values(tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
    options = options_of(tiny_options, "DualEncoder", tmp_path)
    task = open_scene_task(open_test_set(options, CPU), CPU)
    first = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 2, 0]])
    rows = {"fold 0": dict.fromkeys(METHODS, first), "fold 1": dict.fromkeys(METHODS, 2 * torch.eye(3).long())}
    (_, cells), (_, confused) = scene_tables(task, rows)
    assert [row[:3] for row in cells[1:]] == [
        ["fold 0", "50.00", "50.00"],
        ["fold 1", "100.00", "100.00"],
        ["mean ± sd", "75.00 ± 35.36", "75.00 ± 35.36"],
    ]
    assert [row[1] for row in confused[1:]] == ["roof as pond (2)", "pond as field (1)", "", "", ""]
    assert matrix_tables(task, rows)[0][1][2] == ["pond", "1", "3", "0"]
    values = scene_values(task, rows)
    assert values["rows"]["fold 0"]["nearest"] == accuracies(first) | {"confusion": first.tolist()}
    assert (values["test_images"], values["train_images"]) == (6, 9)


def test_lists_without_classes_are_refused(tmp_path: Path, tiny_options: Callable[..., Options]) -> None:
    options = options_of(tiny_options, "DualEncoder", tmp_path)
    test_set = open_test_set(options, CPU)
    nameless = replace(test_set.annotations, image_names=tuple(f"{n}.png" for n in range(6)))
    with pytest.raises(InputError, match=r"--scenes: the test images of .* are not of two named scene classes"):
        open_scene_task(replace(test_set, annotations=nameless), CPU)
