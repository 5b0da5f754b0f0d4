"""What happens to a model: it is fitted, encodes a data set once, and is scored.

Letters: B batch, N images, M captions, U different captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metrics
from batches.augmentation import right_angle_views
from batches.batch import Batch
from dataloader import EvaluationLoader
from layers.base import RetrievalModel
from layers.folding import folded
from metrics import limits
from option.dataset import Views
from runtime.distributed import ALONE, World
from runtime.interruption import Watch
from training.epoch import Loader, Plan, ScalarWriter, autocast, check_finite, passes, train_epoch
from training.state import TrainingState
from utils import InputError, logger

Verb = Callable[[Batch], Tensor]
"""An encoder of a model: B items -> [B, D]."""
ALIKE = 1 - 1e-6
"""Mean cosine above which embeddings tell nothing apart."""
SCORES_PER_BLOCK = 2**26
"""Entries of the score matrix that evaluation holds at once: 256 MiB of float32."""


def fit(
    state: TrainingState,
    loader: Loader,
    losses_of: Callable[[Batch], dict[str, Tensor]],
    validate: Callable[[], dict[str, float]],
    plan: Plan,
    device: torch.device,
    writer: ScalarWriter,
    save: Callable[[TrainingState, bool], None],
    world: World = ALONE,
) -> None:
    """Train to the end of the plan, validating and saving on the way.

    A state that was saved inside an epoch goes on there. SIGTERM and SIGINT are obeyed between two steps.

    Args:
        state: where to start from; changed in place.
        loader: what to train on.
        losses_of: losses of a batch, summed over its items: key `loss`, and its parts to log.
        validate: scores of the model as it is, among them `plan.select`.
        plan: how long and how.
        device: where the model is.
        writer: gets all scalars.
        save: called after each epoch with whether it is the best so far, and inside an epoch every
            `plan.save_minutes` and after a signal.
        world: the ranks that train together, and must save and stop together: inside an epoch they ask each other
            where the log is written, every `plan.print_freq` batches, or at the next step of the optimiser.

    Raises:
        InputError: the loss or an embedding is not finite; what was saved before stays.
        RunFault: a step does not fit into memory.
        Interrupted: a signal asked to stop; the state is saved.
    """
    watch = Watch(plan.save_minutes)

    def keep(is_best: bool) -> None:
        heard = world.union(watch.received)
        writer.flush()  # first, so that no curve lacks a step that a resumed run won't repeat
        save(state, is_best)
        watch.saved(heard)

    def between_steps() -> None:
        if world.size > 1 and not passes(state.batch, plan.accumulate, plan.print_freq):
            return
        if world.any(watch.due):
            check_finite(state.meter.means()["loss"], state.epoch + 1, state.batch, state.meter.recent)
            keep(False)

    with watch.signals():
        while state.epoch < plan.epochs and not 0 < plan.patience <= state.validations_since_best:
            figures = train_epoch(state, loader, losses_of, plan, device, writer, between_steps)
            if device.type == "cuda":
                used = torch.cuda.max_memory_allocated(device) / 2**30
                writer.add_scalar("train/gpu_memory_gib", used, (state.epoch + 1) * len(loader))
            is_best = _validate(state, figures, validate, plan, writer, len(loader))
            _log_epoch(state.history[-1], plan, is_best)
            keep(is_best)
    if state.epoch < plan.epochs:
        logger.info("Stopped early: %s has not risen for %d validations.", plan.select, plan.patience)


def _validate(
    state: TrainingState,
    figures: dict[str, float],
    validate: Callable[[], dict[str, float]],
    plan: Plan,
    writer: ScalarWriter,
    steps: int,
) -> bool:
    """End an epoch of `steps`: score it where its turn has come, and enter it into the history.

    Returns:
        Whether it is the best so far.
    """
    epoch, is_best = state.epoch + 1, False
    if epoch % plan.eval_step == 0 or epoch == plan.epochs:
        scores = validate()
        is_best = scores[plan.select] > state.best
        if is_best:
            state.best, state.best_epoch = scores[plan.select], epoch
        state.validations_since_best = 0 if is_best else state.validations_since_best + 1
        figures = figures | {f"val_{name}": value for name, value in scores.items()}
        for name, value in scores.items():
            writer.add_scalar(f"val/{name}", value, epoch * steps)  # on the axis of the training
    state.end_epoch(figures)
    return is_best


def _log_epoch(row: dict[str, float], plan: Plan, is_best: bool) -> None:
    score = row.get(f"val_{plan.select}")
    notes = ", ".join(["best"] * is_best + [f"chance {plan.chance:.2f}"] * (plan.chance > 0))
    validation = "" if score is None else f", val {plan.select} {score:.2f}{f' ({notes})' if notes else ''}"
    logger.info(
        "epoch %d/%d: loss %.4f%s, lr %.2e, %.0f images/s, %.0f s",
        row["epoch"],
        plan.epochs,
        row["loss"],
        validation,
        row["lr"],
        row["images_per_second"],
        row["seconds"],
    )


def evaluate(
    model: RetrievalModel,
    loader: EvaluationLoader,
    device: torch.device,
    amp: str = "off",
    watch: Callable[[metrics.Blocks], metrics.Blocks] = lambda blocks: blocks,
) -> dict[str, float]:
    """Retrieval scores of a data set, see `metrics.ranks.task_recalls`; every item is encoded once, pairs in blocks.

    `watch` is given the scores of images and captions, and gives them back to be ranked.
    """
    images, texts = encode(model, loader, device, amp)
    warn_of_collapse(images, texts)
    blocks = watch(score_source(model, images, texts, loader.caption_row))
    return metrics.task_recalls(rank_tasks(model, loader, images, blocks, device, amp))


def chance_of(loader: EvaluationLoader) -> dict[str, float]:
    """What a random order would score, under the names of `evaluate`."""
    return (limits.chance if loader.audio is None else limits.source_chance)(loader.text_image)


def warn_of_collapse(images: Tensor, texts: Tensor) -> None:
    """Say it where all images [N, D], or all captions [U, D], have one and the same embedding."""
    for kind, embeddings in (("image", images), ("caption", texts)):
        if len(embeddings) > 1 and mean_cosine(embeddings) > ALIKE:
            logger.warning(
                "all %s embeddings are alike: the training has collapsed, and scores are those of chance. Try a lower "
                "optim.lr, optim.warmup_steps, optim.loss=contrastive, or optim.max_violation=false.",
                kind,
            )


def mean_cosine(embeddings: Tensor) -> float:
    """Mean cosine of two different embeddings of [N, D], N at least 2."""
    count = len(embeddings)
    total = F.normalize(embeddings.double()).sum(dim=0).square().sum()
    return float((total - count) / (count * (count - 1)))


def encode(
    model: RetrievalModel, loader: EvaluationLoader, device: torch.device, amp: str = "off", views: Views = "one"
) -> tuple[Tensor, Tensor]:
    """Embed each image once, or in each of its views, and each different caption once.

    Returns:
        Images [N, D] and different captions [U, D], float32, on the device.

    Raises:
        InputError: an embedding is not finite.
    """
    images = encode_images(model, loader, device, amp, views)
    join = partial(loader.join, total=len(loader.distinct.lengths))
    return images, embed(model, model.encode_text, loader.caption_batches(), "caption", device, amp, join)


def encode_images(
    model: RetrievalModel, loader: EvaluationLoader, device: torch.device, amp: str = "off", views: Views = "one"
) -> Tensor:
    """The images [N, D] of `encode` alone."""
    join = partial(loader.join, total=len(loader.image_ids))
    verb_of = partial(image_verb, views=views)
    return embed(*with_folded_norms(model, verb_of, loader.image_batches()), "image", device, amp, join)


def image_verb(model: RetrievalModel, views: Views) -> Verb:
    """The model's image encoder, or the mean of what it gives for all `right_angle_views`."""
    if views == "one":
        return model.encode_image

    def mean(batch: Batch) -> Tensor:
        if batch.image_features is not None:
            parts = [replace(batch, image_features=view) for view in batch.image_features.unbind(dim=1)]
        else:
            parts = [replace(batch, images=view) for view in right_angle_views(batch.need("images"))]
        return torch.stack([model.encode_image(part) for part in parts]).mean(dim=0)

    return mean


