"""Copies to a GPU that overlap with its work: pinned memory, and the next batch on a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from batches.batch import Batch

T = TypeVar("T")


def pinned(pixels: Tensor, device: torch.device) -> Tensor:
    """The same pixels where a GPU can fetch them by itself; unchanged for the CPU and for what is on the GPU."""
    return pixels.pin_memory() if device.type == "cuda" and pixels.device.type == "cpu" else pixels


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each handed out when the next one has been made."""
    held: list[T] = []
    for item in items:
        yield from held
        held = [item]
    yield from held


def overlapped(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; on a GPU the next one is copied and augmented while the present one is trained."""
    return _overlapped_on_gpu(batches, device) if device.type == "cuda" else batches


def _overlapped_on_gpu(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # which has filled the store
    for batch, ready in one_ahead(_made_on(stream, batches)):
        present = torch.cuda.current_stream(device)
        present.wait_event(ready)
        for value in vars(batch).values():
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(present)  # its memory is free again only when this stream is done with it
        yield batch


def _made_on(stream: torch.cuda.Stream, batches: Iterator[Batch]) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Batches made on a stream, each with what tells that it is there."""
    while True:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
            ready = stream.record_event()
        if batch is None:
            return
        yield batch, ready
