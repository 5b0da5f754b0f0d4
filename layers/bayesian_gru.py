"""The Bayesian GRU over a whole batch of captions, with a backward pass of its own.

Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks" (2016). Words are
packed: first the first word of every caption, then the second word of those that have one, and so on. Letters: B batch,
L words of the longest caption, W words of all captions, H state.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

GATES = 3  # reset, update, new
KEPT = 5  # state before the word, reset, update, new, U_n h
FROM_STATE = (0, 1, 3)  # rows of the gradients in `backward` that U_r h, U_z h and U_n h have


def packed_rows(batch_sizes: Sequence[int]) -> Tensor:
    """The caption of each packed word, [W], from the number of captions that have a first, second, ... word."""
    return torch.cat([torch.arange(size) for size in (*batch_sizes, 0)])


def final_states(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], masks: Sequence[Tensor] | None, batch_sizes: Sequence[int]
) -> Tensor:
    """State of each caption after its last word, starting from zero.

    r = sig(x_r + U_r h), z = sig(x_z + U_z h), n = tanh(x_n + r * U_n h), h' = (1 - z) * n + z * h, where each U sees
    its own masked h.

    Args:
        inputs: what the words give to the gates reset, update and new: 3 tensors [W, H]. Their type is that of all
            matrix products; everything else is at least float32.
        weights: U_r, U_z, U_n [H, H].
        masks: dropout masks of the state for the three gates [B, H], held over all words; None: no dropout.
        batch_sizes: captions that have a first, second, ... word: L numbers, falling, B first.

    Returns:
        [B, H], float32 or wider.
    """
    return cast(Tensor, _FinalStates.apply(list(batch_sizes), *inputs, *weights, *(masks or ())))


class _FinalStates(torch.autograd.Function):
    """Forward keeps what the gates of all words were; backward then needs one product per weight for all of them."""

    @staticmethod
    def forward(ctx: Any, batch_sizes: list[int], *tensors: Tensor) -> Tensor:
        """See `final_states`."""
        inputs, weights, masks = tensors[:GATES], tensors[GATES : 2 * GATES], tensors[2 * GATES :]
        product_type = inputs[0].dtype
        state_type = torch.promote_types(product_type, torch.float32)
        maps = [weight.to(product_type).T for weight in weights]  # once per batch, not once per word
        words, width = inputs[0].shape
        state = inputs[0].new_zeros(batch_sizes[0], width, dtype=state_type)  # [B, H]
        kept = state.new_empty(KEPT, words if any(ctx.needs_input_grad) else 0, width)
        for start, end in spans(batch_sizes):
            before = state[: end - start]  # [n, H]
            reset, update, new = (gate[start:end].to(state_type) for gate in inputs)
            from_state = torch.zeros_like(before)
            if start > 0:  # before the first word the state is zero
                for_reset, for_update, for_new = masked(before, masks, product_type)
                reset, update = reset + for_reset @ maps[0], update + for_update @ maps[1]
                from_state = (for_new @ maps[2]).to(state_type)
            reset, update = reset.sigmoid(), update.sigmoid()
            new = torch.addcmul(new, reset, from_state).tanh()
            if kept.shape[1]:
                torch.stack([before, reset, update, new, from_state], out=kept[:, start:end])
            before.copy_(torch.lerp(new, before, update))
        ctx.batch_sizes, ctx.product_type = batch_sizes, product_type
        ctx.save_for_backward(kept, *weights, *masks)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `inputs` and `weights`; None for `batch_sizes` and `masks`."""
        kept, *tensors = ctx.saved_tensors
        weights, masks = tensors[:GATES], tensors[GATES:]
        maps = [weight.to(ctx.product_type) for weight in weights]
        gradient = gradient.clone()  # [B, H], of each caption's state before the words already passed
        # Gradients of what is added up in reset, update and new, and of U_n h.
        sums = kept.new_empty(GATES + 1, *kept.shape[1:], dtype=ctx.product_type)  # [4, W, H]
        for start, end in reversed(spans(ctx.batch_sizes)):
            before, reset, update, new, from_state = kept[:, start:end]
            later = gradient[: end - start]  # [n, H]
            to_new = later * (1 - update) * (1 - new * new)
            sums[0, start:end] = to_new * from_state * reset * (1 - reset)
            sums[1, start:end] = later * (before - new) * update * (1 - update)
            sums[2, start:end] = to_new
            sums[3, start:end] = to_new * reset
            if start > 0:
                later *= update
                for gate, place in enumerate(FROM_STATE):
                    through = sums[place, start:end] @ maps[gate]
                    later += through * masks[gate][: end - start] if masks else through
        # The first words saw no state.
        first = ctx.batch_sizes[0]
        rows = packed_rows(ctx.batch_sizes[1:]).to(kept.device)
        seen = masked(kept[0, first:], [mask[rows] for mask in masks], ctx.product_type)  # 3 x [W - B, H]
        products = (sums[place, first:].T @ seen[gate] for gate, place in enumerate(FROM_STATE))
        of_weights = [product.to(weight.dtype) for product, weight in zip(products, weights, strict=True)]
        return None, *sums[:GATES], *of_weights, *(None for _ in masks)


def spans(batch_sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First and last + 1 of the packed words at each position."""
    return list(pairwise([0, *accumulate(batch_sizes)]))


def masked(states: Tensor, masks: Sequence[Tensor], product_type: torch.dtype) -> list[Tensor]:
    """What each gate sees of the states [n, H] of the first n rows of its mask."""
    if not masks:
        return [states.to(product_type)] * GATES
    return [(states * mask[: len(states)]).to(product_type) for mask in masks]
