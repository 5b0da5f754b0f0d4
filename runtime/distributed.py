"""Several processes that train one model, as torchrun starts them: who they are and what they tell each other.

Letters: W ranks, N rows of all ranks, D numbers per row.
"""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from runtime.devices import choose_device
from runtime.machine import first_words
from utils import InputError, RunFault, logger

T = TypeVar("T")
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables by which torchrun tells a rank its place; clusters set some of them for purposes of their own."""
TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others in a step."""
PREPARATION = timedelta(hours=6)
"""How long it waits in `World.in_turn`, where images are prepared."""
GRACE_SECONDS = 5.0
"""How much later than rank 0 others say what is wrong: where it is the same on all, torchrun ends them before."""
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "wait timeout")
"""What torch's messages hold when another rank has gone."""


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's place among them; by default it is alone.

    Attributes:
        rank: this process, 0..size - 1; rank 0 alone writes.
        size: W, over all machines.
        local_rank: this process on its machine.
        local_size: processes on this machine.
        patient: group for waits of hours.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, with their gradient, in the order of the ranks.

        The loss must be the same on all ranks, and the gradients of the weights their mean over the ranks, as
        `DistributedDataParallel` takes it: both together then give the gradients of one process with all rows.

        Args:
            rows: [n, D], n = counts[rank].
            counts: rows of each rank.

        Returns:
            [N, D], float32 at least.
        """
        if self.size == 1:
            return rows
        # What is scored is scored in float32, so that little is saved by less than that.
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return cast(Tensor, _Gather.apply(exact, tuple(counts), self.rank))

    def weave(self, rows: Tensor, chunk: int, total: int) -> Tensor:
        """Rows in chunks that were dealt out in turn, brought back into order.

        Args:
            rows: [n, D] those of this rank: the chunks rank, rank + W, ... of `chunk` rows, the very last one may be
                shorter. A rank without any gives rows that do not count.
            chunk: rows per chunk.
            total: N.

        Returns:
            [N, D].
        """
        if self.size == 1:
            return rows
        rounds = -(-total // (chunk * self.size))
        dealt = torch.stack(_all_gather(rows, rounds * chunk, self.size))  # [W, rounds * chunk, D]
        return dealt.unflatten(1, (rounds, chunk)).transpose(0, 1).flatten(0, 2)[:total]

    def agree(self, value: T) -> T:
        """What rank 0 has, a plain value, on all ranks."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def collect(self, value: T) -> list[T]:
        """What each rank has, by rank."""
        held: list[Any] = [value]
        if self.size > 1:
            held = [None] * self.size
            dist.all_gather_object(held, value)
        return held

    def union(self, values: list[int]) -> list[int]:
        """What any rank has; of a process alone the very same list."""
        return values if self.size == 1 else sorted({value for own in self.collect(values) for value in own})

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; no device waits for that."""
        if self.size == 1:
            return flag
        found = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.patient)
        return bool(found)

    def share_buffers(self, module: nn.Module) -> None:
        """Take over rank 0's running statistics."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let rank 0 run what follows, then a rank of each other machine, then the others: they find its files."""
        turn = 0 if self.leads else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self._wait()
        yield
        for _ in range(2 - turn):
            self._wait()

    def _wait(self) -> None:
        if self.size > 1:
            dist.barrier(self.patient)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the ranks; the forward pass must reach all of its parameters."""
        if self.size == 1:
            return module
        # Kernels of 1 x 1 lie in memory alike, whichever layout their strides name.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(module)


ALONE = World()


class _Gather(torch.autograd.Function):
    """See `World.gather`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...], rank: int) -> Tensor:
        start = sum(counts[:rank])
        ctx.own, ctx.size = slice(start, start + counts[rank]), len(counts)
        parts = _all_gather(rows, max(counts), len(counts))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # The encoders' gradients of all ranks must be summed, and are averaged.
        return ctx.size * gradients[0][ctx.own], None, None


