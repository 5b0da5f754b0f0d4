"""Two ranks train like one process: loss, gradients, batches, ranks of the evaluation, files."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import option
import train as train_entry
from batches.batch import Batch
from batches.pairs import Pairs
from batches.sampling import Sample
from data.annotations import read_annotations
from engine import encode, evaluate
from layers import build_model
from layers.base import RetrievalModel
from layers.losses.objective import Objective, build_objective
from layers.registry import registered
from option import Options
from option.fields import leaves
from runs.loaders import evaluation_loader, train_loader
from runs.media import Media
from runs.models import refuse_ranks
from runs.resume import own_random_states
from runtime import distributed
from runtime.distributed import ALONE, PLACE, World, refuse_torchrun, session
from runtime.weights import read_checkpoint
from tests.layers.test_layers import random_batch, rows
from tests.ranks import run_ranks
from tests.small_model import BeforeLoss, use_small_model
from tests.tiny import add_spectrograms, make_precomp, write_experiment
from training.learner import Losses
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")
Case = tuple[Options, Sample]


class Known:
    """Pairs of a batch of which nothing is known but whose is whose."""

    def of(self, batch: Batch) -> Pairs:
        assert batch.whole is not None
        return Pairs(image_rows=batch.whole.rows)


def part_of(sample: Sample, world: World) -> Batch:
    """A rank's share of random images and captions."""
    share = sample.shares(world.size)[world.rank]
    items = random_batch(10)
    images, captions = rows(items, share.images.tolist()), rows(items, share.captions.tolist())
    of_captions = ("tokens", "lengths", "caption_ids", "audio", "keywords")
    spoken: dict[str, Any] = {name: value for name in of_captions if (value := getattr(captions, name)) is not None}
    batch = replace(images, **spoken, image_rows=share.rows, whole=sample)
    exact: dict[str, Any] = {
        name: value.double()
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    return replace(batch, **exact)


def learned(case: Case, vocabulary: Vocabulary, world: World) -> dict[str, Tensor]:
    """Losses and gradients of a batch, in float64, batch norms as they start: each rank has its own statistics."""
    options, sample = case
    torch.manual_seed(0)
    model, objective = build_model(options, vocabulary).double(), build_objective(options.optim).double()
    model.score = model.pair_scores  # type: ignore[method-assign]  # which does not round to float32
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    losses = Losses(model, objective, Known(), world)  # type: ignore[arg-type]
    parallel = world.parallel(losses)  # its hooks go with it
    found = parallel(part_of(sample, world))
    found["loss"].backward()
    gradients = {name: p.grad for name, p in losses.named_parameters() if p.grad is not None}
    return {f"value {name}": value.detach() for name, value in found.items()} | gradients


@pytest.fixture(scope="module")
def cases(tiny_options: Callable[..., Options]) -> dict[str, Case]:
    """Every model without dropout: five images of one to three captions, shared 6 to 3; AMFMN with 4 and 3 pairs."""
    of_images = Sample(torch.arange(5), torch.arange(9), torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4]))
    of_pairs = Sample(torch.arange(7), torch.arange(7))
    loss = {"optim.loss": {"triplet": 1.0, "contrastive": 0.5}}
    found = {}
    for name in registered():
        dropouts = [key for key in leaves(registered()[name].parameters, "model") if "drop" in key.lower()]
        options = tiny_options(name, {key.removeprefix("model."): 0.0 for key in dropouts} | loss)
        found[name] = (options, of_pairs if name == "AMFMN" else of_images)
    return found


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML of a tiny experiment, without dropout."""
    folder = tmp_path_factory.mktemp("ranks")
    data = make_precomp(folder / "data")
    add_spectrograms(data)
    return write_experiment(folder, data, max_violation=True)


def spoken_options(experiment: Path, tiny_options: Callable[..., Options]) -> Options:
    """MCRN on the tiny set, whose evaluation needs all kinds of batches."""
    given = option.load_options(experiment)
    dataset = given.dataset.model_copy(update={"audio_path": given.dataset.folder / "audios"})
    return tiny_options("MCRN").model_copy(update={"dataset": dataset, "logs": given.logs})


def validated(options: Options, world: World, batch_size: int) -> tuple[list[Tensor], dict[str, float]]:
    """Embeddings and scores of the tiny test split."""
    options = options.model_copy(update={"dataset": options.dataset.model_copy(update={"batch_size_val": batch_size})})
    vocabulary = Vocabulary.load(Path(options.dataset.vocab_path))
    annotations = read_annotations(options.dataset.folder, "test", options.dataset.audio_path)
    loader = evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU, world)
    torch.manual_seed(1)
    model = build_model(options, vocabulary)
    return list(encode(model, loader, CPU)), evaluate(model, loader, CPU)


def told(world: World) -> dict[str, Any]:
    """What ranks tell each other."""
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(world.rank)  # type: ignore[union-attr]
    world.share_buffers(norm)
    return {
        "agree": world.agree({"mR": float(world.rank)}),
        "collect": world.collect(world.rank),
        "buffers": norm.running_mean,
    }


def rank_work(cases: dict[str, Case], vocabulary: Vocabulary, options: Options) -> dict[str, Any]:
    """All that is asked of a rank; in one session, since starting one takes time."""
    with session("cpu") as (world, _):
        found: dict[str, Any] = {name: learned(case, vocabulary, world) for name, case in cases.items()}
        found["evaluation"] = [validated(options, world, batch_size) for batch_size in (5, 100)]
        return found | told(world)


@pytest.fixture(scope="module")
def answers(
    cases: dict[str, Case], vocabulary: Vocabulary, experiment: Path, tiny_options: Callable[..., Options]
) -> list[dict[str, Any]]:
    """What two ranks found."""
    options = spoken_options(experiment, tiny_options)
    return run_ranks(rank_work, 2, cases, vocabulary, options)


@pytest.mark.parametrize("name", registered())
def test_two_ranks_have_the_loss_and_the_gradients_of_one(
    name: str, cases: dict[str, Case], vocabulary: Vocabulary, answers: list[dict[str, Any]]
) -> None:
    alone = learned(cases[name], vocabulary, ALONE)
    largest = max(float(value.abs().max()) for value in alone.values())
    assert "objective.losses.contrastive.log_temperature" in alone
    for answer in answers:
        assert answer[name].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(answer[name][key], value, rtol=1e-7, atol=1e-10 * largest, msg=key)


def test_two_ranks_evaluate_as_one(
    answers: list[dict[str, Any]], experiment: Path, tiny_options: Callable[..., Options]
) -> None:
    options = spoken_options(experiment, tiny_options)
    for place, batch_size in enumerate((5, 100)):
        embeddings, scores = validated(options, ALONE, batch_size)
        assert "i2i_R@1" in scores
        for answer in answers:
            assert all(map(torch.equal, answer["evaluation"][place][0], embeddings))
            assert answer["evaluation"][place][1] == scores


def test_ranks_tell_each_other(answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert answer["agree"] == {"mR": 0.0}
        assert answer["collect"] == [0, 1]
        assert answer["buffers"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("batching", ["pairs", "images"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one_process(
    batching: str, ranks: int, experiment: Path, tiny_options: Callable[..., Options]
) -> None:
    options = spoken_options(experiment, tiny_options)
    vocabulary = Vocabulary.load(Path(options.dataset.vocab_path))
    annotations = read_annotations(options.dataset.folder, "train", options.dataset.audio_path)
    media = Media.of(options, [annotations], CPU)

    def batches(world: World, batch_size: int) -> list[Batch]:
        dataset = options.dataset.model_copy(update={"batching": batching, "batch_size": batch_size})
        changed = options.model_copy(update={"dataset": dataset})
        return list(train_loader(changed, 0, vocabulary, annotations, media, CPU, world).epoch(1))

    alone = batches(ALONE, 4 * ranks)
    shared = [batches(World(rank, ranks), 4) for rank in range(ranks)]
    assert all(len(own) == len(alone) for own in shared)
    for place, whole in enumerate(alone):
        parts = [own[place] for own in shared]
        assert len({len(part) for part in parts}) <= 2
        for field in ("images", "second_view", "audio", "image_ids", "caption_ids", "lengths"):
            assert torch.equal(torch.cat([part.need(field) for part in parts]), whole.need(field)), field
        for part in parts:
            width = part.need("tokens").shape[1]
            places = (whole.need("caption_ids")[:, None] == part.need("caption_ids")).int().argmax(dim=0)
            assert torch.equal(part.need("tokens"), whole.need("tokens")[places, :width])
            assert (part.items, part.image_count) == (whole.items, whole.image_count)
            assert len(part.need("image_ids")) >= 2
            own_images = part.need("image_ids")
            own_images = own_images if part.image_rows is None else own_images[part.image_rows]
            assert own_images.tolist() == (part.need("caption_ids") // 2).tolist()


def test_too_few_items_for_the_ranks(experiment: Path) -> None:
    options = option.load_options(experiment, ["dataset.batching=images"])
    vocabulary = Vocabulary.load(Path(options.dataset.vocab_path))
    annotations = read_annotations(options.dataset.folder, "train")
    media = Media.of(options, [annotations], CPU)
    with pytest.raises(InputError, match="24 images to train on are too few for 13 ranks"):
        train_loader(options, 0, vocabulary, annotations, media, CPU, World(0, 13))


def train_as_rank(path: str, name: str, *overrides: str, before_loss: BeforeLoss | None = None) -> dict[str, Any]:
    """Train one fold; says which files this rank opened for writing."""
    opened: list[str] = []

    def note(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str) and details[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(details[0])

    sys.addaudithook(note)
    use_small_model(pytest.MonkeyPatch(), before_loss)  # this process ends with the task
    values = [f"k_fold.experiment_name={name}", "dataset.batch_size=4", "logs.print_freq=1", *overrides]
    train_entry.main(["--path_opt", path, "--folds", "0", "--device", "cpu", "--set", *values])
    return {"opened": [file for file in opened if f"/{name}/" in file], "random": torch.get_rng_state()}


def stop_as_rank(path: str) -> None:
    """Train until rank 1 gets a signal in its second step."""
    steps: list[Batch] = []

    def signal_once(batch: Batch) -> None:
        steps.append(batch)
        if os.environ["RANK"] == "1" and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    train_as_rank(path, "parts", "optim.epochs=2", before_loss=signal_once)


def test_a_run_of_two_ranks_goes_on_exactly_and_rank_0_alone_writes(experiment: Path) -> None:
    whole = run_ranks(train_as_rank, 2, str(experiment), "whole", "optim.epochs=2", "dataset.cache=disk")
    assert whole[0]["opened"]
    # The cache of images is opened by all, and was filled by the first.
    assert {Path(file).suffix for file in whole[1]["opened"]} <= {".uint8", ".lock"}
    folders = [experiment.parent / "checkpoint" / name / "0" for name in ("whole", "parts")]
    stopped = run_ranks(stop_as_rank, 2, str(experiment))
    assert [answer.split(":")[0] for answer in stopped] == ["raised Interrupted"] * 2
    begun = read_checkpoint(folders[1] / "last.pth")
    assert (begun["epoch"], begun["batch"]) == (0, 2)
    resumed = run_ranks(train_as_rank, 2, str(experiment), "parts", "optim.epochs=2")
    states = [read_checkpoint(folder / "last.pth") for folder in folders]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    assert [row["val_mR"] for row in states[0]["history"]] == [row["val_mR"] for row in states[1]["history"]]
    assert [row["loss"] for row in states[0]["history"]] == [row["loss"] for row in states[1]["history"]]
    for rank in range(2):
        assert torch.equal(whole[rank]["random"], resumed[rank]["random"])
    assert not torch.equal(whole[0]["random"], whole[1]["random"])
    assert len(list(folders[0].glob("events*"))) == 1
    (log,) = folders[0].glob("train.log")
    assert log.read_text().count("val mR") == 2
    (alone,) = run_ranks(train_as_rank, 1, str(experiment), "parts", "optim.epochs=3")
    assert re.search(r"^raised InputError: .*begun with 2 ranks.*now there are 1", alone)


def fail_as_rank(path: str) -> None:
    """Train until rank 1 has had enough."""
    distributed.GRACE_SECONDS = 0.0
    if os.environ["RANK"] == "1":

        def fail(self: Objective, *given: Any, pairs: Pairs) -> dict[str, Tensor]:
            raise InputError("this rank has had enough")

        Objective.forward = fail  # type: ignore[assignment, method-assign]
    train_as_rank(path, "failing")


def test_a_rank_that_dies_ends_the_others(experiment: Path) -> None:
    first, second = run_ranks(fail_as_rank, 2, str(experiment))
    assert second.startswith("raised RunFault: rank 1 of 2: this rank has had enough.")
    assert first.startswith("raised RunFault: rank 0 of 2 lost another rank")


class OneBatch(RetrievalModel):
    """Overrides what sees one rank's batch."""

    def training_loss(self, batch: Batch, criterion: Any) -> dict[str, Tensor]:
        return {}


