"""Many clients at one address ask the page of an index without a pause: python -m bench.load INDEX.

The server is the command that people start, in a process of its own. The clients are Locust's (extra `load`), each with
a connection that stays: some send sentences, some upload images of the archive, some fetch thumbnails.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from archive.index_folder import IndexFolder
from bench.arguments import none_or_more, positive
from bench.machine import description
from bench.table import machine_line, show
from runtime.arguments import add_device
from runtime.devices import choose_device
from runtime.entry_point import run_entry_point
from utils import InputError, import_extra

ROOT = Path(__file__).parents[1]
SENTENCES = tuple(
    f"{count} {thing} {place}"
    for count in ("many", "two", "some white", "a row of", "several")
    for thing in ("planes", "boats", "houses", "cars", "trees", "tanks")
    for place in ("near a road", "on the water", "beside a building", "in a green field")
)
PROGRESS = 5  # seconds between two looks at the server's memory


@dataclass
class Load:
    """What came of the requests of a kind.

    Attributes:
        milliseconds: of those that were answered.
        refused: message -> how often.
    """

    milliseconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def row(self, kind: str, seconds: int) -> list[str]:
        """Of the table."""
        lost, done = self.refused.total(), len(self.milliseconds)
        if done < 2:
            return [kind, str(done + lost), f"{done / seconds:.1f}", "", "", "", "", str(lost)]
        hundredths = statistics.quantiles(self.milliseconds, n=100, method="inclusive")
        shown = (f"{number:.0f}" for number in (*(hundredths[place] for place in (49, 94, 98)), max(self.milliseconds)))
        return [kind, str(done + lost), f"{done / seconds:.1f}", *shown, str(lost)]


@contextmanager
def server(given: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The page's command and the address that it prints; ended with the context."""
    command = [sys.executable, "search.py", "serve", str(given.folder.resolve()), "--port", "0"]
    for flag in ("device", "rate"):
        if (value := getattr(given, flag)) is not None:
            command += [f"--{flag}", str(value)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise InputError("the server did not start; it has said why.")
            yield process, line.partition(" at ")[2].split(" ")[0]
        finally:
            process.terminate()


def clients(locust: Any, url: str, images: Sequence[Path], given: argparse.Namespace) -> list[type[Any]]:
    """Locust's users of the three kinds."""
    chance = random.Random(0)

    class Text(locust.FastHttpUser):
        host, fixed_count = url, given.text

        @locust.task
        def ask(self) -> None:
            self.client.get("/api/search", params={"q": chance.choice(SENTENCES)}, name="text")

    class Upload(locust.FastHttpUser):
        host, fixed_count = url, given.uploads

        @locust.task
        def send(self) -> None:
            path = chance.choice(images)
            self.client.post("/api/search/image", files={"image": (path.name, path.read_bytes())}, name="upload")

    class Thumbnail(locust.FastHttpUser):
        host, fixed_count = url, given.thumbnails

        @locust.task
        def fetch(self) -> None:
            self.client.get(f"/thumbnail/{chance.randrange(len(images))}", name="thumbnail")

    return [Text, Upload, Thumbnail]


def burden(
    process: subprocess.Popen[str], url: str, images: Sequence[Path], given: argparse.Namespace
) -> tuple[dict[str, Load], list[float]]:
    """Let all clients ask for the given seconds.

    Returns:
        What came of each kind, and the server's memory in MiB, every `PROGRESS` seconds from the first on.
    """
    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # its fast client needs no patched standard library
    locust = import_extra("locust", "the clients are Locust's", "load")
    import gevent
    import psutil
    from locust.env import Environment

    loads = {"text": Load(), "upload": Load(), "thumbnail": Load()}

    def note(name: str, response_time: float, exception: Exception | None, **more: Any) -> None:
        if exception is None:
            loads[name].milliseconds.append(response_time)
        else:
            loads[name].refused[str(exception)] += 1

    environment = Environment(user_classes=clients(locust, url, images, given))
    environment.events.request.add_listener(note)
    runner = environment.create_local_runner()
    count = given.text + given.uploads + given.thumbnails
    runner.start(count, spawn_rate=count)
    watched, memory = psutil.Process(process.pid), []
    for _ in range(max(1, given.seconds // PROGRESS)):
        gevent.sleep(min(PROGRESS, given.seconds))
        memory.append(watched.memory_info().rss / 2**20)
    runner.quit()
    return loads, memory


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description="Many clients ask the page of an index at once, without a pause."
    )
    parser.add_argument("folder", type=Path, metavar="INDEX")
    parser.add_argument("--seconds", type=positive, default=60)
    parser.add_argument(
        "--text", type=none_or_more, default=30, help="clients that send sentences (default %(default)s)"
    )
    parser.add_argument("--uploads", type=none_or_more, default=10, help="that upload images (default %(default)s)")
    parser.add_argument(
        "--thumbnails", type=none_or_more, default=10, help="that fetch thumbnails (default %(default)s)"
    )
    parser.add_argument("--rate", type=positive, help="as of serve, which refuses what is beyond")
    parser.add_argument("--json", type=Path, help="write all that was measured here, too")
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; the exit status is 1 where a request was refused or failed."""
    given = read_arguments(arguments)
    index = IndexFolder.open(given.folder)
    images = [index.manifest.images / name for name in index.names()]
    with server(given) as (process, url):
        loads, memory = burden(process, url, images, given)
    machine = description(choose_device(given.device), torch.get_num_threads())
    refused = [f"{kind}: {times} x {fault}" for kind, load in loads.items() for fault, times in load.refused.items()]
    growth = f"Memory of the server, MiB: {', '.join(f'{number:.0f}' for number in memory)} (every {PROGRESS} s)."
    count = given.text + given.uploads + given.thumbnails
    show(
        f"{count} clients at one address, {given.seconds} s, {len(images)} images",
        ["request", "sent", "answered a second", "median, ms", "p95, ms", "p99, ms", "longest, ms", "refused"],
        [load.row(kind, given.seconds) for kind, load in loads.items()],
        [growth, machine_line(machine), *refused],
        {
            "machine": machine,
            "memory_mib": memory,
            "milliseconds": {kind: load.milliseconds for kind, load in loads.items()},
            "refused": {kind: dict(load.refused) for kind, load in loads.items()},
        },
        given.json,
    )
    if refused:
        sys.exit(1)


if __name__ == "__main__":
    run_entry_point(main)
