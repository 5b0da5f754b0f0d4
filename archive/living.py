"""The index that a running server answers from: one that changed is taken up between two requests."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from archive.scenes import Scenes
from archive.searcher import Searcher
from archive.store import NameRows
from archive.thumbnails import Thumbnails
from utils import InputError, logger

SECONDS_BETWEEN_LOOKS = 1.0
PATIENCE = 10
"""How many times as long as an index takes to open is waited until the next one is opened: it may still grow."""
EARLIER = 4
"""Earlier states whose images are still handed out, to pages that show an earlier answer."""


@dataclass(frozen=True, eq=False)
class Opened:
    """One state of an index, with all that answers are made from.

    Attributes:
        searcher: of the index.
        scenes: classes of its images.
        thumbnails: the images for a browser.
        rows: rows by name, where a vector store finds names.
        version: part of the images' addresses, so that a browser does not show those of another state from its memory.
    """

    searcher: Searcher
    scenes: Scenes
    thumbnails: Thumbnails
    rows: NameRows | None
    version: str

    @classmethod
    def of(cls, searcher: Searcher, scenes: Scenes) -> Opened:
        """Make the rest.

        Raises:
            InputError: the names of the index can't be read.
        """
        index = searcher.index
        identity = f"{searcher.images}\n{index.manifest.shards_sha256}"
        return cls(
            searcher,
            scenes,
            Thumbnails(index, searcher.images, searcher.encoder.options.dataset.rule),
            NameRows(index) if searcher.kind == "store" else None,
            hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12],
        )


class Living:
    """The states of an index; a request keeps the one that it began with.

    Attributes:
        now: the latest state that could be opened.
    """

    def __init__(self, searcher: Searcher, find_scenes: Callable[[Searcher], Scenes]) -> None:
        """Begin with an index that is open.

        Args:
            searcher: of it.
            find_scenes: the classes of its images, looked for anew in each state.

        Raises:
            InputError: names or classes can't be read.
        """
        self._find_scenes = find_scenes
        self._earlier: deque[Opened] = deque(maxlen=EARLIER)
        self._told = ""
        self.now = Opened.of(searcher, find_scenes(searcher))

    def of(self, version: str | None) -> Opened | None:
        """The state of a version that is not long past; None: it is. Without a version: the latest."""
        states = (self.now, *self._earlier)
        return next((state for state in states if version in (None, state.version)), None)

    def take_up(self) -> bool:
        """Open the index again if it changed; returns whether there is a new state.

        One that can't be opened, such as one whose vector index is not built yet, is told once and left alone.
        """
        if not self.now.searcher.index.changed():
            return False
        try:
            searcher = self.now.searcher.reopened()
            state = Opened.of(searcher, self._find_scenes(searcher))
        except InputError as fault:
            if str(fault) != self._told:
                logger.warning("the index changed and can't be taken up yet: %s", fault)
            self._told = str(fault)
            return False
        self._earlier.appendleft(self.now)
        self.now, self._told = state, ""
        logger.info("the index changed: %d images now.", len(searcher))
        return True

    async def watch(self, where: Executor) -> None:
        """Take up every change, without end."""
        while True:
            started = time.monotonic()
            taken = await asyncio.get_running_loop().run_in_executor(where, self.take_up)
            patience = PATIENCE * (time.monotonic() - started) if taken else 0
            await asyncio.sleep(max(SECONDS_BETWEEN_LOOKS, patience))

    @asynccontextmanager
    async def watched(self, where: Executor) -> AsyncIterator[None]:
        """`watch` as long as the context lasts."""
        task = asyncio.create_task(self.watch(where))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