def test_what_several_ranks_can_not_do(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, tiny_options: Callable[..., Options]
) -> None:
    options = tiny_options("AMFMN", {"optim.sync_batch_norm": True})
    refuse_ranks(options, ALONE, CPU)
    with pytest.raises(InputError, match=r"optim\.sync_batch_norm.*needs GPUs"):
        refuse_ranks(options, World(0, 2), CPU)
    monkeypatch.setattr(registered()["AMFMN"].model, "training_loss", OneBatch.training_loss)
    with pytest.raises(InputError, match="AMFMN overrides `training_loss`"):
        refuse_ranks(tiny_options("AMFMN"), World(0, 2), CPU)


def test_an_environment_that_is_not_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    for alone in ("", "1"):  # a cluster's job script may leave it empty
        monkeypatch.setenv("WORLD_SIZE", alone)
        refuse_torchrun("test.py")
        with session("cpu") as (world, device):
            assert (world, device) == (ALONE, CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(InputError, match=r"WORLD_SIZE=2 but no LOCAL_RANK and no LOCAL_WORLD_SIZE: .*env -u"),
        session("cpu"),
    ):
        pass
    with pytest.raises(InputError, match=r"one process, .* WORLD_SIZE=2, .*env -u WORLD_SIZE python test\.py"):
        refuse_torchrun("test.py")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"test\.py runs in one process: start it with python instead of torchrun"):
        refuse_torchrun("test.py")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE=two, expected a number"):
        refuse_torchrun("test.py")


def test_random_states_go_to_their_ranks() -> None:
    begun = {"epoch": 1, "random_cpu": "a", "ranks": [{"random_cpu": "a"}, {"random_cpu": "b"}]}
    assert own_random_states(begun, World(1, 2), Path("run"))["random_cpu"] == "b"
    assert own_random_states({"random_cpu": "a"}, ALONE, Path("run"))["random_cpu"] == "a"
    with pytest.raises(InputError, match=r"run was begun with 2 ranks.*now there are 4"):
        own_random_states(begun, World(0, 4), Path("run"))
