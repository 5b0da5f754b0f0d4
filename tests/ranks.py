"""Ranks of a distributed run as forked processes: cheaper than torchrun, which starts an interpreter for each."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

WAIT_SECONDS = 240.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_ranks(task: Callable[..., Any], size: int, *arguments: object) -> list[Any]:
    """Run a function once per rank, under the environment that torchrun gives.

    Args:
        task: called with `arguments` in each rank; `runtime.distributed.session` finds the others, once.
        size: how many ranks.
        arguments: for all of them.

    Returns:
        By rank: what it returned (tensors and plain values), or the text of its exception behind "raised ".
    """
    context = multiprocessing.get_context("fork")
    ends, processes, port = [], [], free_port()
    for rank in range(size):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_be_rank, args=(task, rank, size, port, theirs, arguments))
        process.start()
        theirs.close()
        ends.append(mine)
        processes.append(process)
    try:
        return [_read(end) if end.poll(WAIT_SECONDS) else "no answer" for end in ends]
    finally:
        for process in processes:
            process.join(WAIT_SECONDS)
            process.kill()


def _read(end: Connection) -> Any:
    return torch.load(io.BytesIO(end.recv_bytes()), weights_only=True)


def _be_rank(
    task: Callable[..., Any], rank: int, size: int, port: int, answer: Connection, arguments: tuple[object, ...]
) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
    try:
        found = task(*arguments)
    except BaseException as fault:
        traceback.print_exc()
        found = f"raised {type(fault).__name__}: {fault}"
    # As bytes: a pipe would hand tensors over in shared memory, which ends with this process.
    written = io.BytesIO()
    torch.save(found, written)
    answer.send_bytes(written.getvalue())
    answer.close()
    os._exit(0)  # without the parent's exit handlers
