"""The engine: evaluation encodes everything once, training does what the plan says, a resumed run is the same run."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import engine
import option
from batches.augmentation import right_angle_views
from batches.batch import Batch
from data.annotations import read_annotations
from dataloader import EvaluationLoader
from engine import encode, evaluate, fit, image_verb, mean_cosine, score_blocks, score_source, warn_of_collapse
from layers import build_model
from layers.base import RetrievalModel
from option import Options
from runs.loaders import evaluation_loader, train_loader
from runs.media import Media
from runs.models import start_model, start_state
from runtime.distributed import ALONE, World
from tests.criteria import triplet_criterion
from tests.tiny import make_precomp, write_experiment
from training.epoch import Plan, passes
from training.state import Meter, TrainingState, optimiser_step
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")


class Silent:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.setdefault(tag, []).append((global_step, scalar_value))

    def flush(self) -> None:
        """Nothing is held back."""


class Counting(RetrievalModel):
    """Counts how often each image and each caption is encoded; its embeddings are cheap functions of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.images: Counter[bytes] = Counter()
        self.captions: Counter[tuple[int, ...]] = Counter()
        self.project = nn.Linear(3, 8)

    def encode_image(self, batch: Batch) -> Tensor:
        self.images.update(image.numpy().tobytes() for image in batch.need("images"))
        return self.project(batch.need("images").mean(dim=(2, 3)))

    def encode_text(self, batch: Batch) -> Tensor:
        self.captions.update(tuple(ids[ids != 0].tolist()) for ids in batch.need("tokens"))
        return torch.sin(batch.need("tokens").sum(1, keepdim=True) * torch.arange(1.0, 9))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Options, Vocabulary]:
    folder = tmp_path_factory.mktemp("tiny")
    options = option.load_options(write_experiment(folder, make_precomp(folder / "data")))
    return options, Vocabulary.load(Path(options.dataset.vocab_path))


def loader_of(options: Options, vocabulary: Vocabulary, split: Literal["train", "test"] = "test") -> EvaluationLoader:
    annotations = read_annotations(Path(options.dataset.folder), split)
    return evaluation_loader(options, annotations, vocabulary, Media.of(options, [annotations], CPU), CPU)


def start(
    options: Options, vocabulary: Vocabulary, begun: dict[str, Any] | None = None
) -> tuple[RetrievalModel, TrainingState]:
    """A model and its state, as at the start of a run or as a checkpoint holds them."""
    model = start_model(options, 0, vocabulary, CPU, begun)
    state = start_state(model, model.parameter_groups(options), options.optim, CPU)
    if begun is not None:
        state.load_state_dict(begun)
    return model, state


def run(
    options: Options,
    vocabulary: Vocabulary,
    plan: Plan,
    started: tuple[RetrievalModel, TrainingState] | None = None,
    world: World = ALONE,
) -> TrainingState:
    """Fit on the train list and validate on the test list, without writing anything."""
    annotations = read_annotations(Path(options.dataset.folder), "train")
    media = Media.of(options, [annotations], CPU)
    model, state = started or start(options, vocabulary)
    criterion = triplet_criterion(0.2, hardest=False)
    validation = loader_of(options, vocabulary)
    loader = train_loader(options, 0, vocabulary, annotations, media, CPU)
    fit(
        state,
        loader,
        lambda batch: model.training_loss(batch, criterion),
        lambda: evaluate(model, validation, CPU, plan.amp),
        plan,
        CPU,
        Silent(),
        lambda state, is_best: None,
        world,
    )
    return state


