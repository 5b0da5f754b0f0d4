"""The Bayesian GRU over a batch: against autograd through a loop over words, and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layers.bayesian_gru import final_states, packed_rows

WIDTH = 7
BATCH_SIZES = [4, 4, 3, 1, 1]
ONE_WORD = [3]


def arguments(batch_sizes: list[int], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], ...]:
    """Inputs, weights and masks, drawn alike for every type."""
    draw = torch.Generator().manual_seed(0)
    words = sum(batch_sizes)
    inputs = [torch.randn(words, WIDTH, generator=draw, dtype=torch.float64).to(dtype) for _ in range(3)]
    weights = [0.5 * torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64) for _ in range(3)]
    kept = [torch.rand(batch_sizes[0], WIDTH, generator=draw) < 0.75 for _ in range(3)]
    wide = torch.promote_types(dtype, torch.float32)
    masks = [mask.to(wide) / 0.75 for mask in kept]
    for tensor in (*inputs, *weights):
        tensor.requires_grad_()
    return inputs, [weight.detach().to(wide).requires_grad_() for weight in weights], masks


def looped(inputs: list[Tensor], weights: list[Tensor], masks: list[Tensor] | None, batch_sizes: list[int]) -> Tensor:
    """Caption by caption, word by word, differentiated by autograd."""
    rows = packed_rows(batch_sizes)
    finals = []
    for caption in range(batch_sizes[0]):
        state = torch.zeros(WIDTH, dtype=weights[0].dtype)
        seen = [torch.ones(WIDTH)] * 3 if masks is None else [mask[caption] for mask in masks]
        for word in (rows == caption).nonzero().flatten():
            reset, update, new = (gate[word] for gate in inputs)
            u_reset, u_update, u_new = (
                weight @ (state * mask.to(state)) for weight, mask in zip(weights, seen, strict=True)
            )
            update = torch.sigmoid(update + u_update)
            state = (1 - update) * torch.tanh(new + torch.sigmoid(reset + u_reset) * u_new) + update * state
        finals.append(state)
    return torch.stack(finals)


def test_rows_of_packed_words() -> None:
    assert packed_rows([3, 2, 2, 1]).tolist() == [0, 1, 2, 0, 1, 0, 1, 0]
    assert packed_rows([]).tolist() == []


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("batch_sizes", [BATCH_SIZES, ONE_WORD])
def test_states_and_gradients_equal_those_of_a_loop(batch_sizes: list[int], with_masks: bool) -> None:
    inputs, weights, masks = arguments(batch_sizes)
    given = masks if with_masks else None
    states, expected = (run(inputs, weights, given, batch_sizes) for run in (final_states, looped))
    torch.testing.assert_close(states, expected, atol=1e-14, rtol=0)
    slope = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=states.dtype)
    of_states = torch.autograd.grad(states, (*inputs, *weights), slope)
    of_loop = torch.autograd.grad(expected, (*inputs, *weights), slope, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(of_states, of_loop, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


@pytest.mark.parametrize("with_masks", [True, False])
def test_gradients_equal_differences(with_masks: bool) -> None:
    inputs, weights, masks = arguments([3, 2, 1])
    given = masks if with_masks else None
    assert torch.autograd.gradcheck(
        lambda *tensors: final_states(tensors[:3], tensors[3:], given, [3, 2, 1]), (*inputs, *weights)
    )


def test_bfloat16_products_keep_states_and_weight_gradients_in_float32() -> None:
    inputs, weights, masks = arguments(BATCH_SIZES, torch.bfloat16)
    states = final_states(inputs, weights, masks, BATCH_SIZES)
    states.square().sum().backward()
    assert states.dtype == weights[0].grad.dtype == torch.float32  # type: ignore[union-attr]
    assert inputs[0].grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    exact_inputs = [value.detach().float().requires_grad_() for value in inputs]
    exact_weights = [value.detach().requires_grad_() for value in weights]
    exact = final_states(exact_inputs, exact_weights, masks, BATCH_SIZES)
    exact.square().sum().backward()
    torch.testing.assert_close(states, exact, atol=0.02, rtol=0)  # bfloat16 has 8 bits
    for ours, theirs in zip((*inputs, *weights), (*exact_inputs, *exact_weights), strict=True):
        given, expected = ours.grad.float(), theirs.grad  # type: ignore[union-attr]
        assert (given - expected).norm() < 0.03 * expected.norm()  # type: ignore[operator, union-attr]


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    inputs, weights, masks = arguments(BATCH_SIZES)
    with torch.no_grad():
        assert final_states(inputs, weights, masks, BATCH_SIZES).grad_fn is None
