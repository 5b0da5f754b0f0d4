"""The bench's published path gives the numbers of ours; its tables and processes do what they say. Nothing is timed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from batches.augmentation import Draws, augment
from batches.batch import Batch
from bench import table
from bench.comparison import external_seconds
from bench.naive import loop_adam, published_twin
from bench.naive_data import FileBatches, blockwise_scores, decode, view_from_file
from bench.process import Side
from bench.subject import Experiment
from bench.variants import ALLOCATOR, OURS, PUBLISHED, ladder, sides
from engine import encode, score_blocks
from layers import build_model
from layers.base import RetrievalModel
from layers.registry import registered
from layers.skip_thoughts import BayesianUniSkip, SkipThoughts
from option import Options
from option.fields import leaves
from runs.loaders import evaluation_loader
from runs.models import place
from tests import ROOT
from tests.bench_subject import EnvironmentSubject
from tests.criteria import triplet_criterion
from tests.layers.test_layers import random_batch
from tests.tiny import make_precomp, write_experiment
from utils import InputError
from vocab import Vocabulary

CRITERION = triplet_criterion(margin=0.2, hardest=False)


@pytest.fixture(params=list(registered()))
def model(
    request: pytest.FixtureRequest,
    tiny_options: Callable[..., Options],
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
) -> RetrievalModel:
    """A small model without dropout, AMFMN with the published caption encoder, of 64 units instead of 2,400."""
    monkeypatch.setattr("layers.skip_thoughts.STATE_DIM", 64)
    monkeypatch.setattr(BayesianUniSkip, "output_dim", 64)
    known = leaves(registered()[request.param].parameters, "model")
    changes: dict[str, Any] = {key.removeprefix("model."): 0.0 for key in known if "drop" in key.lower()}
    if "model.backbone.architecture" in known:
        changes["backbone.architecture"] = "resnet18"  # that of the published path
    if request.param == "AMFMN":  # the others that have it keep the small GRU of the tests
        changes |= {"seq2vec.arch": "skipthoughts"}
    torch.manual_seed(0)
    return place(build_model(tiny_options(request.param, changes), vocabulary), torch.device("cpu"))


def gradients(model: RetrievalModel, batch: Batch) -> dict[str, Tensor]:
    """The gradients of a batch's loss where it reaches, but for what the published code builds and does not use."""
    model.train().training_loss(batch, CRITERION)["loss"].backward()
    parameters = {name: p.grad for name, p in model.named_parameters() if "unused_" not in name}
    return {name: gradient for name, gradient in parameters.items() if gradient is not None}


def test_the_published_path_has_the_same_loss(model: RetrievalModel) -> None:
    twin, batch = published_twin(model), random_batch(4)
    with torch.no_grad():
        loss, expected = (side.train().training_loss(batch, CRITERION)["loss"] for side in (model, twin))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_published_path_has_the_same_gradients(model: RetrievalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, batch = published_twin(model).double(), random_batch(4)
    model.double()
    for side in (model, twin):
        monkeypatch.setattr(side, "score", side.pair_scores)  # which does not round to float32
    exact = {name: v.double() for name, v in vars(batch).items() if v is not None and v.is_floating_point()}
    ours, theirs = (gradients(side, replace(batch, **exact)) for side in (model, twin))
    assert ours.keys() == theirs.keys()
    # The batch norms magnify rounding: 1e-10 of the greatest is noise.
    floor = 1e-10 * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=floor, msg=name)


def test_the_published_path_has_the_same_scores(model: RetrievalModel) -> None:
    twin, batch = published_twin(model).eval(), random_batch(4)
    model.eval()
    with torch.inference_mode():
        ours, theirs = (side.score(side.encode_image(batch), side.encode_text(batch)) for side in (model, twin))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours.std() > 1e-5
    unused = [name for name, _ in twin.named_parameters() if "unused_" in name]
    assert unused or not any(isinstance(part, SkipThoughts) for part in twin.modules())


def test_blocks_of_the_published_evaluation_give_our_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data", train=6, test=4))
    experiment = Experiment.of(str(path), [], "test", torch.device("cpu"))
    parts = (experiment.annotations, experiment.vocabulary, experiment.media, experiment.device)
    loader = evaluation_loader(experiment.options, *parts)
    model = experiment.model(OURS).eval()
    monkeypatch.setattr("bench.naive_data.BLOCK", 3)
    whole = blockwise_scores(published_twin(model), loader, *experiment.captions())
    images, texts = encode(model, loader, torch.device("cpu"))
    ours = torch.cat(list(score_blocks(model, images, texts, loader.caption_row, 2)))
    torch.testing.assert_close(whole.scores, ours, rtol=0, atol=1e-6)
    assert whole.share == 1
    part = blockwise_scores(published_twin(model), loader, *experiment.captions(), limit=2)
    assert part.share == 2 / 6  # 2 x 3 blocks of 4 images and 8 captions
    assert torch.equal(part.scores[:3, :6], whole.scores[:3, :6])
    assert (part.scores[3:] == 0).all()


