"""Turns at the page's server: who is next, who is refused, and what is searched with together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from archive import turns
from archive.page_limits import SECONDS_BETWEEN_LINES, Refusals
from archive.turns import Batches, Turns


async def settled() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class Visitors:
    """Clients that take turns and say when they have one; each leaves when it is told to."""

    def __init__(self, places: Turns) -> None:
        self.turns = places
        self.inside: list[str] = []
        self.leaving: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, *names: str) -> None:
        """Come as the client of the name's first letter."""
        for name in names:
            self.leaving[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._visit(name))
            await settled()

    async def leave(self, name: str) -> None:
        self.leaving[name].set()
        await settled()

    async def _visit(self, name: str) -> None:
        async with self.turns.taken(name[0]):
            self.inside.append(name)
            try:
                await self.leaving[name].wait()
            finally:
                self.inside.remove(name)


class TestTurns:
    def run(self, story: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(story, 20))

    def test_those_with_the_fewest_turns_are_next(self) -> None:
        async def story() -> None:
            visitors = Visitors(Turns(2, 2, "visits"))
            await visitors.come("a1", "a2", "a3", "a4", "b1", "c1", "b2")
            assert visitors.inside == ["a1", "a2"]
            for leaving, inside in (
                ("a1", "a2 b1"),
                ("a2", "b1 a3"),
                ("b1", "a3 c1"),
                ("c1", "a3 b2"),
                ("a3", "b2 a4"),
            ):
                await visitors.leave(leaving)
                assert visitors.inside == inside.split()

        self.run(story())

    def test_no_client_has_all(self) -> None:
        async def story() -> None:
            visitors = Visitors(Turns(3, 2, "visits"))
            await visitors.come("a1", "a2", "a3")
            assert visitors.inside == ["a1", "a2"]
            await visitors.come("b1")
            assert visitors.inside == ["a1", "a2", "b1"]
            await visitors.leave("b1")
            assert visitors.inside == ["a1", "a2"]
            await visitors.leave("a2")
            assert visitors.inside == ["a1", "a3"]

        self.run(story())

    def test_so_many_wait(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr(turns, "MOST_WAITING", 3)
        monkeypatch.setattr(turns, "MOST_WAITING_OF_ONE", 2)

        async def story() -> None:
            visitors = Visitors(Turns(1, 1, "visits"))
            await visitors.come("a1", "a2", "a3", "b1")
            for name in ("a4", "b2"):
                with pytest.raises(HTTPException, match="too many visits wait already") as caught:
                    async with visitors.turns.taken(name[0]):
                        pass
                assert caught.value.status_code == 503
            assert caplog.text.count("a: refused, 2 of its visits and 3 in all wait") == 1
            await visitors.leave("a1")
            await visitors.come("b2")
            assert visitors.inside == ["a2"]
            await visitors.leave("a2")
            assert visitors.inside == ["b1"]

        self.run(story())

    @given(st.lists(st.tuples(st.sampled_from("clg"), st.integers(0, 11)), max_size=60), st.integers(1, 3))
    def test_whatever_happens_all_turns_come_back(self, steps: list[tuple[str, int]], of_one: int) -> None:
        """c: somebody comes, l: leaves, g: goes away, whether it had its turn or not."""

        async def story() -> None:
            visitors, count = Visitors(Turns(3, of_one, "visits")), 0
            for step, number in steps:
                names = list(visitors.tasks)
                if step == "c":
                    await visitors.come(f"{'abcd'[number % 4]}{(count := count + 1)}")
                elif names and step == "l":
                    await visitors.leave(names[number % len(names)])
                elif names:
                    visitors.tasks[names[number % len(names)]].cancel()
                    if number % 2:  # else together with what follows
                        await settled()
                held = [sum(name[0] == client for name in visitors.inside) for client in "abcd"]
                assert max(held) <= of_one
                assert sum(held) <= 3
            for event in visitors.leaving.values():
                event.set()
            await asyncio.gather(*visitors.tasks.values(), return_exceptions=True)
            last = Visitors(visitors.turns)
            await last.come("x1", "y1", "z1", "w1")
            assert last.inside == ["x1", "y1", "z1"]
            for task in last.tasks.values():
                task.cancel()

        self.run(story())


class TestBatches:
    def test_what_comes_in_meanwhile_is_done_together(self) -> None:
        done: list[tuple[Hashable, list[int]]] = []
        go_on = threading.Event()

        def work(kind: Hashable, items: Sequence[int]) -> list[int]:
            assert go_on.wait(20)
            done.append((kind, list(items)))
            if 13 in items:
                raise ValueError("13")
            return [item * item for item in items]

        async def story() -> list[Any]:
            with ThreadPoolExecutor(1) as threads:
                batches = Batches(work, 3, threads)
                asked = [("x", 1), ("x", 2), ("y", 3), ("x", 4), ("x", 5), ("x", 6), ("y", 13), ("z", 7)]
                tasks = []
                for kind, item in asked:
                    tasks.append(asyncio.create_task(batches.result(kind, item)))
                    await settled()
                tasks[4].cancel()
                go_on.set()
                return await asyncio.gather(*tasks, return_exceptions=True)

        found = asyncio.run(asyncio.wait_for(story(), 20))
        assert done == [("x", [1]), ("x", [2, 4, 5]), ("y", [3, 13]), ("x", [6]), ("z", [7])]
        assert [str(result) for result in found] == ["1", "4", "13", "16", "", "36", "13", "49"]

    def test_what_is_less_urgent_stands_back_for_a_while(self) -> None:
        go_on = threading.Event()

        def work(kind: Hashable, items: Sequence[int]) -> Sequence[int]:
            assert go_on.wait(20)
            return items

        async def story() -> list[bool]:
            with ThreadPoolExecutor(1) as threads:
                batches = Batches(work, 3, threads)
                await batches.idle(20)  # nothing is under way
                asked = asyncio.create_task(batches.result("x", 1))
                await settled()
                await batches.idle(0.01)
                waiting = asyncio.create_task(batches.idle(20))
                await settled()
                before = [asked.done(), waiting.done()]
                go_on.set()
                await waiting
                return [*before, asked.done()]

        assert asyncio.run(asyncio.wait_for(story(), 20)) == [False, False, True]


class TestRefusals:
    def test_a_line_counts_those_before_it(self, caplog: pytest.LogCaptureFixture) -> None:
        now = 0.0
        refusals = Refusals(lambda: now)
        for now in (0.0, 1.0, 2.0, SECONDS_BETWEEN_LINES + 0.5, 3 * SECONDS_BETWEEN_LINES):
            refusals.note(f"at {now}")
        assert caplog.messages == ["at 0.0", "at 10.5 (2 more since the last such line)", "at 30"]