def _all_gather(rows: Tensor, length: int, size: int) -> list[Tensor]:
    """The rows [n, D] of each rank, padded with zeros to `length`."""
    padded = rows.new_zeros(length, *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(received, padded)
    return received


@contextmanager
def session(device_name: str | None) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun has started; without torchrun this process is alone.

    Args:
        device_name: what `--device` says.

    Yields:
        The world and this rank's device.

    Raises:
        InputError: no such device, fewer GPUs than ranks, or an environment that tells half of what torchrun tells.
        RunFault: another rank has gone.
    """
    if ranks() == 1:
        yield ALONE, choose_device(device_name)
        return
    rank, size, local_rank, local_size = told(PLACE, "train.py")
    if rank > 0:
        _be_quiet()
    try:
        device = _local_device(device_name, local_rank, local_size)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        patient = dist.new_group(backend="gloo", timeout=PREPARATION)
        yield World(rank, size, local_rank, local_size, patient), device
    except InputError as fault:
        if rank > 0:
            time.sleep(GRACE_SECONDS)
        raise type(fault)(f"rank {rank} of {size}: {fault}") from fault
    except RuntimeError as fault:
        if not any(word in str(fault) for word in LOST):
            raise
        raise RunFault(
            f"rank {rank} of {size} lost another rank ({first_words(str(fault))}), whose message stands above or on "
            "its machine. Mend that; what was saved stays, and the same command goes on from it."
        ) from fault
    dist.destroy_process_group()


def ranks() -> int:
    """Processes that the environment speaks of, 1 where it speaks of none.

    Raises:
        InputError: it does so with something other than a number.
    """
    return environment_number("WORLD_SIZE") or 1


def told(names: Sequence[str], script: str) -> list[int]:
    """What an environment that speaks of several ranks says of this one.

    Args:
        names: variables, of `PLACE`.
        script: the entry point, for the message.

    Raises:
        InputError: it lacks one, or RANK is no number below WORLD_SIZE.
    """
    numbers = [environment_number(name) for name in names]
    missing = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if missing:
        raise InputError(
            f"the environment has WORLD_SIZE={ranks()} but no {' and no '.join(missing)}: something other than "
            "torchrun has set it, a cluster perhaps. Start several ranks with torchrun (docs/distributed.md), or one "
            f"process without it: env -u WORLD_SIZE python {script} ..."
        )
    rank = environment_number("RANK") or 0
    if rank >= ranks():
        raise InputError(f"the environment has RANK={rank}, expected 0 to {ranks() - 1} (WORLD_SIZE={ranks()}).")
    return [number for number in numbers if number is not None]


def environment_number(name: str) -> int | None:
    """A variable of the environment, None where it is missing or empty.

    Raises:
        InputError: it is no whole number from 0.
    """
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise InputError(
            f"the environment has {name}={text}, expected a number as torchrun sets it: unset it (env -u {name} python "
            "...), or start several ranks with torchrun (docs/distributed.md)."
        )
    return int(text) if text else None


def refuse_torchrun(script: str) -> None:
    """For entry points that run in one process.

    Raises:
        InputError: the environment speaks of several.
    """
    if ranks() == 1:
        return
    if all(environment_number(name) is not None for name in PLACE):
        raise InputError(f"{script} runs in one process: start it with python instead of torchrun (train.py alone).")
    raise InputError(
        f"{script} runs in one process, and the environment has WORLD_SIZE={ranks()}, set by a cluster perhaps: start "
        f"it once, without it (env -u WORLD_SIZE python {script} ...)."
    )


def _local_device(name: str | None, local_rank: int, local_size: int) -> torch.device:
    """A device of its own for each rank of a machine; all share the CPU."""
    device = choose_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"--device {name}: with torchrun each rank takes the GPU of its number; leave the number out.")
    count = torch.cuda.device_count()
    if local_size > count:
        raise InputError(
            f"torchrun started {local_size} ranks on a machine that shows {count} CUDA devices: start as many ranks "
            f"(--nproc_per_node={count}), or train on the CPU (--device cpu)."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class _NoTerminal(io.TextIOWrapper):
    """A stream that progress bars take for a file, where they do not show."""

    def isatty(self) -> bool:
        """Never."""
        return False


def _be_quiet() -> None:
    """Leave the console to rank 0, but for errors."""
    logger.setLevel("ERROR")
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.isatty():
        sys.stderr = _NoTerminal(sys.stderr.detach(), line_buffering=True)