def test_training_views_from_files_are_those_of_the_loader(tmp_path: Path) -> None:
    store = make_precomp(tmp_path / "data", train=6, test=4) / "images"
    paths, draws = sorted(store.iterdir()), Draws.draw(10, 6, torch.Generator().manual_seed(0), flips=True)
    images = torch.stack([decode(path, 70) for path in paths])
    ours = augment(images, 64, draws)
    theirs = torch.stack([view_from_file(path, 64, draws, row) for row, path in enumerate(paths)])
    assert ours.shape == theirs.shape == (10, 3, 64, 64)
    # Pillow rounds to other pixels here and there.
    assert ((ours - theirs).abs() > 1e-6).float().mean() < 0.05


def test_batches_from_files_hold_every_caption_once(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, make_precomp(tmp_path / "data", train=6, test=4))
    experiment = Experiment.of(str(path), [], "train", torch.device("cpu"))
    batches = list(FileBatches(experiment).epoch(1))
    assert sorted(torch.cat([batch.need("caption_ids") for batch in batches]).tolist()) == list(range(12))
    for batch in batches:
        assert torch.equal(batch.need("image_ids"), batch.need("caption_ids") // 2)
        assert batch.need("images").shape == (len(batch), 3, 64, 64)


def test_the_looping_optimiser_steps_as_the_fused_one() -> None:
    values = [torch.randn(5, 3), torch.randn(7)]
    stepped = []
    for make in (loop_adam, lambda groups: torch.optim.Adam(groups, fused=True)):
        weights = [value.clone().requires_grad_() for value in values]
        optimizer = make([{"params": weights, "lr": 0.1}])
        for _ in range(3):
            torch.stack([weight.square().sum() for weight in weights]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        stepped.append(weights)
    for ours, theirs in zip(*stepped, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_memory_settings_are_those_of_the_scripts() -> None:
    text = (ROOT / "exec" / "common.sh").read_text()
    assert dict(re.findall(r'export (MALLOC_\w+)="\$\{\w+:-(\d+)\}"', text)) == ALLOCATOR


def test_a_ladder_leads_from_the_published_path_to_ours() -> None:
    first, *_, before, last = ladder(("once", "allocator", "ours", "channels_last", "fused"), "bf16")
    assert first == PUBLISHED
    assert vars(before) | {"name": "ours"} == vars(OURS)
    assert vars(last) | {"name": "ours", "amp": "off"} == vars(OURS)
    assert [side.name for side in sides(["off", "bf16"], with_published=True)] == [
        "published",
        "ours float32",
        "ours bf16",
    ]
    first, settled, last = sides(["bf16"], with_published=True, with_settings=True)
    assert [name for name in vars(first) if vars(first)[name] != vars(settled)[name]] == ["name", "allocator"]
    assert settled.environment(2) == last.environment(2) != first.environment(2)


def test_medians_and_ratios_pair_by_pair() -> None:
    rounds = {
        "a": [{"seconds": 6.0}, {"seconds": 8.0}, {"seconds": 10.0}],
        "b": [{"seconds": 2.0}, {"seconds": 4.0}, {"seconds": 1.0}],
    }
    assert table.medians(rounds["b"]) == {"seconds": 2.0}
    assert table.ratios(rounds, "a", "seconds") == {"a": [1.0, 1.0, 1.0], "b": [3.0, 2.0, 10.0]}
    assert table.spread([{"seconds": 2.0}, {"seconds": 0.5}]) == "0.5-2"


def test_a_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, path = [["a", "10"], ["long", "1"]], tmp_path / "table.json"
    table.show("Title", ["side", "s"], rows, ["A note."], {"rounds": 2}, path)
    printed = "\nTitle\n\n| side |  s |\n| ---- | -: |\n| a    | 10 |\n| long |  1 |\n\nA note.\n"
    assert capsys.readouterr().out == printed
    assert json.loads(path.read_text()) == {"title": "Title", "rounds": 2}


@pytest.mark.parametrize(("script", "expected"), [("print('x'); print(0.25)", 0.25), ("print('done')", None)])
def test_an_external_command_says_its_seconds_or_is_timed(script: str, expected: float | None) -> None:
    seconds = external_seconds(f'{sys.executable} -c "{script}"')
    assert seconds == expected if expected is not None else 0 < seconds < 60


def test_an_external_command_that_fails_ends_the_measurement() -> None:
    with pytest.raises(InputError, match="--against"):
        external_seconds(f'{sys.executable} -c "raise SystemExit(3)"')
    with pytest.raises(InputError, match="--against no_such_command"):
        external_seconds("no_such_command")


def test_a_side_runs_in_a_process_with_its_settings_and_tells_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    for variant, threshold in ((PUBLISHED, 0), (OURS, 4294967296)):
        side = Side(EnvironmentSubject, ["no such image"], variant.environment(1), 1)
        assert side.run() == {"threshold": threshold, "threads": 1}
        with pytest.raises(InputError, match="no such image"):
            side.run()
        side.close()
