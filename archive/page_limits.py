"""What keeps a page's server in bounds: who asks, how often, and a strict browser."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from utils import logger

SECONDS_BETWEEN_LINES = 10
MOST_CLIENTS = 10_000
"""Clients that are remembered; the one that has been silent for longest is forgotten first."""
STRICT = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every answer: nothing from elsewhere is loaded, and no other site may show or read what is here."""


class Refusals:
    """Tells the log that requests are refused: a line at most every `SECONDS_BETWEEN_LINES`, which counts the rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing was refused yet; `clock` gives seconds."""
        self._clock = clock
        self._next = -math.inf
        self._untold = 0

    def note(self, text: str) -> None:
        """Count a refusal, and tell it if it is time."""
        if self._clock() < self._next:
            self._untold += 1
            return
        logger.warning("%s%s", text, f" ({self._untold} more since the last such line)" if self._untold else "")
        self._next, self._untold = self._clock() + SECONDS_BETWEEN_LINES, 0


class RateLimit:
    """A token bucket for each client: so many requests a minute on average, as many of them at once."""

    def __init__(
        self, per_minute: int, clients: int = MOST_CLIENTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with all buckets full.

        Args:
            per_minute: requests, 1 or more.
            clients: that are remembered.
            clock: seconds.
        """
        self.per_minute = per_minute
        self._most = clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when counted

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)

    def wait(self, client: str) -> float:
        """Seconds until a client may ask again; 0: its request is counted and may go on."""
        now = self._clock()
        tokens, counted = self._buckets.pop(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - counted) * self.per_minute / 60)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0 if allowed else (1 - tokens) * 60 / self.per_minute


def client_of(scope: Scope) -> str:
    """Who asks: the address, of IPv6 the first 64 bits, which are what one household or server is given."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


class Guard:
    """ASGI middleware: adds the headers `STRICT`, and refuses requests beyond a client's rate with status 429."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, RateLimit]) -> None:
        """Stand before an app.

        Args:
            app: what is guarded.
            limits: start of a path -> the limit of requests to it.
        """
        self.app = app
        self.limits = limits
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in STRICT.items():
                    headers[name] = value
            await send(message)

        limit = next((limit for start, limit in self.limits.items() if scope["path"].startswith(start)), None)
        seconds = math.ceil(limit.wait(client_of(scope))) if limit is not None else 0
        if limit is not None and seconds:
            self._refusals.note(f"{client_of(scope)}: refused, more than {limit.per_minute} requests a minute (--rate)")
            text = f"too many requests: {limit.per_minute} a minute are answered. Try again in {seconds} s."
            refusal = JSONResponse({"detail": text}, 429, {"Retry-After": str(seconds)})
            await refusal(scope, receive, send_strictly)
        else:
            await self.app(scope, receive, send_strictly)
