"""What keeps a GPU busy, as far as a machine without one can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from batches.batch import Batch
from batches.prefetch import one_ahead, overlapped, pinned
from layers import build_model
from option import Options
from option.optim import Optim
from runs.models import start_state
from tests.criteria import triplet_criterion
from tests.layers.test_layers import random_batch
from tests.training.test_engine import Silent
from training.epoch import Plan, train_epoch
from training.learner import compile_encoders
from training.state import Meter
from utils import InputError
from vocab import Vocabulary

CPU = torch.device("cpu")


def counted(count: int, made: list[int]) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_next_one_is_made_before_one_is_handed_out(count: int) -> None:
    made: list[int] = []
    seen = []
    for number in one_ahead(counted(count, made)):
        assert len(made) == min(number + 2, count)
        seen.append(number)
    assert seen == list(range(count))


def test_a_fault_comes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("unreadable")

    with pytest.raises(InputError, match="unreadable"):
        list(one_ahead(broken()))


def test_on_the_cpu_nothing_is_pinned_or_made_ahead() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert pinned(pixels, CPU) is pixels
    batches = iter([Batch(images=pixels)])
    assert overlapped(batches, CPU) is batches


class Weight(nn.Module):
    """One number to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


class TenBatches:
    """A loader."""

    def __len__(self) -> int:
        return 10

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        return iter([Batch(caption_ids=torch.arange(4))] * 10)


def test_losses_are_read_at_the_steps_that_report_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    steps: list[int] = []
    means = Meter.means

    def noted(meter: Meter) -> dict[str, float]:
        reads.append(len(steps))
        return means(meter)

    monkeypatch.setattr(Meter, "means", noted)
    model = Weight()
    state = start_state(model, [{"params": [model.weight], "lr": 0.1}], Optim(), CPU)

    def losses_of(batch: Batch) -> dict[str, Tensor]:
        steps.append(len(steps))
        return {"loss": model.weight.square()}

    train_epoch(state, TenBatches(), losses_of, Plan(epochs=1, print_freq=4), CPU, Silent())
    assert reads == [4, 8, 10, 10]  # a read waits for the device


def test_compiled_encoders_learn_the_same(
    tiny_options: Callable[..., Options], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    options = tiny_options("AMFMN", {"seq2vec.dropout": 0.0})
    torch.manual_seed(0)
    model = build_model(options, vocabulary)
    names = list(model.state_dict())
    criterion, batch = triplet_criterion(0.2, hardest=False), random_batch(4)
    gradients = []
    for compiled in (False, True):
        if compiled:
            compile_encoders(model, backend="eager")
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        model.zero_grad()
        model.training_loss(batch, criterion)["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert list(model.state_dict()) == names
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
