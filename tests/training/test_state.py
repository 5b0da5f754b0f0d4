"""Random states of a run: those of its own GPU, wherever it goes on. There is no GPU here: torch.cuda is a stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.state import random_states, set_random_states

CUDA = [torch.device("cuda", number) for number in range(3)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Three GPUs by number, whose random states are 0, 1 and 2."""
    states = {number: torch.tensor([number], dtype=torch.uint8) for number in range(3)}

    def read(device: torch.device = CUDA[0]) -> Tensor:
        return states[device.index].clone()

    def write(state: Tensor, device: torch.device = CUDA[0]) -> None:
        states[device.index] = state.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "get_rng_state", read)
    monkeypatch.setattr(torch.cuda, "set_rng_state", write)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [read(device) for device in CUDA])
    return states


def test_the_state_of_the_runs_own_gpu_goes_with_it(gpus: dict[int, Tensor]) -> None:
    stored = random_states(CUDA[1])
    assert [state.tolist() for state in stored["random_cuda"]] == [[1]]
    set_random_states(stored, CUDA[2])
    assert {number: int(state) for number, state in gpus.items()} == {0: 0, 1: 1, 2: 1}


def test_the_cpu_alone_is_restored_on_a_cpu(gpus: dict[int, Tensor]) -> None:
    stored = random_states(torch.device("cpu"))
    assert stored["random_cuda"] == []
    expected = torch.rand(3)
    set_random_states(stored | {"random_cuda": [torch.tensor([9], dtype=torch.uint8)]}, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert {number: int(state) for number, state in gpus.items()} == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([7], ""),
        ([7, 7], ""),
        ([7, 8], "holds the random states of 2 GPUs, not which one was the run's: on cuda:2 dropout"),
        ([7, 8, 8], "holds the random states of 3 GPUs"),
        ([], "holds none of a GPU"),
    ],
)
def test_lists_of_earlier_versions_are_taken_where_they_are_clear(
    gpus: dict[int, Tensor], caplog: pytest.LogCaptureFixture, stored: list[int], message: str
) -> None:
    states = {
        "random_cpu": torch.get_rng_state(),
        "random_cuda": [torch.tensor([n], dtype=torch.uint8) for n in stored],
    }
    set_random_states(states, CUDA[2])
    assert int(gpus[2]) == (2 if message else 7)
    assert (int(gpus[0]), int(gpus[1])) == (0, 1)
    assert message in caplog.text
    assert bool(caplog.text) == bool(message)