def test_evaluation_encodes_each_item_once(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    model, loader = Counting(), loader_of(options, vocabulary)
    evaluate(model, loader, CPU)
    assert sum(model.images.values()) == 12
    assert len(model.captions) == 24
    assert set(model.captions.values()) == {1}
    assert loader.store.decoded == 12
    evaluate(model, loader, CPU)
    assert loader.store.decoded == 12


def test_the_mean_of_right_angle_views_does_not_know_how_an_image_is_turned(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    model, batch = build_model(options, vocabulary).eval(), next(iter(loader_of(options, vocabulary).image_batches()))
    turned = replace(batch, images=batch.need("images").rot90(1, (2, 3)).flip(2))
    with torch.no_grad():
        one, other = (image_verb(model, "one")(given) for given in (batch, turned))
        assert (one - other).abs().max() > 1e-3
        one, other = (image_verb(model, "right_angles")(given) for given in (batch, turned))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        first = [model.encode_image(replace(batch, images=view)) for view in right_angle_views(batch.need("images"))]
    torch.testing.assert_close(one, sum(first, torch.zeros(())) / 8)


@pytest.mark.skipif("RSR_DATA" not in os.environ, reason="needs the real data sets (RSR_DATA)")
def test_ucm_test_split_is_encoded_once_and_blocks_do_not_matter(
    tiny: tuple[Options, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, _ = tiny
    folder = Path(os.environ["RSR_DATA"]) / "data" / "ucm_precomp"
    options = options.model_copy(update={"dataset": options.dataset.model_copy(update={"data_path": folder})})
    vocabulary = Vocabulary.load(Path("vocab/ucm_splits_vocab.json"))
    loader = loader_of(options, vocabulary)
    model = Counting()
    scores = evaluate(model, loader, CPU)
    assert sum(model.images.values()) == 210
    assert sum(model.captions.values()) <= 1050
    assert max(model.captions.values()) == 1
    assert loader.store.decoded == 210
    for rows in (1, 7, 209, 500):
        monkeypatch.setattr(engine, "SCORES_PER_BLOCK", rows * 1050)
        assert evaluate(model, loader, CPU) == scores


def test_blocks_of_any_size_give_the_same_recalls(
    tiny: tuple[Options, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, vocabulary = tiny
    torch.manual_seed(0)
    model, loader = build_model(options, vocabulary), loader_of(options, vocabulary)
    whole = evaluate(model, loader, CPU)
    for scores_per_block in (1, 50, 24 * 5, 24 * 12):
        monkeypatch.setattr(engine, "SCORES_PER_BLOCK", scores_per_block)
        assert evaluate(model, loader, CPU) == whole


def test_equal_captions_score_exactly_alike(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    loader = loader_of(options, vocabulary, "train")
    model = build_model(options, vocabulary)
    images, texts = encode(model, loader, CPU)
    assert len(texts) == 24  # 24 images of 12 kinds, two captions each: every caption stands under two images
    scores = torch.cat(list(score_blocks(model, images, texts, loader.caption_row, rows=5)))
    assert scores.shape == (24, 48)
    assert torch.equal(scores[:, :24], scores[:, 24:])


def test_scores_need_no_gradient_held_or_streamed(
    tiny: tuple[Options, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scaled(Counting):
        """A score with a weight of its own, as AMFMN's."""

        def pair_scores(self, images: Tensor, texts: Tensor) -> Tensor:
            return super().pair_scores(images, texts) * self.project.bias.sum()

    options, vocabulary = tiny
    model, loader = Scaled(), loader_of(options, vocabulary)
    images, texts = encode(model, loader, CPU)
    for scores_per_block in (24 * 12, 24 * 4):
        count = 0
        monkeypatch.setattr(engine, "SCORES_PER_BLOCK", scores_per_block)
        for block in score_source(model, images, texts, loader.caption_row)():
            assert torch.is_grad_enabled()  # between two blocks the caller's mode stays as it was
            assert not block.requires_grad
            count += 1
        assert count == (1 if scores_per_block == 24 * 12 else 12)


def test_diverged_weights_are_no_score(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    model = Counting()
    nn.init.constant_(model.project.bias, float("nan"))
    with pytest.raises(InputError, match="12 of 12 image embeddings are not finite"):
        evaluate(model, loader_of(options, vocabulary), CPU)


def test_training_learns_the_tiny_set(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    state = run(options, vocabulary, Plan(epochs=5))
    assert state.history[-1]["loss"] < 0.7 * state.history[0]["loss"]
    # Chance is 41 mR on 12 images
    assert state.best > 75
    assert [row["epoch"] for row in state.history] == list(range(1, 6))
    assert state.best == max(row["val_mR"] for row in state.history)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(tiny: tuple[Options, Vocabulary], amp: str) -> None:
    options, vocabulary = tiny
    # Full convolutions of a tiny network, because CPUs have no quick ones for fp16
    changes = ["model.backbone.architecture=timm/test_resnet", f"optim.amp={amp}"]
    options = option.load_options(Path(options.dataset.vocab_path).with_name("tiny.yaml"), changes)
    before = start(options, vocabulary)[0].state_dict()
    state = run(options, vocabulary, Plan(epochs=1, amp=amp))
    assert state.scaler.is_enabled() == (amp == "fp16")
    name = "image_encoder.solo.weight"
    moved = (state.model.state_dict()[name] - before[name]).abs().max()
    # Adam moves a weight by about lr per step: 6 steps of 1e-3
    assert 1e-4 < float(moved) < 1e-2


def test_a_resumed_run_ends_with_the_same_weights(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    whole = run(options, vocabulary, Plan(epochs=2))
    saved = run(options, vocabulary, Plan(epochs=1)).state_dict()
    begun = {**saved, "vocabulary": vocabulary.digest, "options": option.dump(options)}
    _, resumed = started = start(options, vocabulary, begun)
    run(options, vocabulary, Plan(epochs=2), started)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "data_wait_share")} for row in rows]
        for rows in (whole.history, resumed.history)
    ]
    assert timeless[0] == timeless[1]


def test_validation_interval_and_patience(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    rows = run(options, vocabulary, Plan(epochs=3, eval_step=2)).history
    assert ["val_mR" in row for row in rows] == [False, True, True]
    unbeatable = start(options, vocabulary)
    unbeatable[1].best = 101.0
    assert len(run(options, vocabulary, Plan(epochs=9, patience=2), unbeatable).history) == 2


def test_step_decay_follows_the_options(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    optim = options.optim.model_copy(update={"lr_update_epoch": 2, "lr_decay_param": 0.5})
    rows = run(options.model_copy(update={"optim": optim}), vocabulary, Plan(epochs=3)).history
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_cosine_falls_to_zero_over_the_epochs(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    optim = options.optim.model_copy(update={"schedule": "cosine", "epochs": 2})
    rows = run(options.model_copy(update={"optim": optim}), vocabulary, Plan(epochs=2)).history
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 5e-4])
    optim = optim.model_copy(update={"schedule_epochs": 1})
    _, state = start(options.model_copy(update={"optim": optim}), vocabulary)
    rates = []
    for _ in range(3):
        rates.append(state.scheduler.get_last_lr()[0])
        state.optimizer.step()
        state.scheduler.step()
    assert rates == pytest.approx([1e-3, 0, 1e-3])  # the published schedule, which rises again


def test_infinite_loss_stops_with_advice(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    started = start(options, vocabulary)
    with torch.no_grad():
        next(started[0].parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"the loss became nan in epoch 1 at step 1\..*optim\.lr"):
        run(options, vocabulary, Plan(epochs=1), started)


def step_from_zero(gradient: float, grad_clip: float) -> Tensor:
    """The one weight [8, 3] of a model after one step of length 1 from zero."""
    model = Counting()
    nn.init.zeros_(model.project.weight)
    model.project.weight.grad = torch.full((8, 3), gradient)
    optimizer = torch.optim.SGD([model.project.weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimiser_step(TrainingState(model, optimizer, scheduler, scaler), grad_clip)
    return model.project.weight.detach()


def test_clipping_bounds_the_norm_of_the_step() -> None:
    assert float(step_from_zero(gradient=3.0, grad_clip=2.0).norm()) == pytest.approx(2.0, rel=1e-5)
    assert float(step_from_zero(gradient=3.0, grad_clip=0.0)[0, 0]) == pytest.approx(-3.0)


def test_accumulation_steps_once_per_group_and_at_the_end(
    tiny: tuple[Options, Vocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, vocabulary = tiny
    clips: list[float] = []

    def noted(state: TrainingState, clip: float) -> None:
        clips.append(clip)
        optimiser_step(state, clip)

    monkeypatch.setattr("training.epoch.optimiser_step", noted)
    run(options, vocabulary, Plan(epochs=1, accumulate=4, grad_clip=1.5))
    assert clips == [1.5, 1.5]  # 48 pairs in 6 batches of 8: after the fourth and after the last


@dataclass(frozen=True)
class Asking(World):
    """One of two ranks, which notes after which batches it asked the other, and hears nothing."""

    size: int = 2
    state: TrainingState | None = None
    asked: list[int] = field(default_factory=list)

    def any(self, flag: bool) -> bool:
        assert self.state is not None
        self.asked.append(self.state.batch)
        return False

    def union(self, values: list[int]) -> list[int]:
        return values


@pytest.mark.parametrize(
    ("accumulate", "print_freq", "expected"), [(1, 2, [2, 4, 6]), (2, 3, [4, 6]), (4, 3, [4, 6]), (4, 5, [6])]
)
def test_ranks_ask_each_other_at_the_first_step_after_each_report(
    tiny: tuple[Options, Vocabulary], accumulate: int, print_freq: int, expected: list[int]
) -> None:
    options, vocabulary = tiny
    started = start(options, vocabulary)
    world = Asking(state=started[1])
    run(options, vocabulary, Plan(epochs=1, accumulate=accumulate, print_freq=print_freq), started, world)
    assert world.asked == expected  # of 6 batches


def test_no_report_is_passed_twice_or_missed() -> None:
    for accumulate in range(1, 8):
        for every in range(1, 8):
            steps = [batch for batch in range(1, 43) if batch % accumulate == 0 or batch == 42]
            reported = {next(step for step in steps if step >= place) for place in range(every, 43, every)}
            assert [step for step in steps if passes(step, accumulate, every)] == sorted(reported)


def gradient_of(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad.clone()


def test_accumulated_gradients_add_up(tiny: tuple[Options, Vocabulary]) -> None:
    options, vocabulary = tiny
    annotations = read_annotations(Path(options.dataset.folder), "train")
    media = Media.of(options, [annotations], CPU)
    model, state = start(options, vocabulary)
    model.eval()
    criterion = triplet_criterion(0.2, hardest=False)
    batches = list(train_loader(options, 0, vocabulary, annotations, media, CPU).epoch(0))[:2]
    weight = dict(model.named_parameters())["caption_encoder.projection.weight"]
    apart: list[Tensor] = []
    for batch in batches:
        state.optimizer.zero_grad()
        model.training_loss(batch, criterion)["loss"].backward()
        apart.append(gradient_of(weight))
    state.optimizer.zero_grad()
    for batch in batches:
        model.training_loss(batch, criterion)["loss"].backward()
    torch.testing.assert_close(gradient_of(weight), apart[0] + apart[1])


def test_meter_counts_pairs_and_waiting() -> None:
    meter = Meter()
    batch = Batch(caption_ids=torch.arange(4))
    for taken in meter.timed([batch, replace(batch, caption_ids=torch.arange(2))]):
        meter.add({"loss": torch.tensor(6.0)}, taken.items, taken.image_count)
    means = meter.means()
    assert means["loss"] == 2.0
    assert 0 <= means["data_wait_share"] <= 1
    assert means["images_per_second"] > 0


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    embeddings = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(embeddings.double())
    pairs = [float(unit[i] @ unit[j]) for i in range(6) for j in range(6) if i != j]
    assert mean_cosine(embeddings) == pytest.approx(sum(pairs) / 30)


def test_collapsed_embeddings_are_told(caplog: pytest.LogCaptureFixture) -> None:
    several = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    warn_of_collapse(several, several)
    assert caplog.messages == []
    warn_of_collapse(torch.ones(5, 4) * torch.arange(1, 6)[:, None], several)  # of other lengths, but one direction
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("all image embeddings are alike: the training has collapsed")
    warn_of_collapse(several[:1], several[:1])  # a single one is no collapse
    assert len(caplog.messages) == 1
