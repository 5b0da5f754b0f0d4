"""Steps that do not fit into memory: what would fit is tried and said, or every batch is worked off in parts.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batches.batch import OF_CAPTIONS, Batch
from batches.sampling import batches_of
from runtime.machine import first_words, is_out_of_memory
from training.state import TrainingState
from utils import RunFault, logger

FEWEST = 2
"""Items of a batch that batch norms can learn from."""
TRIES = 5
"""Halvings of the range in which the greatest batch that fits is looked for."""

Backward = Callable[[Batch], dict[str, Tensor]]


def backward_in_memory(state: TrainingState, batch: Batch, backward: Backward, on_oom: str) -> dict[str, Tensor]:
    """Losses and gradients of a batch, in as many parts as the run needs.

    Args:
        state: of the run; `parts` doubles where memory runs out and `on_oom` is `halve`.
        batch: B items.
        backward: adds the gradients of a batch to those that are there, and returns its summed losses.
        on_oom: `stop` or `halve`.

    Returns:
        The losses, summed over the parts, without their graphs.

    Raises:
        RunFault: memory ran out, and more parts are not allowed, or would be too small; says what would fit.
    """
    while True:
        try:
            return _sums([backward(part) for part in parts_of(batch, state.parts)])
        except (RuntimeError, MemoryError) as fault:
            if not is_out_of_memory(fault):
                raise
            reason = first_words(str(fault)) or type(fault).__name__
        # Only here are the exception and the tensors that its frames hold gone.
        _clear(state)
        if on_oom != "halve" or len(batch) < 2 * FEWEST * state.parts or _ranks() > 1:
            raise RunFault(_advice(state, batch, backward, reason))
        state.parts *= 2
        logger.warning(
            "Out of memory (%s). Each batch is now worked off in %d parts: one optimiser step as before, but a "
            "part has only its own %d items as negatives. Gradients that optim.accumulate had summed are lost once.",
            *(reason, state.parts, -(-len(batch) // state.parts)),
        )


def parts_of(batch: Batch, parts: int) -> list[Batch]:
    """A batch cut into parts of nearly equal size, each of two items or more; captions no longer than need be."""
    if parts == 1:
        return [batch]
    rows = batches_of(torch.arange(len(batch)), max(FEWEST, -(-len(batch) // parts)))
    return [_rows(batch, chunk) for chunk in rows]


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Consecutive images and their captions, or pairs, or items."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    captions = slice(start, stop) if batch.whole is None else batch.whole.captions_of(start, stop)
    chosen: dict[str, Any] = {
        name: value[captions if name in OF_CAPTIONS else slice(start, stop)]
        for name, value in vars(batch).items()
        if isinstance(value, Tensor)
    }
    chosen["share"] = (batch.share or 1.0) * len(rows) / len(batch)
    part = replace(batch, **chosen, whole=None if batch.whole is None else batch.whole.part(start, stop))
    if part.image_rows is not None:
        part = replace(part, image_rows=part.image_rows - start)
    if part.tokens is None or part.lengths is None:
        return part
    return replace(part, tokens=part.tokens[:, : int(part.lengths.max())])


def _sums(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name].detach() for part in losses]).sum() for name in losses[0]}


def _clear(state: TrainingState) -> None:
    """Free what the failed step left."""
    state.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ranks() -> int:
    """Processes that train together; one of them alone can neither halve its batch nor try others."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _advice(state: TrainingState, batch: Batch, backward: Backward, reason: str) -> str:
    size = -(-len(batch) // state.parts)
    fitting = 0 if _ranks() > 1 else greatest_fitting(state, batch, size, backward)
    found = f"A batch of {fitting} fits: --set dataset.batch_size={fitting}" if fitting else "Lower dataset.batch_size"
    return (
        f"out of memory in epoch {state.epoch + 1} at a batch of {size} ({reason}). {found}, which leaves fewer "
        "negatives to each item. Less memory is also taken by optim.amp=bf16, a smaller dataset.image_size and "
        "dataset.cache=disk; optim.on_oom=halve goes on with half the batch by itself."
    )


def greatest_fitting(state: TrainingState, batch: Batch, too_many: int, backward: Backward) -> int:
    """About the greatest batch that a step has memory for, found by trying; 0 where none was found.

    The run can't go on afterwards: its gradients and the statistics of its batch norms are no longer those of a step.

    Args:
        state: of the run.
        batch: where the items are taken from.
        too_many: items that did not fit.
        backward: see `backward_in_memory`.
    """
    fits = 0
    for _ in range(TRIES):
        size = (fits + too_many) // 2
        if size < FEWEST or size == fits:
            break
        if _fits(state, _rows(batch, torch.arange(size)), backward):
            fits = size
        else:
            too_many = size
        _clear(state)
    return fits


def _fits(state: TrainingState, batch: Batch, backward: Backward) -> bool:
    try:
        trained = [weight for group in state.optimizer.param_groups for weight in group["params"]]
        # Adam makes its two averages in its first step only.
        _held = [torch.empty_like(weight) for weight in trained if weight not in state.optimizer.state for _ in "12"]
        backward(batch)
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        return False
    return True