def with_folded_norms(
    model: RetrievalModel, verb_of: Callable[[RetrievalModel], Verb], batches: Iterable[Batch]
) -> tuple[RetrievalModel, Verb, Iterable[Batch]]:
    """The first three arguments of `embed` for a copy of the model as it is now, batch norms folded into convolutions.

    Args:
        model: brought into evaluation mode, else left as it is.
        verb_of: from a model to the encoder in question.
        batches: at least one, whose first item tries the copy out.
    """
    remaining = iter(batches)
    first = next(remaining)
    quick = folded(model.eval(), lambda network: verb_of(network)(first.first()))
    return quick, verb_of(quick), chain([first], remaining)


@torch.no_grad()
def embed(
    model: nn.Module,
    verb: Verb,
    batches: Iterable[Batch],
    kind: str,
    device: torch.device,
    amp: str,
    join: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Embeddings [*, D] of some batches by one of the model's verbs, float32, on the device.

    Args:
        model: brought into evaluation mode.
        verb: one of its encoders.
        batches: those of this rank.
        kind: of item, for the message.
        device: where the model is.
        amp: mixed precision.
        join: makes those of all ranks from those of this one; None: this one has all batches.

    Raises:
        InputError: an embedding is not finite; the message says which `kind` it is of.
    """
    model.eval()
    with autocast(device, amp):
        embeddings = joined([verb(batch).float() for batch in batches])
    if join is not None:
        embeddings = join(embeddings)
    broken = int((~embeddings.flatten(1).isfinite().all(dim=1)).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(embeddings)} {kind} embeddings are not finite: the weights have diverged. Train "
            "again with a lower optim.lr or optim.grad_clip=2, or score with optim.amp=off."
        )
    return embeddings


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The rows of some batches; where a row is tokens [L, H], with zeros behind them up to the longest."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) if part.ndim == 3 else part for part in parts])


def score_source(model: RetrievalModel, images: Tensor, texts: Tensor, caption_row: Tensor) -> metrics.Blocks:
    """What `metrics` reads scores from: a matrix of one block is computed once and held, a larger one streams anew.

    Args:
        model: any registered model.
        images: [N, D].
        texts: [U, D], each different caption once.
        caption_row: [M] row of each caption in `texts`.
    """
    rows = SCORES_PER_BLOCK // len(caption_row)
    if rows < len(images):
        # While a block is looked at, the next one is made, from parts of its size.
        return partial(score_blocks, model, images, texts, caption_row, max(1, rows // 4))
    whole = list(score_blocks(model, images, texts, caption_row, rows))
    return lambda: whole


@torch.no_grad()
def score_blocks(
    model: RetrievalModel, images: Tensor, texts: Tensor, caption_row: Tensor, rows: int
) -> Iterator[Tensor]:
    """The score matrix in blocks of `rows` images.

    Word-for-word equal captions share one embedding, so that their scores are equal to the last bit and the tie rule of
    `metrics.ranks` sees them. For the other arguments see `score_source`.

    Yields:
        [rows, M], in the order of the images; the last block may be smaller.
    """
    order: Tensor | None = caption_row.to(texts.device)
    if len(texts) == len(caption_row):  # all different: their embeddings are brought into order once, not their scores
        texts, order = texts[order], None
    for start in range(0, len(images), rows):
        scores = model.score(images[start : start + rows], texts)
        yield scores if order is None else scores.index_select(1, order)


def rank_tasks(
    model: RetrievalModel,
    loader: EvaluationLoader,
    images: Tensor,
    blocks: metrics.Blocks,
    device: torch.device,
    amp: str = "off",
    views: Views = "one",
) -> metrics.Tasks:
    """Ranks of images and captions; of images and audio, or second views, for a model that uses them.

    Args:
        model: any registered model.
        loader: of the data set.
        images: [N, D], its images.
        blocks: scores of images and captions, see `score_source`.
        device: where the model is.
        amp: mixed precision of what is still to be encoded.
        views: of each image, as `images` are made of.
    """
    text_image = loader.text_image.to(device)
    audio = view = None
    if model.uses_audio:
        join = partial(loader.join, total=loader.spectrograms)
        quick = with_folded_norms(model, attrgetter("encode_audio"), loader.audio_batches())
        spoken = embed(*quick, "audio", device, amp, join)
        heard = score_source(model, images, spoken, loader.caption_audio)
        audio = metrics.rank_blocks(heard, text_image)
    if model.uses_second_view:
        join = partial(loader.join, total=len(images))
        verb_of = partial(image_verb, views=views)
        others = embed(*with_folded_norms(model, verb_of, loader.view_batches()), "image", device, amp, join)
        own = torch.arange(len(images), device=device)
        view = metrics.rank_blocks(score_source(model, images, others, own), own)
    return metrics.Tasks(metrics.rank_blocks(blocks, text_image), audio, view)
