"""Who is next at a page's server: turns that are shared out fairly, sentences that are searched with together, threads.

All of it lives in one event loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from archive.page_limits import Refusals

MOST_WAITING = 1024
MOST_WAITING_OF_ONE = 256
"""Requests of a kind that wait for their turn, in all and of one client; as many connections as it may have."""

POLITE = 5  # what threads with less urgent work add to their niceness

Item = TypeVar("Item")
Result = TypeVar("Result")


class Turns:
    """Lets a few requests at a time do something; of those that wait, the client with the fewest turns is next."""

    def __init__(self, at_once: int, of_one: int, what: str) -> None:
        """Let nobody in yet.

        Args:
            at_once: turns.
            of_one: that a client may have.
            what: is done, for messages.
        """
        self._free = at_once
        self._of_one = of_one
        self._what = what
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._count = 0  # of all that wait
        self._refusals = Refusals()

    @asynccontextmanager
    async def taken(self, client: str) -> AsyncIterator[None]:
        """A turn as long as the context lasts, once it has come.

        Raises:
            HTTPException: too many wait already, status 503.
        """
        await self._come(client)
        try:
            yield
        finally:
            self._leave(client)

    async def _come(self, client: str) -> None:
        queue = self._waiting.get(client, ())
        if self._count >= MOST_WAITING or len(queue) >= MOST_WAITING_OF_ONE:
            self._refusals.note(f"{client}: refused, {len(queue)} of its {self._what} and {self._count} in all wait")
            raise HTTPException(503, f"too many {self._what} wait already; try again.", {"Retry-After": "5"})
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._count += 1
        self._share_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._drop(client, turn)
            else:  # it came at the same moment
                self._leave(client)
            raise

    def _leave(self, client: str) -> None:
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        self._share_out()

    def _share_out(self) -> None:
        """Give the free turns to those that wait."""
        while self._free:
            allowed = [client for client in self._waiting if self._held[client] < self._of_one]
            if not allowed:
                return
            client = min(allowed, key=self._held.__getitem__)  # of equals the one that had none for longest
            turn = self._waiting[client][0]
            self._drop(client, turn)
            if client in self._waiting:
                self._waiting.move_to_end(client)
            if not turn.done():
                turn.set_result(None)
                self._free -= 1
                self._held[client] += 1

    def _drop(self, client: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(client, deque())
        if turn in queue:
            queue.remove(turn)
            self._count -= 1
            if not queue:
                del self._waiting[client]


class Batches(Generic[Item, Result]):
    """Work on what came in while the work before was under way, together, in a thread."""

    def __init__(
        self, work: Callable[[Hashable, Sequence[Item]], Sequence[Result]], most: int, where: Executor
    ) -> None:
        """Start nothing yet.

        Args:
            work: a kind and items of it -> a result for each.
            most: items that are worked on together.
            where: runs it.
        """
        self._work = work
        self._most = most
        self._where = where
        self._waiting: list[tuple[Hashable, Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def result(self, kind: Hashable, item: Item) -> Result:
        """What the work makes of an item; only items of equal kind are worked on together."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def idle(self, longest: float) -> None:
        """Wait until nothing is under way, at most so many seconds: what is less urgent stands back so."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=longest)

    async def _run(self) -> None:
        while self._waiting:
            kind = self._waiting[0][0]
            batch = [entry for entry in self._waiting if entry[0] == kind][: self._most]
            self._waiting = [entry for entry in self._waiting if entry not in batch]
            await self._finish(kind, batch)
        self._running = None

    async def _finish(self, kind: Hashable, batch: Sequence[tuple[Hashable, Item, asyncio.Future[Result]]]) -> None:
        items, loop = [item for _, item, _ in batch], asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._where, self._work, kind, items)
        except Exception as fault:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(fault)
            return
        for (_, _, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)


async def still_there(request: Request) -> None:
    """Spare the work for a client that went away while it waited for its turn; of a request without a body.

    Raises:
        HTTPException: it did.
    """
    if await request.is_disconnected():
        raise HTTPException(400, "the sender went away.")


def stand_back() -> None:
    """Let a thread take what sentences leave of the processors, where the system can tell threads apart."""
    if sys.platform == "linux":
        os.nice(POLITE)


async def in_thread(threads: ThreadPoolExecutor, work: Callable[..., Result], *arguments: object) -> Result:
    """What some work gives, done in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)
