"""Connections to a page's server: so many of one client, and none that does nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from archive.page_limits import Refusals, client_of

MOST_CONNECTIONS = 1024
MOST_OF_ONE = 256
"""Of one client: some forty browsers open six each."""
SILENT_SECONDS = 5
"""A connection on which nothing happens for so long is closed at the next look, within twice as long."""
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nRetry-After: 10\r\n"
    b'\r\n{"detail": "too many connections; try again soon."}'  # its end is the connection's
)


class Connection(H11Protocol):
    """A connection that is closed when its client sends no whole request, or does not read what it is answered.

    uvicorn closes only those whose request before was answered, and refuses newcomers for everybody at once.
    """

    refusals = Refusals()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or refuse it where there are too many."""
        super().connection_made(transport)
        self._before: object = None
        self._watching = self.loop.call_later(SILENT_SECONDS, self._watch)
        mine = client_of({"client": self.client})
        ours = [other for other in self.connections if isinstance(other, Connection)]
        count = sum(client_of({"client": other.client}) == mine for other in ours)
        if len(self.connections) > MOST_CONNECTIONS or (count > MOST_OF_ONE and not self._is_proxy()):
            self.refusals.note(f"{mine}: refused, it has {count} connections of {len(self.connections)} in all")
            transport.write(BUSY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._watching.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Close it when the client alone can go on, and has not since the look before."""
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        state = (self.cycle, unsent) if unsent or not answering else None
        if state is not None and state == self._before:
            self.transport.abort()
            return
        self._before = state
        self._watching = self.loop.call_later(SILENT_SECONDS, self._watch)

    def _is_proxy(self) -> bool:
        """Whether it is a reverse proxy's, which speaks for many clients."""
        trusted = self.config.forwarded_allow_ips
        return self.config.proxy_headers and self.client is not None and self.client[0] in (trusted or ())
